//! Images from registries.
use super::ImageStore;
use crate::api::*;
use crate::error::Result;
impl ImageStore {
    pub async fn pull(&self, _: &str, _: Option<RegistryAuth>, _: Option<ProgressFn>, _: &[String]) -> Result<String> { unreachable!() }
}

//! `secret`: keys of a Secret as files, in memory.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::atomic::Payload;
use super::stats::{Measured, VolumeStats, tree};
use super::{Failure, Keep, Mounted, Source, VolumeContext, VolumeKind, Work, config_map};
use crate::kubelet::Kubelet;
use crate::view::{Secret, SecretSource};

pub(super) struct SecretVolume;

#[async_trait]
impl VolumeKind for SecretVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/secret"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.secret.is_some()
    }

    fn live(&self) -> bool {
        true
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let (context, volume) = (work.context, work.source.volume);
        let source = volume.secret.as_ref().ok_or("no secret source")?;
        let payload = payload(context, source, source.default_mode.unwrap_or(0o644)).await?;
        Ok(context.write(volume, self.plugin(), &payload, Keep::InMemory)?)
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        tree(&measured.path).await
    }
}

/// The files of a Secret source, also as a part of `projected`.
pub(super) async fn payload(
    context: &VolumeContext<'_>,
    source: &SecretSource,
    mode: u32,
) -> Result<Payload, String> {
    let optional = source.optional == Some(true);
    let secret: Secret = context.object(&yare_client::SECRETS, &source.secret_name, optional).await?;
    let mut data = Vec::with_capacity(secret.data.len());
    for (key, value) in secret.data {
        let bytes = STANDARD
            .decode(value)
            .map_err(|_| format!("secret {} key {key} is not base64", source.secret_name))?;
        data.push((key, bytes));
    }
    config_map::select(data, &source.items, mode, optional)
        .map_err(|key| format!("references non-existent secret key: {key}"))
}

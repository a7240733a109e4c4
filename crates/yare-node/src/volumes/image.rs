//! `image`: the files of an OCI image, read-only.

use async_trait::async_trait;
use serde::Deserialize;

use super::{Failure, Mounted, Source, VolumeKind, Work};

pub(super) struct ImageVolume;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ImageSource {
    reference: String,
    pull_policy: String,
}

#[async_trait]
impl VolumeKind for ImageVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/image"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.other.contains_key("image")
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let context = work.context;
        let source = work.source.volume.other.get("image").cloned().unwrap_or_default();
        let source: ImageSource = serde_json::from_value(source).map_err(|e| e.to_string())?;
        let runtime = &context.kubelet.runtime;
        let present = runtime.image(&source.reference).await.map_err(|e| e.to_string())?;
        match (source.pull_policy.as_str(), present) {
            ("Never", None) => {
                return Err(Failure::from(format!(
                    "Container image {:?} is not present with pull policy of Never",
                    source.reference
                )));
            }
            ("Always", _) | (_, None) => {
                runtime.pull_image(&source.reference, None, None).await.map_err(|e| e.to_string())?;
            }
            (_, Some(_)) => {}
        }
        Ok(Mounted { read_only: true, image: Some(source.reference), ..Mounted::default() })
    }
}

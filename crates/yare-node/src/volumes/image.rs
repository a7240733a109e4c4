//! `image`: the files of an OCI image, read-only.

use async_trait::async_trait;
use serde::Deserialize;

use super::{Failure, Mounted, Source, VolumeKind, Work};
use crate::images::{self, Wish};

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
        let policy = match source.pull_policy.as_str() {
            "" => "IfNotPresent",
            policy => policy,
        };
        let wish = Wish {
            kubelet: context.kubelet,
            mailbox: context.mailbox,
            pod: context.pod,
            container: None,
            image: &source.reference,
            policy,
            logins: context.logins,
        };
        images::ensure(&wish).await.map_err(|lacking| lacking.message)?;
        Ok(Mounted { read_only: true, image: Some(source.reference), ..Mounted::default() })
    }
}

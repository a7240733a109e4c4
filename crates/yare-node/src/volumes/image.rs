//! `image`: the files of an OCI image, read-only. The runtime mounts them; the image is pulled when containers start,
//! as theirs is ([`crate::images::volumes`]).

use async_trait::async_trait;

use super::{Failure, Mounted, Source, VolumeKind, Work};

pub(super) struct ImageVolume;

#[async_trait]
impl VolumeKind for ImageVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/image"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.image.is_some()
    }

    async fn set_up(&self, _: &mut Work<'_>) -> Result<Mounted, Failure> {
        Ok(Mounted { read_only: true, ..Mounted::default() })
    }
}

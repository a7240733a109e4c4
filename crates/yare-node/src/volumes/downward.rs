//! `downwardAPI`: what the pod may know of itself, as files.

use std::sync::Arc;

use async_trait::async_trait;

use super::atomic::{File, Payload};
use super::stats::{Measured, VolumeStats, tree};
use super::{Failure, Keep, Mounted, Source, VolumeContext, VolumeKind, Work};
use crate::kubelet::Kubelet;
use crate::pod::fields;
use crate::view::DownwardApi;

pub(super) struct DownwardVolume;

#[async_trait]
impl VolumeKind for DownwardVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/downward-api"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.downward_api.is_some()
    }

    fn live(&self) -> bool {
        true
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let (context, volume) = (work.context, work.source.volume);
        let source = volume.downward_api.as_ref().ok_or("no downwardAPI source")?;
        let payload = payload(context, source, source.default_mode.unwrap_or(0o644))?;
        Ok(context.write(volume, self.plugin(), &payload, Keep::InMemory)?)
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        tree(&measured.path).await
    }
}

/// The files of a downward API source, also as a part of `projected`.
pub(super) fn payload(
    context: &VolumeContext<'_>,
    source: &DownwardApi,
    mode: u32,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in &source.items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(context.pod, context.facts, &field.field_path)?,
            (None, Some(resource)) => fields::resource(context.pod, context.facts, resource, "")?,
            (None, None) => return Err(format!("downward API file {:?} names no field", item.path)),
        };
        let file = File { bytes: text.into_bytes(), mode: item.mode.unwrap_or(mode), uid: None };
        payload.insert(item.path.clone(), file);
    }
    Ok(payload)
}

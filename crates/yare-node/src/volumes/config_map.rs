//! `configMap`: keys of a ConfigMap as files.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::atomic::{File, Payload};
use super::stats::{Measured, VolumeStats, tree};
use super::{Failure, Keep, Mounted, Source, VolumeContext, VolumeKind, Work};
use crate::kubelet::Kubelet;
use crate::view::{ConfigMap, ConfigMapSource, KeyToPath};

pub(super) struct ConfigMapVolume;

#[async_trait]
impl VolumeKind for ConfigMapVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/configmap"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.config_map.is_some()
    }

    fn live(&self) -> bool {
        true
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let (context, volume) = (work.context, work.source.volume);
        let source = volume.config_map.as_ref().ok_or("no configMap source")?;
        let payload = payload(context, source, source.default_mode.unwrap_or(0o644)).await?;
        Ok(context.write(volume, self.plugin(), &payload, Keep::OnDisk)?)
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        tree(&measured.path).await
    }
}

/// The files of a ConfigMap source, also as a part of `projected`.
pub(super) async fn payload(
    context: &VolumeContext<'_>,
    source: &ConfigMapSource,
    mode: u32,
) -> Result<Payload, String> {
    let optional = source.optional == Some(true);
    let map: ConfigMap = context.object(&yare_client::CONFIG_MAPS, &source.name, optional).await?;
    let mut data: Vec<(String, Vec<u8>)> = map.data.into_iter().map(|(k, v)| (k, v.into_bytes())).collect();
    for (key, value) in map.binary_data {
        let bytes =
            STANDARD.decode(value).map_err(|e| format!("configmap {} key {key}: {e}", source.name))?;
        data.push((key, bytes));
    }
    select(data, &source.items, mode, optional)
        .map_err(|key| format!("configmap references non-existent config key: {key}"))
}

/// All keys under their own names, or the items under theirs. The error is a key that is missing.
pub(super) fn select(
    data: Vec<(String, Vec<u8>)>,
    items: &[KeyToPath],
    mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let file = |bytes: Vec<u8>, mode: u32| File { bytes, mode, uid: None };
    if items.is_empty() {
        return Ok(data.into_iter().map(|(key, bytes)| (key, file(bytes, mode))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.iter().find(|(key, _)| *key == item.key) {
            Some((_, bytes)) => {
                payload.insert(item.path.clone(), file(bytes.clone(), item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(payload)
}

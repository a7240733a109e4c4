//! `secret`: keys of a Secret as files, in memory.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::atomic::{self, Payload};
use super::{Mounted, VolumeContext, VolumeKind, config_map, ownership, secret_directory, token::Tokens};
use crate::objects::Missing;
use crate::view::{Secret, SecretSource, Volume};

pub(super) struct SecretVolume;

#[async_trait]
impl VolumeKind for SecretVolume {
    fn supports(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    fn live(&self) -> bool {
        true
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
        _: &mut Tokens,
    ) -> Result<Mounted, String> {
        let source = volume.secret.as_ref().ok_or("no secret source")?;
        let payload = payload(context, source, source.default_mode.unwrap_or(0o644)).await?;
        let dir = context.dirs.volume("kubernetes.io/secret", &volume.name);
        ownership::make_directory(&dir)?;
        secret_directory(&dir)?;
        atomic::write(&dir, &payload, ownership::fs_group(context.pod), context.kubelet.seams.now())?;
        Ok(Mounted { path: dir, ..Mounted::default() })
    }
}

/// The files of a Secret source, also as a part of `projected`.
pub(super) async fn payload(
    context: &VolumeContext<'_>,
    source: &SecretSource,
    mode: u32,
) -> Result<Payload, String> {
    let m = &context.pod.metadata;
    let optional = source.optional == Some(true);
    let found: Result<Secret, Missing> = context
        .kubelet
        .objects
        .get(&yare_client::SECRETS, &m.namespace, &source.secret_name, &m.uid, context.mailbox)
        .await;
    let secret = match found {
        Ok(secret) => secret,
        Err(Missing::NotFound(_)) if optional => Secret::default(),
        Err(missing) => return Err(missing.to_string()),
    };
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

//! `secret`: keys of a Secret as files, in memory.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::atomic::Payload;
use super::{Keep, Mounted, VolumeContext, VolumeKind, config_map, token::Tokens};
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
        context.write(volume, "kubernetes.io/secret", &payload, Keep::InMemory)
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

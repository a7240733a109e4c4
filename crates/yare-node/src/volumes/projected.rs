//! `projected`: several sources in one directory, service account tokens among them.

use async_trait::async_trait;

use super::atomic::{File, Payload};
use super::{
    Keep, Mounted, VolumeContext, VolumeKind, config_map, downward, ownership, secret, token, token::Tokens,
};
use crate::view::Volume;

pub(super) struct ProjectedVolume;

#[async_trait]
impl VolumeKind for ProjectedVolume {
    fn supports(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    fn live(&self) -> bool {
        true
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
        tokens: &mut Tokens,
    ) -> Result<Mounted, String> {
        let source = volume.projected.as_ref().ok_or("no projected source")?;
        let mode = source.default_mode.unwrap_or(0o644);
        let gid = ownership::fs_group(context.pod);
        let mut payload = Payload::new();
        let mut refresh_at = None;
        for part in &source.sources {
            if let Some(source) = &part.config_map {
                payload.extend(config_map::payload(context, source, mode).await?);
            } else if let Some(source) = &part.secret {
                payload.extend(secret::payload(context, source, mode).await?);
            } else if let Some(source) = &part.downward_api {
                payload.extend(downward::payload(context, source, mode)?);
            } else if let Some(source) = &part.service_account_token {
                let token = token::get(context, &volume.name, source, tokens).await?;
                refresh_at =
                    Some(refresh_at.map_or(token.refresh_at, |at: jiff::Timestamp| at.min(token.refresh_at)));
                // Only its owner may read a token, once it is known who that is.
                let uid = ownership::common_user(context.pod);
                let mode = if uid.is_some() || gid.is_some() { 0o600 } else { mode };
                payload.insert(source.path.clone(), File { bytes: token.text.into_bytes(), mode, uid });
            } else {
                return Err("this kind of projected source is not supported".to_owned());
            }
        }
        let mounted = context.write(volume, "kubernetes.io/projected", &payload, Keep::InMemory)?;
        Ok(Mounted { refresh_at, ..mounted })
    }
}

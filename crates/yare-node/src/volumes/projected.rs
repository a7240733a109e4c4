//! `projected`: several sources in one directory, service account tokens among them.

use std::sync::Arc;

use async_trait::async_trait;

use super::atomic::{File, Payload};
use super::stats::{Measured, VolumeStats, tree};
use super::{
    Failure, Keep, Mounted, Source, VolumeKind, Work, config_map, downward, ownership, secret, token,
};

use crate::kubelet::Kubelet;

pub(super) struct ProjectedVolume;

#[async_trait]
impl VolumeKind for ProjectedVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/projected"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.projected.is_some()
    }

    fn live(&self) -> bool {
        true
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let (context, volume) = (work.context, work.source.volume);
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
                let token =
                    token::get(context, &token::Wish::projected(&volume.name, source), &mut work.kept.tokens)
                        .await?;
                refresh_at =
                    Some(refresh_at.map_or(token.refresh_at, |at: jiff::Timestamp| at.min(token.refresh_at)));
                // Only its owner may read a token, once it is known who that is.
                let uid = ownership::common_user(context.pod);
                let mode = if uid.is_some() || gid.is_some() { 0o600 } else { mode };
                payload.insert(source.path.clone(), File { bytes: token.text.into_bytes(), mode, uid });
            } else {
                return Err("this kind of projected source is not supported".into());
            }
        }
        let mounted = context.write(volume, self.plugin(), &payload, Keep::InMemory)?;
        Ok(Mounted { refresh_at, ..mounted })
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        tree(&measured.path).await
    }
}

//! `projected`: several sources in one directory, service account tokens among them.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::atomic::{File, Payload};
use super::stats::{Measured, VolumeStats, tree};
use super::{
    Failure, Keep, Mounted, Source, VolumeKind, Work, config_map, downward, ownership, pod_certificate,
    secret, token, trust_bundle,
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
        let mut refresh_at: Option<Timestamp> = None;
        // Only its owner may read what proves who the pod is, once it is known who that is.
        let uid = ownership::common_user(context.pod);
        let own_mode = if uid.is_some() || gid.is_some() { 0o600 } else { mode };
        let private = |bytes: Vec<u8>| File { bytes, mode: own_mode, uid };
        for (index, part) in source.sources.iter().enumerate() {
            if let Some(source) = &part.config_map {
                payload.extend(config_map::payload(context, source, mode).await?);
            } else if let Some(source) = &part.secret {
                payload.extend(secret::payload(context, source, mode).await?);
            } else if let Some(source) = &part.downward_api {
                payload.extend(downward::payload(context, source, mode)?);
            } else if let Some(source) = &part.service_account_token {
                let wish = token::Wish::projected(&volume.name, source);
                let token = token::get(context, &wish, &mut work.kept.tokens).await?;
                sooner(&mut refresh_at, token.refresh_at);
                payload.insert(source.path.clone(), private(token.text.into_bytes()));
            } else if let Some(source) = &part.cluster_trust_bundle {
                let certificates = trust_bundle::certificates(context, source).await?;
                payload.insert(source.path.clone(), private(certificates));
            } else if let Some(source) = &part.pod_certificate {
                let kept = &mut work.kept.certificates;
                let bundle = pod_certificate::get(context, &volume.name, index, source, kept).await?;
                if let Some(at) = bundle.refresh_at {
                    sooner(&mut refresh_at, at);
                }
                let both = format!("{}{}", bundle.key, bundle.chain);
                for (path, text) in [
                    (&source.credential_bundle_path, both),
                    (&source.key_path, bundle.key),
                    (&source.certificate_chain_path, bundle.chain),
                ] {
                    if !path.is_empty() {
                        payload.insert(path.clone(), private(text.into_bytes()));
                    }
                }
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

fn sooner(at: &mut Option<Timestamp>, other: Timestamp) {
    *at = Some(at.map_or(other, |at| at.min(other)));
}

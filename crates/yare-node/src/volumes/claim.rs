//! `persistentVolumeClaim` and `ephemeral`: claims bound to volumes that live on the node itself.
//!
//! `hostPath` and `local` volumes are mounted; others need a driver that this node does not have.

use async_trait::async_trait;

use super::{Mounted, VolumeContext, VolumeKind, host_path, ownership, token::Tokens};
use crate::view::{Claim, HostPath, PersistentVolume, Volume};

pub(super) struct ClaimVolume;

#[async_trait]
impl VolumeKind for ClaimVolume {
    fn supports(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
        _: &mut Tokens,
    ) -> Result<Mounted, String> {
        let m = &context.pod.metadata;
        let (name, read_only) = match &volume.persistent_volume_claim {
            Some(source) => (source.claim_name.clone(), source.read_only),
            None => (format!("{}-{}", m.name, volume.name), false),
        };
        // Read, not watched: a node's identity may only get the claims of its pods and their volumes.
        let api = &context.kubelet.api;
        let claim: Claim = api
            .get(&format!("/api/v1/namespaces/{}/persistentvolumeclaims/{name}", m.namespace))
            .await
            .map_err(|e| {
                format!(
                    "error processing PVC {}/{name}: failed to fetch PVC from API server: {e}",
                    m.namespace
                )
            })?;
        if claim.spec.volume_name.is_empty() || claim.status.phase != "Bound" {
            return Err(format!("error processing PVC {}/{name}: PVC is not bound", m.namespace));
        }
        let bound: PersistentVolume = api
            .get(&format!("/api/v1/persistentvolumes/{}", claim.spec.volume_name))
            .await
            .map_err(|e| e.to_string())?;
        let source = match (&bound.spec.host_path, &bound.spec.local) {
            (Some(host), _) => host.clone(),
            // A local volume must exist: its path is what ties it to this node.
            (None, Some(local)) => HostPath { path: local.path.clone(), kind: Some("Directory".to_owned()) },
            (None, None) => {
                return Err(format!(
                    "persistent volume {} is of a kind this node cannot mount",
                    claim.spec.volume_name
                ));
            }
        };
        host_path::prepare(&source)?;
        let path = std::path::PathBuf::from(&source.path);
        if bound.spec.local.is_some() && !read_only {
            let on_mismatch = context
                .pod
                .spec
                .security_context
                .as_ref()
                .is_some_and(|s| s.fs_group_change_policy.as_deref() == Some("OnRootMismatch"));
            ownership::apply(&path, ownership::fs_group(context.pod), on_mismatch)?;
        }
        Ok(Mounted { path, read_only, ..Mounted::default() })
    }
}

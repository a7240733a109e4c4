//! What a pod's volume is made from: its own source, or the volume that its claim is bound to.

use std::sync::Arc;
use std::time::Duration;

use super::{Failure, VolumeContext};
use crate::error::Error;
use crate::pod::admission::term_matches;
use crate::view::{Claim, CsiInline, CsiSource, HostPath, Iscsi, Nfs, PersistentVolume, Pod, Volume};

/// The finalizer that keeps a claim while pods use it.
const PROTECTION: &str = "kubernetes.io/pvc-protection";
/// A group that may use a volume, as its annotation says.
const GID_ANNOTATION: &str = "pv.beta.kubernetes.io/gid";

/// A claim, and the volume it is bound to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bound {
    pub(crate) claim: Claim,
    pub(crate) volume: PersistentVolume,
    /// The pod wants it read-only.
    pub(crate) read_only: bool,
}

/// A volume of a pod with what it is made from.
#[derive(Clone)]
pub(crate) struct Source<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) bound: Option<Arc<Bound>>,
}

impl Source<'_> {
    /// The name under which it is kept: the PersistentVolume's, or its own in the pod.
    pub(crate) fn name(&self) -> &str {
        self.bound.as_ref().map_or(&self.volume.name, |b| &b.volume.metadata.name)
    }

    /// Whether containers get its device instead of its files.
    pub(crate) fn is_block(&self) -> bool {
        self.bound.as_ref().is_some_and(|b| b.volume.spec.volume_mode.as_deref() == Some("Block"))
    }

    /// The access mode drivers are told: the first, or the usual one.
    pub(crate) fn access_mode(&self) -> &str {
        let first = self.bound.as_ref().and_then(|b| b.volume.spec.access_modes.first());
        first.map_or("ReadWriteOnce", String::as_str)
    }

    /// Whether one pod alone may use it.
    pub(crate) fn is_for_one_pod(&self) -> bool {
        self.bound.as_ref().is_some_and(|b| b.volume.spec.access_modes == ["ReadWriteOncePod"])
    }

    /// The pod wants it read-only.
    pub(crate) fn read_only(&self) -> bool {
        self.bound.as_ref().is_some_and(|b| b.read_only)
    }

    /// Mount options of a PersistentVolume.
    pub(crate) fn mount_options(&self) -> &[String] {
        self.bound.as_ref().map_or(&[], |b| &b.volume.spec.mount_options)
    }

    pub(crate) fn host_path(&self) -> Option<&HostPath> {
        match &self.bound {
            Some(bound) => bound.volume.spec.host_path.as_ref(),
            None => self.volume.host_path.as_ref(),
        }
    }

    pub(crate) fn nfs(&self) -> Option<&Nfs> {
        match &self.bound {
            Some(bound) => bound.volume.spec.nfs.as_ref(),
            None => self.volume.nfs.as_ref(),
        }
    }

    pub(crate) fn iscsi(&self) -> Option<&Iscsi> {
        match &self.bound {
            Some(bound) => bound.volume.spec.iscsi.as_ref(),
            None => self.volume.iscsi.as_ref(),
        }
    }

    pub(crate) fn csi(&self) -> Option<&CsiSource> {
        self.bound.as_ref().and_then(|b| b.volume.spec.csi.as_ref())
    }

    pub(crate) fn csi_inline(&self) -> Option<&CsiInline> {
        match self.bound {
            Some(_) => None,
            None => self.volume.csi.as_ref(),
        }
    }

    /// The group that the PersistentVolume's annotation gives to its users.
    pub(crate) fn gid(&self) -> Option<u32> {
        self.bound.as_ref()?.volume.metadata.annotations.get(GID_ANNOTATION)?.parse().ok()
    }
}

/// The names of the volumes that a pod's containers mount, and of those whose devices they get.
pub(super) struct Uses<'a> {
    mounts: Vec<&'a str>,
    devices: Vec<&'a str>,
}

impl<'a> Uses<'a> {
    pub(super) fn of(pod: &'a Pod) -> Self {
        let mut uses = Uses { mounts: Vec::new(), devices: Vec::new() };
        for container in pod.all_containers() {
            uses.mounts.extend(container.volume_mounts.iter().map(|m| m.name.as_str()));
            uses.devices.extend(container.volume_devices.iter().map(|d| d.name.as_str()));
            let files = container.env.iter().filter_map(|e| e.value_from.as_ref()?.file_key_ref.as_ref());
            uses.mounts.extend(files.map(|f| f.volume_name.as_str()));
        }
        uses
    }

    pub(super) fn any(&self, name: &str) -> bool {
        self.mounts.contains(&name) || self.devices.contains(&name)
    }
}

/// The claim that a volume means: its name, whether it is to be read-only, and whether the pod brought it.
fn claimed(pod: &Pod, volume: &Volume) -> Option<(String, bool, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some((source.claim_name.clone(), source.read_only, false)),
        (None, Some(_)) => Some((format!("{}-{}", pod.metadata.name, volume.name), false, true)),
        (None, None) => None,
    }
}

/// When a claim that is not bound yet is read again, and at the last of which its pod is told. The binder writes
/// the claim's volume first and its phase second, and a pod may be placed on a node in between.
const UNBOUND_AGAIN: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(100),
    Duration::from_millis(150),
];

/// Follows a volume's claim, if it has one. Read, not watched: a node's identity may only get the claims of its
/// pods and their volumes.
pub(super) async fn resolve(
    context: &VolumeContext<'_>,
    volume: &Volume,
    uses: &Uses<'_>,
) -> Result<Option<Arc<Bound>>, Failure> {
    for wait in UNBOUND_AGAIN {
        match follow(context, volume, uses).await {
            Err(failure) if failure.is_unbound() => tokio::time::sleep(wait).await,
            outcome => return outcome,
        }
    }
    follow(context, volume, uses).await
}

async fn follow(
    context: &VolumeContext<'_>,
    volume: &Volume,
    uses: &Uses<'_>,
) -> Result<Option<Arc<Bound>>, Failure> {
    let Some((name, read_only, brought)) = claimed(context.pod, volume) else { return Ok(None) };
    let m = &context.pod.metadata;
    let fail =
        |why: String| Failure::processing(format!("error processing PVC {}/{name}: {why}", m.namespace));
    let api = &context.kubelet.api;
    let claim: Claim = api
        .get(&format!("/api/v1/namespaces/{}/persistentvolumeclaims/{name}", m.namespace))
        .await
        .map_err(|e| fail(format!("failed to fetch PVC from API server: {}", reason(&e))))?;
    let kept = claim.metadata.finalizers.iter().any(|f| f == PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() && !kept {
        return Err(fail("PVC is being deleted".to_owned()));
    }
    if claim.status.phase != "Bound" {
        let failure = fail("PVC is not bound".to_owned());
        return Err(if claim.status.phase == "Lost" { failure } else { failure.unbound() });
    }
    if claim.spec.volume_name.is_empty() {
        return Err(fail("PVC has empty pvc.Spec.VolumeName".to_owned()));
    }
    let owned = |claim: &Claim| {
        claim.metadata.owner_references.iter().any(|o| o.controller == Some(true) && o.uid == m.uid)
    };
    if brought && !owned(&claim) {
        return Err(Failure::processing(format!(
            "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
            m.namespace, m.namespace, m.name
        )));
    }
    let at = &claim.spec.volume_name;
    let bound: PersistentVolume = api
        .get(&format!("/api/v1/persistentvolumes/{at}"))
        .await
        .map_err(|e| fail(format!("failed to fetch PV {at} from API server: {}", reason(&e))))?;
    match &bound.spec.claim_ref {
        None => {
            return Err(fail(format!(
                "found PV object {at} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
            )));
        }
        Some(claim_ref) if claim_ref.uid != claim.metadata.uid => {
            return Err(fail(format!(
                "found PV object {at} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {}",
                claim_ref.uid, claim.metadata.uid
            )));
        }
        Some(_) => {}
    }
    let mode = bound.spec.volume_mode.as_deref().unwrap_or("Filesystem");
    for (list, field, wanted) in
        [(&uses.mounts, "volumeMounts", "Filesystem"), (&uses.devices, "volumeDevices", "Block")]
    {
        if list.contains(&volume.name.as_str()) && mode != wanted {
            return Err(Failure::processing(format!(
                "volume {} has volumeMode {mode}, but is specified in {field}",
                volume.name
            )));
        }
    }
    Ok(Some(Arc::new(Bound { claim, volume: bound, read_only })))
}

/// Whether the volume can be reached from this node.
pub(super) fn check_affinity(context: &VolumeContext<'_>, source: &Source<'_>) -> Result<(), Failure> {
    let required =
        source.bound.as_ref().and_then(|b| b.volume.spec.node_affinity.as_ref()?.required.as_ref());
    let terms = required.and_then(|r| r.get("nodeSelectorTerms")?.as_array());
    let offer = context.kubelet.offer.lock();
    match terms {
        Some(terms) if !terms.iter().any(|term| term_matches(term, &offer)) => {
            let step = if source.is_block() {
                "MapVolume.NodeAffinity check failed"
            } else {
                "MountVolume.NodeAffinity check failed"
            };
            Err(Failure::at(step, "no matching NodeSelectorTerms"))
        }
        _ => Ok(()),
    }
}

/// What the API server says, in its own words where it answered.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Api { source, .. } => match source.as_ref() {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

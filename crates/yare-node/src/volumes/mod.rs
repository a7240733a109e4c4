//! Volumes: one table of kinds, one file per kind.
//!
//! In: a pod's `volumes`. Out: a host path (or device, or image) for each, ready to be given to containers. Kinds
//! whose content comes from the API server are written atomically and brought up to date whenever the pod is
//! looked at; what they were made from is watched, so that a change wakes the pod.
//!
//! ```text
//! claim ─► PersistentVolume ─► attached? ─► stage (once per node) ─► set up (per pod) ─► expand ─► again and again
//!                                              unstage ◄─ last pod gone ◄─ tear down ◄─ pod gone ◄──┘
//! ```
//!
//! Tearing down needs no object: what there is to undo is found by its place on disk, and by a small record
//! where more has to be known.

mod atomic;
mod config_map;
mod copy;
mod csi;
mod disk;
mod downward;
mod empty_dir;
pub(crate) mod env_file;
mod host_path;
mod image;
mod iscsi;
mod keys;
mod local;
pub(crate) mod local_path;
mod loop_device;
mod mounts;
mod nfs;
mod node;
mod ownership;
mod pod_certificate;
mod projected;
mod resize;
mod secret;
mod source;
mod stats;
mod tear_down;
mod token;
mod trust_bundle;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use yare_client::EventKind;

use crate::clock;
use crate::kubelet::Kubelet;
use crate::objects::Missing;
use crate::pod::dirs::PodDirs;
use crate::pod::fields::Facts;
use crate::pod::mailbox::Mailbox;
use crate::view::{Pod, Volume};
pub(crate) use mounts::mounts_below;
use mounts::{mount_tmpfs, secret_directory};
pub(crate) use node::{NodeVolumes, Staged, Turn, give_back};
pub(crate) use resize::ExpandError;
pub(crate) use source::{Bound, Source};
pub(crate) use stats::{VolumeStats, of_pod as stats_of_pod};
pub(crate) use tear_down::{Found, tear_down};

/// What others have to do first is waited for so long before an event says so.
const ATTACH_PATIENCE: Duration = Duration::from_secs(123);

/// The kinds of volume a node can mount, by source field.
const KINDS: &[&dyn VolumeKind] = &[
    &config_map::ConfigMapVolume,
    &secret::SecretVolume,
    &empty_dir::EmptyDirVolume,
    &host_path::HostPathVolume,
    &downward::DownwardVolume,
    &projected::ProjectedVolume,
    &image::ImageVolume,
    &local::LocalVolume,
    &nfs::NfsVolume,
    &iscsi::IscsiVolume,
    &csi::CsiVolume,
];

/// What a volume is made from.
pub(crate) struct VolumeContext<'a> {
    pub(crate) kubelet: &'a Arc<Kubelet>,
    pub(crate) mailbox: &'a Arc<Mailbox>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) dirs: &'a PodDirs,
    pub(crate) facts: &'a Facts,
}

/// Where the files of a volume are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    OnDisk,
    /// In memory: what may be secret.
    InMemory,
}

impl VolumeContext<'_> {
    /// An object of the pod's namespace that a volume is made from; an empty one where it may be absent.
    async fn object<T: serde::de::DeserializeOwned + Default>(
        &self,
        resource: &yare_client::Resource,
        name: &str,
        optional: bool,
    ) -> std::result::Result<T, String> {
        let m = &self.pod.metadata;
        match self.kubelet.objects.get(resource, &m.namespace, name, &m.uid, self.mailbox).await {
            Err(Missing::NotFound(_)) if optional => Ok(T::default()),
            found => found.map_err(|missing: Missing| missing.to_string()),
        }
    }

    /// Makes the volume's directory hold these files.
    fn write(
        &self,
        volume: &Volume,
        plugin: &str,
        payload: &atomic::Payload,
        keep: Keep,
    ) -> std::result::Result<Mounted, String> {
        let dir = self.dirs.volume(plugin, &volume.name);
        ownership::make_directory(&dir, 0o755)?;
        if keep == Keep::InMemory {
            secret_directory(&dir)?;
        }
        atomic::write(&dir, payload, ownership::fs_group(self.pod), self.kubelet.seams.now())?;
        Ok(Mounted { path: dir, ..Mounted::default() })
    }
}

/// Why a volume is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What was being done: the beginning of an event. None: setting up.
    step: Option<&'static str>,
    text: String,
    kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// A step failed.
    Failed,
    /// It is not even clear what to mount.
    Processing,
    /// As before, but it may be clear in a moment: the claim is being bound.
    Unbound,
    /// Somebody else has to attach it first, and the pod is woken then.
    Waiting,
    /// It is on its way, and the pod is woken when it is there.
    Pending,
}

impl Failure {
    /// A step of upstream's, such as `MountVolume.MountDevice failed`.
    pub(crate) fn at(step: &'static str, text: impl Into<String>) -> Self {
        Failure { step: Some(step), text: text.into(), kind: FailureKind::Failed }
    }

    pub(crate) fn processing(text: impl Into<String>) -> Self {
        Failure { step: None, text: text.into(), kind: FailureKind::Processing }
    }

    pub(crate) fn pending(text: impl Into<String>) -> Self {
        Failure { step: None, text: text.into(), kind: FailureKind::Pending }
    }

    /// The same, while the claim is being bound.
    fn unbound(self) -> Self {
        Failure { kind: FailureKind::Unbound, ..self }
    }

    fn is_unbound(&self) -> bool {
        self.kind == FailureKind::Unbound
    }

    fn is_waiting(&self) -> bool {
        matches!(self.kind, FailureKind::Waiting | FailureKind::Pending)
    }

    pub(crate) fn waiting(text: impl Into<String>) -> Self {
        Failure { step: None, text: text.into(), kind: FailureKind::Waiting }
    }

    /// The text of an event.
    fn message(&self, volume: &str, name: &str) -> String {
        let Failure { step, text, kind } = self;
        match kind {
            FailureKind::Processing | FailureKind::Unbound => format!(
                "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {text}"
            ),
            FailureKind::Waiting => format!(
                "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[{volume}], failed to process volumes=[]: timed out waiting for the condition"
            ),
            FailureKind::Failed | FailureKind::Pending => {
                format!("{} for volume {name:?} : {text}", step.unwrap_or("MountVolume.SetUp failed"))
            }
        }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure { step: None, text, kind: FailureKind::Failed }
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// An event about a volume that is not ready: its reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Reason of a pod that the node has no room for among its attached volumes.
pub(crate) const ATTACHMENT_LIMIT: &str = "VolumeAttachmentLimitExceeded";

/// A volume that is ready.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// A block volume: its device instead of a path.
    pub(crate) device: Option<PathBuf>,
    /// A group that all processes of the pod get.
    pub(crate) gid: Option<u32>,
    /// When its content has to be made anew (tokens).
    pub(crate) refresh_at: Option<Timestamp>,
}

/// What a pod's volumes remember between looks at it.
#[derive(Default)]
pub(crate) struct Kept {
    tokens: token::Tokens,
    certificates: pod_certificate::Certificates,
}

/// One volume being made ready.
pub(crate) struct Work<'a> {
    pub(crate) context: &'a VolumeContext<'a>,
    pub(crate) source: Source<'a>,
    pub(crate) kept: &'a mut Kept,
    /// It was ready before, and is only brought up to date.
    pub(crate) again: bool,
    /// It has to be attached first.
    pub(crate) needs_attachment: bool,
    /// What the driver's controller said when it attached the volume.
    pub(crate) attachment: BTreeMap<String, String>,
}

/// Something of an earlier life of the agent, by its record on disk.
pub(crate) struct Restored {
    /// The volume's name among shared ones.
    pub(crate) name: String,
    pub(crate) staged: Option<Staged>,
    /// Uid of a pod that it may be mounted for.
    pub(crate) user: Option<String>,
    pub(crate) attachable: bool,
}

/// One row of the table.
#[async_trait]
pub(crate) trait VolumeKind: Send + Sync {
    /// Upstream's name for it, after which directories are called: `kubernetes.io/secret`.
    fn plugin(&self) -> &'static str;
    /// Whether the volume is of this kind.
    fn supports(&self, source: &Source<'_>) -> bool;
    /// Whether its content follows objects of the API server.
    fn live(&self) -> bool {
        false
    }
    /// The node's name for the volume, if pods share it; then operations on it take turns, and it is staged.
    fn shared_name(&self, _: &Source<'_>) -> Option<String> {
        None
    }
    /// Whether the attach/detach controller has to attach it before it can be staged.
    async fn attachable(&self, _: &VolumeContext<'_>, _: &Source<'_>) -> Result<bool, Failure> {
        Ok(false)
    }
    /// What attaching it came to.
    async fn attached(&self, _: &Work<'_>) -> Result<BTreeMap<String, String>, Failure> {
        Ok(BTreeMap::new())
    }
    /// Whether it will not be attached here because the node has as many volumes as it can.
    async fn exhausted(&self, _: &VolumeContext<'_>, _: &Source<'_>) -> bool {
        false
    }
    /// Makes it ready on the node, for all pods; notes in `turn` what has to be given back.
    async fn stage(&self, _: &mut Work<'_>, _: &mut Turn) -> Result<(), Failure> {
        Ok(())
    }
    /// Undoes [`VolumeKind::stage`]; may run again and again.
    async fn unstage(&self, _: &Arc<Kubelet>, _: &Staged) -> Result<(), String> {
        Ok(())
    }
    /// Makes it ready for a pod; may run again and again.
    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure>;
    /// Makes the mounted volume as large as it is meant to be.
    async fn expand(&self, _: &Work<'_>, _: &Mounted, _bytes: i64) -> Result<(), ExpandError> {
        Err(ExpandError::Unsupported)
    }
    /// Undoes [`VolumeKind::set_up`] for a pod, from what is on disk; may run again and again. What is mounted or
    /// left below the pod's `volumes` afterwards is unmounted and removed for all kinds alike.
    async fn tear_down(&self, _: &Arc<Kubelet>, _: &Found) -> Result<(), String> {
        Ok(())
    }
    /// How full it is; none: nobody knows.
    async fn stats(&self, _: &Arc<Kubelet>, _: &stats::Measured) -> Option<VolumeStats> {
        None
    }
    /// What an earlier life of the agent left of this kind.
    fn restore(&self, _data_dir: &Path) -> Vec<Restored> {
        Vec::new()
    }
}

/// The volumes of one pod.
#[derive(Default)]
pub(crate) struct Volumes {
    mounted: HashMap<String, Mounted>,
    bound: HashMap<String, Arc<Bound>>,
    kept: Kept,
    /// Since when the pod waits for volumes to be attached.
    waiting_since: Option<Timestamp>,
}

impl Volumes {
    /// A volume that is ready.
    pub(crate) fn get(&self, name: &str) -> Option<&Mounted> {
        self.mounted.get(name)
    }

    /// Groups that volumes give to all processes of the pod.
    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> {
        self.mounted.values().filter_map(|m| m.gid)
    }

    /// When some content has to be made anew.
    pub(crate) fn refresh_at(&self) -> Option<Timestamp> {
        self.mounted.values().filter_map(|m| m.refresh_at).min()
    }

    /// Forgets what was ready.
    pub(crate) fn clear(&mut self) {
        self.mounted.clear();
        self.bound.clear();
    }

    /// Makes all volumes that the pod's containers use ready, and brings the live ones up to date. Fails with
    /// the events to tell; with none while others have to do something first.
    pub(crate) async fn set_up(&mut self, context: &VolumeContext<'_>) -> Result<(), Vec<Complaint>> {
        let uses = source::Uses::of(context.pod);
        let now = context.kubelet.seams.now();
        let mut complaints = Vec::new();
        let (mut ready, mut waits) = (true, false);
        for volume in &context.pod.spec.volumes {
            let due = match self.mounted.get(&volume.name) {
                _ if !uses.any(&volume.name) => false,
                None => true,
                Some(before) => {
                    before.refresh_at.is_some_and(|at| at <= now)
                        || KINDS.iter().any(|k| k.live() && k.supports(&Source { volume, bound: None }))
                }
            };
            if !due {
                continue;
            }
            let before = self.mounted.get(&volume.name).cloned();
            match self.one(context, volume, &uses, before.is_some()).await {
                Ok(mounted) => drop(self.mounted.insert(volume.name.clone(), mounted)),
                // What a running pod has stays, until its source is back.
                Err(error) if before.is_some() => {
                    tracing::debug!(volume = volume.name, pod = %context.pod.full_name(), ?error, "refreshing a volume");
                    if error.step == Some(resize::IN_USE) {
                        let name = self.bound.get(&volume.name).map_or("", |b| &b.volume.metadata.name);
                        let text = error.message(&volume.name, name);
                        let (pod, kind) = (context.pod, EventKind::Warning);
                        context.kubelet.pod_event(pod, None, kind, "VolumeResizeFailed", text);
                    }
                    if let Some(mounted) = self.mounted.get_mut(&volume.name)
                        && mounted.refresh_at.is_some_and(|at| at <= now)
                    {
                        mounted.refresh_at = Some(clock::after(now, REFRESH_RETRY));
                    }
                }
                Err(failure) => {
                    ready = false;
                    waits |= failure.is_waiting();
                    if failure.is_waiting() && !self.is_out_of_patience(now) {
                        continue;
                    }
                    let bound = self.bound.get(&volume.name).cloned();
                    let source = Source { volume, bound: bound.clone() };
                    if failure.kind == FailureKind::Waiting
                        && let Some(kind) = KINDS.iter().find(|k| k.supports(&source))
                        && kind.exhausted(context, &source).await
                    {
                        let text = failure.message(&volume.name, &volume.name);
                        let rest = text.trim_start_matches("Unable to attach or mount volumes: ");
                        let message =
                            format!("Node has reached its volume attachment limit, rejecting pod. {rest}");
                        return Err(vec![Complaint { reason: ATTACHMENT_LIMIT, message }]);
                    }
                    let name = bound.as_ref().map_or(&volume.name, |b| &b.volume.metadata.name);
                    let block =
                        bound.as_ref().is_some_and(|b| b.volume.spec.volume_mode.as_deref() == Some("Block"));
                    let reason = match (block, failure.kind) {
                        (true, FailureKind::Failed) => "FailedMapVolume",
                        _ => "FailedMount",
                    };
                    complaints.push(Complaint { reason, message: failure.message(&volume.name, name) });
                }
            }
        }
        if !waits {
            self.waiting_since = None;
        }
        if ready {
            stats::note(context, &self.mounted, &self.bound);
            return Ok(());
        }
        context.kubelet.volumes.wait(&context.pod.metadata.uid, context.mailbox);
        Err(complaints)
    }

    /// Whether the pod has waited for an attachment for so long that it is told; the wait begins anew then.
    fn is_out_of_patience(&mut self, now: Timestamp) -> bool {
        let since = *self.waiting_since.get_or_insert(now);
        let over = clock::after(since, ATTACH_PATIENCE) <= now;
        if over {
            self.waiting_since = Some(now);
        }
        over
    }

    /// Makes one volume ready.
    async fn one(
        &mut self,
        context: &VolumeContext<'_>,
        volume: &Volume,
        uses: &source::Uses<'_>,
        again: bool,
    ) -> Result<Mounted, Failure> {
        let bound = source::resolve(context, volume, uses).await?;
        if let Some(bound) = &bound {
            self.bound.insert(volume.name.clone(), bound.clone());
            // The same claim under two names is mounted once.
            let twin = self.bound.iter().find(|(name, b)| {
                **name != volume.name && b.volume.metadata.name == bound.volume.metadata.name
            });
            if let Some(mounted) = twin.and_then(|(name, _)| self.mounted.get(name)) {
                let read_only = mounted.read_only || bound.read_only;
                return Ok(Mounted { read_only, refresh_at: None, ..mounted.clone() });
            }
        }
        let source = Source { volume, bound };
        let Some(kind) = KINDS.iter().find(|k| k.supports(&source)) else {
            return Err(match &source.bound {
                Some(_) => Failure::from("no volume plugin matched"),
                None => {
                    let found = volume.other.keys().next().map_or("none", String::as_str);
                    Failure::from(format!("no volume plugin matched: {found}"))
                }
            });
        };
        source::check_affinity(context, &source)?;
        let shared_name = kind.shared_name(&source);
        let attachable = shared_name.is_some() && kind.attachable(context, &source).await?;
        let gid = source.gid();
        let mut work = Work {
            context,
            source,
            kept: &mut self.kept,
            again,
            needs_attachment: attachable,
            attachment: BTreeMap::new(),
        };
        let mut mounted = match shared_name {
            None => kind.set_up(&mut work).await?,
            Some(name) => shared(*kind, &mut work, &name).await?,
        };
        mounted.gid = gid;
        mounted.read_only |= work.source.read_only();
        Ok(mounted)
    }
}

/// Between attempts to bring a volume of a running pod up to date.
const REFRESH_RETRY: Duration = Duration::from_secs(10);

/// Makes a volume ready that pods share.
async fn shared(kind: &dyn VolumeKind, work: &mut Work<'_>, name: &str) -> Result<Mounted, Failure> {
    let attachable = work.needs_attachment;
    let volumes = &work.context.kubelet.volumes;
    let uid = &work.context.pod.metadata.uid;
    let shared = volumes.join(name, uid, attachable);
    if attachable {
        volumes.check_attached(name)?;
    }
    let block = work.source.is_block();
    let mut turn = shared.turn.lock().await;
    if work.source.is_for_one_pod() && shared.is_elsewhere(uid) {
        let step = if block { "MapVolume.SetUpDevice failed" } else { "MountVolume.SetUp failed" };
        let text = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
        return Err(Failure::at(step, text));
    }
    if attachable {
        work.attachment = kind.attached(work).await?;
    }
    if !turn.sure {
        kind.stage(work, &mut turn).await?;
        turn.sure = true;
    }
    shared.mounting(uid);
    let mounted = kind.set_up(work).await?;
    resize::keep_up(kind, work, &mounted, &mut turn).await?;
    Ok(mounted)
}

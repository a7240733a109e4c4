//! `csi`: volumes of a storage driver on this node.
//!
//! A PersistentVolume is staged once per node (`NodeStageVolume`, where the driver can) and published for each
//! pod (`NodePublishVolume`); a volume that a pod brings is published only. Before a driver is asked to do
//! something a record of it is written, and it stays until the driver has undone it; only when the driver says
//! that it did nothing at all is the record taken back at once.

mod attributes;
mod block;
mod filesystem;
mod record;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::source::reason;
use super::stats::{Condition, Measured, VolumeStats};
use super::tear_down::found;
use super::{
    ExpandError, Failure, Found, Mounted, Restored, Source, Staged, Turn, VolumeContext, VolumeKind, Work,
};
use crate::clock;
use crate::csi::proto::{
    AccessModeMessage, AccessType, CapacityRange, MountVolume, NodeCapability, NodeExpand,
    NodeGetVolumeStats, Nothing, UsageUnit, VolumeCapability,
};
use crate::csi::{Abilities, Driver, attachment_name, driver_object, hash};
use crate::kubelet::Kubelet;
use crate::view::{Pod, SecretReference, VolumeAttachment};
use record::{Places, Record};

const PLUGIN: &str = "kubernetes.io/csi";
/// How often a volume is looked at again whose driver wants that, or which may have to grow; a little spread.
const REFRESH: Duration = Duration::from_secs(60);
const REFRESH_SPREAD_S: f64 = 30.0;

pub(super) struct CsiVolume;

/// What a driver is told of a volume.
struct Plan {
    driver: String,
    handle: String,
    /// It came with its pod and goes with it.
    ephemeral: bool,
    read_only: bool,
    fs_type: String,
    attributes: BTreeMap<String, String>,
    publish_secret: Option<SecretReference>,
    stage_secret: Option<SecretReference>,
    expand_secret: Option<SecretReference>,
}

impl Plan {
    fn of(pod: &Pod, source: &Source<'_>) -> Option<Self> {
        if let Some(csi) = source.csi() {
            return Some(Plan {
                driver: csi.driver.clone(),
                handle: csi.volume_handle.clone(),
                ephemeral: false,
                read_only: source.read_only(),
                fs_type: csi.fs_type.clone(),
                attributes: csi.volume_attributes.clone(),
                publish_secret: csi.node_publish_secret_ref.clone(),
                stage_secret: csi.node_stage_secret_ref.clone(),
                expand_secret: csi.node_expand_secret_ref.clone(),
            });
        }
        let csi = source.csi_inline()?;
        let m = &pod.metadata;
        let publish_secret = csi
            .node_publish_secret_ref
            .as_ref()
            .map(|r| SecretReference { name: r.name.clone(), namespace: m.namespace.clone() });
        Some(Plan {
            driver: csi.driver.clone(),
            handle: format!("csi-{}", hash(&[&m.uid, &source.volume.name])),
            ephemeral: true,
            read_only: csi.read_only == Some(true),
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            attributes: csi.volume_attributes.clone(),
            publish_secret,
            stage_secret: None,
            expand_secret: None,
        })
    }

    fn mode(&self) -> &'static str {
        if self.ephemeral { "Ephemeral" } else { "Persistent" }
    }
}

/// The driver's name, and its name of the volume, for volumes of drivers.
pub(super) fn identity(pod: &Pod, source: &Source<'_>) -> Option<(String, String)> {
    Plan::of(pod, source).map(|plan| (plan.driver, plan.handle))
}

/// What a volume is used as, as drivers are told.
fn capability(work: &Work<'_>, plan: &Plan, abilities: &Abilities) -> VolumeCapability {
    let access_type = if work.source.is_block() {
        AccessType::Block(Nothing {})
    } else {
        let group = super::ownership::fs_group(work.context.pod)
            .filter(|_| abilities.has(NodeCapability::VolumeMountGroup));
        AccessType::Mount(MountVolume {
            fs_type: plan.fs_type.clone(),
            mount_flags: work.source.mount_options().to_vec(),
            volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
        })
    };
    let mode = abilities.access_mode(work.source.access_mode());
    VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessModeMessage { mode: mode as i32 }),
    }
}

async fn abilities(driver: &Driver) -> Result<Abilities, String> {
    driver.abilities().await.map_err(|e| e.to_string())
}

/// The code of gRPC with which a driver says that the node has as many volumes as it can.
const RESOURCE_EXHAUSTED: i32 = 8;

#[async_trait]
impl VolumeKind for CsiVolume {
    fn plugin(&self) -> &'static str {
        PLUGIN
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.csi().is_some() || source.csi_inline().is_some()
    }

    fn shared_name(&self, source: &Source<'_>) -> Option<String> {
        source.csi().map(|csi| record::shared_name(&csi.driver, &csi.volume_handle))
    }

    async fn attachable(&self, context: &VolumeContext<'_>, source: &Source<'_>) -> Result<bool, Failure> {
        let Some(csi) = source.csi() else { return Ok(false) };
        let object = driver_object(context.kubelet, &csi.driver).await?;
        Ok(object.is_none_or(|o| o.spec.attach_required != Some(false)))
    }

    async fn attached(&self, work: &Work<'_>) -> Result<BTreeMap<String, String>, Failure> {
        let block = work.source.is_block();
        let fail = |text: String| {
            let step =
                if block { "MapVolume.WaitForAttach failed" } else { "MountVolume.WaitForAttach failed" };
            Failure::at(step, text)
        };
        let csi = work.source.csi().ok_or("no CSI source")?;
        let (handle, kubelet) = (&csi.volume_handle, work.context.kubelet);
        let id = attachment_name(handle, &csi.driver, &kubelet.node_name);
        let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{id}");
        let found: VolumeAttachment = kubelet.api.get(&path).await.map_err(|e| {
            fail(format!("volume {handle} has GET error for volume attachment {id}: {}", reason(&e)))
        })?;
        if found.metadata.deletion_timestamp.is_some() {
            return Err(fail("volume attachment is being deleted".to_owned()));
        }
        if found.status.attached {
            return Ok(found.status.attachment_metadata);
        }
        Err(fail(match found.status.attach_error {
            Some(error) => error.message,
            None => format!("volume {handle} is not attached for volume attachment {id}"),
        }))
    }

    async fn exhausted(&self, context: &VolumeContext<'_>, source: &Source<'_>) -> bool {
        let Some(csi) = source.csi() else { return false };
        let id = attachment_name(&csi.volume_handle, &csi.driver, &context.kubelet.node_name);
        let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{id}");
        let found: Result<VolumeAttachment, _> = context.kubelet.api.get(&path).await;
        let error = found.ok().and_then(|a| a.status.attach_error);
        error.and_then(|e| e.error_code) == Some(RESOURCE_EXHAUSTED)
    }

    async fn stage(&self, work: &mut Work<'_>, turn: &mut Turn) -> Result<(), Failure> {
        let plan = Plan::of(work.context.pod, &work.source).ok_or("no CSI source")?;
        if work.source.is_block() {
            block::stage(work, &plan, turn).await.map_err(|e| Failure::at("MapVolume.SetUpDevice failed", e))
        } else {
            filesystem::stage(work, &plan, turn)
                .await
                .map_err(|e| Failure::at("MountVolume.MountDevice failed", e))
        }
    }

    async fn unstage(&self, kubelet: &Arc<Kubelet>, staged: &Staged) -> Result<(), String> {
        if staged.block {
            block::unstage(kubelet, &staged.dir).await
        } else {
            filesystem::unstage(kubelet, &staged.dir).await
        }
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let plan = Plan::of(work.context.pod, &work.source).ok_or("no CSI source")?;
        let mut mounted = if work.source.is_block() {
            block::publish(work, &plan).await?
        } else {
            filesystem::publish(work, &plan).await?
        };
        let object = driver_object(work.context.kubelet, &plan.driver).await?;
        let again = object.is_some_and(|o| o.spec.requires_republish == Some(true));
        if again || !plan.ephemeral {
            let kubelet = work.context.kubelet;
            let spread = Duration::from_secs_f64((kubelet.seams.random)() * REFRESH_SPREAD_S);
            mounted.refresh_at = Some(clock::after(kubelet.seams.now(), REFRESH + spread));
        }
        Ok(mounted)
    }

    async fn expand(&self, work: &Work<'_>, mounted: &Mounted, bytes: i64) -> Result<(), ExpandError> {
        let certain = |text: String| ExpandError::Final(text);
        let plan = Plan::of(work.context.pod, &work.source).ok_or(ExpandError::Unsupported)?;
        let kubelet = work.context.kubelet;
        let driver = kubelet.csi.drivers.get(&plan.driver).map_err(ExpandError::Uncertain)?;
        let abilities = driver.abilities().await.map_err(|e| {
            ExpandError::Uncertain(format!(
                "Expander.NodeExpand failed to check if node supports expansion : {e}"
            ))
        })?;
        if !abilities.has(NodeCapability::ExpandVolume) {
            return Err(ExpandError::Unsupported);
        }
        let secrets = attributes::secrets(kubelet, plan.expand_secret.as_ref())
            .await
            .map_err(|e| certain(format!("expander.NodeExpand failed to get NodeExpandSecretRef {e}")))?;
        let places = Places::new(&kubelet.data_dir);
        let block = work.source.is_block();
        let staging = if block {
            places.staging(work.source.name())
        } else {
            places.global(&plan.driver, &plan.handle).join("globalmount")
        };
        let stages = abilities.has(NodeCapability::StageUnstageVolume);
        let volume_path = mounted.device.as_deref().unwrap_or(&mounted.path);
        let request = NodeExpand {
            volume_id: plan.handle.clone(),
            volume_path: volume_path.display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: if stages { staging.display().to_string() } else { String::new() },
            volume_capability: Some(capability(work, &plan, &abilities)),
            secrets: secrets.into_iter().collect(),
        };
        driver.expand(request).await.map(drop).map_err(|error| {
            let text = format!("Expander.NodeExpand failed to expand the volume : {error}");
            match () {
                () if error.is_in_use() => ExpandError::InUse(text),
                () if error.is_infeasible() => ExpandError::Infeasible(text),
                () if error.is_final() => ExpandError::Final(text),
                () => ExpandError::Uncertain(text),
            }
        })
    }

    async fn tear_down(&self, kubelet: &Arc<Kubelet>, found: &Found) -> Result<(), String> {
        if found.block {
            block::unpublish(kubelet, found).await
        } else {
            filesystem::unpublish(kubelet, found).await
        }
    }

    async fn stats(&self, kubelet: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        let (driver, handle) = measured.csi.as_ref()?;
        let driver = kubelet.csi.drivers.get(driver).ok()?;
        let abilities = driver.abilities().await.ok()?;
        if !abilities.has(NodeCapability::GetVolumeStats) {
            return None;
        }
        let request = NodeGetVolumeStats {
            volume_id: handle.clone(),
            volume_path: measured.path.display().to_string(),
            staging_target_path: String::new(),
        };
        let found = driver.stats(request).await.ok()?;
        let condition = found.volume_condition.filter(|_| abilities.has(NodeCapability::VolumeCondition));
        if found.usage.is_empty() && condition.is_none() {
            return None;
        }
        let mut stats = VolumeStats {
            condition: condition.map(|c| Condition { abnormal: c.abnormal, message: c.message }),
            ..VolumeStats::default()
        };
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        for usage in found.usage {
            match UsageUnit::try_from(usage.unit) {
                Ok(UsageUnit::Bytes) => {
                    stats.capacity_bytes = positive(usage.total);
                    stats.available_bytes = positive(usage.available);
                    stats.used_bytes = positive(usage.used);
                }
                Ok(UsageUnit::Inodes) => {
                    stats.inodes = positive(usage.total);
                    stats.inodes_free = positive(usage.available);
                    stats.inodes_used = positive(usage.used);
                }
                _ => {}
            }
        }
        Some(stats)
    }

    fn restore(&self, data_dir: &Path) -> Vec<Restored> {
        let places = Places::new(data_dir);
        let read = |dir: &Path| match Record::read(dir) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(error, "a volume's record cannot be read; the volume is left alone");
                None
            }
        };
        let mut all = Vec::new();
        let mut add = |record: &Record, staged: Option<Staged>, user: Option<String>| {
            all.push(Restored {
                name: record.shared_name(),
                staged,
                user,
                attachable: record.is_attachable(),
            });
        };
        for dir in places.all_global() {
            if let Some(record) = read(&dir) {
                add(&record, Some(Staged { plugin: PLUGIN, dir, block: false }), None);
            }
        }
        for dir in places.all_devices() {
            if let Some(record) = read(&dir.join("data")) {
                add(&record, Some(Staged { plugin: PLUGIN, dir, block: true }), None);
            }
        }
        for pod in record::children(&data_dir.join("pods")) {
            for found in found(&pod, PLUGIN) {
                let dir =
                    if found.block { places.device(&found.name).join("data") } else { found.path.clone() };
                if let Some(record) = read(&dir).filter(|r| r.volume_lifecycle_mode != "Ephemeral") {
                    add(&record, None, Some(found.uid));
                }
            }
        }
        all
    }
}

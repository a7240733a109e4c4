//! Writes pod statuses to the API server: one request per pod at a time, the newest status only.
//!
//! In: the status a pod's task wants to be known. Out: a patch of the `status` subresource with what differs
//! from the server's. While a patch is on its way newer statuses replace each other, so an older one can
//! never overwrite a newer one, and a pod costs no task while nothing changes. A status that only says that a
//! pod is on its way waits for the one that says where it arrived: most pods are quick, and every write is one
//! for all who watch pods.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, watch};

use super::status;
use crate::api::{Api, PatchKind};
use crate::metrics::{Metrics, table};
use crate::view::{Pod, PodStatus};

/// Waits between retries while the server is away.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long a status waits for a better one (see [`status::on_its_way`]).
const ON_ITS_WAY: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(crate) struct StatusWriter {
    api: Api,
    metrics: Metrics,
    slots: Arc<Mutex<HashMap<String, Slot>>>,
}

struct Slot {
    /// Whose status it is on the server: the pod's own, or its mirror's uid; none: there is no mirror yet.
    target: Option<String>,
    /// Of a static pod, the newest status: a new mirror gets it whole.
    newest: Option<PodStatus>,
    namespace: String,
    name: String,
    /// What the server holds, as far as we know, and its resource version.
    server: PodStatus,
    server_version: u64,
    pending: Option<PodStatus>,
    /// Since when the server does not hold what it should.
    behind_since: Option<Instant>,
    /// `pending` may wait a moment.
    patient: bool,
    /// Says that it may not any more.
    hurry: Arc<Notify>,
    busy: bool,
    /// Counts finished rounds, for those who wait.
    rounds: watch::Sender<u64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    metadata: WrittenMetadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WrittenMetadata {
    resource_version: String,
}

impl Slot {
    fn new(pod: &Pod, target: Option<String>) -> Self {
        Slot {
            target,
            newest: None,
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            server: pod.status.clone(),
            server_version: pod.metadata.resource_version.parse().unwrap_or(0),
            pending: None,
            behind_since: None,
            patient: false,
            hurry: Arc::default(),
            busy: false,
            rounds: watch::Sender::new(0),
        }
    }

    fn wait(&mut self, patient: bool) {
        self.patient = patient;
        if !patient {
            self.hurry.notify_one();
        }
    }
}

impl StatusWriter {
    pub(crate) fn new(api: Api, metrics: Metrics) -> Self {
        StatusWriter { api, metrics, slots: Arc::default() }
    }

    /// Makes `status` what the server should hold for `pod`.
    pub(crate) fn submit(&self, pod: &Pod, status: PodStatus) {
        let uid = pod.metadata.uid.clone();
        let version = pod.metadata.resource_version.parse().unwrap_or(0);
        let start = {
            let mut slots = self.slots.lock();
            let is_static = pod.is_static();
            let target = (!is_static).then(|| uid.clone());
            let slot = slots.entry(uid.clone()).or_insert_with(|| Slot::new(pod, target));
            if version > slot.server_version {
                slot.server = pod.status.clone();
                slot.server_version = version;
            }
            slot.wait(status::on_its_way(pod.is_deleting(), &slot.server, &status));
            slot.newest = is_static.then(|| status.clone());
            slot.pending = Some(status);
            slot.behind_since.get_or_insert_with(Instant::now);
            slot.target.is_some() && !std::mem::replace(&mut slot.busy, true)
        };
        if start {
            let writer = self.clone();
            tokio::spawn(async move { writer.drain(uid).await });
        }
    }

    /// The mirror of the static pod `uid`, as the server has it: there the pod's status is written.
    pub(crate) fn mirrored(&self, uid: &str, mirror: &Pod) {
        let start = {
            let mut slots = self.slots.lock();
            let slot = slots.entry(uid.to_owned()).or_insert_with(|| Slot::new(mirror, None));
            let version = mirror.metadata.resource_version.parse().unwrap_or(0);
            if slot.target.as_deref() != Some(mirror.metadata.uid.as_str()) {
                slot.target = Some(mirror.metadata.uid.clone());
                slot.server = mirror.status.clone();
                slot.server_version = version;
                slot.pending = slot.newest.clone();
            } else if version > slot.server_version {
                slot.server = mirror.status.clone();
                slot.server_version = version;
            }
            slot.pending.is_some() && !std::mem::replace(&mut slot.busy, true)
        };
        if start {
            let (writer, uid) = (self.clone(), uid.to_owned());
            tokio::spawn(async move { writer.drain(uid).await });
        }
    }

    /// Returns once nothing is on its way for the pod.
    pub(crate) async fn flush(&self, uid: &str) {
        loop {
            let mut rounds = {
                let mut slots = self.slots.lock();
                match slots.get_mut(uid) {
                    Some(slot) if slot.busy => {
                        slot.wait(false);
                        slot.rounds.subscribe()
                    }
                    _ => return,
                }
            };
            if rounds.changed().await.is_err() {
                return;
            }
        }
    }

    /// Forgets a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.slots.lock().remove(uid);
    }

    async fn drain(&self, uid: String) {
        let mut wait = RETRY_MIN;
        loop {
            let patient = self.slots.lock().get(&uid).filter(|s| s.patient).map(|s| s.hurry.clone());
            if let Some(hurry) = patient {
                let _ = tokio::time::timeout(ON_ITS_WAY, hurry.notified()).await;
            }
            let Some((path, patch, sent)) = self.next(&uid) else { return };
            let answer = match patch {
                None => Ok(None),
                Some(patch) => {
                    self.api.patch_for::<Written>(&path, PatchKind::Strategic, &patch).await.map(Some)
                }
            };
            match answer {
                Ok(written) => {
                    wait = RETRY_MIN;
                    self.acknowledge(&uid, sent, written);
                }
                Err(error) if matches!(error.status_code(), Some(404 | 409)) => {
                    // Gone, or another pod under the same name: there is nobody left to tell.
                    self.finish(&uid);
                    return;
                }
                Err(error) if matches!(error.status_code(), Some(400 | 403 | 422)) => {
                    tracing::warn!(%error, "the API server refuses a pod status");
                    self.acknowledge(&uid, sent, None);
                }
                Err(error) => {
                    tracing::debug!(%error, "writing a pod status, will retry");
                    self.restore(&uid, sent);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// The next patch to send; `None` when there is nothing (more) to do.
    fn next(&self, uid: &str) -> Option<(String, Option<serde_json::Value>, PodStatus)> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(uid)?;
        slot.patient = false;
        let (target, pending) = (slot.target.clone(), slot.pending.take());
        let (Some(target), Some(status)) = (target, pending) else {
            slot.busy = false;
            slot.rounds.send_modify(|n| *n += 1);
            return None;
        };
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", slot.namespace, slot.name);
        Some((path, status::patch(&target, &slot.server, &status), status))
    }

    fn acknowledge(&self, uid: &str, sent: PodStatus, written: Option<Written>) {
        if let Some(slot) = self.slots.lock().get_mut(uid) {
            slot.server = sent;
            if slot.pending.is_none()
                && let Some(since) = slot.behind_since.take()
                && written.is_some()
            {
                self.metrics.took(&table::POD_STATUS_SYNC_DURATION, &[], since.elapsed());
            }
            if let Some(version) = written.and_then(|w| w.metadata.resource_version.parse().ok()) {
                slot.server_version = slot.server_version.max(version);
            }
        }
    }

    fn restore(&self, uid: &str, status: PodStatus) {
        if let Some(slot) = self.slots.lock().get_mut(uid) {
            slot.pending.get_or_insert(status);
        }
    }

    fn finish(&self, uid: &str) {
        if let Some(slot) = self.slots.lock().get_mut(uid) {
            slot.pending = None;
            slot.busy = false;
            slot.rounds.send_modify(|n| *n += 1);
        }
    }
}

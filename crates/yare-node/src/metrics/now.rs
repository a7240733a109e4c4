//! What is only known when somebody asks: how many pods and containers there are, how full volumes and logs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use yare_metrics::table::Counts;
use yare_metrics::text::Page;
use yare_runtime::ContainerState;

use super::table;
use crate::kubelet::{Kubelet, PodState};
use crate::manifests::mirror;
use crate::usage::states;

/// Writes `/metrics`.
pub(crate) async fn page(kubelet: &Arc<Kubelet>) -> Page {
    let states = states(kubelet);
    let now = Counts::default();
    now.set(&table::NODE_NAME, &[&kubelet.node_name], 1.0);
    now.set(&table::METRICS_PROVIDER, &["cadvisor"], 1.0);
    let unified = kubelet.resources.tree.as_ref().map(|tree| tree.groups.unified());
    if let Some(unified) = unified {
        now.set(&table::CGROUP_VERSION, &[], if unified { 2.0 } else { 1.0 });
    }
    pods(kubelet, &states, &now);
    resizes(kubelet, &now);
    if let Some((shared, own)) = kubelet.managers.cpu.figures() {
        now.set(&table::CPUS_SHARED, &[], (shared * 1000) as f64);
        now.set(&table::CPUS_EXCLUSIVE, &[], own.values().sum::<usize>() as f64);
        for (node, count) in own {
            now.set(&table::CPUS_BY_NODE, &[&node.to_string()], count as f64);
        }
    }
    if let Some((intents, records)) = kubelet.images.on_record() {
        now.set(&table::IMAGE_INTENTS, &[], intents as f64);
        now.set(&table::IMAGE_RECORDS, &[], records as f64);
    }
    for ((signer, state), count) in kubelet.volumes.certificates(kubelet.seams.now()) {
        now.set(&table::POD_CERTIFICATES, &[&signer, state], f64::from(count));
    }
    logs(&states, &now);
    volumes(kubelet, &states, &now).await;
    let mut page = Page::new();
    kubelet.metrics.expose(&now, &kubelet.config, &mut page);
    page
}

fn pods(kubelet: &Kubelet, states: &[PodState], now: &Counts) {
    let word = |is_static: bool| if is_static { "true" } else { "" };
    let own = kubelet.pods.list().into_iter().filter(|pod| mirror::digest(pod).is_none());
    let own: BTreeSet<String> = own.map(|pod| pod.uid().to_owned()).collect();
    let statics = kubelet.statics.list().len();
    now.set(&table::DESIRED_PODS, &[word(false)], own.len() as f64);
    now.set(&table::DESIRED_PODS, &[word(true)], statics as f64);
    now.set(&table::MIRROR_PODS, &[], statics as f64);
    for is_static in [false, true] {
        now.set(&table::ACTIVE_PODS, &[word(is_static)], 0.0);
    }
    let mut running = 0;
    let mut ephemeral = 0;
    for state in states.iter().filter(|s| !s.pod.metadata.uid.is_empty()) {
        running += u32::from(state.sandbox.is_some());
        ephemeral += state.pod.spec.ephemeral_containers.len();
        let is_static = state.pod.is_static();
        let ended = matches!(state.status.phase.as_str(), "Succeeded" | "Failed");
        if !ended {
            now.add(&table::ACTIVE_PODS, &[word(is_static)], 1.0);
        }
        let lifecycle = match (ended, state.pod.is_deleting()) {
            (true, _) => "terminated",
            (false, true) => "terminating",
            (false, false) => "sync",
        };
        let is_desired = is_static || own.contains(&state.pod.metadata.uid);
        let config = if is_desired { "desired" } else { "orphan" };
        now.add(&table::WORKING_PODS, &[config, lifecycle, word(is_static)], 1.0);
    }
    now.set(&table::RUNNING_PODS, &[], f64::from(running));
    now.set(&table::EPHEMERAL_CONTAINERS, &[], ephemeral as f64);
    let mut by_state: BTreeMap<&str, u32> = BTreeMap::from([("running", 0)]);
    for container in states.iter().flat_map(|s| &s.containers) {
        let word = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Exited => "exited",
            ContainerState::Unknown => "unknown",
        };
        *by_state.entry(word).or_default() += 1;
    }
    for (state, count) in by_state {
        now.set(&table::RUNNING_CONTAINERS, &[state], f64::from(count));
    }
}

/// Resizes that are not done, and claims for devices.
fn resizes(kubelet: &Kubelet, now: &Counts) {
    let (pending, in_progress) = kubelet.allocations.unfinished();
    for (reason, count) in pending {
        now.set(&table::RESIZES_PENDING, &[&reason.to_lowercase()], f64::from(count));
    }
    now.set(&table::RESIZES_IN_PROGRESS, &[], f64::from(in_progress));
    for (driver, count) in kubelet.managers.dra.claims_in_use() {
        now.set(&table::DRA_CLAIMS, &[&driver], f64::from(count));
    }
}

fn logs(states: &[PodState], now: &Counts) {
    for state in states {
        let m = &state.pod.metadata;
        for container in state.containers.iter().filter(|c| c.state == ContainerState::Running) {
            if let Ok(found) = std::fs::metadata(&container.log_path) {
                let labels = [container.name.as_str(), &m.namespace, &m.name, &m.uid];
                now.set(&table::LOG_BYTES, &labels, found.len() as f64);
            }
        }
    }
}

/// How full the volumes of claims are; one that several pods use is told once.
async fn volumes(kubelet: &Arc<Kubelet>, states: &[PodState], now: &Counts) {
    let mut told = BTreeSet::new();
    for state in states {
        let found = crate::volumes::stats_of_pod(kubelet, &state.pod.metadata.uid).await;
        for volume in found.as_array().into_iter().flatten() {
            let claim = &volume["pvcRef"];
            let (Some(namespace), Some(name)) = (claim["namespace"].as_str(), claim["name"].as_str()) else {
                continue;
            };
            if !told.insert((namespace.to_owned(), name.to_owned())) {
                continue;
            }
            for (family, field) in [
                (&table::VOLUME_CAPACITY, "capacityBytes"),
                (&table::VOLUME_AVAILABLE, "availableBytes"),
                (&table::VOLUME_USED, "usedBytes"),
                (&table::VOLUME_INODES, "inodes"),
                (&table::VOLUME_INODES_FREE, "inodesFree"),
                (&table::VOLUME_INODES_USED, "inodesUsed"),
            ] {
                if let Some(value) = volume[field].as_f64() {
                    now.set(family, &[namespace, name], value);
                }
            }
            if let Value::Bool(abnormal) = volume["volumeHealthStats"]["abnormal"] {
                now.set(&table::VOLUME_ABNORMAL, &[namespace, name], f64::from(u8::from(abnormal)));
            }
        }
    }
}

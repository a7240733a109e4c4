//! Containers that have ended: of each only the newest stays, for its logs and its exit code.
//!
//! A start of a container takes its older instances along, so that nothing is looked at while nothing happens. Only
//! a limit over all pods, or a least age, needs a look now and then. A node short of disk also gives up what
//! finished pods have left.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use yare_client::EventKind;
use yare_runtime::{ContainerState, ContainerStatus, SandboxState};
use yare_trace::{Kind, Span};

use crate::clock;
use crate::kubelet::Kubelet;
use crate::resources::DeadContainers;

/// Removes a container that has ended, with its logs.
pub(crate) async fn remove(kubelet: &Kubelet, container: &ContainerStatus) -> Result<(), String> {
    kubelet.runtime.remove_container(&container.id).await.map_err(|e| e.to_string())?;
    remove_logs(container);
    Ok(())
}

/// A container's log, and what was rotated away of it.
fn remove_logs(container: &ContainerStatus) {
    let log = &container.log_path;
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else { return };
    let rotated = format!("{name}.");
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        if file == name || file.starts_with(&rotated) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Which of these may go. `finished`: pods that have ended for good, whose containers may all go.
fn removable(
    containers: Vec<ContainerStatus>,
    settings: &DeadContainers,
    finished: &HashSet<String>,
    now: Timestamp,
) -> Vec<ContainerStatus> {
    let old = |c: &ContainerStatus| {
        let made = clock::from_ns(c.created_at_ns);
        made.is_none_or(|at| clock::after(at, settings.minimum_age) <= now)
    };
    let ended = |c: &ContainerStatus| matches!(c.state, ContainerState::Exited | ContainerState::Unknown);
    let mut units: BTreeMap<(String, String), Vec<ContainerStatus>> = BTreeMap::new();
    for container in containers.into_iter().filter(|c| ended(c) && old(c)) {
        // Not a pod of ours.
        let Some(uid) = container.labels.get("io.kubernetes.pod.uid").cloned() else { continue };
        units.entry((uid, container.name.clone())).or_default().push(container);
    }
    let mut gone = Vec::new();
    units.retain(|(uid, _), unit| {
        unit.sort_by_key(|c| std::cmp::Reverse((c.created_at_ns, c.attempt)));
        if finished.contains(uid) {
            gone.append(unit);
        }
        !unit.is_empty()
    });
    if let Ok(keep) = usize::try_from(settings.per_container) {
        for unit in units.values_mut() {
            gone.extend(unit.drain(keep.min(unit.len())..));
        }
    }
    let count = |units: &BTreeMap<_, Vec<ContainerStatus>>| units.values().map(Vec::len).sum::<usize>();
    if let Ok(most) = usize::try_from(settings.total)
        && count(&units) > most
    {
        let each = (most / units.len().max(1)).max(1);
        for unit in units.values_mut() {
            gone.extend(unit.drain(each.min(unit.len())..));
        }
        let mut left: Vec<ContainerStatus> = units.into_values().flatten().collect();
        left.sort_by_key(|c| std::cmp::Reverse(c.created_at_ns));
        gone.extend(left.drain(most.min(left.len())..));
    }
    gone
}

async fn collect(kubelet: &Kubelet, finished: &HashSet<String>) -> Result<(), String> {
    let containers = kubelet.runtime.containers().await.map_err(|e| e.to_string())?;
    let settings = &kubelet.resources.settings.dead_containers;
    let mut errors = Vec::new();
    for container in removable(containers, settings, finished, kubelet.seams.now()) {
        errors.extend(remove(kubelet, &container).await.err());
    }
    // Sandboxes that hold nothing any more and are not the pod's newest, or the pod is finished.
    let containers = kubelet.runtime.containers().await.map_err(|e| e.to_string())?;
    let sandboxes = kubelet.runtime.sandboxes().await.map_err(|e| e.to_string())?;
    for sandbox in &sandboxes {
        let newer = |s: &&yare_runtime::SandboxStatus| {
            s.uid == sandbox.uid && (s.created_at_ns, s.attempt) > (sandbox.created_at_ns, sandbox.attempt)
        };
        let empty =
            sandbox.state == SandboxState::NotReady && !containers.iter().any(|c| c.sandbox_id == sandbox.id);
        if empty && (finished.contains(&sandbox.uid) || sandboxes.iter().any(|s| newer(&s))) {
            errors.extend(kubelet.runtime.remove_sandbox(&sandbox.id).await.err().map(|e| e.to_string()));
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// Removes all that no running pod needs, also of pods that have finished but are not deleted.
pub(crate) async fn collect_all_unused(kubelet: &Kubelet) -> Result<(), String> {
    collect(kubelet, &kubelet.finished_pods()).await
}

/// Looks for as long as the node runs, where the settings need a look.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    let settings = kubelet.resources.settings.dead_containers.clone();
    if settings.total < 0 && settings.minimum_age.is_zero() {
        return;
    }
    loop {
        tokio::time::sleep(settings.period).await;
        let span = kubelet.tracer.as_ref().map(|t| t.own("Containers/GarbageCollect", Kind::Internal));
        let none = HashSet::new();
        let collect = collect(&kubelet, &none);
        if let Err(error) = yare_trace::scoped(span.as_ref().map(Span::active), collect).await {
            kubelet.node_event(EventKind::Warning, "ContainerGCFailed", error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pod::testing::container_status;

    /// `uid/name@created[r]`
    fn containers(text: &str) -> Vec<ContainerStatus> {
        text.split_whitespace()
            .map(|word| {
                let (unit, created) = word.split_once('@').unwrap();
                let (uid, name) = unit.split_once('/').unwrap();
                let state =
                    if created.ends_with('r') { ContainerState::Running } else { ContainerState::Exited };
                let seconds: i64 = created.trim_end_matches('r').parse().unwrap();
                let mut status = container_status(name, 0, state, 0);
                status.id = word.to_owned();
                status.created_at_ns = seconds * 1_000_000_000;
                status.labels.insert("io.kubernetes.pod.uid".into(), uid.to_owned());
                status
            })
            .collect()
    }

    #[test]
    fn rules() {
        let settings = |per_container, total, age_s| DeadContainers {
            per_container,
            total,
            minimum_age: Duration::from_secs(age_s),
            ..DeadContainers::default()
        };
        let some = "a/x@1 a/x@2 a/x@3r b/y@4 b/y@5 b/z@6";
        for (text, settings, finished, want) in [
            (some, settings(1, -1, 0), "", "a/x@1 b/y@4"),
            (some, settings(0, -1, 0), "", "a/x@1 a/x@2 b/y@4 b/y@5 b/z@6"),
            (some, settings(-1, -1, 0), "", ""),
            (some, settings(1, -1, 97), "", "a/x@1"),
            (some, settings(1, -1, 0), "b", "a/x@1 b/y@4 b/y@5 b/z@6"),
            (some, settings(-1, 3, 0), "", "a/x@1 b/y@4"),
            (some, settings(-1, 2, 0), "", "a/x@1 a/x@2 b/y@4"),
            ("", settings(1, 0, 0), "", ""),
        ] {
            let finished: HashSet<String> = finished.split_whitespace().map(str::to_owned).collect();
            let now = Timestamp::from_second(100).unwrap();
            let mut gone: Vec<String> =
                removable(containers(text), &settings, &finished, now).into_iter().map(|c| c.id).collect();
            gone.sort();
            assert_eq!(gone.join(" "), want, "{settings:?}");
        }
    }

    #[test]
    fn logs_go_with_their_container() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1.log", "1.log.20260101-000000.gz", "1.log.20260101-000001", "11.log", "2.log"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut status = container_status("x", 0, ContainerState::Exited, 0);
        status.log_path = dir.path().join("1.log");
        remove_logs(&status);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["11.log", "2.log"]);
    }
}

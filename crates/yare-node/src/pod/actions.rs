//! What to do next for a pod: a pure function from its spec and the runtime's state to a list of actions.
//!
//! In: the pod, a [`Snapshot`], probe outcomes. Out: [`Actions`]: which containers to kill, whether a sandbox
//! is needed, what to start. The rules are upstream's (`computePodActions`): init containers one by one,
//! sidecars once started stay, main containers when initialization is over, ephemeral ones once.

use yare_runtime::ContainerState;

use super::snapshot::{Snapshot, restarts_when_killed, should_start};
use crate::probe::{Outcome, ProbeKind};
use crate::view::{Container, Pod};

/// Label on containers that tells whether their definition changed.
pub(crate) const HASH_ANNOTATION: &str = "io.kubernetes.container.hash";

/// A container to kill, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) message: String,
    pub(crate) reason: KillReason,
}

/// Why a container is killed; probes may bring their own grace period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    Unknown,
    Liveness,
    Startup,
    /// With the least grace, and without hooks.
    RestartAll,
}

/// The next steps for a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Actions {
    /// Nothing is left to run: stop everything, sandbox included.
    pub(crate) kill_pod: bool,
    /// A (new) sandbox is needed, with this attempt number.
    pub(crate) create_sandbox: Option<u32>,
    pub(crate) kill: Vec<Kill>,
    /// Indices into `initContainers`.
    pub(crate) init: Vec<usize>,
    /// Indices into `containers`.
    pub(crate) main: Vec<usize>,
    /// Indices into `ephemeralContainers`.
    pub(crate) ephemeral: Vec<usize>,
}

impl Actions {
    /// Whether any container is to be started.
    pub(crate) fn starts_some(&self) -> bool {
        !self.init.is_empty() || !self.main.is_empty() || !self.ephemeral.is_empty()
    }
}

/// A short hash of what makes a running container out of date: its name and image.
pub(crate) fn definition_hash(container: &Container) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in container.name.bytes().chain([0]).chain(container.image.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// Computes the next steps. `outcome` answers what a probe last said of a container instance.
pub(crate) fn compute(
    pod: &Pod,
    snapshot: &Snapshot,
    outcome: &dyn Fn(&str, ProbeKind) -> Option<Outcome>,
) -> Actions {
    let mut actions = Actions::default();
    if let Err(attempt) = snapshot.usable_sandbox(pod) {
        return without_sandbox(pod, snapshot, attempt);
    }
    for (index, ephemeral) in pod.spec.ephemeral_containers.iter().enumerate() {
        if snapshot.latest(&ephemeral.common.name).is_none() {
            actions.ephemeral.push(index);
        }
    }
    let initialized = init_actions(pod, snapshot, outcome, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut keep = 0;
    for (index, container) in pod.spec.containers.iter().enumerate() {
        let status = snapshot.latest(&container.name);
        let Some(status) = status.filter(|s| s.state == ContainerState::Running) else {
            if should_start(container, pod, snapshot) {
                actions.main.push(index);
                if let Some(unknown) = status.filter(|s| s.state == ContainerState::Unknown) {
                    actions.kill.push(unknown_kill(&unknown.id, &container.name, "Container"));
                }
            }
            continue;
        };
        let failed = |kind| outcome(&status.id, kind) == Some(Outcome::Failure);
        let (message, reason, restart) = if definition_changed(container, &status.annotations) {
            (format!("Container {} definition changed", container.name), KillReason::Unknown, true)
        } else if failed(ProbeKind::Liveness) {
            let restart = restarts_when_killed(container, pod);
            (format!("Container {} failed liveness probe", container.name), KillReason::Liveness, restart)
        } else if failed(ProbeKind::Startup) {
            let restart = restarts_when_killed(container, pod);
            (format!("Container {} failed startup probe", container.name), KillReason::Startup, restart)
        } else {
            keep += 1;
            continue;
        };
        let message = if restart { format!("{message}, will be restarted") } else { message };
        actions.kill.push(Kill { id: status.id.clone(), name: container.name.clone(), message, reason });
        if restart {
            actions.main.push(index);
        }
    }
    if keep == 0 && actions.main.is_empty() {
        actions.kill_pod = true;
        // Sidecars must not keep a finished pod alive.
        actions.init.clear();
    }
    actions
}

fn without_sandbox(pod: &Pod, snapshot: &Snapshot, attempt: u32) -> Actions {
    let mut actions = Actions { kill_pod: true, create_sandbox: Some(attempt), ..Actions::default() };
    let may_restart = pod.restart_policy() != "Never"
        || pod.spec.containers.iter().any(|c| c.restart_policy.as_deref().is_some_and(|p| p != "Never"));
    if !may_restart && attempt != 0 && !snapshot.containers.is_empty() {
        actions.create_sandbox = None;
        return actions;
    }
    let start: Vec<usize> = pod
        .spec
        .containers
        .iter()
        .enumerate()
        .filter(|(_, c)| {
            let once = c.restart_policy.as_deref().unwrap_or(pod.restart_policy()) == "OnFailure";
            let succeeded = snapshot
                .latest(&c.name)
                .is_some_and(|s| s.state == ContainerState::Exited && s.exit_code == 0);
            !(once && succeeded)
        })
        .map(|(index, _)| index)
        .collect();
    if start.is_empty() && snapshot.any_main_created(&pod.spec) {
        actions.create_sandbox = None;
        return actions;
    }
    if pod.spec.init_containers.is_empty() {
        actions.main = start;
    } else {
        actions.init.push(0);
    }
    actions
}

/// Adds what init containers need; answers whether initialization is over.
fn init_actions(
    pod: &Pod,
    snapshot: &Snapshot,
    outcome: &dyn Fn(&str, ProbeKind) -> Option<Outcome>,
    actions: &mut Actions,
) -> bool {
    let inits = &pod.spec.init_containers;
    if inits.is_empty() {
        return true;
    }
    let previously = pod.spec.containers.iter().any(|c| {
        snapshot
            .latest(&c.name)
            .is_some_and(|s| matches!(s.state, ContainerState::Created | ContainerState::Running))
    });
    let mut initialized = previously;
    let last = inits.len() - 1;
    // From the last to the first: finished init containers may have been removed from the runtime, and
    // the last one alone tells how far the pod has come.
    for (index, container) in inits.iter().enumerate().rev() {
        let sidecar = container.is_sidecar();
        let Some(status) = snapshot.latest(&container.name) else {
            if previously && sidecar {
                actions.init.push(index);
            }
            continue;
        };
        if previously && !sidecar {
            continue;
        }
        let kill = |message: String, reason| Kill {
            id: status.id.clone(),
            name: container.name.clone(),
            message,
            reason,
        };
        match status.state {
            ContainerState::Created => actions.init.push(index),
            ContainerState::Running if !sidecar => {}
            ContainerState::Running => {
                let startup = match container.startup_probe {
                    Some(_) => outcome(&status.id, ProbeKind::Startup),
                    None => Some(Outcome::Success),
                };
                if startup == Some(Outcome::Success) {
                    if index == last {
                        initialized = true;
                    } else if !previously {
                        actions.init.push(index + 1);
                    }
                }
                if startup == Some(Outcome::Failure) {
                    let message = format!("Init container {} failed startup probe", container.name);
                    actions.kill.push(kill(message, KillReason::Startup));
                    actions.init.push(index);
                } else if definition_changed(container, &status.annotations) {
                    let message = format!("Init container {} definition changed", container.name);
                    actions.kill.push(kill(message, KillReason::Unknown));
                    actions.init.push(index);
                } else if outcome(&status.id, ProbeKind::Liveness) == Some(Outcome::Failure) {
                    let message = format!("Init container {} failed liveness probe", container.name);
                    actions.kill.push(kill(message, KillReason::Liveness));
                    actions.init.push(index);
                }
            }
            ContainerState::Exited if sidecar => actions.init.push(index),
            ContainerState::Exited if status.exit_code != 0 => {
                if !should_start(container, pod, snapshot) {
                    actions.kill_pod = true;
                    actions.init.clear();
                    return false;
                }
                actions.init.push(index);
            }
            ContainerState::Exited if index == last => initialized = true,
            ContainerState::Exited => actions.init.push(index + 1),
            ContainerState::Unknown => {
                if !sidecar && !restarts_when_killed(container, pod) {
                    actions.kill_pod = true;
                    actions.init.clear();
                    return false;
                }
                actions.kill.push(unknown_kill(&status.id, &container.name, "Init container"));
                actions.init.push(index);
            }
        }
        if !previously {
            // The next container to run is found; what comes before it are sidecars to keep alive.
            keep_earlier_sidecars(pod, snapshot, outcome, index, actions);
            break;
        }
    }
    if snapshot.containers.iter().all(|c| !inits.iter().any(|i| i.name == c.name)) && !previously {
        actions.init = vec![0];
        return false;
    }
    // Start in the order of the spec.
    actions.init.sort_unstable();
    actions.init.dedup();
    initialized
}

/// Before initialization is over, sidecars that were started already are kept running.
fn keep_earlier_sidecars(
    pod: &Pod,
    snapshot: &Snapshot,
    outcome: &dyn Fn(&str, ProbeKind) -> Option<Outcome>,
    before: usize,
    actions: &mut Actions,
) {
    for (index, container) in pod.spec.init_containers.iter().enumerate().take(before) {
        if !container.is_sidecar() {
            continue;
        }
        let Some(status) = snapshot.latest(&container.name) else {
            actions.init.push(index);
            continue;
        };
        match status.state {
            ContainerState::Running => {
                for (kind, reason, text) in [
                    (ProbeKind::Startup, KillReason::Startup, "startup"),
                    (ProbeKind::Liveness, KillReason::Liveness, "liveness"),
                ] {
                    if outcome(&status.id, kind) == Some(Outcome::Failure) {
                        actions.kill.push(Kill {
                            id: status.id.clone(),
                            name: container.name.clone(),
                            message: format!("Init container {} failed {text} probe", container.name),
                            reason,
                        });
                        actions.init.push(index);
                        break;
                    }
                }
            }
            ContainerState::Unknown => {
                actions.kill.push(unknown_kill(&status.id, &container.name, "Init container"));
                actions.init.push(index);
            }
            ContainerState::Created | ContainerState::Exited => actions.init.push(index),
        }
    }
}

fn unknown_kill(id: &str, name: &str, what: &str) -> Kill {
    Kill {
        id: id.to_owned(),
        name: name.to_owned(),
        message: format!("{what} is in \"unknown\" state, try killing it before restart"),
        reason: KillReason::Unknown,
    }
}

/// Whether an instance is of another definition than the pod has now.
pub(crate) fn definition_changed(
    container: &Container,
    annotations: &std::collections::BTreeMap<String, String>,
) -> bool {
    annotations.get(HASH_ANNOTATION).is_some_and(|hash| *hash != definition_hash(container))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container_status, sandbox_status};

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
        )
        .unwrap()
    }

    /// `name:state[:code]` per container, newest first; a leading `-` means the sandbox is not ready.
    fn snapshot(text: &str) -> Snapshot {
        let mut sandboxes = Vec::new();
        let mut containers = Vec::new();
        for (index, word) in text.split_whitespace().enumerate() {
            match word {
                "none" => {}
                "ready" => sandboxes.push(sandbox_status("s", 0, true)),
                "dead" => sandboxes.push(sandbox_status("s", 0, false)),
                word => {
                    let mut parts = word.split(':');
                    let name = parts.next().unwrap();
                    let state = match parts.next().unwrap() {
                        "r" => ContainerState::Running,
                        "c" => ContainerState::Created,
                        "x" => ContainerState::Exited,
                        _ => ContainerState::Unknown,
                    };
                    let code = parts.next().map_or(0, |c| c.parse().unwrap());
                    containers.push(container_status(name, index as i64, state, code));
                }
            }
        }
        Snapshot::new(sandboxes, containers)
    }

    #[test]
    fn table() {
        let plain = serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let never =
            serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
        let on_failure =
            serde_json::json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}, {"name": "b"}]});
        let init = serde_json::json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let init_never = serde_json::json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let sidecar = serde_json::json!({"restartPolicy": "Never",
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": [{"name": "a"}]});
        let probed = serde_json::json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}],
            "containers": [{"name": "a"}]});
        // spec, runtime's state, (kill pod, sandbox attempt, init, main)
        type Want = (bool, Option<u32>, &'static [usize], &'static [usize]);
        let cases: &[(&serde_json::Value, &str, Want)] = &[
            (&plain, "none", (true, Some(0), &[], &[0, 1])),
            (&plain, "ready", (false, None, &[], &[0, 1])),
            (&plain, "ready a:r", (false, None, &[], &[1])),
            (&plain, "ready a:r b:r", (false, None, &[], &[])),
            (&plain, "ready a:r b:x", (false, None, &[], &[1])),
            (&plain, "dead a:x b:x", (true, Some(1), &[], &[0, 1])),
            (&never, "ready a:x b:x:1", (true, None, &[], &[])),
            (&never, "dead a:x b:x", (true, None, &[], &[])),
            (&never, "dead", (true, Some(1), &[], &[0, 1])),
            (&on_failure, "ready a:x b:x:1", (false, None, &[], &[1])),
            (&on_failure, "dead a:x b:x:1", (true, Some(1), &[], &[1])),
            (&on_failure, "dead a:x b:x", (true, None, &[], &[])),
            (&init, "none", (true, Some(0), &[0], &[])),
            (&init, "ready", (false, None, &[0], &[])),
            (&init, "ready i:r", (false, None, &[], &[])),
            (&init, "ready i:x", (false, None, &[1], &[])),
            (&init, "ready i:x:1", (false, None, &[0], &[])),
            (&init, "ready i:x j:x", (false, None, &[], &[0])),
            (&init, "ready j:x", (false, None, &[], &[0])),
            (&init, "ready i:x j:x a:r", (false, None, &[], &[])),
            (&init_never, "ready i:x:1", (true, None, &[], &[])),
            (&sidecar, "ready s:r", (false, None, &[1], &[])),
            (&sidecar, "ready s:r i:x", (false, None, &[], &[0])),
            (&sidecar, "ready s:x:1 i:r", (false, None, &[0], &[])),
            (&sidecar, "ready s:x:1 i:x a:r", (false, None, &[0], &[])),
            (&sidecar, "ready s:r i:x a:x", (true, None, &[], &[])),
            (&probed, "ready s:r", (false, None, &[], &[])),
        ];
        for (spec, state, want) in cases {
            let actions = compute(&pod((*spec).clone()), &snapshot(state), &|_, _| None);
            let got =
                (actions.kill_pod, actions.create_sandbox, actions.init.as_slice(), actions.main.as_slice());
            assert_eq!(got, *want, "{spec} with {state}");
        }
    }

    #[test]
    fn probes_kill() {
        let spec = serde_json::json!({"containers": [{"name": "a"}]});
        let failing = |_: &str, kind| (kind == ProbeKind::Liveness).then_some(Outcome::Failure);
        let actions = compute(&pod(spec), &snapshot("ready a:r"), &failing);
        assert_eq!(actions.main, [0]);
        assert_eq!(actions.kill[0].message, "Container a failed liveness probe, will be restarted");
    }
}

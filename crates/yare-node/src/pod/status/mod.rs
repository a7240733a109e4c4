//! A pod's status, computed: container statuses, phase, conditions, addresses.
//!
//! In: the pod, a [`Snapshot`] of the runtime, what the worker knows (why containers wait, probe outcomes,
//! the status before). Out: the [`PodStatus`] to publish. Pure, so that every rule has a row in a test.

use std::collections::HashMap;

use jiff::Timestamp;
use yare_runtime::{ContainerState as RuntimeState, ContainerStatus as RuntimeContainer, Resources};

use super::snapshot::{Snapshot, should_start};
use super::{conditions, phase, qos, restart_all, sizes};
use crate::allocation::Sizes;
use crate::clock;
use crate::view::{
    Container, ContainerState, ContainerStatus, Ip, Pod, PodCondition, PodStatus, Running, Terminated,
    VolumeMountStatus, Waiting,
};

mod patch;

pub(crate) use patch::patch;

/// Why a container has not started, for its `waiting` state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WaitReason {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What goes into a status beyond the pod and the runtime's state.
pub(crate) struct Inputs<'a> {
    /// The status published before, or the API server's.
    pub(crate) previous: &'a PodStatus,
    pub(crate) waiting: &'a HashMap<String, WaitReason>,
    /// (started, ready) of a running container instance.
    pub(crate) health: &'a dyn Fn(&Container, &RuntimeContainer) -> (bool, bool),
    /// What exited containers left in their termination message file, by container id.
    pub(crate) messages: &'a HashMap<String, String>,
    /// A phase decided from outside: rejected, deadline exceeded.
    pub(crate) verdict: Option<&'a Verdict>,
    /// Containers are not started any more: the pod is finished or being deleted.
    pub(crate) terminal: bool,
    pub(crate) host_ips: &'a [String],
    pub(crate) runtime_name: &'a str,
    /// What is in force of the pod's CPU and memory.
    pub(crate) in_force: Option<&'a Sizes>,
    /// Conditions of a resize.
    pub(crate) resize: &'a [PodCondition],
    /// The limits of the pod's cgroup; none: pods are not resized as a whole here.
    pub(crate) of_pod: Option<&'a Resources>,
    pub(crate) now: Timestamp,
}

/// A final failure that does not come from the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// The node ended a pod that did nothing wrong: condition `DisruptionTarget`.
    pub(crate) disrupted: bool,
}

/// Computes the status.
pub(crate) fn generate(pod: &Pod, snapshot: &Snapshot, inputs: &Inputs<'_>) -> PodStatus {
    let has_init = !pod.spec.init_containers.is_empty();
    let init: Vec<ContainerStatus> = pod
        .spec
        .init_containers
        .iter()
        .map(|c| container_status(pod, snapshot, inputs, c, Kind { has_init, is_init: true }))
        .collect();
    let main: Vec<ContainerStatus> = pod
        .spec
        .containers
        .iter()
        .map(|c| container_status(pod, snapshot, inputs, c, Kind { has_init, is_init: false }))
        .collect();
    let ephemeral: Vec<ContainerStatus> = pod
        .spec
        .ephemeral_containers
        .iter()
        .map(|c| container_status(pod, snapshot, inputs, &c.common, Kind { has_init: false, is_init: false }))
        .collect();

    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        init_container_statuses: init,
        container_statuses: main,
        ephemeral_container_statuses: ephemeral,
        qos_class: qos::class(pod).to_owned(),
        start_time: inputs.previous.start_time.clone().or_else(|| Some(clock::rfc3339(inputs.now))),
        ..PodStatus::default()
    };
    status.phase = phase::compute(pod, &status, inputs.terminal).to_owned();
    for held in [&inputs.previous.phase, &pod.status.phase] {
        // A final phase is never left.
        if matches!(held.as_str(), "Succeeded" | "Failed") {
            status.phase.clone_from(held);
        }
    }
    if status.phase == inputs.previous.phase {
        status.reason.clone_from(&inputs.previous.reason);
        status.message.clone_from(&inputs.previous.message);
    }
    if let Some(verdict) = inputs.verdict {
        "Failed".clone_into(&mut status.phase);
        status.reason.clone_from(&verdict.reason);
        status.message.clone_from(&verdict.message);
    }
    addresses(pod, snapshot, inputs, &mut status);
    if let Some(limits) = inputs.of_pod {
        let running = status.phase == "Running";
        status.resources = Some(sizes::of_pod(pod, running.then_some(limits), inputs.in_force));
        status.allocated_resources = sizes::requests(pod);
    }
    status.conditions = conditions::compute(pod, snapshot, inputs, &status);
    status
}

fn addresses(pod: &Pod, snapshot: &Snapshot, inputs: &Inputs<'_>, status: &mut PodStatus) {
    let ip = |text: &String| Ip { ip: text.clone() };
    status.host_ip = inputs.host_ips.first().cloned().unwrap_or_default();
    status.host_ips = inputs.host_ips.iter().map(ip).collect();
    let sandbox_ips: Vec<Ip> = snapshot
        .ready_sandbox()
        .map(|s| s.ips.iter().map(|a| Ip { ip: a.to_string() }).collect())
        .unwrap_or_default();
    status.pod_ips = if pod.spec.host_network {
        status.host_ips.clone()
    } else if sandbox_ips.is_empty() {
        // A stopped pod keeps the address it had.
        inputs.previous.pod_ips.clone()
    } else {
        sandbox_ips
    };
    status.pod_ip = status.pod_ips.first().map(|i| i.ip.clone()).unwrap_or_default();
}

#[derive(Clone, Copy)]
struct Kind {
    has_init: bool,
    is_init: bool,
}

fn container_status(
    pod: &Pod,
    snapshot: &Snapshot,
    inputs: &Inputs<'_>,
    container: &Container,
    kind: Kind,
) -> ContainerStatus {
    let old = inputs.previous.container(&container.name);
    let default_reason = if kind.has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut instances = snapshot.containers.iter().filter(|c| c.name == container.name);
    let newest = instances.next();
    let mut status = match newest {
        Some(newest) => from_runtime(container, newest, old, inputs),
        None => match (restart_all::removed(pod, snapshot, inputs.previous, container), old) {
            (Some(removed), _) => removed,
            (None, Some(old)) if old.state.terminated.is_some() => old.clone(),
            _ => ContainerStatus {
                state: ContainerState::waiting(default_reason, ""),
                restart_count: old.map_or(0, |o| o.restart_count),
                last_state: old.map(|o| o.last_state.clone()).unwrap_or_default(),
                image: container.image.clone(),
                ..ContainerStatus::default()
            },
        },
    };
    status.name.clone_from(&container.name);
    status.volume_mounts = volume_mounts(container, newest);
    if newest.is_none() && !status.last_state.terminated.as_ref().is_some_and(restart_all::was_removed) {
        lost_container(pod, snapshot, container, kind, old, &mut status);
    }
    if let Some(before) = instances.next() {
        status.last_state = state_of(before, inputs);
    } else if status.last_state == ContainerState::default()
        && let Some(old) = old
    {
        // The earlier instance is gone from the runtime; what was said of it stays true.
        if !old.container_id.is_empty()
            && old.container_id != status.container_id
            && old.state.terminated.is_some()
        {
            status.last_state = old.state.clone();
        } else {
            status.last_state = old.last_state.clone();
        }
    }
    let finished_init = kind.is_init
        && newest.is_some_and(|s| s.state == RuntimeState::Exited && s.exit_code == 0)
        && !container.is_sidecar();
    if !finished_init
        && !inputs.terminal
        && should_start(container, pod, snapshot)
        && let Some(wait) = inputs.waiting.get(&container.name)
    {
        if status.state.terminated.is_some() {
            status.last_state = std::mem::take(&mut status.state);
        }
        status.state = ContainerState::waiting(&wait.reason, &wait.message);
    }
    health(container, newest, inputs, kind, &mut status);
    status
}

/// A container the runtime no longer knows although it once ran or must have run.
fn lost_container(
    pod: &Pod,
    snapshot: &Snapshot,
    container: &Container,
    kind: Kind,
    old: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    if status.state.terminated.is_some() {
        return;
    }
    if kind.is_init && !container.is_sidecar() && snapshot.any_main_created(&pod.spec) {
        status.state = ContainerState {
            terminated: Some(Terminated {
                reason: "Completed".into(),
                message: "Unable to get init container status from container runtime and pod has been initialized, \
                          treat it as exited normally"
                    .into(),
                ..Terminated::default()
            }),
            ..ContainerState::default()
        };
        return;
    }
    if old.is_some_and(|o| o.state.running.is_some()) && status.last_state.terminated.is_none() {
        status.last_state.terminated = Some(Terminated {
            exit_code: 137,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was deleted.  The container used to be Running"
                .into(),
            ..Terminated::default()
        });
        if !pod.is_deleting() {
            status.restart_count += 1;
        }
    }
}

fn from_runtime(
    container: &Container,
    newest: &RuntimeContainer,
    old: Option<&ContainerStatus>,
    inputs: &Inputs<'_>,
) -> ContainerStatus {
    let in_force = inputs.in_force.and_then(|sizes| sizes.containers.get(&container.name));
    let in_force = in_force.filter(|_| newest.state == RuntimeState::Running);
    ContainerStatus {
        state: match newest.state {
            RuntimeState::Unknown if old.is_some_and(|o| o.state.running.is_some()) => ContainerState {
                terminated: Some(Terminated {
                    exit_code: 137,
                    reason: "ContainerStatusUnknown".into(),
                    message: "The container could not be located when the pod was terminated".into(),
                    ..Terminated::default()
                }),
                ..ContainerState::default()
            },
            _ => state_of(newest, inputs),
        },
        restart_count: newest.attempt,
        image: if newest.image.is_empty() { container.image.clone() } else { newest.image.clone() },
        image_id: newest.image_id.clone(),
        container_id: format!("{}://{}", inputs.runtime_name, newest.id),
        allocated_resources: container.resources.requests.clone(),
        resources: Some(sizes::of_container(container, in_force)),
        user: newest.user.as_ref().map(|u| {
            serde_json::json!({"linux": {"uid": u.uid, "gid": u.gid, "supplementalGroups": u.supplemental_groups}})
        }),
        ..ContainerStatus::default()
    }
}

fn state_of(container: &RuntimeContainer, inputs: &Inputs<'_>) -> ContainerState {
    let time = |ns| clock::from_ns(ns).map(clock::rfc3339);
    match container.state {
        RuntimeState::Running => ContainerState {
            running: Some(Running { started_at: time(container.started_at_ns) }),
            ..ContainerState::default()
        },
        RuntimeState::Exited => {
            let own = inputs.messages.get(&container.id).filter(|m| !m.is_empty());
            ContainerState {
                terminated: Some(Terminated {
                    exit_code: container.exit_code,
                    reason: match container.reason.as_str() {
                        "" if container.exit_code == 0 => "Completed".into(),
                        "" => "Error".into(),
                        reason => reason.to_owned(),
                    },
                    message: match (own, container.message.as_str()) {
                        (Some(own), "") => own.clone(),
                        (Some(own), runtime) => format!("{runtime}: {own}"),
                        (None, runtime) => runtime.to_owned(),
                    },
                    started_at: time(container.started_at_ns),
                    finished_at: time(container.finished_at_ns),
                    container_id: format!("{}://{}", inputs.runtime_name, container.id),
                }),
                ..ContainerState::default()
            }
        }
        RuntimeState::Created | RuntimeState::Unknown => ContainerState::waiting("", ""),
    }
}

/// What of mounts users are told. What a container was made with says whether the runtime could make it read-only to
/// the bottom; before that its wish does.
fn volume_mounts(container: &Container, made: Option<&RuntimeContainer>) -> Vec<VolumeMountStatus> {
    let is_so = |at: &str| {
        let mounts = made.map(|made| &made.mounts).filter(|mounts| !mounts.is_empty())?;
        let path = std::path::Path::new("/").join(at);
        mounts.iter().find(|m| m.container_path == path).map(|m| m.recursive_readonly)
    };
    container
        .volume_mounts
        .iter()
        .map(|m| VolumeMountStatus {
            name: m.name.clone(),
            mount_path: m.mount_path.clone(),
            read_only: m.read_only,
            recursive_read_only: m.read_only.then(|| {
                let wished = matches!(m.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
                if wished && is_so(&m.mount_path).unwrap_or(true) {
                    "Enabled".to_owned()
                } else {
                    "Disabled".to_owned()
                }
            }),
        })
        .collect()
}

fn health(
    container: &Container,
    newest: Option<&RuntimeContainer>,
    inputs: &Inputs<'_>,
    kind: Kind,
    status: &mut ContainerStatus,
) {
    let regular_init = kind.is_init && !container.is_sidecar();
    if regular_init {
        status.started = Some(status.state.running.is_some());
        status.ready = status.state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
        return;
    }
    let (started, ready) = match (newest, &status.state.running) {
        (Some(newest), Some(_)) => (inputs.health)(container, newest),
        _ => (false, false),
    };
    status.started = Some(started);
    status.ready = started && ready;
}

/// Whether `ours` is but a step towards what will soon be known: containers that are being made, a pod whose
/// containers have all ended and that is about to go, or nothing new but that a newer generation was seen.
pub(crate) fn on_its_way(deleting: bool, server: &PodStatus, ours: &PodStatus) -> bool {
    let mut states = ours.init_container_statuses.iter().chain(&ours.container_statuses).map(|c| &c.state);
    if !matches!(server.phase.as_str(), "Pending" | "Running" | "") || !ours.reason.is_empty() {
        return false;
    }
    match ours.phase.as_str() {
        "Pending" if !deleting => states.all(|state| {
            let made = |w: &Waiting| matches!(w.reason.as_str(), "ContainerCreating" | "PodInitializing");
            state.waiting.as_ref().is_some_and(made)
        }),
        "Pending" | "Running" if deleting => {
            states.all(|state| state.running.is_none()) || same_but_generation(server, ours)
        }
        _ => false,
    }
}

fn same_but_generation(server: &PodStatus, ours: &PodStatus) -> bool {
    let mut ours = PodStatus { observed_generation: server.observed_generation, ..ours.clone() };
    for (ours, server) in ours.conditions.iter_mut().zip(&server.conditions) {
        ours.observed_generation = server.observed_generation;
    }
    *server == ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container_status, sandbox_status};

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec})).unwrap()
    }

    fn status_of(
        pod: &Pod,
        containers: Vec<RuntimeContainer>,
        waiting: &[(&str, &str)],
        terminal: bool,
    ) -> PodStatus {
        let snapshot = Snapshot::new(vec![sandbox_status("s", 0, true)], containers);
        let waiting = waiting
            .iter()
            .map(|(n, r)| ((*n).to_owned(), WaitReason { reason: (*r).to_owned(), message: "m".into() }))
            .collect();
        generate(
            pod,
            &snapshot,
            &Inputs {
                previous: &pod.status,
                waiting: &waiting,
                health: &|_, _| (true, true),
                messages: &HashMap::new(),
                verdict: None,
                terminal,
                host_ips: &["10.0.0.1".to_owned()],
                runtime_name: "yare",
                in_force: None,
                resize: &[],
                of_pod: None,
                now: Timestamp::from_second(1_000_000).unwrap(),
            },
        )
    }

    #[test]
    fn steps_wait_for_what_they_lead_to() {
        use RuntimeState::{Exited, Running};
        let pod = pod(serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let [running, ended] =
            [("a", Running), ("a", Exited)].map(|(n, s)| vec![container_status(n, 0, s, 0)]);
        let both = [Running, Exited]
            .map(|b| vec![container_status("a", 0, Running, 0), container_status("b", 0, b, 0)]);
        let made = status_of(&pod, vec![], &[("a", "ContainerCreating"), ("b", "ContainerCreating")], false);
        let stuck = status_of(&pod, vec![], &[("a", "ErrImagePull"), ("b", "ContainerCreating")], false);
        let partly = status_of(&pod, running, &[("b", "ContainerCreating")], false);
        let [up, half] = both.map(|containers| status_of(&pod, containers, &[], false));
        let down = status_of(&pod, ended, &[], false);
        let seen = PodStatus { observed_generation: 7, ..up.clone() };
        let new = PodStatus::default();
        for (name, deleting, server, ours, wait) in [
            ("containers are made", false, &new, &made, true),
            ("an image is missing", false, &new, &stuck, false),
            ("one of two runs", false, &made, &partly, false),
            ("all run", false, &made, &up, false),
            ("a container ended", false, &up, &half, false),
            ("told to go", true, &up, &seen, true),
            ("a container went", true, &up, &half, false),
            ("all went", true, &up, &down, true),
        ] {
            assert_eq!(on_its_way(deleting, server, ours), wait, "{name}");
        }
    }

    #[test]
    fn phases() {
        use RuntimeState::{Created, Exited, Running};
        let always = serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let never =
            serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
        let init = serde_json::json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let sidecar = serde_json::json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
        let cases: Vec<(&serde_json::Value, Vec<RuntimeContainer>, bool, &str)> = vec![
            (&always, vec![], false, "Pending"),
            (&always, vec![container_status("a", 0, Running, 0)], false, "Pending"),
            (
                &always,
                vec![container_status("a", 0, Running, 0), container_status("b", 0, Created, 0)],
                false,
                "Pending",
            ),
            (
                &always,
                vec![container_status("a", 0, Running, 0), container_status("b", 0, Running, 0)],
                false,
                "Running",
            ),
            (
                &always,
                vec![container_status("a", 0, Exited, 1), container_status("b", 0, Exited, 0)],
                false,
                "Running",
            ),
            (
                &always,
                vec![container_status("a", 0, Exited, 1), container_status("b", 0, Exited, 0)],
                true,
                "Failed",
            ),
            (
                &never,
                vec![container_status("a", 0, Exited, 0), container_status("b", 0, Exited, 0)],
                false,
                "Succeeded",
            ),
            (
                &never,
                vec![container_status("a", 0, Exited, 0), container_status("b", 0, Exited, 3)],
                false,
                "Failed",
            ),
            (
                &never,
                vec![container_status("a", 0, Exited, 0), container_status("b", 0, Running, 0)],
                false,
                "Running",
            ),
            (&init, vec![container_status("i", 0, Running, 0)], false, "Pending"),
            (&init, vec![container_status("i", 0, Exited, 1)], false, "Failed"),
            (
                &init,
                vec![container_status("i", 1, Exited, 0), container_status("a", 0, Running, 0)],
                false,
                "Running",
            ),
            (&sidecar, vec![container_status("s", 1, Running, 0)], false, "Pending"),
            (
                &sidecar,
                vec![container_status("s", 1, Running, 0), container_status("a", 0, Running, 0)],
                false,
                "Running",
            ),
        ];
        for (spec, containers, terminal, want) in cases {
            let text =
                format!("{spec} {:?}", containers.iter().map(|c| (&c.name, c.state)).collect::<Vec<_>>());
            assert_eq!(status_of(&pod(spec.clone()), containers, &[], terminal).phase, want, "{text}");
        }
    }

    #[test]
    fn crash_loop_reads_like_upstream() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        let status = status_of(
            &pod,
            vec![container_status("a", 0, RuntimeState::Exited, 1)],
            &[("a", "CrashLoopBackOff")],
            false,
        );
        let a = &status.container_statuses[0];
        assert_eq!(a.state.waiting.as_ref().unwrap().reason, "CrashLoopBackOff");
        assert_eq!(a.last_state.terminated.as_ref().unwrap().reason, "Error");
        assert_eq!(status.phase, "Running");
        assert_eq!(
            status.condition("Ready").unwrap().message.as_deref(),
            Some("containers with unready status: [a]")
        );
        assert_eq!(status.pod_ip, "10.42.0.5");
        assert_eq!(status.host_ip, "10.0.0.1");
    }

    #[test]
    fn readiness_gates_hold_ready_back() {
        let mut pod = pod(
            serde_json::json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}),
        );
        let running = || vec![container_status("a", 0, RuntimeState::Running, 0)];
        let status = status_of(&pod, running(), &[], false);
        assert_eq!(status.condition("Ready").unwrap().reason.as_deref(), Some("ReadinessGatesNotReady"));
        assert_eq!(status.condition("ContainersReady").unwrap().status, "True");
        pod.status.conditions.push(PodCondition {
            kind: "x/y".into(),
            status: "True".into(),
            ..Default::default()
        });
        assert_eq!(status_of(&pod, running(), &[], false).condition("Ready").unwrap().status, "True");
    }
}

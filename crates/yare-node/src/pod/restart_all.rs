//! `RestartAllContainers`: a container that ends as a rule of its says takes the whole pod back to its beginning,
//! init containers included, in the sandbox and with the volumes that it has.
//!
//! In: the pod, a [`Snapshot`], the status before. Out: whether that is under way, its condition, and in which
//! order containers leave the runtime. Those whose exit asked for it leave last, so that an agent that is killed in
//! between finds the reason still there. What the runtime has forgotten by then stays in the pod's status.

use yare_runtime::{ContainerState as RuntimeState, ContainerStatus as RuntimeContainer};

use super::snapshot::{Snapshot, matching_rule};
use crate::view::{Container, ContainerState, ContainerStatus, Pod, PodStatus, Terminated};

/// The rule's action.
pub(super) const ACTION: &str = "RestartAllContainers";
/// The pod's condition.
pub(super) const CONDITION: &str = "AllContainersRestarting";
/// Why a container that was removed for it waits, and why it ended.
const REASON: &str = "RestartingAllContainers";
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.init_containers.iter().chain(&pod.spec.containers)
}

fn asks(container: &Container, exit_code: i32) -> bool {
    matching_rule(container, exit_code).is_some_and(|rule| rule.action == ACTION)
}

/// Whether it may ever happen to the pod.
pub(super) fn is_possible(pod: &Pod) -> bool {
    containers(pod).any(|c| c.restart_policy_rules.iter().any(|rule| rule.action == ACTION))
}

/// Whether the pod's containers are to go, or are on their way.
fn is_asked(pod: &Pod, snapshot: &Snapshot, previous: &PodStatus) -> bool {
    let now = |c: &Container| {
        let ended = snapshot.latest(&c.name).filter(|s| s.state == RuntimeState::Exited);
        ended.is_some_and(|s| asks(c, s.exit_code))
    };
    let before = |c: &Container| {
        let status = previous.container(&c.name);
        status.and_then(|s| s.state.terminated.as_ref()).is_some_and(|t| asks(c, t.exit_code))
    };
    is_under_way(previous) || is_possible(pod) && containers(pod).any(|c| now(c) || before(c))
}

/// What a status says of it.
pub(super) fn is_under_way(status: &PodStatus) -> bool {
    status.condition(CONDITION).is_some_and(|c| c.status == "True")
}

/// The condition's value, reason and message.
pub(super) fn condition(
    pod: &Pod,
    snapshot: &Snapshot,
    previous: &PodStatus,
    phase: &str,
) -> (&'static str, &'static str, &'static str) {
    let all_gone = || containers(pod).all(|c| snapshot.latest(&c.name).is_none());
    match phase {
        "Succeeded" => ("False", "PodCompleted", ""),
        "Failed" => ("False", "PodFailed", ""),
        _ if !is_asked(pod, snapshot, previous) || all_gone() => ("False", "", ""),
        _ => ("True", "RestartAllContainersStarted", "container exited with restart policy rule"),
    }
}

/// The status of a container that was removed for it; none: it is missing for another reason.
pub(super) fn removed(
    pod: &Pod,
    snapshot: &Snapshot,
    previous: &PodStatus,
    container: &Container,
) -> Option<ContainerStatus> {
    let old = previous.container(&container.name).filter(|old| old.state.waiting.is_none())?;
    if !is_asked(pod, snapshot, previous) {
        return None;
    }
    let ended = Terminated {
        exit_code: 137,
        reason: REASON.to_owned(),
        message: MESSAGE.to_owned(),
        ..Terminated::default()
    };
    Some(ContainerStatus {
        state: ContainerState::waiting(REASON, MESSAGE),
        last_state: ContainerState { terminated: Some(ended), ..ContainerState::default() },
        restart_count: old.restart_count + 1,
        image: container.image.clone(),
        ..ContainerStatus::default()
    })
}

/// Whether a container that ended so is started again, whatever its policy.
pub(super) fn was_removed(ended: &Terminated) -> bool {
    ended.reason == REASON
}

/// All instances of the pod's containers, in the order in which they go.
pub(super) fn order<'a>(pod: &Pod, snapshot: &'a Snapshot) -> Vec<&'a RuntimeContainer> {
    let mut last = Vec::new();
    let mut first = Vec::new();
    for container in pod.spec.containers.iter().chain(&pod.spec.init_containers) {
        for instance in snapshot.containers.iter().filter(|c| c.name == container.name) {
            let asked = instance.state == RuntimeState::Exited && asks(container, instance.exit_code);
            if asked { &mut last } else { &mut first }.push(instance);
        }
    }
    first.append(&mut last);
    first
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::testing::{container_status, sandbox_status};

    fn pod(status: serde_json::Value) -> Pod {
        let rules = |action: &str, operator: &str, codes: &[i32]| json!({"action": action, "exitCodes": {"operator": operator, "values": codes}});
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {
                "restartPolicy": "Never",
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}, {"name": "b", "restartPolicy": "Never", "restartPolicyRules": [
                    rules("Restart", "In", &[5]),
                    rules(ACTION, "In", &[5, 42]),
                ]}],
            },
            "status": status,
        }))
        .unwrap()
    }

    /// `name:exit code`, or `name:r` for one that runs; newest first.
    fn snapshot(text: &str) -> Snapshot {
        let containers = text.split_whitespace().enumerate().map(|(age, word)| {
            let (name, state) = word.split_once(':').unwrap();
            let age = i64::try_from(age).unwrap();
            match state.parse() {
                Ok(code) => container_status(name, age, RuntimeState::Exited, code),
                Err(_) => container_status(name, age, RuntimeState::Running, 0),
            }
        });
        Snapshot::new(vec![sandbox_status("s", 0, true)], containers.collect())
    }

    #[test]
    fn conditions() {
        let under_way = json!({"conditions": [{"type": CONDITION, "status": "True"}]});
        let ended = json!({"containerStatuses": [{"name": "b", "state": {"terminated": {"exitCode": 42}}}]});
        let nothing = json!({});
        for (status, containers, phase, value) in [
            (&nothing, "", "Pending", "False"),
            (&nothing, "b:r a:r s:r i:0", "Running", "False"),
            (&nothing, "b:42 a:r s:r i:0", "Running", "True"),
            (&nothing, "b:0 a:r s:r i:0", "Running", "False"),
            (&nothing, "a:42 b:r s:r i:0", "Running", "False"),
            // The first rule that fits counts.
            (&nothing, "b:5 a:r s:r i:0", "Running", "False"),
            (&nothing, "b:42 a:0", "Failed", "False"),
            // Half of it was done in an earlier life; all of it was; it runs again.
            (&under_way, "i:0", "Running", "True"),
            (&under_way, "", "Running", "False"),
            (&ended, "a:r", "Running", "True"),
            (&nothing, "i:r", "Pending", "False"),
        ] {
            let pod = pod(status.clone());
            let got = condition(&pod, &snapshot(containers), &pod.status, phase);
            assert_eq!(got.0, value, "{containers} {status}");
        }
    }

    #[test]
    fn who_asked_goes_last() {
        let snapshot = snapshot("b:42 b:3 a:r s:r i:0");
        let pod = pod(json!({}));
        let order: Vec<_> = order(&pod, &snapshot).iter().map(|c| c.id.as_str()).collect();
        assert_eq!(order, ["a-2", "b-1", "i-4", "s-3", "b-0"]);
    }

    #[test]
    fn what_was_removed_is_told() {
        let pod = pod(json!({
            "conditions": [{"type": CONDITION, "status": "True"}],
            "containerStatuses": [
                {"name": "a", "restartCount": 1, "state": {"running": {}}},
                {"name": "b", "restartCount": 3, "state": {"terminated": {"exitCode": 42}}},
            ],
            "initContainerStatuses": [{"name": "i", "state": {"waiting": {}}}],
        }));
        let of = |name: &str| {
            removed(&pod, &Snapshot::default(), &pod.status, pod.container(name).unwrap())
                .map(|s| (s.restart_count, s.last_state.terminated.is_some_and(|t| was_removed(&t))))
        };
        assert_eq!([of("a"), of("b"), of("i"), of("s")], [Some((2, true)), Some((4, true)), None, None]);
    }
}

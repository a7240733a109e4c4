//! A pod's conditions, from its containers' statuses, its sandbox and its readiness gates.

use super::preemption;
use super::restart_all;
use super::snapshot::Snapshot;
use super::status::Inputs;
use crate::allocation;
use crate::clock;
use crate::view::{Pod, PodCondition, PodStatus};

/// Conditions that the kubelet owns; all others on a pod are kept as they are.
const OWNED: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    restart_all::CONDITION,
    allocation::CONDITIONS[0],
    allocation::CONDITIONS[1],
];

/// Shared with whoever else disrupts pods.
const DISRUPTED: &str = "DisruptionTarget";

/// All conditions: those of others as they are, and the kubelet's own.
pub(super) fn compute(
    pod: &Pod,
    snapshot: &Snapshot,
    inputs: &Inputs<'_>,
    status: &PodStatus,
) -> Vec<PodCondition> {
    let foreign = || pod.status.conditions.iter().filter(|c| !OWNED.contains(&c.kind.as_str()));
    let containers_ready = containers_ready(pod, status);
    let ready = match &containers_ready {
        Err(_) => containers_ready.clone(),
        Ok(()) => {
            let unmet: Vec<String> = pod
                .spec
                .readiness_gates
                .iter()
                .filter_map(|gate| match foreign().find(|c| c.kind == gate.condition_type) {
                    None => Some(format!(
                        "corresponding condition of pod readiness gate {:?} does not exist.",
                        gate.condition_type
                    )),
                    Some(c) if c.status != "True" => Some(format!(
                        "the status of pod readiness gate {:?} is not \"True\", but {}",
                        gate.condition_type, c.status
                    )),
                    Some(_) => None,
                })
                .collect();
            if unmet.is_empty() {
                Ok(())
            } else {
                Err(("ReadinessGatesNotReady".to_owned(), unmet.join(", ")))
            }
        }
    };
    let sandbox = match snapshot.usable_sandbox(pod) {
        Ok(_) => Ok(()),
        Err(_) => Err((String::new(), String::new())),
    };
    let mut conditions: Vec<PodCondition> = foreign().cloned().collect();
    conditions.extend(inputs.resize.iter().cloned());
    if let Some(verdict) = inputs.verdict.filter(|v| v.disrupted) {
        let message =
            if verdict.reason == preemption::REASON { preemption::DISRUPTED } else { &verdict.message };
        disrupted(pod, inputs, message, &mut conditions);
    }
    let owned = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(pod, status)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Ok(())),
    ];
    for (kind, outcome) in owned {
        let (value, reason, message) = match outcome {
            Ok(()) if kind == "Initialized" && status.phase == "Succeeded" => {
                ("True", "PodCompleted".to_owned(), String::new())
            }
            Ok(()) => ("True", String::new(), String::new()),
            Err((reason, message)) => ("False", reason, message),
        };
        conditions.push(condition(pod, inputs, kind, value, &reason, &message));
    }
    if restart_all::is_possible(pod) {
        let (value, reason, message) = restart_all::condition(pod, snapshot, inputs.previous, &status.phase);
        conditions.push(condition(pod, inputs, restart_all::CONDITION, value, reason, message));
    }
    conditions
}

/// A condition of our own; it has been so since it became so.
fn condition(
    pod: &Pod,
    inputs: &Inputs<'_>,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
) -> PodCondition {
    let before = inputs.previous.condition(kind).or_else(|| pod.status.condition(kind));
    let since = match before {
        Some(before) if before.status == value => before.last_transition_time.clone(),
        _ => None,
    };
    let text = |s: &str| if s.is_empty() { None } else { Some(s.to_owned()) };
    PodCondition {
        kind: kind.to_owned(),
        status: value.to_owned(),
        observed_generation: pod.metadata.generation,
        last_probe_time: None,
        last_transition_time: since.or_else(|| Some(clock::rfc3339(inputs.now))),
        reason: text(reason),
        message: text(message),
    }
}

/// The node ended the pod for its own sake.
fn disrupted(pod: &Pod, inputs: &Inputs<'_>, message: &str, conditions: &mut Vec<PodCondition>) {
    let before = inputs.previous.condition(DISRUPTED).or_else(|| pod.status.condition(DISRUPTED));
    let since = before.filter(|c| c.status == "True").and_then(|c| c.last_transition_time.clone());
    conditions.retain(|c| c.kind != DISRUPTED);
    conditions.push(PodCondition {
        kind: DISRUPTED.to_owned(),
        status: "True".to_owned(),
        observed_generation: pod.metadata.generation,
        last_probe_time: None,
        last_transition_time: since.or_else(|| Some(clock::rfc3339(inputs.now))),
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(message.to_owned()),
    });
}

type Outcome = Result<(), (String, String)>;

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn containers_ready(pod: &Pod, status: &PodStatus) -> Outcome {
    match status.phase.as_str() {
        "Succeeded" => return Err(("PodCompleted".into(), String::new())),
        "Failed" => return Err(("PodFailed".into(), String::new())),
        _ => {}
    }
    let watched = pod.spec.init_containers.iter().filter(|c| c.is_sidecar()).chain(&pod.spec.containers);
    let unready: Vec<&str> = watched
        .filter(|c| status.container(&c.name).is_none_or(|s| !s.ready))
        .map(|c| c.name.as_str())
        .collect();
    if unready.is_empty() {
        return Ok(());
    }
    Err(("ContainersNotReady".into(), format!("containers with unready status: {}", list(&unready))))
}

fn initialized(pod: &Pod, status: &PodStatus) -> Outcome {
    let main_started = pod.spec.containers.iter().filter_map(|c| status.container(&c.name)).any(|s| {
        s.started == Some(true)
            || s.state.terminated.is_some()
            || s.last_state.terminated.is_some()
            || s.state.running.is_some()
    });
    if status.phase == "Succeeded" || main_started {
        return Ok(());
    }
    let incomplete: Vec<&str> = pod
        .spec
        .init_containers
        .iter()
        .filter(|c| {
            status
                .container(&c.name)
                .is_none_or(|s| if c.is_sidecar() { s.started != Some(true) } else { !s.ready })
        })
        .map(|c| c.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Ok(());
    }
    Err((
        "ContainersNotInitialized".into(),
        format!("containers with incomplete status: {}", list(&incomplete)),
    ))
}

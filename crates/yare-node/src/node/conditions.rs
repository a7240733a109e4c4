//! Node conditions: Ready and the pressures, with upstream's reasons and messages.
//!
//! In: what was observed, and the conditions before. Out: the conditions now, and the events of those that
//! changed. A condition keeps its transition time while its status stays.

use std::collections::BTreeSet;

use yare_runtime::RuntimeStatus;

use crate::eviction::Pressure;
use crate::node::NetworkReadiness;
use crate::view::NodeCondition;

/// What was observed.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) pressures: BTreeSet<Pressure>,
    /// What is wrong with the runtime: see [`of_runtime`].
    pub(crate) runtime: Result<(), String>,
    pub(crate) network: NetworkReadiness,
    /// Why volumes cannot be served yet.
    pub(crate) storage: Result<(), String>,
    /// The machine is going down.
    pub(crate) shutting_down: bool,
}

/// Rows: type, event and reason and message when True, the same when False.
const PRESSURES: &[(&str, [&str; 3], [&str; 3])] = &[
    (
        "MemoryPressure",
        [
            "NodeHasInsufficientMemory",
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ],
        ["NodeHasSufficientMemory", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
    ),
    (
        "DiskPressure",
        ["NodeHasDiskPressure", "KubeletHasDiskPressure", "kubelet has disk pressure"],
        ["NodeHasNoDiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
    ),
    (
        "PIDPressure",
        ["NodeHasInsufficientPID", "KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
        ["NodeHasSufficientPID", "KubeletHasSufficientPID", "kubelet has sufficient PID available"],
    ),
];

/// The conditions now, and the names of events for what changed.
pub(crate) fn compute(
    before: &[NodeCondition],
    observed: &Observed,
    now: &str,
) -> (Vec<NodeCondition>, Vec<&'static str>) {
    let mut conditions = Vec::new();
    let mut events = Vec::new();
    let mut add = |kind: &str, holds: bool, event: &'static str, reason: &str, message: String| {
        let status = if holds { "True" } else { "False" };
        let old = before.iter().find(|c| c.kind == kind);
        let stays = old.is_some_and(|c| c.status == status);
        if !stays {
            events.push(event);
        }
        conditions.push(NodeCondition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            last_heartbeat_time: Some(now.to_owned()),
            last_transition_time: old
                .filter(|_| stays)
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(now.to_owned())),
            reason: reason.to_owned(),
            message,
        });
    };
    for (kind, on, off) in PRESSURES {
        let holds = observed.pressures.iter().any(|p| p.condition() == *kind);
        let [event, reason, message] = if holds { on } else { off };
        add(kind, holds, event, reason, (*message).to_owned());
    }
    let mut problems = Vec::new();
    if let Err(error) = &observed.runtime {
        problems.push(error.clone());
    }
    if let NetworkReadiness::NotReady(why) = &observed.network {
        problems.push(format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
        ));
    }
    problems.extend(observed.storage.clone().err());
    if observed.shutting_down {
        problems.push("node is shutting down".to_owned());
    }
    if problems.is_empty() {
        add("Ready", true, "NodeReady", "KubeletReady", "kubelet is posting ready status".to_owned());
    } else {
        let message =
            if problems.len() == 1 { problems.remove(0) } else { format!("[{}]", problems.join(", ")) };
        add("Ready", false, "NodeNotReady", "KubeletNotReady", message);
    }
    (conditions, events)
}

/// The conditions as somebody else left them, where they are not as they were written: a controller that heard nothing
/// for a while calls them unknown. From these they then change.
pub(crate) fn overwritten(written: &[NodeCondition], seen: &[NodeCondition]) -> Option<Vec<NodeCondition>> {
    let says = |c: &NodeCondition| (c.status.clone(), c.reason.clone(), c.message.clone());
    let now: Vec<&NodeCondition> =
        written.iter().filter_map(|own| seen.iter().find(|c| c.kind == own.kind)).collect();
    let differs =
        now.len() < written.len() || now.iter().zip(written).any(|(now, own)| says(now) != says(own));
    differs.then(|| now.into_iter().cloned().collect())
}

/// Why the runtime is not ready, if it is not.
pub(crate) fn of_runtime(status: &yare_runtime::Result<RuntimeStatus>) -> Result<(), String> {
    let status = status.as_ref().map_err(|error| format!("container runtime is down: {error}"))?;
    match status.condition("RuntimeReady") {
        Some(condition) if !condition.holds => Err(format!(
            "container runtime not ready: RuntimeReady=false reason:{} message:{}",
            condition.reason, condition.message
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_is_not_ready_says_why() {
        let condition = |holds| yare_runtime::RuntimeCondition {
            kind: "RuntimeReady".into(),
            holds,
            reason: "R".into(),
            message: "m".into(),
        };
        let status =
            |holds| Ok(RuntimeStatus { conditions: vec![condition(holds)], ..RuntimeStatus::default() });
        assert_eq!(of_runtime(&status(true)), Ok(()));
        let text = of_runtime(&status(false)).unwrap_err();
        assert_eq!(text, "container runtime not ready: RuntimeReady=false reason:R message:m");
        let gone = Err(yare_runtime::RuntimeError::Unavailable("x".into()));
        assert_eq!(of_runtime(&gone).unwrap_err(), "container runtime is down: x");
    }

    #[test]
    fn keeps_transition_times() {
        let mut observed = Observed {
            pressures: BTreeSet::new(),
            runtime: Ok(()),
            network: NetworkReadiness::NotReady("cni".into()),
            storage: Ok(()),
            shutting_down: false,
        };
        let (first, events) = compute(&[], &observed, "t1");
        assert_eq!(
            events,
            ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeNotReady"]
        );
        assert_eq!(first[3].status, "False");
        observed.network = NetworkReadiness::Ready;
        let (second, events) = compute(&first, &observed, "t2");
        assert_eq!(events, ["NodeReady"]);
        assert_eq!(second[0].last_transition_time.as_deref(), Some("t1"));
        assert_eq!(second[0].last_heartbeat_time.as_deref(), Some("t2"));
        assert_eq!(second[3].last_transition_time.as_deref(), Some("t2"));
        assert_eq!(second[3].reason, "KubeletReady");
        observed.shutting_down = true;
        let (third, events) = compute(&second, &observed, "t3");
        assert_eq!((events, third[3].message.as_str()), (vec!["NodeNotReady"], "node is shutting down"));

        // What somebody else made of them counts from when it was made so.
        assert_eq!(overwritten(&second, &second), None);
        let mut others = second.clone();
        others[3].status = "Unknown".to_owned();
        others[3].last_transition_time = Some("t4".to_owned());
        observed.shutting_down = false;
        let (again, events) = compute(&overwritten(&second, &others).unwrap(), &observed, "t5");
        assert_eq!((events, again[3].last_transition_time.as_deref()), (vec!["NodeReady"], Some("t5")));
        assert_eq!(again[0].last_transition_time, second[0].last_transition_time);
        // Gone altogether, and of others' kinds.
        others.remove(3);
        assert_eq!(overwritten(&second, &others).unwrap().len(), 3);
        others = second.clone();
        others.push(NodeCondition { kind: "NetworkUnavailable".to_owned(), ..NodeCondition::default() });
        assert_eq!(overwritten(&second, &others), None);
    }
}

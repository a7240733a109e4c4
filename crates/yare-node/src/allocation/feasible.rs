//! Resizes that a node cannot do whatever room there is: one rule per cause.
//!
//! In: the pod with the sizes that it has, and with those that it wants. Out: the message for its status.

use super::sizes::{Switches, same};
use crate::pod::limits::{self, Policy};
use crate::pod::qos;
use crate::quantity;
use crate::view::{Container, Pod, ResourceRequirements};

/// What a rule looks at.
pub(crate) struct Case<'a> {
    pub(crate) has: &'a Pod,
    pub(crate) wants: &'a Pod,
    pub(crate) switches: Switches,
    pub(crate) policy: &'a Policy,
    /// Processors, or memory, are given to containers for themselves.
    pub(crate) exclusive_cpus: bool,
    pub(crate) exclusive_memory: bool,
}

type Rule = fn(&Case<'_>) -> Option<String>;

/// Rules, each with upstream's word for its metric.
const RULES: &[(&str, Rule)] = &[
    ("swap_limitation", swap),
    ("plr_feature_gate_off", pod_level),
    ("guaranteed_pod_cpu_manager_static_policy", own_cpus),
    ("guaranteed_pod_memory_manager_static_policy", own_memory),
];

/// Why this can never be, in a word and in a sentence; `None` where it is a question of room.
pub(crate) fn obstacle(case: &Case<'_>) -> Option<(&'static str, String)> {
    RULES.iter().find_map(|(word, rule)| rule(case).map(|text| (*word, text)))
}

fn amount<'a>(container: &'a Container, name: &str) -> Option<&'a String> {
    container.resources.requests.get(name)
}

fn differs(a: Option<&String>, b: Option<&String>) -> bool {
    let nanos = |text: Option<&String>| text.and_then(|t| quantity::nanos(t)).unwrap_or(0);
    nanos(a) != nanos(b)
}

/// How much a container may swap follows from its request and was set when it started.
fn swap(case: &Case<'_>) -> Option<String> {
    let wants = case.wants.spec.containers.iter().chain(&case.wants.spec.init_containers);
    let swaps = wants.into_iter().any(|wanted| {
        let Some(had) = case.has.container(&wanted.name) else { return false };
        let memory = had.resize_policy.iter().find(|p| p.resource_name == "memory");
        let restarts = memory.is_some_and(|p| p.restart_policy == "RestartContainer");
        !restarts
            && differs(amount(wanted, "memory"), amount(had, "memory"))
            && (limits::may_swap(case.policy, case.wants, wanted)
                || limits::may_swap(case.policy, case.has, had))
    });
    swaps.then(|| "In-place resize of containers with swap is not supported.".to_owned())
}

fn pod_level(case: &Case<'_>) -> Option<String> {
    let none = ResourceRequirements::default();
    let of = |pod: &'_ Pod| pod.spec.resources.clone().unwrap_or_else(|| none.clone());
    (!case.switches.pod && !same(&of(case.has), &of(case.wants)))
        .then(|| "InPlacePodLevelResourcesVerticalScaling is disabled".to_owned())
}

fn own_cpus(case: &Case<'_>) -> Option<String> {
    (case.exclusive_cpus && !case.switches.exclusive_cpus && guaranteed_changes(case, "cpu")).then(|| {
        "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"".to_owned()
    })
}

fn own_memory(case: &Case<'_>) -> Option<String> {
    (case.exclusive_memory && !case.switches.exclusive_memory && guaranteed_changes(case, "memory")).then(
        || "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"".to_owned(),
    )
}

fn guaranteed_changes(case: &Case<'_>, name: &str) -> bool {
    qos::class(case.wants) == "Guaranteed"
        && case.switches.resizable(case.wants).any(|wanted| {
            let had = case.has.container(&wanted.name);
            differs(amount(wanted, name), had.and_then(|had| amount(had, name)))
        })
}

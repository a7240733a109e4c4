//! Preemption: where a pod would fit if pods of lower priority went, and which of them have to.
//!
//! Looks only; whoever calls evicts the victims. Pods are taken out of the [`Cluster`] and put back while
//! nodes are tried, so that every filter judges as it always does.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use yare_client::{Cached, ViewError};

use crate::{
    cluster::Cluster,
    cycle::{self, Unschedulable},
    plugins::{self, Rejection, State},
    pod::PodInfo,
    selector::Selector,
    view,
};

/// Candidates that are enough to choose from: this many, or this share (per cent) of the nodes.
const MIN_CANDIDATES: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

/// A node, and the pods that must leave it.
#[derive(Debug)]
pub struct Choice {
    /// The node.
    pub node: Box<str>,
    /// The pods, most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them their budgets do not allow to go.
    pub violations: usize,
}

/// Why there is no such node.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pod may not preempt (now); a nomination it has stays.
    NotEligible(&'static str),
    /// It would help nowhere: the message of the event.
    NotHelpful(String),
}

impl Refusal {
    /// As it follows the reasons in the `FailedScheduling` event.
    pub fn message(&self) -> String {
        match self {
            Self::NotEligible(why) => format!("preemption: {why}"),
            Self::NotHelpful(message) => format!("preemption: {message}"),
        }
    }
}

/// A disruption budget as preemption needs it.
#[derive(Debug)]
pub struct Budget {
    namespace: Box<str>,
    selector: Selector,
    allowed: i64,
    /// Pods that the API server lets go already.
    disrupted: Vec<String>,
}

impl Budget {
    /// Reads a PodDisruptionBudget; `None` where its selector matches nothing.
    pub fn new(object: &Cached) -> Result<Option<Self>, ViewError> {
        let budget: view::Budget = object.view()?;
        let Some(selector) = budget.spec.selector else { return Ok(None) };
        if selector.match_labels.is_empty() && selector.match_expressions.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            namespace: object.namespace().into(),
            selector: Selector::new(&selector),
            allowed: budget.status.disruptions_allowed,
            disrupted: budget.status.disrupted_pods.into_keys().collect(),
        }))
    }
}

/// Finds the node where the least harm makes room for `pod`, which fits nowhere as `why` says. `start` (any
/// number) is where in the list of nodes the search begins.
pub fn preempt(
    pod: &PodInfo,
    cluster: &mut Cluster,
    budgets: &[Budget],
    why: &Unschedulable,
    start: usize,
) -> Result<Choice, Refusal> {
    if let Some(reason) = not_eligible(pod, cluster, why) {
        return Err(Refusal::NotEligible(reason));
    }
    let nodes = cluster.nodes().len();
    let wanted = MIN_CANDIDATES.max(nodes * CANDIDATES_PERCENT / 100);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<Choice> = None;
    let mut found = 0;
    for step in 0..why.helpable.len() {
        let node = why.helpable[(start % why.helpable.len() + step) % why.helpable.len()];
        match victims(pod, cluster, node, budgets) {
            Ok(choice) => {
                found += 1;
                if best.as_ref().is_none_or(|b| harm(&choice) < harm(b)) {
                    best = Some(choice);
                }
                if found == wanted || best.as_ref().is_some_and(|b| b.victims.is_empty()) {
                    break;
                }
            }
            Err(rejection) => {
                for reason in rejection.reasons {
                    *reasons.entry(reason.into_owned()).or_default() += 1;
                }
            }
        }
    }
    best.ok_or_else(|| {
        let others = nodes - why.helpable.len();
        if others > 0 {
            *reasons.entry("Preemption is not helpful for scheduling".into()).or_default() += others;
        }
        Refusal::NotHelpful(cycle::message(nodes, &reasons))
    })
}

fn not_eligible(pod: &PodInfo, cluster: &Cluster, why: &Unschedulable) -> Option<&'static str> {
    if pod.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = cluster.nomination(pod.key())?;
    let at = cluster.nodes().iter().position(|n| n.name() == nominated)?;
    // What keeps the pod off that node now, nobody's end will cure: it must look for another.
    if !why.helpable.contains(&at) {
        return None;
    }
    let mut lower = cluster.nodes()[at].pods.values().filter(|p| p.priority < pod.priority);
    lower
        .any(|p| p.object.deletion_timestamp().is_some())
        .then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Less is better, part by part.
fn harm(choice: &Choice) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let highest = choice.victims.first().map_or(i32::MIN, |p| p.priority);
    // Shifted so that many pods of negative priority weigh more than few.
    let shift = i64::from(i32::MAX) + 1;
    let sum = choice.victims.iter().map(|p| i64::from(p.priority) + shift).sum();
    let oldest = choice.victims.iter().filter(|p| p.priority == highest).map(|p| started(p)).min();
    let oldest = Reverse(oldest.unwrap_or(Timestamp::MAX));
    (choice.violations, highest, sum, choice.victims.len(), oldest)
}

/// A pod that has not started counts as the youngest.
fn started(pod: &PodInfo) -> Timestamp {
    pod.started.unwrap_or(Timestamp::MAX)
}

fn importance(pod: &PodInfo) -> (Reverse<i32>, Timestamp) {
    (Reverse(pod.priority), started(pod))
}

/// The fewest pods of the node, the least important ones, without which `pod` fits there.
fn victims(
    pod: &PodInfo,
    cluster: &mut Cluster,
    node: usize,
    budgets: &[Budget],
) -> Result<Choice, Rejection> {
    let name: Box<str> = cluster.nodes()[node].name().into();
    let lower = cluster.nodes()[node].pods.values().filter(|p| p.priority < pod.priority);
    let mut lower: Vec<Arc<PodInfo>> = lower.cloned().collect();
    if lower.is_empty() {
        return Err("No preemption victims found for incoming pod".into());
    }
    lower.sort_by(|a, b| importance(a).cmp(&importance(b)).then_with(|| a.key().cmp(b.key())));
    let assumed: Vec<bool> = lower.iter().map(|p| cluster.is_assumed(p.key())).collect();
    for victim in &lower {
        cluster.remove_pod(victim.key());
    }
    let fits = |cluster: &mut Cluster| {
        let nominated = cluster.add_nominated(pod);
        let state = State::new(pod, cluster);
        let result = plugins::filter(pod, &state, cluster, &cluster.nodes()[node]);
        cluster.remove_nominated(nominated);
        result
    };
    let mut gone: Vec<Arc<PodInfo>> = Vec::new();
    let mut violations = 0;
    let all_away = fits(cluster);
    if all_away.is_ok() {
        // Who may stay: first those whose budget forbids their going, the most important first.
        let violating = over_budget(&lower, budgets);
        for forbidden in [true, false] {
            for (candidate, _) in lower.iter().zip(&violating).filter(|(_, v)| **v == forbidden) {
                cluster.assume(candidate.clone(), &name);
                if fits(cluster).is_err() {
                    cluster.remove_pod(candidate.key());
                    gone.push(candidate.clone());
                    violations += usize::from(forbidden);
                }
            }
        }
    }
    for (victim, assumed) in lower.iter().zip(assumed) {
        cluster.restore(victim.clone(), &name, assumed);
    }
    all_away.map_err(|(_, rejection)| rejection)?;
    gone.sort_by(|a, b| importance(a).cmp(&importance(b)).then_with(|| a.key().cmp(b.key())));
    Ok(Choice { node: name, victims: gone, violations })
}

/// Which of the pods, if they all went, would break a budget.
fn over_budget(pods: &[Arc<PodInfo>], budgets: &[Budget]) -> Vec<bool> {
    let mut left: Vec<i64> = budgets.iter().map(|b| b.allowed).collect();
    let breaks = |pod: &Arc<PodInfo>| {
        let labels = pod.object.labels();
        let mut broken = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            let applies = !labels.is_empty()
                && *budget.namespace == *pod.object.namespace()
                && budget.selector.matches(labels)
                && !budget.disrupted.iter().any(|name| name == pod.object.name());
            if applies {
                *left -= 1;
                broken |= *left < 0;
            }
        }
        broken
    };
    pods.iter().map(breaks).collect()
}

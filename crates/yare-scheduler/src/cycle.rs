//! One scheduling cycle: filter nodes, score those that fit, choose one.

use std::{collections::BTreeMap, time::Instant};

use yare_client::ObjectKey;

use crate::{
    cluster::{Cluster, NodeInfo},
    metrics::Taken,
    plugins::{self, Events, Rejection, State},
    pod::PodInfo,
};

/// Fewer nodes than this are all looked at.
const MIN_FEASIBLE: usize = 100;
/// The least share of nodes, in per cent, that is looked at in a large cluster.
const MIN_PERCENT: usize = 5;

/// Why no node fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes each reason turned down.
    pub reasons: BTreeMap<String, usize>,
    /// Events after which a retry is worth it.
    pub events: Events,
    /// Nodes (their places in [`Cluster::nodes`]) where it would help if pods went.
    pub helpable: Box<[usize]>,
    /// Why no node needed to be looked at; instead of `reasons`.
    pub refusal: Option<String>,
    /// Plugins that turned nodes down, or the pod as a whole.
    pub plugins: Vec<&'static str>,
    /// Nothing speaks against the pod: something is wrong, and `refusal` says what.
    pub error: bool,
    /// Claims for devices whose allocation keeps the pod off some node.
    pub unavailable: Box<[ObjectKey]>,
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.`
pub fn message(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut reasons: Vec<String> = reasons.iter().map(|(r, n)| format!("{n} {r}")).collect();
    reasons.sort_unstable();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

impl Unschedulable {
    /// The message of the `FailedScheduling` event and the `PodScheduled` condition.
    pub fn message(&self) -> String {
        if let Some(error) = self.refusal.as_ref().filter(|_| self.error) {
            return error.clone();
        }
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        match &self.refusal {
            Some(reason) => format!("0/{} nodes are available: {reason}.", self.nodes),
            None => message(self.nodes, &self.reasons),
        }
    }
}

/// Finds the node for `pod`. `start` is where in the list of nodes to begin; it moves on, so that in a large
/// cluster all nodes get their turn. `tie` (any number) decides between equals.
pub fn schedule(
    pod: &PodInfo,
    cluster: &Cluster,
    start: &mut usize,
    tie: u64,
) -> Result<String, Unschedulable> {
    schedule_measured(pod, cluster, start, tie, &mut Taken::default())
}

/// The same, and says what it took.
pub fn schedule_measured(
    pod: &PodInfo,
    cluster: &Cluster,
    start: &mut usize,
    tie: u64,
    taken: &mut Taken,
) -> Result<String, Unschedulable> {
    let nodes = cluster.nodes();
    let began = Instant::now();
    let state = State::new(pod, cluster);
    let prepared = Instant::now();
    taken.pre_filter = prepared - began;
    if let Some(refusal) = state.refusal {
        return Err(Unschedulable {
            nodes: nodes.len(),
            reasons: BTreeMap::new(),
            events: Events::NODE_ADDED.and(refusal.events),
            helpable: Box::default(),
            error: refusal.error,
            refusal: Some(refusal.reason),
            plugins: vec![refusal.plugin],
            unavailable: Box::default(),
        });
    }
    taken.asked[0] = plugins::places(|row| state.concerns(row));
    let wanted = feasible_wanted(nodes.len());
    let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(wanted.min(nodes.len()));
    let mut rejections: Vec<(usize, (usize, Rejection))> = Vec::new();
    // The node that was made free for it.
    if let Some(nominated) = cluster.nomination(pod.key())
        && let Some(node) = nodes.iter().find(|n| n.name() == nominated)
        && plugins::filter(pod, &state, cluster, node).is_ok()
    {
        taken.filter = prepared.elapsed();
        return Ok(nominated.to_owned());
    }
    let mut seen = 0;
    for at in 0..nodes.len() {
        let place = (*start + at) % nodes.len();
        let node = &nodes[place];
        seen = at + 1;
        match plugins::filter(pod, &state, cluster, node) {
            Ok(()) => {
                feasible.push(node);
                if feasible.len() >= wanted {
                    break;
                }
            }
            Err((row, Rejection { error: true, reasons, .. })) => {
                let why = reasons.first().map_or("", |r| r);
                let error = format!("running \"{}\" filter plugin: {why}", plugins::PLUGINS[row].name);
                let none = unschedulable(nodes.len(), rejections);
                return Err(Unschedulable { error: true, refusal: Some(error), ..none });
            }
            Err(rejection) => rejections.push((place, rejection)),
        }
    }
    if !nodes.is_empty() {
        *start = (*start + seen) % nodes.len();
    }
    let filtered = Instant::now();
    taken.filter = filtered - prepared;
    match feasible.as_slice() {
        [] => {
            let unavailable =
                state.unavailable_claims().iter().map(|claim| claim.object.key().clone()).collect();
            Err(Unschedulable { unavailable, ..unschedulable(nodes.len(), rejections) })
        }
        [only] => Ok(only.name().to_owned()),
        _ => {
            let node = best(pod, &state, cluster, &feasible, tie).name().to_owned();
            taken.asked[1] = plugins::places(|row| row.weight != 0 && row.plugin.scores(pod, &state));
            taken.score = Some(filtered.elapsed());
            Ok(node)
        }
    }
}

/// How many fitting nodes are enough: all in a small cluster, a falling share in a large one.
fn feasible_wanted(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE {
        return nodes.max(1);
    }
    let percent = (50_usize.saturating_sub(nodes / 125)).max(MIN_PERCENT);
    (nodes * percent / 100).max(MIN_FEASIBLE)
}

fn unschedulable(nodes: usize, rejections: Vec<(usize, (usize, Rejection))>) -> Unschedulable {
    // A new node may help whatever the reason was.
    let mut events = Events::NODE_ADDED;
    let mut reasons = BTreeMap::new();
    let mut helpable = Vec::new();
    let mut by = Vec::new();
    for (place, (row, rejection)) in rejections {
        if !rejection.lasting {
            helpable.push(place);
        }
        let row = &plugins::PLUGINS[row];
        events = events.and(row.events);
        if !by.contains(&row.name) {
            by.push(row.name);
        }
        for reason in rejection.reasons {
            *reasons.entry(reason.into_owned()).or_default() += 1;
        }
    }
    Unschedulable {
        nodes,
        reasons,
        events,
        helpable: helpable.into(),
        refusal: None,
        plugins: by,
        error: false,
        unavailable: Box::default(),
    }
}

fn best<'a>(
    pod: &PodInfo,
    state: &State,
    cluster: &Cluster,
    feasible: &[&'a NodeInfo],
    tie: u64,
) -> &'a NodeInfo {
    let mut totals = vec![0_i64; feasible.len()];
    let mut scores = vec![0_i64; feasible.len()];
    for row in plugins::PLUGINS.iter().filter(|row| row.weight != 0) {
        if !row.plugin.scores(pod, state) {
            continue;
        }
        for (score, node) in scores.iter_mut().zip(feasible) {
            *score = row.plugin.score(pod, state, cluster, node);
        }
        row.plugin.normalize(state, feasible, &mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total += row.weight * score;
        }
    }
    let top = totals.iter().copied().max().unwrap_or_default();
    let equals: Vec<usize> = (0..totals.len()).filter(|&i| totals[i] == top).collect();
    feasible[equals[(tie % equals.len() as u64) as usize]]
}

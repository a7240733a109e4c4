//! The pools of which a node can have devices.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::World;
use crate::devices::types::{CounterSet, Node, Nodes, PoolId, Slice};

/// Whether a pool can be allocated from.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// It can.
    Ready,
    /// Its driver is about to publish it.
    Incomplete,
    /// Its driver contradicts itself.
    Invalid,
}

/// A pool as one node sees it.
#[derive(Debug)]
pub struct Pool<'a> {
    /// Which.
    pub id: &'a PoolId,
    /// Whether it can be allocated from.
    pub state: State,
    /// Slices with devices for the node.
    pub slices: Vec<&'a Slice>,
    /// Slices of other nodes, whose devices share counters with these.
    pub elsewhere: Vec<&'a Slice>,
    /// What devices share.
    pub counters: BTreeMap<&'a str, &'a CounterSet>,
}

/// Gathers the pools that matter to a node, in the order in which they are tried: by name, and those whose devices
/// take time to be attached last.
pub fn gather<'a>(world: &World<'a>, node: Node<'_>) -> Vec<Pool<'a>> {
    let partitions = world.features.partitions;
    let mut found: BTreeMap<&PoolId, Vec<&Slice>> = BTreeMap::new();
    for slice in world.slices.for_node(node.name) {
        let advanced = matches!(slice.nodes, Nodes::PerDevice) || !slice.counters.is_empty();
        if (advanced && !partitions) || !is_relevant(slice, node) {
            continue;
        }
        let slices = found.entry(&slice.pool).or_default();
        match slices.first().map_or(slice.generation, |s| s.generation) {
            known if slice.generation > known => *slices = vec![slice],
            known if slice.generation == known => slices.push(slice),
            _ => {}
        }
    }
    let mut pools: Vec<Pool<'a>> =
        found.into_iter().filter_map(|(id, slices)| pool(world, id, slices)).collect();
    // Stable: either half stays in order of names.
    pools.sort_by_key(has_binding_conditions);
    pools
}

fn is_relevant(slice: &Slice, node: Node<'_>) -> bool {
    !slice.counters.is_empty()
        || match &slice.nodes {
            Nodes::PerDevice => slice.devices.iter().any(|device| device.nodes.matches(node)),
            nodes => nodes.matches(node),
        }
}

fn has_binding_conditions(pool: &Pool<'_>) -> bool {
    pool.slices.iter().flat_map(|s| &s.devices).any(|d| !d.spec.binding_conditions.is_empty())
}

/// `None`: a newer generation has nothing for the node.
fn pool<'a>(world: &World<'a>, id: &'a PoolId, mut slices: Vec<&'a Slice>) -> Option<Pool<'a>> {
    let (generation, wanted) = slices.first().map(|s| (s.generation, s.slice_count))?;
    slices.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = Pool { id, state: State::Ready, slices, elsewhere: Vec::new(), counters: BTreeMap::new() };
    let complete = |count: usize| i64::try_from(count).is_ok_and(|count| count == wanted);
    if !complete(out.slices.len()) {
        let of_pool: Vec<&Slice> = world.slices.of_pool(id).collect();
        if of_pool.iter().any(|s| s.generation > generation) {
            return None;
        }
        let all: Vec<&Slice> = of_pool.into_iter().filter(|s| s.generation == generation).collect();
        if !complete(all.len()) {
            return Some(Pool { state: State::Incomplete, slices: Vec::new(), ..out });
        }
        let here: HashSet<&str> = out.slices.iter().map(|s| &*s.name).collect();
        out.elsewhere = all.into_iter().filter(|s| !here.contains(&*s.name)).collect();
    }
    if !out.prepare(world.features.partitions) {
        out.state = State::Invalid;
        out.slices.clear();
    }
    Some(out)
}

impl<'a> Pool<'a> {
    /// Takes the counters together. `false`: names are there twice, or devices take what is not there.
    fn prepare(&mut self, partitions: bool) -> bool {
        let (counters, devices): (Vec<&Slice>, Vec<&Slice>) =
            self.slices.iter().partition(|s| partitions && !s.counters.is_empty());
        self.slices = devices;
        let mut names = BTreeSet::new();
        if !self.slices.iter().flat_map(|s| &s.devices).all(|d| names.insert(&d.id.device)) {
            return false;
        }
        if !partitions {
            return true;
        }
        for set in counters.into_iter().flat_map(|s| &s.counters) {
            if self.counters.insert(&set.name, set).is_some() {
                return false;
            }
        }
        let known = |taken: &CounterSet| {
            let set = self.counters.get(&*taken.name);
            set.is_some_and(|set| taken.counters.keys().all(|name| set.counters.contains_key(name)))
        };
        let mut devices = self.slices.iter().chain(&self.elsewhere).flat_map(|s| &s.devices);
        devices.all(|d| d.spec.consumes_counters.iter().all(known))
    }
}

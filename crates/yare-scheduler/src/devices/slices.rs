//! Slices by pool and by node, as allocation looks for them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::types::{Nodes, PoolId, Slice};

/// All slices.
#[derive(Debug, Default)]
pub struct Slices {
    all: HashMap<Box<str>, Arc<Slice>>,
    by_pool: HashMap<PoolId, BTreeSet<Box<str>>>,
    /// Slices of one node.
    by_node: HashMap<Box<str>, BTreeSet<Box<str>>>,
    /// The others, and those with counters: a pool needs them wherever it is used.
    anywhere: BTreeSet<Box<str>>,
}

fn forget<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<Box<str>>>, key: &K, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

impl Slices {
    /// Takes in a slice.
    pub fn set(&mut self, slice: Slice) {
        self.remove(&slice.name);
        let name = slice.name.clone();
        self.by_pool.entry(slice.pool.clone()).or_default().insert(name.clone());
        match &slice.nodes {
            Nodes::Named(node) if slice.counters.is_empty() => {
                self.by_node.entry(node.clone()).or_default().insert(name.clone());
            }
            _ => {
                self.anywhere.insert(name.clone());
            }
        }
        self.all.insert(name, Arc::new(slice));
    }

    /// Forgets a slice.
    pub fn remove(&mut self, name: &str) {
        let Some(slice) = self.all.remove(name) else { return };
        forget(&mut self.by_pool, &slice.pool, name);
        if let Nodes::Named(node) = &slice.nodes {
            forget(&mut self.by_node, node, name);
        }
        self.anywhere.remove(name);
    }

    fn named<'s>(&'s self, names: Option<&'s BTreeSet<Box<str>>>) -> impl Iterator<Item = &'s Slice> {
        names.into_iter().flatten().filter_map(|name| self.all.get(name).map(|slice| &**slice))
    }

    /// Slices that may have devices for a node.
    pub fn for_node(&self, node: &str) -> impl Iterator<Item = &Slice> {
        self.named(self.by_node.get(node)).chain(self.named(Some(&self.anywhere)))
    }

    /// Slices of a pool.
    pub fn of_pool(&self, pool: &PoolId) -> impl Iterator<Item = &Slice> {
        self.named(self.by_pool.get(pool))
    }
}

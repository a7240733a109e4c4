//! The kernel's word that memory runs short, between two looks.
//!
//! v1 tells when a group's use crosses a mark; the mark is set anew after each look, because only a look knows how
//! much of the use is page cache. Elsewhere tasks that stall for memory are the sign. Either costs nothing while
//! there is memory.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use yare_runtime::{CgroupTree, MemoryAlarm, Result};

use super::signals::{Observations, Signal};
use super::thresholds::Threshold;

/// Stalls of a fifth of a second within two are a machine that is short of memory.
const STALL: Duration = Duration::from_millis(200);
const STALL_WINDOW: Duration = Duration::from_secs(2);

/// Watches for memory pressure.
pub(crate) struct Alarms {
    tree: CgroupTree,
    /// The group of all pods.
    pods: String,
    set: Vec<MemoryAlarm>,
    /// Marks move with each look; stalls do not.
    movable: bool,
    broken: bool,
}

impl Alarms {
    pub(crate) fn new(tree: CgroupTree, pods: String) -> Self {
        Alarms { tree, pods, set: Vec::new(), movable: true, broken: false }
    }

    /// Sets the marks by what was just observed.
    pub(crate) fn set(&mut self, thresholds: &[Threshold], observations: &Observations) {
        if self.broken || (!self.movable && !self.set.is_empty()) {
            return;
        }
        self.set.clear();
        let mut stalls: Vec<Signal> = Vec::new();
        for threshold in thresholds {
            let group = match threshold.signal {
                Signal::MemoryAvailable => String::new(),
                Signal::AllocatableMemory => self.pods.clone(),
                _ => continue,
            };
            let Some(observed) = observations.get(&threshold.signal) else { continue };
            let wanted = u64::try_from(threshold.value.of(observed.capacity).value()).unwrap_or(0);
            // Below the mark already: looks find that by themselves.
            let Some(room) = observed.available.checked_sub(wanted).filter(|room| *room > 0) else {
                continue;
            };
            let mark = self.tree.memory(&group).map(|m| m.usage_bytes + room);
            match mark.and_then(|mark| self.tree.memory_threshold(&group, mark)) {
                Some(made) => self.keep(made),
                None if !stalls.contains(&threshold.signal) => {
                    stalls.push(threshold.signal);
                    self.movable = false;
                    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
                    if let Some(made) = self.tree.memory_stall(&group, us(STALL), us(STALL_WINDOW)) {
                        self.keep(made);
                    }
                }
                None => {}
            }
        }
    }

    fn keep(&mut self, made: Result<MemoryAlarm>) {
        match made {
            Ok(alarm) => self.set.push(alarm),
            Err(error) => {
                tracing::info!(%error, "the kernel does not tell of memory pressure; it is looked for");
                self.set.clear();
                self.broken = true;
            }
        }
    }

    /// Waits for one; forever where there is none.
    pub(crate) async fn rung(&mut self) {
        let mut waiting: FuturesUnordered<_> = self.set.iter().map(MemoryAlarm::rung).collect();
        match waiting.next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                drop(waiting);
                tracing::debug!(%error, "a watch for memory pressure ended");
                self.set.clear();
            }
            None => std::future::pending().await,
        }
    }
}

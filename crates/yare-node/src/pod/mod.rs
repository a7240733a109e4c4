//! Pods: where they come from, and one task for each.

pub(crate) mod actions;
pub(crate) mod admission;
pub(crate) mod backoff;
mod conditions;
pub(crate) mod dirs;
pub(crate) mod expand;
pub(crate) mod fields;
pub(crate) mod id_ranges;
pub(crate) mod kill;
pub(crate) mod lifecycle;
pub(crate) mod limits;
pub(crate) mod mailbox;
pub(crate) mod manager;
pub(crate) mod messages;
mod phase;
pub(crate) mod preemption;
pub(crate) mod qos;
pub(crate) mod resize;
mod restart_all;
mod sizes;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod status;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod totals;
pub(crate) mod worker;
pub(crate) mod writer;

//! Pods: where they come from, and one task for each.

pub(crate) mod actions;
pub(crate) mod admission;
pub(crate) mod backoff;
pub(crate) mod dirs;
pub(crate) mod expand;
pub(crate) mod fields;
pub(crate) mod kill;
pub(crate) mod lifecycle;
pub(crate) mod mailbox;
pub(crate) mod manager;
pub(crate) mod messages;
pub(crate) mod qos;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod status;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod worker;
pub(crate) mod writer;

//! The CPU manager: processors of their own for containers that ask for whole ones (KEP-3570).
//!
//! In: pods, the machine, what is reserved for the system. Out: the processors of every container. When the shared
//! pool changes, the containers that run on it are moved: told by the change, not by a clock.

mod options;
mod policy;
pub(crate) mod set;
mod state;
mod take;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use parking_lot::Mutex;
use tokio::sync::watch;

use self::options::Options;
use self::policy::StaticPolicy;
use self::set::CpuSet;
use self::state::State;
use super::machine::Machine;
use super::topology::{Hint, Hints, Policy as TopologyPolicy};
use super::{ManagerSettings, Refusal};
use crate::view::{Container, Pod};

/// Where the assignments are written down; upstream's name.
const CHECKPOINT: &str = "cpu_manager_state";

/// See the module.
pub(crate) struct CpuManager {
    /// None: the policy `none`.
    inner: Option<Mutex<(StaticPolicy, State)>>,
    /// Counts changes of the shared pool.
    changes: watch::Sender<u64>,
}

impl CpuManager {
    /// A manager with its checkpoint in a directory. `reserved_milli`: what is reserved for the system.
    pub(crate) fn new(
        settings: &ManagerSettings,
        machine: &Machine,
        topology: TopologyPolicy,
        reserved_milli: i64,
        dir: &Path,
    ) -> Result<Self, String> {
        let path = dir.join(CHECKPOINT);
        let inner = match settings.cpu_policy.as_str() {
            "none" => {
                if !settings.cpu_options.is_empty() {
                    let given: Vec<&str> = settings.cpu_options.keys().map(String::as_str).collect();
                    return Err(format!("None policy: received unsupported options={}", given.join(",")));
                }
                State::open(path, "none")?;
                None
            }
            "static" => {
                if reserved_milli <= 0 {
                    return Err(
                        "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
                            .to_owned(),
                    );
                }
                let options =
                    Options::parse(&settings.cpu_options, settings.alpha_options, settings.beta_options)?;
                options.check(machine, topology)?;
                let reserved = CpuSet::parse(&settings.reserved_cpus)?;
                let count = usize::try_from(reserved_milli).unwrap_or(0).div_ceil(1000);
                let policy = StaticPolicy::new(machine.clone(), options, count, &reserved)?;
                let mut state = State::open(path, "static")?;
                policy.start(&mut state)?;
                Some(Mutex::new((policy, state)))
            }
            other => return Err(format!("unknown policy: \"{other}\"")),
        };
        Ok(CpuManager { inner, changes: watch::channel(0).0 })
    }

    /// Whether containers are kept on processors at all.
    pub(crate) fn active(&self) -> bool {
        self.inner.is_some()
    }

    /// Changes of the shared pool.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether the container has processors of its own.
    pub(crate) fn allocate(&self, pod: &Pod, container: &Container, hint: Hint) -> Result<bool, Refusal> {
        let Some(inner) = &self.inner else { return Ok(false) };
        let (policy, state) = &mut *inner.lock();
        let before = state.shared.clone();
        let outcome = policy.allocate(state, pod, container, hint);
        if state.shared != before {
            self.changes.send_modify(|n| *n += 1);
        }
        outcome
    }

    pub(crate) fn hints(&self, pod: &Pod, container: Option<&Container>) -> Hints {
        let Some(inner) = &self.inner else { return Hints::new() };
        let (policy, state) = &*inner.lock();
        policy.hints(state, pod, container)
    }

    /// The processors a container runs on; none: it is not kept on any.
    pub(crate) fn affinity(&self, uid: &str, container: &str) -> Option<CpuSet> {
        let (_, state) = &*self.inner.as_ref()?.lock();
        Some(state.own(uid, container).unwrap_or(&state.shared).clone()).filter(|set| !set.is_empty())
    }

    /// The processors that a container has for itself.
    pub(crate) fn own(&self, uid: &str, container: &str) -> CpuSet {
        let Some(inner) = &self.inner else { return CpuSet::default() };
        inner.lock().1.own(uid, container).cloned().unwrap_or_default()
    }

    /// Whether any container of a pod has processors for itself.
    pub(crate) fn owns_any(&self, uid: &str) -> bool {
        self.inner
            .as_ref()
            .is_some_and(|inner| inner.lock().1.assigned.get(uid).is_some_and(|c| !c.is_empty()))
    }

    /// How many processors are shared among all that have none of their own, and how many of each NUMA node are
    /// somebody's own; none: all are everybody's.
    pub(crate) fn figures(&self) -> Option<(usize, BTreeMap<u32, usize>)> {
        let (policy, state) = &*self.inner.as_ref()?.lock();
        let own = state.assigned.values().flat_map(|containers| containers.values());
        Some((policy.shareable(state).len(), policy.by_node(own)))
    }

    /// The processors that containers may get for themselves.
    pub(crate) fn allocatable(&self) -> CpuSet {
        self.inner.as_ref().map_or_else(CpuSet::default, |inner| inner.lock().0.allocatable())
    }

    /// A pod's processors are shared again.
    pub(crate) fn release(&self, uid: &str) {
        let Some(inner) = &self.inner else { return };
        let (policy, state) = &mut *inner.lock();
        if policy.release(state, uid) {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// The same for all pods but these.
    pub(crate) fn retain(&self, uids: &BTreeSet<String>) {
        let Some(inner) = &self.inner else { return };
        let gone: Vec<String> = {
            let (_, state) = &*inner.lock();
            state.assigned.keys().filter(|uid| !uids.contains(*uid)).cloned().collect()
        };
        for uid in gone {
            self.release(&uid);
        }
    }
}

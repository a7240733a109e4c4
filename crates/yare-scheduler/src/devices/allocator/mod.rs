//! Which devices claims get on one node (structured parameters, KEP-4381).
//!
//! In: what drivers offer, what claims hold, and the claims of one pod. Out: devices for all of the claims, or
//! nothing. The search goes through claims, requests, their alternatives and devices in order, and takes the first
//! solution; it gives up after a bounded number of steps.
//!
//! | Step | File |
//! |---|---|
//! | Pools that the node reaches, complete and without contradictions | `pools.rs` |
//! | What each request wants | `plan.rs` |
//! | The search | `search.rs` |
//! | Attributes that must be alike or differ | `constraint.rs` |
//! | Amounts of shared devices | `capacity.rs` |
//! | What is written into the claims | `result.rs` |

mod capacity;
mod constraint;
mod plan;
mod pools;
mod result;
mod search;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use yare_schema::features::Gates;

use super::{
    requests::{ClaimSpec, Class},
    rules::Rules,
    slices::Slices,
    taken::Taken,
    types::{Amounts, Device, Node, Slice},
};

/// Devices tried for one node before the search gives up.
const MAX_STEPS: u64 = 1_000_000;
/// The most devices of one claim (`resource/v1`, `AllocationResultsMaxSize`).
const MAX_DEVICES: usize = 32;

/// What allocation may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Devices may have conditions that must come true before a pod is bound.
    pub bindings: bool,
    /// Devices may be parts of others.
    pub partitions: bool,
    /// Requests may be lists.
    pub lists: bool,
    /// Devices may be shared.
    pub shared: bool,
    /// Taints count.
    pub taints: bool,
    /// Devices may stand behind extended resources.
    pub extended: bool,
}

impl Features {
    /// As the gates say.
    pub fn new(gates: &Gates) -> Self {
        Self {
            bindings: gates.is_on("DRADeviceBindingConditions")
                && gates.is_on("DRAResourceClaimDeviceStatus"),
            partitions: gates.is_on("DRAPartitionableDevices"),
            lists: gates.is_on("DRAPrioritizedList"),
            shared: gates.is_on("DRAConsumableCapacity"),
            taints: gates.is_on("DRADeviceTaints"),
            extended: gates.is_on("DRAExtendedResource"),
        }
    }
}

impl Default for Features {
    fn default() -> Self {
        Self::new(&Gates::default())
    }
}

/// What devices are allocated from.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// What drivers offer.
    pub slices: &'a Slices,
    /// Classes by name.
    pub classes: &'a HashMap<Box<str>, Arc<Class>>,
    /// What claims hold.
    pub taken: &'a Taken,
    /// Taints beside those of drivers.
    pub rules: &'a Rules,
    /// What may be used.
    pub features: Features,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Something is wrong with a claim, a class or a driver; no other node would do better.
    Fatal(String),
    /// Something is wrong on this node.
    Node(String),
    /// It would take too long to find out.
    TooLong,
}

/// A device for a request.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    /// Its place: request of the claim, alternative of the request.
    pub place: (usize, usize),
    /// The device.
    pub device: &'a Device,
    /// Its slice.
    pub slice: &'a Slice,
    /// How much of its capacities, where it is shared.
    pub share: Option<Amounts>,
}

pub use result::Allocation;

/// Devices for all claims on the node, one allocation for each; `None` where there are none.
pub fn allocate<'a>(
    world: &World<'a>,
    node: Node<'a>,
    claims: &'a [Arc<ClaimSpec>],
) -> Result<Option<Vec<Allocation>>, Failure> {
    allocate_within(world, node, claims, MAX_STEPS)
}

fn allocate_within<'a>(
    world: &World<'a>,
    node: Node<'a>,
    claims: &'a [Arc<ClaimSpec>],
    max_steps: u64,
) -> Result<Option<Vec<Allocation>>, Failure> {
    let pools = pools::gather(world, node);
    let mut search = search::Search::new(world, node, claims, &pools, max_steps);
    search.prepare()?;
    let Some(given) = search.run()? else {
        if pools.iter().any(|pool| pool.state == pools::State::Invalid) {
            return Err(Failure::Node("invalid resource pools were encountered".into()));
        }
        return Ok(None);
    };
    let made = claims
        .iter()
        .zip(&given)
        .map(|(claim, given)| Allocation::new(world, node, claim, given).map_err(Failure::Fatal));
    made.collect::<Result<_, _>>().map(Some)
}

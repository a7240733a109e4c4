//! The search: devices are tried one after the other, and taken back where they lead nowhere.
//!
//! The state of the search is a stack of choices, so that neither many claims nor many devices can exhaust the
//! thread's own.

use std::{collections::BTreeMap, sync::Arc};

use yare_schema::quantity::Quantity;

use super::{
    Failure, Given, MAX_DEVICES, World, capacity,
    constraint::Held,
    plan::Plan,
    pools::{Pool, State},
};
use crate::devices::{
    requests::{Alternative, ClaimSpec},
    types::{Amounts, Device, Node, Nodes, Slice, Taint},
};

/// After so many steps it is worth a look whether any solution can exist.
const LOOK_AFTER: u64 = 4_096;

/// A device that a node can have.
#[derive(Debug)]
pub struct Offer<'a> {
    pub device: &'a Device,
    pub slice: &'a Slice,
    pool: usize,
    /// Each device says from where it can be reached.
    pub per_device: bool,
    /// Some claim has it for itself.
    whole: bool,
    /// Some claim has a share of it.
    shared: bool,
    /// It can be shared.
    shares: bool,
}

/// What this search gives of a device that is shared.
#[derive(Debug, Default)]
pub struct Share {
    given: usize,
    pub consumed: Amounts,
}

/// What is left of the counters of a pool, by set and counter.
type Counters<'a> = BTreeMap<(&'a str, &'a str), Quantity>;

/// A choice of the search.
enum Choice {
    /// Between the alternatives of a request.
    Alternative { next: usize, only_too_many: bool },
    /// Of one device.
    Device { next: usize, taken: Option<Undo> },
}

struct Frame {
    claim: usize,
    request: usize,
    /// The alternative, of a device.
    alternative: usize,
    /// How many devices of the request came before.
    number: usize,
    choice: Choice,
}

/// How to take a device back.
struct Undo {
    /// Which.
    at: usize,
    /// It took counters.
    counters: bool,
}

/// What lies ahead of a step forward.
enum Ahead {
    /// Nothing: all have what they want.
    Done,
    /// Another step.
    Step(Step),
    /// A choice.
    Choose(Frame),
}

/// What to do next.
enum Step {
    /// The request from its `number`-th device on, `start` being where to look first.
    Forward { claim: usize, request: usize, alternative: Option<usize>, number: usize, start: usize },
    /// Something of this claim cannot be met; `too_many`: since it would be more devices than a claim may have.
    Back { claim: usize, too_many: bool },
}

pub struct Search<'a, 'p> {
    pub world: &'p World<'a>,
    pub node: Node<'a>,
    pub claims: &'a [Arc<ClaimSpec>],
    pub pools: &'p [Pool<'a>],
    pub devices: Vec<Offer<'a>>,
    /// By claim, request, alternative.
    pub plans: Vec<Vec<Vec<Plan<'a>>>>,
    /// By device.
    pub shares: Vec<Share>,
    /// Claims (by number) that have a device in this search, by device.
    holders: Vec<Vec<usize>>,
    constraints: Vec<Vec<Held<'a>>>,
    /// By pool, once it was needed.
    counters: Vec<Option<Counters<'a>>>,
    given: Vec<Vec<Given<'a>>>,
    steps: u64,
    max_steps: u64,
    /// No solution can exist.
    hopeless: bool,
}

impl<'a, 'p> Search<'a, 'p> {
    pub fn new(
        world: &'p World<'a>,
        node: Node<'a>,
        claims: &'a [Arc<ClaimSpec>],
        pools: &'p [Pool<'a>],
        max_steps: u64,
    ) -> Self {
        let mut devices = Vec::new();
        for (number, pool) in pools.iter().enumerate().filter(|(_, p)| p.state == State::Ready) {
            for slice in &pool.slices {
                let per_device = matches!(slice.nodes, Nodes::PerDevice);
                devices.extend(slice.devices.iter().map(|device| Offer {
                    device,
                    slice,
                    pool: number,
                    per_device,
                    whole: world.taken.has(&device.id),
                    shared: world.taken.shares(&device.id),
                    shares: world.features.shared && device.spec.allow_multiple_allocations,
                }));
            }
        }
        let held = |claim: &'a Arc<ClaimSpec>| claim.constraints.iter().flatten().map(Held::new).collect();
        Self {
            plans: Vec::with_capacity(claims.len()),
            shares: devices.iter().map(|_| Share::default()).collect(),
            holders: vec![Vec::new(); devices.len()],
            constraints: claims.iter().map(held).collect(),
            counters: pools.iter().map(|_| None).collect(),
            given: vec![Vec::new(); claims.len()],
            steps: 0,
            hopeless: false,
            world,
            node,
            claims,
            pools,
            devices,
            max_steps,
        }
    }

    /// Devices for every claim, in the order of its requests; `None` where there is no solution.
    pub fn run(&mut self) -> Result<Option<Vec<Vec<Given<'a>>>>, Failure> {
        let mut stack: Vec<Frame> = Vec::new();
        let mut step = Step::Forward { claim: 0, request: 0, alternative: None, number: 0, start: 0 };
        loop {
            step = match step {
                Step::Forward { claim, request, alternative, number, start } => {
                    match self.forward(claim, request, alternative, number, start) {
                        Ahead::Done => return Ok(Some(std::mem::take(&mut self.given))),
                        Ahead::Step(step) => step,
                        Ahead::Choose(frame) => self.choose(frame, &mut stack)?,
                    }
                }
                Step::Back { claim, too_many } => {
                    let Some(mut frame) = stack.pop() else { return Ok(None) };
                    // Another claim's devices may leave this one other alternatives.
                    let too_many = too_many && frame.claim == claim;
                    match &mut frame.choice {
                        Choice::Alternative { only_too_many, .. } => *only_too_many &= too_many,
                        Choice::Device { taken, .. } => {
                            if let Some(undo) = taken.take() {
                                self.take_back(&frame, &undo);
                            }
                            // Another device would be one just the same.
                            if too_many {
                                step = Step::Back { claim, too_many };
                                continue;
                            }
                        }
                    }
                    self.choose(frame, &mut stack)?
                }
            };
        }
    }

    fn forward(
        &self,
        claim: usize,
        request: usize,
        alternative: Option<usize>,
        number: usize,
        start: usize,
    ) -> Ahead {
        let begin = |claim, request| {
            Ahead::Step(Step::Forward { claim, request, alternative: None, number: 0, start: 0 })
        };
        let Some(requests) = self.plans.get(claim) else { return Ahead::Done };
        if request >= requests.len() {
            return begin(claim + 1, 0);
        }
        if alternative.is_none() && self.claims[claim].requests[request].listed {
            let choice = Choice::Alternative { next: 0, only_too_many: true };
            return Ahead::Choose(Frame { claim, request, alternative: 0, number: 0, choice });
        }
        let alternative = alternative.unwrap_or(0);
        let plan = &requests[request][alternative];
        if plan.all.is_some() && plan.count == 0 {
            return Ahead::Step(Step::Back { claim, too_many: false });
        }
        if number >= plan.count {
            return begin(claim, request + 1);
        }
        if self.given[claim].len().saturating_add(plan.count - number) > MAX_DEVICES {
            return Ahead::Step(Step::Back { claim, too_many: true });
        }
        let choice = Choice::Device { next: start, taken: None };
        Ahead::Choose(Frame { claim, request, alternative, number, choice })
    }

    /// Takes the next choice of a frame, if there is one.
    fn choose(&mut self, mut frame: Frame, stack: &mut Vec<Frame>) -> Result<Step, Failure> {
        let (claim, request) = (frame.claim, frame.request);
        let step = match &mut frame.choice {
            Choice::Alternative { next, only_too_many } => {
                if *next == self.plans[claim][request].len() {
                    return Ok(Step::Back { claim, too_many: *only_too_many });
                }
                let alternative = Some(*next);
                *next += 1;
                Step::Forward { claim, request, alternative, number: 0, start: 0 }
            }
            Choice::Device { next, .. } => {
                let Some(undo) = self.next_device(claim, request, frame.alternative, frame.number, *next)?
                else {
                    return Ok(Step::Back { claim, too_many: false });
                };
                // The order of devices within a request does not matter, so only one order is tried.
                let start = undo.at + 1;
                frame.choice = Choice::Device { next: start, taken: Some(undo) };
                let (alternative, number) = (Some(frame.alternative), frame.number + 1);
                Step::Forward { claim, request, alternative, number, start }
            }
        };
        stack.push(frame);
        Ok(step)
    }

    /// Takes the first device from `start` on that the request can have.
    fn next_device(
        &mut self,
        claim: usize,
        request: usize,
        alternative: usize,
        number: usize,
        start: usize,
    ) -> Result<Option<Undo>, Failure> {
        if let Some(all) = &self.plans[claim][request][alternative].all {
            // Each of them is needed: there is nothing to choose.
            let at = all[number];
            self.count_step()?;
            return if start > at { Ok(None) } else { self.take(claim, request, alternative, at, true) };
        }
        for at in start..self.devices.len() {
            if self.count_step()? {
                return Ok(None);
            }
            if let Some(undo) = self.take(claim, request, alternative, at, false)? {
                return Ok(Some(undo));
            }
        }
        Ok(None)
    }

    /// `true`: no solution can exist.
    fn count_step(&mut self) -> Result<bool, Failure> {
        self.steps += 1;
        if self.steps > self.max_steps {
            return Err(Failure::TooLong);
        }
        if self.steps == LOOK_AFTER {
            self.hopeless = self.is_hopeless();
        }
        Ok(self.hopeless)
    }

    /// Gives the device to the request, unless something speaks against it.
    fn take(
        &mut self,
        claim: usize,
        request: usize,
        alternative: usize,
        at: usize,
        must: bool,
    ) -> Result<Option<Undo>, Failure> {
        let plan = &self.plans[claim][request][alternative];
        let (wish, offer) = (plan.wish, &self.devices[at]);
        let (device, slice, shares) = (offer.device, offer.slice, offer.shares);
        let in_use = match wish.admin_access {
            true => self.holders[at].contains(&claim),
            false => offer.whole || !self.holders[at].is_empty(),
        };
        if in_use || (!must && !self.wants(claim, plan, at)?) || !self.has_room(plan, at) {
            return Ok(None);
        }
        if self.is_tainted(device, wish) {
            return Ok(None);
        }
        let name = &self.claims[claim].requests[request].name;
        let held = &mut self.constraints[claim];
        let refused = held.iter_mut().position(|held| !held.add(name, &wish.name, device));
        if let Some(kept) = refused {
            held[..kept].iter_mut().for_each(|held| held.remove(name, &wish.name));
            if must {
                return Err(Failure::Fatal(format!(
                    "claim {}, request {}: cannot add device {} because a claim constraint would not be satisfied",
                    self.claims[claim].name,
                    wish.name.rsplit('/').next().unwrap_or_default(),
                    device.id
                )));
            }
            return Ok(None);
        }
        // Who shares a device does not take its counters once more.
        let first = !(shares && (self.devices[at].shared || self.shares[at].given > 0));
        let counters = first && !device.spec.consumes_counters.is_empty();
        if counters && !(self.world.features.partitions && self.take_counters(at)) {
            self.constraints[claim].iter_mut().for_each(|held| held.remove(name, &wish.name));
            return Ok(None);
        }
        let mut share = None;
        if shares {
            let consumed = capacity::consumed(&device.spec, wish.capacity.as_ref());
            self.shares[at].given += 1;
            for (name, amount) in &consumed {
                self.shares[at].consumed.entry(name.clone()).or_default().0 += amount.0;
            }
            share = Some(consumed);
        } else {
            self.holders[at].push(claim);
        }
        self.given[claim].push(Given { place: (request, alternative), device, slice, share });
        Ok(Some(Undo { at, counters }))
    }

    fn take_back(&mut self, frame: &Frame, undo: &Undo) {
        let (claim, at) = (frame.claim, undo.at);
        let Some(given) = self.given[claim].pop() else { return };
        match given.share {
            Some(share) => {
                self.shares[at].given -= 1;
                for (name, amount) in share {
                    self.shares[at].consumed.entry(name).or_default().0 -= amount.0;
                }
            }
            None => {
                self.holders[at].pop();
            }
        }
        if undo.counters {
            self.change_counters(at, true);
        }
        let name = &self.claims[claim].requests[frame.request].name;
        let wish = self.plans[claim][frame.request][frame.alternative].wish;
        self.constraints[claim].iter_mut().for_each(|held| held.remove(name, &wish.name));
    }

    /// Takes what the device needs of its pool's counters. `false`: there is not as much left.
    fn take_counters(&mut self, at: usize) -> bool {
        let pool = self.devices[at].pool;
        if self.counters[pool].is_none() {
            self.counters[pool] = Some(left(self.world, &self.pools[pool]));
        }
        let enough = self.change_counters(at, false);
        if !enough {
            self.change_counters(at, true);
        }
        enough
    }

    /// Takes the device's counters, or gives them back; whether none of them is below zero then.
    fn change_counters(&mut self, at: usize, back: bool) -> bool {
        let Offer { device, pool, .. } = self.devices[at];
        let Some(left) = &mut self.counters[pool] else { return false };
        let mut enough = true;
        for set in &device.spec.consumes_counters {
            for (name, counter) in &set.counters {
                let Some(left) = left.get_mut(&(&*set.name, &**name)) else { return false };
                *left = if back { *left + counter.value.0 } else { *left - counter.value.0 };
                enough &= left.signum() >= 0;
            }
        }
        enough
    }

    /// Whether a taint keeps the device from the request.
    fn is_tainted(&self, device: &Device, wish: &Alternative) -> bool {
        let World { features, rules, .. } = self.world;
        let mut taints = device.spec.taints.iter().chain(rules.taints(&device.id));
        features.taints && taints.any(|taint| !is_tolerated(taint, wish))
    }

    /// Whether some request cannot be met even if it had all devices for itself. An expression that fails is left to
    /// the search.
    fn is_hopeless(&self) -> bool {
        let can_be_met = |claim: usize, plan: &Plan<'a>| {
            let usable = |at: &usize| {
                let at = *at;
                (plan.wish.admin_access || !self.devices[at].whole)
                    && !self.is_tainted(self.devices[at].device, plan.wish)
                    && self.wants(claim, plan, at).unwrap_or(true)
            };
            match &plan.all {
                Some(all) => !all.is_empty() && all.iter().all(usable),
                None => (0..self.devices.len()).filter(usable).count() >= plan.count,
            }
        };
        self.plans.iter().enumerate().any(|(claim, requests)| {
            requests.iter().any(|plans| !plans.iter().any(|plan| can_be_met(claim, plan)))
        })
    }
}

/// What allocations have left of a pool's counters. May be below zero, which is none.
fn left<'a>(world: &World<'a>, pool: &Pool<'a>) -> Counters<'a> {
    let mut left: Counters<'a> = BTreeMap::new();
    for (set, counters) in &pool.counters {
        left.extend(counters.counters.iter().map(|(name, counter)| ((*set, &**name), counter.value.0)));
    }
    let devices = pool.slices.iter().chain(&pool.elsewhere).flat_map(|s| &s.devices);
    for device in devices.filter(|d| world.taken.has(&d.id) || world.taken.shares(&d.id)) {
        for set in &device.spec.consumes_counters {
            for (name, counter) in &set.counters {
                if let Some(left) = left.get_mut(&(&*set.name, &**name)) {
                    *left -= counter.value.0;
                }
            }
        }
    }
    left
}

/// Whether a taint does not keep the device from the request.
fn is_tolerated(taint: &Taint, wish: &Alternative) -> bool {
    !matches!(&*taint.effect, "NoSchedule" | "NoExecute")
        || wish.tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

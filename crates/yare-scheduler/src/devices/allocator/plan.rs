//! What each request wants, looked at before the search: classes, counts, and which devices are "all".

use std::{cell::RefCell, sync::Arc};

use super::{Failure, MAX_DEVICES, capacity, pools, search::Search};
use crate::devices::requests::{Alternative, ClaimSpec, Class, Request, Wanted};

/// One alternative of a request.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What it asks for.
    pub wish: &'a Alternative,
    /// Its class.
    pub class: &'a Arc<Class>,
    /// How many devices.
    pub count: usize,
    /// Which, where it wants all.
    pub all: Option<Vec<usize>>,
    /// Which devices it wants, by their place, as far as that is known.
    pub known: RefCell<Vec<Option<bool>>>,
}

impl<'a> Search<'a, '_> {
    /// Works out all plans. `Err`: a claim that makes no sense, or that cannot be met now.
    pub fn prepare(&mut self) -> Result<(), Failure> {
        for (claim, spec) in self.claims.iter().enumerate() {
            let mut requests = Vec::with_capacity(spec.requests.len());
            let mut least = 0_usize;
            for request in &spec.requests {
                self.check_features(spec, request)?;
                let plans: Vec<Plan<'a>> = request
                    .alternatives
                    .iter()
                    .map(|wish| self.plan(claim, wish))
                    .collect::<Result<_, _>>()?;
                let fewest = plans.iter().map(|plan| plan.count).min();
                least = least.saturating_add(fewest.ok_or_else(|| {
                    fatal(spec, &request.name, "missing device class name (unsupported request type?)")
                })?);
                requests.push(plans);
            }
            if least > MAX_DEVICES {
                return Err(Failure::Fatal(format!(
                    "claim {}: number of requested devices {least} exceeds the claim limit of {MAX_DEVICES}",
                    spec.name
                )));
            }
            if let Some(unknown) = spec.constraints.iter().position(Option::is_none) {
                return Err(Failure::Fatal(format!(
                    "claim {}, constraint #{unknown}: empty constraint (unsupported constraint type?)",
                    spec.name
                )));
            }
            self.plans.push(requests);
        }
        Ok(())
    }

    fn check_features(&self, claim: &ClaimSpec, request: &Request) -> Result<(), Failure> {
        let features = self.world.features;
        if request.listed && !features.lists {
            let why = "has subrequests, but the DRAPrioritizedList feature is disabled";
            return Err(fatal(claim, &request.name, why));
        }
        if !features.shared && request.alternatives.iter().any(|a| a.capacity.is_some()) {
            let why = "has capacity requests, but the DRAConsumableCapacity feature is disabled";
            return Err(fatal(claim, &request.name, why));
        }
        Ok(())
    }

    fn plan(&self, claim: usize, wish: &'a Alternative) -> Result<Plan<'a>, Failure> {
        let spec = &self.claims[claim];
        if wish.class.is_empty() {
            return Err(fatal(spec, &wish.name, "missing device class name (unsupported request type?)"));
        }
        let Some(class) = self.world.classes.get(&wish.class) else {
            let why = format!(
                "could not retrieve device class {}: deviceclass.resource.k8s.io \"{0}\" not found",
                wish.class
            );
            return Err(fatal(spec, &wish.name, &why));
        };
        let known = RefCell::new(vec![None; self.devices.len()]);
        let mut plan = Plan { wish, class, count: 0, all: None, known };
        match wish.wanted {
            // More than there can be is more than a claim may have.
            Wanted::Exactly(count) => plan.count = usize::try_from(count).unwrap_or(usize::MAX),
            Wanted::All => {
                let all = self.all(claim, &plan)?;
                plan.count = all.len();
                plan.all = Some(all);
            }
        }
        Ok(plan)
    }

    /// All devices that a request for all of them means.
    fn all(&self, claim: usize, plan: &Plan<'a>) -> Result<Vec<usize>, Failure> {
        let spec = &self.claims[claim];
        for pool in self.pools {
            let what = match pool.state {
                pools::State::Ready => continue,
                pools::State::Incomplete => "being updated",
                pools::State::Invalid => "invalid",
            };
            let why = format!("asks for all devices, but resource pool {} is currently {what}", pool.id);
            return Err(fatal(spec, &plan.wish.name, &why));
        }
        let mut out = Vec::new();
        for at in 0..self.devices.len() {
            if self.wants(claim, plan, at)? && self.has_room(plan, at) {
                out.push(at);
            }
        }
        Ok(out)
    }

    /// Whether the request's (and its class's) selectors want a device, and the node reaches it.
    pub fn wants(&self, claim: usize, plan: &Plan<'a>, at: usize) -> Result<bool, Failure> {
        if let Some(known) = plan.known.borrow()[at] {
            return Ok(known);
        }
        let wanted = self.look(claim, plan, at)?;
        plan.known.borrow_mut()[at] = Some(wanted);
        Ok(wanted)
    }

    fn look(&self, claim: usize, plan: &Plan<'a>, at: usize) -> Result<bool, Failure> {
        let offer = &self.devices[at];
        let device = offer.device;
        if !self.world.features.bindings && !device.spec.binding_conditions.is_empty() {
            return Ok(false);
        }
        let of_class = plan.class.selectors.iter().enumerate().map(|s| (true, s));
        let own = plan.wish.selectors.iter().enumerate().map(|s| (false, s));
        for (class, (number, selector)) in of_class.chain(own) {
            let failed = |stage: &str, why: &str| {
                let owner = match class {
                    true => format!("class {}", plan.class.name),
                    false => format!("claim {}", self.claims[claim].name),
                };
                Failure::Fatal(format!("{owner}: selector #{number}: CEL {stage} error: {why}"))
            };
            let selector = selector.as_ref().as_ref().map_err(|why| failed("compile", why))?;
            let value = device.value().as_ref().map_err(|why| failed("runtime", why))?;
            if !selector.matches(value).map_err(|why| failed("runtime", &why))? {
                return Ok(false);
            }
        }
        Ok(!offer.per_device || device.nodes.matches(self.node))
    }

    /// Whether a device's capacities have room for the request.
    pub fn has_room(&self, plan: &Plan<'a>, at: usize) -> bool {
        if !self.world.features.shared {
            return true;
        }
        let offer = &self.devices[at];
        capacity::fits(&offer.device.spec, plan.wish.capacity.as_ref(), |name| {
            let before = self.world.taken.consumed(&offer.device.id, name);
            before + self.shares[at].consumed.get(name).map_or(Default::default(), |amount| amount.0)
        })
    }
}

fn fatal(claim: &ClaimSpec, request: &str, why: &str) -> Failure {
    // Upstream names an entry of a list without its list.
    let request = request.rsplit('/').next().unwrap_or(request);
    Failure::Fatal(format!("claim {}, request {request}: {why}", claim.name))
}

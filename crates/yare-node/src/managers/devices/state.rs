//! What plugins offer and who has it; which devices a container gets. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::api::{ContainerAllocateResponse, Device, DevicePluginOptions};
use super::held::{Held, Holders, NO_NODE};
use crate::managers::topology::{Hint, Mask, combinations};

/// How long a plugin that went away may take to come back before its resource is gone from the node.
const STOP_GRACE: SignedDuration = SignedDuration::from_secs(300);

type Ids = BTreeSet<String>;

/// A plugin that is or was registered.
#[derive(Clone, Default)]
pub(crate) struct Plugin {
    /// Where it is asked; none: it has not come back since this agent started.
    pub(crate) client: Option<yare_grpc::Client>,
    pub(crate) options: DevicePluginOptions,
    /// Which of the plugins that had the resource in turn.
    pub(crate) generation: u64,
    stopped_at: Option<Timestamp>,
}

impl Plugin {
    /// A plugin that answers.
    pub(crate) fn running(client: yare_grpc::Client, options: DevicePluginOptions, generation: u64) -> Self {
        Plugin { client: Some(client), options, generation, stopped_at: None }
    }

    /// Its client, unless it has stopped.
    pub(crate) fn client(&self, resource: &str) -> Result<yare_grpc::Client, String> {
        match &self.client {
            Some(client) if self.stopped_at.is_none() => Ok(client.clone()),
            _ => Err(format!("endpoint {resource} has been stopped")),
        }
    }
}

/// All resources by name.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) plugins: BTreeMap<String, Plugin>,
    pub(crate) devices: BTreeMap<String, BTreeMap<String, Device>>,
    pub(crate) healthy: BTreeMap<String, Ids>,
    unhealthy: BTreeMap<String, Ids>,
    pub(crate) holders: Holders,
    /// Devices of a pod's init containers, which its next containers get first: the pod, and by resource.
    reusable: (String, BTreeMap<String, Ids>),
    /// Resources that were there once: the node's status says that it has none left.
    removed: Ids,
}

/// Which devices to ask the plugin for.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    /// The container has all it needs.
    Nothing,
    /// These.
    Take(Ids),
    /// The plugin may say which it prefers.
    Ask(Choice),
}

/// Devices to choose from.
#[derive(Debug, PartialEq)]
pub(crate) struct Choice {
    /// Already chosen.
    pub(crate) taken: Ids,
    /// How many are wanted in all.
    pub(crate) required: usize,
    /// What the plugin may prefer.
    pub(crate) pool: Ids,
    /// Where the rest comes from, in this order.
    rest: Vec<Ids>,
}

impl Choice {
    /// Chooses, with what the plugin prefers.
    pub(crate) fn take(self, preferred: &Ids) -> Result<Ids, String> {
        let Choice { mut taken, required, pool, rest } = self;
        let liked: Ids = preferred.intersection(&pool).cloned().collect();
        for source in std::iter::once(liked).chain(rest) {
            take_from(&mut taken, required, source);
        }
        if taken.len() < required {
            return Err(format!(
                "unexpectedly allocated less resources than required. Requested: {required}, Got: {}",
                taken.len()
            ));
        }
        Ok(taken)
    }
}

fn take_from(taken: &mut Ids, required: usize, source: impl IntoIterator<Item = String>) {
    for id in source {
        if taken.len() >= required {
            return;
        }
        taken.insert(id);
    }
}

/// A container's request for a resource.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) uid: &'a str,
    pub(crate) container: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) required: usize,
}

impl State {
    /// A resource that plugins offer or offered, or that somebody holds.
    pub(crate) fn knows(&self, resource: &str) -> bool {
        self.healthy.contains_key(resource) || self.holders.devices().contains_key(resource)
    }

    /// Whether there is anything at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.healthy.is_empty() && self.holders.is_empty()
    }

    /// A resource of an earlier life: none of it can be had until its plugin is back.
    pub(crate) fn remember(&mut self, resource: String, now: Timestamp) {
        self.healthy.entry(resource.clone()).or_default();
        self.unhealthy.entry(resource.clone()).or_default();
        self.plugins.insert(resource, Plugin { stopped_at: Some(now), ..Plugin::default() });
    }

    /// Takes in a plugin's list. Answers the pods whose devices have changed.
    pub(crate) fn update(&mut self, resource: &str, devices: Vec<Device>) -> Ids {
        let before = self.devices.remove(resource).unwrap_or_default();
        let mut pods = Ids::new();
        let mut now = BTreeMap::new();
        let (mut healthy, mut unhealthy) = (Ids::new(), Ids::new());
        for device in devices {
            let news = before.get(&device.id).is_none_or(|old| old.health != device.health);
            if news && let Some(uid) = self.holders.holder(resource, &device.id) {
                pods.insert(uid.to_owned());
            }
            let set = if device.is_healthy() { &mut healthy } else { &mut unhealthy };
            set.insert(device.id.clone());
            now.insert(device.id.clone(), device);
        }
        self.devices.insert(resource.to_owned(), now);
        self.healthy.insert(resource.to_owned(), healthy);
        self.unhealthy.insert(resource.to_owned(), unhealthy);
        self.removed.remove(resource);
        pods
    }

    /// A plugin went away: its devices are not healthy any more.
    pub(crate) fn stop(&mut self, resource: &str, now: Timestamp) {
        let Some(plugin) = self.plugins.get_mut(resource) else { return };
        plugin.stopped_at = Some(now);
        let healthy = std::mem::take(self.healthy.entry(resource.to_owned()).or_default());
        self.unhealthy.entry(resource.to_owned()).or_default().extend(healthy);
    }

    /// Forgets resources whose plugin has been away for too long. Whether any went.
    pub(crate) fn expire(&mut self, now: Timestamp) -> bool {
        let resources = self.healthy.keys().chain(self.unhealthy.keys());
        let gone: Ids = resources
            .filter(|r| {
                let stopped = self.plugins.get(*r).map(|p| p.stopped_at);
                stopped.is_none_or(|at| at.is_some_and(|at| now.duration_since(at) > STOP_GRACE))
            })
            .cloned()
            .collect();
        for resource in &gone {
            self.plugins.remove(resource);
            self.healthy.remove(resource);
            self.unhealthy.remove(resource);
        }
        let any = !gone.is_empty();
        self.removed.extend(gone);
        any
    }

    /// Devices by resource: how many there are, and how many of them are healthy. None is left of what is gone.
    pub(crate) fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let mut counts: BTreeMap<String, (usize, usize)> =
            self.removed.iter().map(|r| (r.clone(), (0, 0))).collect();
        for (resource, healthy) in &self.healthy {
            let all = healthy.len() + self.unhealthy.get(resource).map_or(0, Ids::len);
            counts.insert(resource.clone(), (all, healthy.len()));
        }
        counts
    }

    /// What admission counts as the node's: the healthy devices, but for a pod that has devices at least as many as
    /// are held, so that a failed plugin does not turn it away.
    pub(crate) fn offered(&self, uid: &str) -> BTreeMap<String, usize> {
        let mut offered: BTreeMap<String, usize> =
            self.counts().into_iter().map(|(r, (_, healthy))| (r, healthy)).collect();
        if self.holders.has(uid) {
            for (resource, held) in self.holders.devices() {
                let entry = offered.entry(resource).or_default();
                *entry = (*entry).max(held.len());
            }
        }
        offered
    }

    /// Decides which devices a container gets.
    pub(crate) fn plan(&self, request: Request<'_>, affinity: Option<Mask>) -> Result<Plan, String> {
        let Request { uid, container, resource, required } = request;
        let held = self.holders.get(uid, container, resource).map(Held::ids);
        if let Some(held) = &held
            && held.len() != required
        {
            return Err(format!(
                "pod {uid:?} container {container:?} changed request for resource {resource:?} from {} to {required}",
                held.len()
            ));
        }
        let Some(healthy) = self.healthy.get(resource) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        if held.as_ref().is_some_and(|held| !held.is_subset(healthy)) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            ));
        }
        if held.is_some() || required == 0 {
            return Ok(Plan::Nothing);
        }
        let mut taken = Ids::new();
        take_from(&mut taken, required, self.reusable(uid, resource));
        let available = self.available(resource);
        let needed = required - taken.len();
        if needed == 0 {
            return Ok(Plan::Take(taken));
        }
        if available.len() < needed {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
                available.len()
            ));
        }
        let (aligned, unaligned, without) = self.by_affinity(resource, &available, affinity);
        if needed < aligned.len() {
            let rest = vec![aligned.clone()];
            return Ok(Plan::Ask(Choice { taken, required, pool: aligned, rest }));
        }
        taken.extend(aligned);
        if taken.len() == required {
            return Ok(Plan::Take(taken));
        }
        Ok(Plan::Ask(Choice { taken, required, pool: available, rest: vec![unaligned, without] }))
    }

    /// Healthy devices that nobody has.
    fn available(&self, resource: &str) -> Ids {
        let taken = self.holders.devices().remove(resource).unwrap_or_default();
        let healthy = self.healthy.get(resource).into_iter().flatten();
        healthy.filter(|id| !taken.contains(*id)).cloned().collect()
    }

    fn reusable(&self, uid: &str, resource: &str) -> Ids {
        if self.reusable.0 != uid {
            return Ids::new();
        }
        self.reusable.1.get(resource).cloned().unwrap_or_default()
    }

    fn nodes(&self, resource: &str, id: &str) -> Vec<i64> {
        let device = self.devices.get(resource).and_then(|d| d.get(id));
        device.map(|d| d.numa_nodes().collect()).unwrap_or_default()
    }

    /// Devices near to the wanted nodes, near to others, and near to none.
    fn by_affinity(&self, resource: &str, available: &Ids, affinity: Option<Mask>) -> (Ids, Ids, Ids) {
        let (mut aligned, mut unaligned, mut without) = (Ids::new(), Ids::new(), Ids::new());
        let Some(mask) = affinity.filter(|_| self.has_topology(resource)) else {
            return (aligned, unaligned, available.clone());
        };
        for id in available {
            let nodes = self.nodes(resource, id);
            let set = match () {
                () if nodes.is_empty() => &mut without,
                () if nodes.iter().any(|n| in_mask(mask, *n)) => &mut aligned,
                () => &mut unaligned,
            };
            set.insert(id.clone());
        }
        (aligned, unaligned, without)
    }

    fn has_topology(&self, resource: &str) -> bool {
        let mut devices = self.devices.get(resource).into_iter().flat_map(BTreeMap::values);
        devices.any(|d| d.numa_nodes().next().is_some())
    }

    /// Records what the plugin gave.
    pub(crate) fn give(&mut self, request: Request<'_>, ids: &Ids, answer: ContainerAllocateResponse) {
        let mut by_node: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in ids {
            let nodes = self.nodes(request.resource, id);
            for node in if nodes.is_empty() { vec![NO_NODE] } else { nodes } {
                by_node.entry(node).or_default().push(id.clone());
            }
        }
        self.holders.insert(request.uid, request.container, request.resource, Held { by_node, answer });
    }

    /// After a container of a pod was served: an init container's devices can be had again by the next ones.
    pub(crate) fn served(&mut self, uid: &str, container: &str, ends: bool) {
        if self.reusable.0 != uid {
            self.reusable = (uid.to_owned(), BTreeMap::new());
        }
        for (resource, held) in self.holders.container(uid, container).into_iter().flatten() {
            let reusable = self.reusable.1.entry(resource.clone()).or_default();
            for id in held.ids() {
                if ends {
                    reusable.insert(id);
                } else {
                    reusable.remove(&id);
                }
            }
        }
    }

    /// Sets of NUMA nodes that could serve a request; none: the resource knows no nodes. `held` is what the
    /// container or pod has already.
    pub(crate) fn hints(
        &self,
        uid: &str,
        resource: &str,
        required: usize,
        held: &Ids,
        all_nodes: &[u32],
    ) -> Option<Vec<Hint>> {
        if !self.has_topology(resource) {
            return None;
        }
        if !held.is_empty() {
            if held.len() != required {
                return Some(Vec::new());
            }
            return Some(self.hints_from(resource, held, &Ids::new(), required, all_nodes));
        }
        let (available, reusable) = (self.available(resource), self.reusable(uid, resource));
        if available.union(&reusable).count() < required {
            return Some(Vec::new());
        }
        Some(self.hints_from(resource, &available, &reusable, required, all_nodes))
    }

    fn hints_from(
        &self,
        resource: &str,
        available: &Ids,
        reusable: &Ids,
        required: usize,
        all_nodes: &[u32],
    ) -> Vec<Hint> {
        let near = |id: &String, mask: Mask| self.nodes(resource, id).iter().any(|n| in_mask(mask, *n));
        let ids: Vec<&String> = self.devices.get(resource).into_iter().flat_map(BTreeMap::keys).collect();
        // Only nodes that have devices matter.
        let with: BTreeSet<i64> = ids.iter().flat_map(|id| self.nodes(resource, id)).collect();
        let mut nodes: Vec<u32> =
            all_nodes.iter().copied().filter(|n| with.contains(&i64::from(*n))).collect();
        if nodes.is_empty() {
            nodes = all_nodes.to_vec();
        }
        let mut least = nodes.len();
        let mut hints = Vec::new();
        for mask in combinations(&nodes) {
            if ids.iter().filter(|id| near(id, mask)).count() >= required {
                least = least.min(mask.count());
            }
            let placed = |id: &&String| !self.nodes(resource, id).is_empty();
            if !reusable.iter().filter(placed).all(|id| near(id, mask)) {
                continue;
            }
            let matching =
                reusable.iter().filter(placed).count() + available.iter().filter(|id| near(id, mask)).count();
            if matching >= required {
                hints.push(Hint { affinity: Some(mask), preferred: false });
            }
        }
        for hint in &mut hints {
            hint.preferred = hint.affinity.is_some_and(|mask| mask.count() == least);
        }
        hints
    }
}

fn in_mask(mask: Mask, node: i64) -> bool {
    u32::try_from(node).is_ok_and(|n| mask.contains(n))
}

#[cfg(test)]
mod tests {
    use super::super::api::{NumaNode, TopologyInfo};
    use super::*;

    fn device(text: &str) -> Device {
        // `id`, `id!` for a sick one, `id@0+1` for its nodes.
        let (id, nodes) = text.split_once('@').unwrap_or((text, ""));
        let nodes: Vec<NumaNode> =
            nodes.split('+').filter_map(|n| n.parse().ok()).map(|id| NumaNode { id }).collect();
        Device {
            id: id.trim_end_matches('!').to_owned(),
            health: if id.ends_with('!') { "Unhealthy" } else { "Healthy" }.to_owned(),
            topology: Some(TopologyInfo { nodes }).filter(|t| !t.nodes.is_empty()),
        }
    }

    fn state(devices: &[&str]) -> State {
        let mut state = State::default();
        state.plugins.insert("r".into(), Plugin::default());
        state.update("r", devices.iter().map(|d| device(d)).collect());
        state
    }

    fn request<'a>(uid: &'a str, container: &'a str, required: usize) -> Request<'a> {
        Request { uid, container, resource: "r", required }
    }

    fn ids(text: &str) -> Ids {
        text.split(' ').filter(|t| !t.is_empty()).map(str::to_owned).collect()
    }

    /// Plans and gives; what came of it.
    fn serve(
        state: &mut State,
        request: Request<'_>,
        affinity: Option<Mask>,
        liked: &str,
    ) -> Result<String, String> {
        let taken = match state.plan(request, affinity)? {
            Plan::Nothing => return Ok("nothing".to_owned()),
            Plan::Take(taken) => taken,
            Plan::Ask(choice) => choice.take(&ids(liked))?,
        };
        state.give(request, &taken, ContainerAllocateResponse::default());
        Ok(taken.into_iter().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn devices_are_chosen_near_the_nodes() {
        let devices = ["a@0", "b@0", "c@1", "d@1", "e", "f!"];
        for (required, nodes, liked, want) in [
            (1, &[] as &[u32], "", Ok("a")),
            (1, &[], "d", Ok("d")),
            (1, &[1], "", Ok("c")),
            (1, &[1], "d", Ok("d")),
            // What it likes is elsewhere: the nodes are what counts.
            (1, &[1], "a", Ok("c")),
            (3, &[1], "", Ok("a c d")),
            (3, &[1], "e", Ok("c d e")),
            (5, &[0], "", Ok("a b c d e")),
            (2, &[0, 1], "b d", Ok("b d")),
            (6, &[], "", Err("requested number of devices unavailable for r. Requested: 6, Available: 5")),
        ] {
            let mut state = state(&devices);
            let affinity = (!nodes.is_empty()).then(|| Mask::of(nodes.iter().copied()));
            let got = serve(&mut state, request("u", "c", required), affinity, liked);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{required} {nodes:?} {liked}");
        }
    }

    #[test]
    fn refusals_say_why() {
        let mut state = state(&["a", "b"]);
        let unknown = Request { resource: "x", ..request("u", "c", 1) };
        assert_eq!(state.plan(unknown, None), Err("cannot allocate unregistered device x".to_owned()));
        serve(&mut state, request("u", "c", 1), None, "").unwrap();
        assert_eq!(state.plan(request("u", "c", 1), None), Ok(Plan::Nothing));
        assert_eq!(
            state.plan(request("u", "c", 2), None),
            Err("pod \"u\" container \"c\" changed request for resource \"r\" from 1 to 2".to_owned())
        );
        state.update("r", vec![device("a!"), device("b")]);
        assert_eq!(
            state.plan(request("u", "c", 1), None),
            Err("previously allocated devices are no longer healthy; cannot allocate unhealthy devices r"
                .to_owned())
        );
        state.update("r", vec![device("a!"), device("b!")]);
        assert_eq!(
            state.plan(request("v", "c", 1), None),
            Err("no healthy devices present; cannot allocate unhealthy devices r".to_owned())
        );
    }

    #[test]
    fn init_containers_hand_their_devices_on() {
        let mut state = state(&["a", "b", "c"]);
        for (container, required, ends, want) in [
            ("init", 2, true, Ok("a b")),
            ("sidecar", 1, false, Ok("a")),
            ("init2", 2, true, Ok("b c")),
            ("main", 2, false, Ok("b c")),
            (
                "more",
                1,
                false,
                Err("requested number of devices unavailable for r. Requested: 1, Available: 0"),
            ),
        ] {
            let got = serve(&mut state, request("u", container, required), None, "");
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{container}");
            state.served("u", container, ends);
        }
        // Another pod cannot.
        assert!(serve(&mut state, request("v", "main", 1), None, "").is_err());
        assert!(state.holders.remove("u"));
        assert_eq!(serve(&mut state, request("v", "main", 1), None, ""), Ok("a".to_owned()));
    }

    #[test]
    fn plugins_that_stay_away_take_their_resource_along() {
        let mut state = state(&["a", "b!"]);
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(state.counts()["r"], (2, 1));
        state.stop("r", at(1000));
        assert_eq!(state.counts()["r"], (2, 0));
        assert!(!state.expire(at(1300)));
        assert!(state.expire(at(1301)));
        assert_eq!(state.counts()["r"], (0, 0));
        assert!(!state.knows("r"));
        state.plugins.insert("r".into(), Plugin::default());
        state.update("r", vec![device("a")]);
        assert_eq!(state.counts()["r"], (1, 1));
    }

    #[test]
    fn a_pod_with_devices_is_not_turned_away_when_they_fail() {
        let mut state = state(&["a", "b"]);
        serve(&mut state, request("u", "c", 2), None, "").unwrap();
        assert_eq!(state.update("r", vec![device("a!"), device("b")]), ids("u"));
        assert!(state.update("r", vec![device("a!"), device("b")]).is_empty());
        assert_eq!(state.offered("u")["r"], 2);
        assert_eq!(state.offered("v")["r"], 1);
    }

    #[test]
    fn hints_name_the_nodes_with_devices() {
        let text = |hints: Option<Vec<Hint>>| match hints {
            None => "any".to_owned(),
            Some(list) => list
                .iter()
                .map(|h| {
                    let nodes: String = h.affinity.unwrap().nodes().map(|n| n.to_string()).collect();
                    format!("{nodes}{}", if h.preferred { "+" } else { "-" })
                })
                .collect::<Vec<_>>()
                .join(" "),
        };
        for (devices, required, want) in [
            (&["a", "b"] as &[&str], 1, "any"),
            (&["a@0", "b@1"], 1, "0+ 1+ 01-"),
            (&["a@0", "b@1"], 2, "01+"),
            (&["a@0", "b@0", "c@1"], 2, "0+ 01-"),
            (&["a@0", "b@0+1"], 2, "0+ 01-"),
            (&["a@1"], 1, "1+"),
            (&["a@0", "b!@1"], 2, ""),
            // Both are there, but one is sick: the narrow set would be better.
            (&["a@0", "b!@0", "c@1"], 2, "01-"),
        ] {
            let state = state(devices);
            assert_eq!(
                text(state.hints("u", "r", required, &Ids::new(), &[0, 1])),
                want,
                "{devices:?} {required}"
            );
        }
        let mut state = state(&["a@0", "b@1"]);
        serve(&mut state, request("u", "c", 1), Some(Mask::of([1])), "").unwrap();
        assert_eq!(text(state.hints("v", "r", 1, &Ids::new(), &[0, 1])), "0+ 01-");
        assert_eq!(text(state.hints("u", "r", 1, &ids("b"), &[0, 1])), "1+ 01-");
        assert_eq!(text(state.hints("u", "r", 2, &ids("b"), &[0, 1])), "");
    }
}

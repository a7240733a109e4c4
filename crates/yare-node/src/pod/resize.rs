//! Resizing in place: what a pod is allocated comes into force in its running containers and its cgroup.
//!
//! In: the pod as it is allocated, what the runtime holds, what is in force. Out: a [`Plan`], which is pure, and its
//! updates, in an order in which the pod's cgroup always holds what its containers may use: the pod's limit is raised
//! first or lowered last, and containers shrink before others grow. A container whose `resizePolicy` asks for it is
//! started again instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use yare_client::EventKind;
use yare_runtime::{ContainerState, Resources};

use super::actions::{Actions, Kill, KillReason};
use super::limits;
use super::qos;
use super::snapshot::Snapshot;
use super::worker::Worker;
use crate::allocation::{self, Sizes, Switches};
use crate::metrics::table;
use crate::quantity;
use crate::view::{Container, Pod, ResourceRequirements};

/// CPU (thousandths) and memory (bytes) of a container or pod; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amounts {
    memory_limit: i64,
    memory_request: i64,
    cpu_limit: i64,
    cpu_request: i64,
}

impl Amounts {
    fn of(size: &ResourceRequirements) -> Self {
        let bytes = |set: &BTreeMap<String, String>| set.get("memory").map_or(0, |t| quantity::value(t));
        let milli = |set: &BTreeMap<String, String>| set.get("cpu").map_or(0, |t| quantity::milli(t));
        Amounts {
            memory_limit: bytes(&size.limits),
            memory_request: bytes(&size.requests),
            cpu_limit: milli(&size.limits),
            cpu_request: milli(&size.requests),
        }
    }

    /// Limit and request of one resource.
    fn pair(&self, resource: Resource) -> (i64, i64) {
        match resource {
            Resource::Memory => (self.memory_limit, self.memory_request),
            Resource::Cpu => (self.cpu_limit, self.cpu_request),
        }
    }
}

/// Updated one after the other: memory can be ordered otherwise than CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Memory,
    Cpu,
}

impl Resource {
    const ALL: [Resource; 2] = [Resource::Memory, Resource::Cpu];

    fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Cpu => "cpu",
        }
    }

    /// Of a size only this resource, put into another.
    fn put(self, from: &ResourceRequirements, into: &mut ResourceRequirements) {
        let name = self.name();
        for (from, into) in [(&from.requests, &mut into.requests), (&from.limits, &mut into.limits)] {
            match from.get(name) {
                Some(amount) => drop(into.insert(name.to_owned(), amount.clone())),
                None => drop(into.remove(name)),
            }
        }
    }
}

/// A running container that is to be updated.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    id: String,
    name: String,
    from: Amounts,
    to: Amounts,
}

/// A running container that is to be started again.
#[derive(Debug, PartialEq, Eq)]
struct Restart {
    id: String,
    name: String,
}

/// What has to be done to bring what is allocated into force.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    restart: Vec<Restart>,
    memory: Vec<Change>,
    cpu: Vec<Change>,
    /// The pod as a whole has another size.
    pod: bool,
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Plan::default()
    }

    fn changes(&self, resource: Resource) -> &[Change] {
        match resource {
            Resource::Memory => &self.memory,
            Resource::Cpu => &self.cpu,
        }
    }

    /// Adds the containers that are started again to what the round does; their names.
    pub(crate) fn restart(&self, pod: &Pod, actions: &mut Actions) -> Vec<String> {
        for restart in &self.restart {
            if actions.kill.iter().any(|k| k.id == restart.id) {
                continue;
            }
            actions.kill.push(Kill {
                id: restart.id.clone(),
                name: restart.name.clone(),
                message: format!("Container {} resize requires restart", restart.name),
                reason: KillReason::Unknown,
            });
            start(pod, &restart.name, actions);
        }
        self.restart.iter().map(|r| r.name.clone()).collect()
    }
}

/// Adds a container to those that the round starts, in the order of the spec.
fn start(pod: &Pod, name: &str, actions: &mut Actions) {
    let lists = [(&pod.spec.init_containers, &mut actions.init), (&pod.spec.containers, &mut actions.main)];
    for (list, start) in lists {
        if let Some(index) = list.iter().position(|c| c.name == name)
            && let Err(at) = start.binary_search(&index)
        {
            start.insert(at, index);
        }
    }
}

fn restarts_for(container: &Container, resource: Resource) -> bool {
    let policy = container.resize_policy.iter().find(|p| p.resource_name == resource.name());
    policy.is_some_and(|p| p.restart_policy == "RestartContainer")
}

/// What differs between what is allocated to a pod and what is in force. A container that does not run gets its size
/// when it starts.
fn plan(pod: &Pod, snapshot: &Snapshot, in_force: &Sizes, switches: Switches) -> Plan {
    let mut plan = Plan::default();
    let level = |set: &'_ Option<ResourceRequirements>| set.clone().filter(|_| switches.pod);
    let (level_now, level_then) = (level(&in_force.pod), level(&pod.spec.resources));
    for container in switches.resizable(pod) {
        let Some(status) = snapshot.latest(&container.name).filter(|s| s.state == ContainerState::Running)
        else {
            continue;
        };
        let Some(size) = in_force.containers.get(&container.name) else { continue };
        let from = Amounts::of(&allocation::effective(size, level_now.as_ref()));
        let to = Amounts::of(&allocation::effective(&container.resources, level_then.as_ref()));
        let changed: Vec<Resource> =
            Resource::ALL.into_iter().filter(|r| from.pair(*r) != to.pair(*r)).collect();
        if changed.iter().any(|r| restarts_for(container, *r)) {
            plan.restart.push(Restart { id: status.id.clone(), name: container.name.clone() });
            continue;
        }
        for resource in changed {
            let change = Change { id: status.id.clone(), name: container.name.clone(), from, to };
            let list = match resource {
                Resource::Memory => &mut plan.memory,
                Resource::Cpu => &mut plan.cpu,
            };
            // By the limit, or by the request where that stays.
            let ((limit, request), (limit_then, request_then)) = (from.pair(resource), to.pair(resource));
            let grows = if limit == limit_then { request_then > request } else { limit_then > limit };
            if grows {
                list.push(change);
            } else {
                list.insert(0, change);
            }
        }
    }
    let whole = |set: Option<ResourceRequirements>| Amounts::of(&set.unwrap_or_default());
    plan.pod = whole(level_now) != whole(level_then);
    plan
}

/// Of a pod's limits those that go up: what its cgroup gets before its containers are updated. Absent is unlimited.
fn raised(resource: Resource, from: &Resources, to: &Resources) -> Resources {
    let up = |from: Option<i64>, to: Option<i64>| {
        let unlimited = |n: Option<i64>| n.filter(|n| *n > 0).unwrap_or(i64::MAX);
        (unlimited(to) > unlimited(from)).then(|| to.unwrap_or(-1))
    };
    match resource {
        Resource::Memory => Resources {
            memory_limit_bytes: up(from.memory_limit_bytes, to.memory_limit_bytes),
            ..Resources::default()
        },
        Resource::Cpu => {
            let quota = up(from.cpu_quota_us, to.cpu_quota_us);
            Resources {
                cpu_quota_us: quota,
                cpu_period_us: quota.and(to.cpu_period_us),
                cpu_shares: to.cpu_shares.filter(|shares| from.cpu_shares < Some(*shares)),
                ..Resources::default()
            }
        }
    }
}

/// Everything of one resource, for an update: what is absent would stay, so that "no limit" is said.
fn only(resource: Resource, of: &Resources) -> Resources {
    match resource {
        Resource::Memory => Resources {
            memory_limit_bytes: of.memory_limit_bytes.or(Some(-1)),
            memory_swap_limit_bytes: match of.memory_limit_bytes {
                Some(_) => of.memory_swap_limit_bytes,
                None => Some(-1),
            },
            unified: of.unified.iter().filter(|(f, _)| f.starts_with("memory.")).map(own).collect(),
            ..Resources::default()
        },
        Resource::Cpu => Resources {
            cpu_shares: of.cpu_shares,
            cpu_period_us: of.cpu_period_us,
            cpu_quota_us: of.cpu_quota_us.or(Some(-1)),
            ..Resources::default()
        },
    }
}

fn own((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

impl Worker {
    /// What is to be resized now, and what that says of the pod.
    pub(crate) fn plan_resize(&self, pod: &Pod) -> Plan {
        let allocations = &self.kubelet.allocations;
        match allocations.in_force(&pod.metadata.uid) {
            Some(in_force) => plan(pod, &self.snapshot, &in_force, allocations.switches),
            None => Plan::default(),
        }
    }

    /// A container that was stopped to start with another size does, whatever its policy makes of its end.
    pub(crate) fn start_resized(&self, pod: &Pod, actions: &mut Actions) {
        for name in &self.resized {
            start(pod, name, actions);
        }
    }

    /// Tells how far a resize is: a condition, and an event at its end.
    pub(crate) fn tell_resize(&self, pod: &Arc<Pod>) {
        let kubelet = &self.kubelet;
        let uid = &pod.metadata.uid;
        if !self.plan_resize(pod).is_empty() {
            kubelet.allocations.in_progress(pod, None, kubelet.seams.now());
        } else if let Some(generation) = kubelet.allocations.completed(uid) {
            kubelet.recharge(pod);
            let text = allocation::message("Pod resize completed", pod, generation, "");
            kubelet.pod_event(pod, None, EventKind::Normal, "ResizeCompleted", text);
        }
    }

    /// Brings what is allocated into force, as far as the plan goes without restarts. Whether that worked, or there was
    /// nothing to do.
    pub(crate) async fn resize(&mut self, pod: &Arc<Pod>, plan: &Plan) -> bool {
        if plan.is_empty() {
            return true;
        }
        let began = std::time::Instant::now();
        let outcome = self.put_in_force(pod, plan).await;
        let success = if outcome.is_ok() { "true" } else { "false" };
        let took_ms = began.elapsed().as_secs_f64() * 1000.0;
        self.kubelet.metrics.observe(&table::RESIZE_DURATION, &[success], took_ms);
        if let Err(error) = &outcome {
            let kubelet = &self.kubelet;
            if kubelet.allocations.in_progress(pod, Some(error), kubelet.seams.now()) {
                let generation = pod.metadata.generation;
                let text = allocation::message("Pod resize error", pod, generation, error);
                kubelet.pod_event(pod, None, EventKind::Warning, "ResizeError", text);
            }
        }
        outcome.is_ok()
    }

    async fn put_in_force(&self, pod: &Arc<Pod>, plan: &Plan) -> Result<(), String> {
        let kubelet = &self.kubelet;
        let limits_of = |pod: &Pod| {
            let mut limits = limits::pod(&kubelet.resources.policy, pod, kubelet.pids_limit());
            kubelet.managers.place_pod(pod, &mut limits);
            limits
        };
        let from = limits_of(&kubelet.allocations.as_in_force(pod));
        let to = limits_of(pod);
        if !plan.memory.is_empty() || !plan.restart.is_empty() {
            self.check_memory(pod, plan, &from, &to).await?;
        }
        for resource in Resource::ALL {
            let changes = plan.changes(resource);
            if changes.is_empty() && plan.restart.is_empty() && !plan.pod {
                continue;
            }
            let first = raised(resource, &from, &to);
            if first != Resources::default() {
                self.resize_pod(first).await?;
            }
            for change in changes {
                self.resize_container(pod, change, resource).await?;
            }
            self.resize_pod(only(resource, &to)).await?;
            if let Some(size) = pod.spec.resources.as_ref().filter(|_| plan.pod) {
                kubelet.allocations.put_in_force(&pod.metadata.uid, |sizes| {
                    resource.put(size, sizes.pod.get_or_insert_default());
                });
            }
        }
        Ok(())
    }

    async fn resize_container(&self, pod: &Pod, change: &Change, resource: Resource) -> Result<(), String> {
        let kubelet = &self.kubelet;
        let Some(container) = pod.container(&change.name) else { return Ok(()) };
        let mut limits = limits::container(&kubelet.resources.policy, pod, container);
        kubelet.managers.place(pod, container, &mut limits);
        let update = kubelet.runtime.update_resources(&change.id, only(resource, &limits));
        update
            .await
            .map_err(|e| format!("updating {} of container {:?}: {e}", resource.name(), change.name))?;
        let size = kubelet.allocations.effective(pod, container);
        kubelet.allocations.put_in_force(&pod.metadata.uid, |sizes| {
            resource.put(&size, sizes.containers.entry(change.name.clone()).or_default());
        });
        Ok(())
    }

    /// The pod's own cgroup has to hold what its containers may use.
    async fn resize_pod(&self, limits: Resources) -> Result<(), String> {
        let Some(sandbox) = self.snapshot.ready_sandbox() else { return Ok(()) };
        let update = self.kubelet.runtime.update_sandbox_resources(&sandbox.id, limits);
        update.await.map_err(|e| format!("updating the pod's cgroup: {e}"))
    }

    /// A limit below what is in use would have the kernel kill: rather the resize waits.
    async fn check_memory(
        &self,
        pod: &Pod,
        plan: &Plan,
        from: &Resources,
        to: &Resources,
    ) -> Result<(), String> {
        let lower = |from: i64, to: i64| to > 0 && (from <= 0 || to < from);
        let of_pod =
            to.memory_limit_bytes.filter(|limit| lower(from.memory_limit_bytes.unwrap_or(0), *limit));
        let shrinking: Vec<&Change> =
            plan.memory.iter().filter(|c| lower(c.from.memory_limit, c.to.memory_limit)).collect();
        if of_pod.is_none() && shrinking.is_empty() {
            return Ok(());
        }
        let running = self.snapshot.containers.iter().filter(|c| c.state == ContainerState::Running);
        let ids: Vec<String> = running.map(|c| c.id.clone()).collect();
        let unreadable = |_| format!("unable to read memory usage for pod {:?}", pod.full_name());
        let uses = self.kubelet.runtime.container_stats(&ids).await.map_err(unreadable)?;
        let mut errors = Vec::new();
        if let Some(limit) = of_pod {
            let group = qos::cgroup_parent(&self.kubelet.resources.root_group(), pod);
            let whole = self.kubelet.resources.tree.as_ref().and_then(|tree| tree.groups.memory(&group));
            let used =
                whole.map_or_else(|| uses.iter().map(|u| u.memory_usage_bytes).sum(), |m| m.usage_bytes);
            if exceeds(used, limit) {
                errors.push(format!(
                    "attempting to set pod memory limit ({limit}) below current usage ({used})"
                ));
            }
        }
        for change in shrinking {
            let limit = change.to.memory_limit;
            match uses.iter().find(|u| u.id == change.id).map(|u| u.memory_usage_bytes) {
                None => errors.push(format!("missing container {:?} memory usage", change.name)),
                Some(used) if exceeds(used, limit) => errors.push(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                    change.name
                )),
                Some(_) => {}
            }
        }
        match errors.as_slice() {
            [] => Ok(()),
            [one] => Err(format!("cannot decrease memory limits: {one}")),
            many => Err(format!("cannot decrease memory limits: [{}]", many.join(", "))),
        }
    }
}

fn exceeds(used: u64, limit: i64) -> bool {
    u64::try_from(limit).is_ok_and(|limit| used >= limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::container_status;

    const ALL: Switches = Switches { init: true, pod: true, exclusive_cpus: false, exclusive_memory: false };

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    fn size(cpu: &str, memory: &str) -> serde_json::Value {
        serde_json::json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": memory}})
    }

    /// A container's name, CPU and memory.
    type Row<'a> = (&'a str, &'a str, &'a str);

    /// Containers with their sizes, by name.
    fn spec(sizes: &[Row<'_>]) -> serde_json::Value {
        let one = |(name, cpu, memory): &Row<'_>| {
            let policy = serde_json::json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
            serde_json::json!({"name": name, "resources": size(cpu, memory),
                "resizePolicy": if name.starts_with('r') { policy } else { serde_json::json!([]) }})
        };
        serde_json::json!({"containers": sizes.iter().map(one).collect::<Vec<_>>()})
    }

    fn snapshot(running: &[&str]) -> Snapshot {
        let one = |name: &&str| container_status(name, 0, ContainerState::Running, 0);
        Snapshot::new(vec![], running.iter().map(one).collect())
    }

    #[test]
    fn what_shrinks_comes_before_what_grows() {
        let had = [("a", "1", "1Gi"), ("b", "1", "1Gi"), ("r", "1", "1Gi"), ("stopped", "1", "1Gi")];
        let running = snapshot(&["a", "b", "r"]);
        let in_force = Sizes::of(&pod(spec(&had)), ALL);
        type Want<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let cases: &[(&[Row<'_>], Want<'_>)] = &[
            (&had, (&[], &[], &[])),
            (&[("a", "1000m", "1024Mi"), ("stopped", "9", "9Gi")], (&[], &[], &[])),
            (&[("a", "2", "2Gi"), ("b", "500m", "512Mi")], (&[], &["b", "a"], &["b", "a"])),
            (&[("a", "500m", "2Gi"), ("b", "2", "512Mi")], (&[], &["b", "a"], &["a", "b"])),
            (&[("a", "1", "2Gi"), ("r", "2", "1Gi")], (&[], &["a"], &["r"])),
            (&[("r", "2", "2Gi")], (&["r"], &[], &[])),
        ];
        for (wants, (restart, memory, cpu)) in cases {
            let plan = plan(&pod(spec(wants)), &running, &in_force, ALL);
            let restarts: Vec<&str> = plan.restart.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(restarts, *restart, "{wants:?}");
            for (list, want) in [(&plan.memory, memory), (&plan.cpu, cpu)] {
                let names: Vec<&str> = list.iter().map(|c| c.name.as_str()).collect();
                assert_eq!(names, *want, "{wants:?}");
            }
        }
    }

    #[test]
    fn a_pods_own_limit_reaches_its_containers() {
        let with = |limit: &str| {
            let mut spec = spec(&[("a", "1", "1Gi")]);
            spec["containers"][0]["resources"] = serde_json::json!({"requests": {"cpu": "1"}});
            spec["resources"] = serde_json::json!({"limits": {"memory": limit}});
            pod(spec)
        };
        let plan = plan(&with("2Gi"), &snapshot(&["a"]), &Sizes::of(&with("1Gi"), ALL), ALL);
        assert!(plan.pod && plan.cpu.is_empty());
        assert_eq!((plan.memory[0].from.memory_limit, plan.memory[0].to.memory_limit), (1 << 30, 2 << 30));
    }

    #[test]
    fn restarts_join_what_the_round_does() {
        let pod = pod(spec(&[("a", "1", "1Gi"), ("r", "1", "1Gi"), ("b", "1", "1Gi")]));
        let plan = Plan { restart: vec![Restart { id: "r-0".into(), name: "r".into() }], ..Plan::default() };
        let mut actions = Actions { main: vec![0, 2], ..Actions::default() };
        plan.restart(&pod, &mut actions);
        plan.restart(&pod, &mut actions);
        assert_eq!((actions.main, actions.kill.len()), (vec![0, 1, 2], 1));
        assert_eq!(actions.kill[0].message, "Container r resize requires restart");
    }

    #[test]
    fn limits_that_go_up_go_first() {
        let memory = |n: Option<i64>| Resources { memory_limit_bytes: n, ..Resources::default() };
        for (from, to, want) in [
            (Some(1), Some(2), Some(2)),
            (Some(2), Some(1), None),
            (Some(2), None, Some(-1)),
            (None, Some(2), None),
            (None, None, None),
        ] {
            assert_eq!(raised(Resource::Memory, &memory(from), &memory(to)), memory(want));
        }
        let cpu = |shares, quota| Resources {
            cpu_shares: Some(shares),
            cpu_quota_us: quota,
            cpu_period_us: Some(100_000),
            ..Resources::default()
        };
        assert_eq!(
            raised(Resource::Cpu, &cpu(10, Some(5)), &cpu(20, Some(3))),
            Resources { cpu_shares: Some(20), ..Resources::default() }
        );
        assert_eq!(only(Resource::Cpu, &cpu(10, None)).cpu_quota_us, Some(-1));
        assert_eq!(only(Resource::Memory, &memory(None)).memory_swap_limit_bytes, Some(-1));
    }
}

//! A node that runs short, for real: memory that pods may not have.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";
const MIB: u64 = 1 << 20;

/// A cgroup of the test's own, in which a node has its tree; taken away when the test ends.
struct Root(String);

impl Root {
    fn new(name: &str) -> Self {
        Self(format!("yare-test-{name}-{}", std::process::id()))
    }

    /// The group `path` in every hierarchy.
    fn groups(&self, path: &str) -> Vec<PathBuf> {
        let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
        hierarchies.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()));
        hierarchies.into_iter().map(|h| h.join(&self.0).join(path)).filter(|p| p.is_dir()).collect()
    }

    /// What a file of a group says, wherever it is.
    fn read(&self, group: &str, files: &[&str]) -> anyhow::Result<String> {
        let found = self.groups(group).into_iter().flat_map(|g| files.iter().map(move |f| g.join(f)));
        let text = found.into_iter().find_map(|f| fs::read_to_string(f).ok());
        Ok(text.with_context(|| format!("{group} has none of {files:?}"))?.trim().to_owned())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for group in ["kubepods/burstable", "kubepods/besteffort", "kubepods", ""] {
            for dir in self.groups(group) {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

fn memory_total() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:")).context("MemTotal")?;
    let kib: u64 = line.split_whitespace().nth(1).context("an amount")?.parse()?;
    Ok(kib * 1024)
}

/// Writes into memory, then waits.
fn writer(name: &str, mib: u64, request: &str) -> String {
    let line = format!("dd if=/dev/zero of=/data/file bs=1048576 count={mib} 2>/dev/null; sleep 1000");
    let line = serde_json::json!(line);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         volumes: [{{name: data, emptyDir: {{medium: Memory}}}}]\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
         command: [sh, -c, {line}]\n    volumeMounts: [{{name: data, mountPath: /data}}]\n    \
         resources: {{requests: {{cpu: 100m, memory: {request}}}}}\n---\n"
    )
}

/// Pods together have 300 MiB, a third of which has to stay free: the one that takes too much goes, told by the
/// kernel, and the other one stays.
#[test]
fn pods_that_take_too_much_memory_are_evicted() {
    let root = Root::new("memory");
    let reserved = memory_total().expect("meminfo") - 300 * MIB;
    let options = Options::with(&[
        &format!("--kubelet-arg=cgroup-root=/{}", root.0),
        &format!("--kubelet-arg=kube-reserved=memory={reserved},pid=100"),
        "--kubelet-arg=eviction-hard=memory.available<100Mi",
    ]);
    Cluster::test(YARE, options, |cluster| {
        cluster.import_busybox(IMAGE)?;
        let path = ".status.allocatable.memory";
        ensure!(cluster.field("node/node-1", path)? == "200Mi", "reservations are not taken off");
        let limit = root.read("kubepods", &["memory.limit_in_bytes", "memory.max"])?;
        ensure!(limit == (300 * MIB).to_string(), "pods are limited to {limit}");
        cluster.apply(&writer("modest", 20, "50Mi"))?;
        cluster.becomes("pod/modest", ".status.phase", "Running")?;
        cluster.apply(&writer("greedy", 220, "10Mi"))?;
        cluster.becomes("pod/greedy", ".status.reason", "Evicted")?;
        let message = cluster.field("pod/greedy", ".status.message")?;
        let start = "The node was low on resource: memory. Threshold quantity: 100Mi, available: ";
        ensure!(message.starts_with(start), "{message}");
        let end = ", request is 10Mi, has larger consumption of memory. ";
        ensure!(message.contains("Container main was using ") && message.ends_with(end), "{message}");
        let taint = ".spec.taints[?(@.key==\"node.kubernetes.io/memory-pressure\")].effect";
        cluster.becomes("node/node-1", taint, "NoSchedule")?;
        ensure!(cluster.field("pod/modest", ".status.phase")? == "Running", "the modest pod went, too");
        let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.kind=Node"])?;
        for reason in ["NodeAllocatableEnforced", "EvictionThresholdMet", "NodeHasInsufficientMemory"] {
            ensure!(events.contains(reason), "no event {reason}:\n{events}");
        }
        Ok(())
    });
}

/// A pod of one container with limits.
fn limited(name: &str, line: &str, limits: &str, more: &str) -> String {
    let line = serde_json::json!(line);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 600\n  {more}\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
         command: [sh, -c, {line}]\n    resources: {{limits: {{{limits}}}}}\n---\n"
    )
}

/// What one container may have: memory, and room on the node's disk for its layer and its log. The last one ignores
/// being asked to stop, and has ten minutes to do so: an eviction waits for neither.
#[test]
fn containers_are_held_to_their_limits() {
    let options = Options::with(&["--kubelet-arg=volume-stats-agg-period=1s"]);
    Cluster::test(YARE, options, |cluster| {
        cluster.import_busybox(IMAGE)?;
        let storage = "ephemeral-storage: 1Mi";
        let log = "yes a line that is written over and over again | head -c 3000000; sleep 1000";
        let layer = "trap '' TERM; dd if=/dev/zero of=/file bs=1048576 count=3 2>/dev/null; \
                     while true; do sleep 1; done";
        let manifest = limited("memory", "tail /dev/zero", "memory: 32Mi", "")
            + &limited("log", log, storage, "")
            + &limited("layer", layer, storage, "")
            + &limited("free", "sleep 1000", storage, "");
        cluster.apply(&manifest)?;
        let ended = ".status.containerStatuses[0].state.terminated.reason";
        cluster.becomes("pod/memory", ended, "OOMKilled")?;
        for pod in ["pod/log", "pod/layer"] {
            cluster.becomes(pod, ".status.reason", "Evicted")?;
            let message = cluster.field(pod, ".status.message")?;
            let want = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
            ensure!(message == want, "{pod}: {message}");
        }
        ensure!(cluster.field("pod/free", ".status.phase")? == "Running", "a pod within its limit went");
        Ok(())
    });
}

/// What was deleted by force still ends, for as long as that takes; its place is others' by then.
#[test]
fn a_pod_deleted_by_force_keeps_nobody_out() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let all = cluster.field("node/node-1", ".status.allocatable.memory")?;
        let all: u64 = all.strip_suffix("Ki").context("not in Ki")?.parse()?;
        let most = format!("memory: {}Ki", all / 10 * 6);
        cluster.apply(&limited("first", "trap '' TERM; while true; do sleep 1; done", &most, ""))?;
        cluster.becomes("pod/first", ".status.phase", "Running")?;
        cluster.kubectl(&["delete", "pod", "first", "--grace-period=0", "--force"])?;
        cluster.apply(&limited("second", "sleep 1000", &most, ""))?;
        cluster.becomes("pod/second", ".status.phase", "Running")?;
        let metrics = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"])?;
        ensure!(metrics.lines().any(|line| line == "kubelet_running_pods 2"), "the first one has ended");
        Ok(())
    });
}

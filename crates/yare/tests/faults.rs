//! A node that is killed while pods start and stop, a shim that dies: no container is lost, none runs twice, nothing
//! stays.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use yare_testkit::{Cluster, Https, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";
const TOKEN: &str = "administrator-of-a-test";
const SOON: Duration = Duration::from_secs(60);

/// Kills in the ordinary run; more with `YARE_KILLS`.
const KILLS: u64 = 8;
/// Pods that there are at most.
const PODS: u64 = 6;
/// The longest time from a start of the server to its end.
const LIFE_MS: u64 = 1500;
/// Containers sleep so many seconds and their pod's number, which tells them apart.
const SLEEP: u64 = 700_000;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A small generator, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A pod that sleeps; every third one ends by itself after a moment and starts again.
fn pod(serial: u64, kind: u64) -> Value {
    let line = match kind {
        0 => format!("sleep 0.2; exec sleep {}", SLEEP + serial),
        1 => "sleep 0.3; exit 1".to_owned(),
        _ => format!("exec sleep {}", SLEEP + serial),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{serial}"), "labels": {"kind": kind.to_string()}},
        "spec": {
            "terminationGracePeriodSeconds": serial % 2,
            "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", line],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
            "volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory"}}],
        },
    })
}

/// How often each pod's container runs, by the pod's number.
fn running(cluster: &Cluster) -> BTreeMap<u64, usize> {
    let mut runs = BTreeMap::new();
    for pid in cluster.pod_processes() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&line);
        let words: Vec<&str> = text.split('\0').collect();
        if let ["sleep", seconds, ..] = words.as_slice()
            && let Some(serial) = seconds.parse::<u64>().ok().and_then(|n| n.checked_sub(SLEEP))
        {
            *runs.entry(serial).or_default() += 1;
        }
    }
    runs
}

struct Churn<'a> {
    cluster: &'a mut Cluster,
    random: Random,
    next: u64,
}

impl Churn<'_> {
    fn client(&self) -> anyhow::Result<Https> {
        self.cluster.https(TOKEN)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let client = self.client()?;
        let namespace = self.cluster.namespace();
        let answer = namespace.run(|| client.send(method, path, "application/json", &bytes))??;
        ensure!(answer.code < 300, "{method} {path}: {}", answer.body);
        answer.json()
    }

    fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let list = self.ask("GET", "/api/v1/namespaces/default/pods", &Value::Null)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Makes pods and takes some away. The server may end at any moment.
    fn stir(&mut self) -> anyhow::Result<()> {
        let pods = self.pods()?;
        let staying = pods.iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null());
        for pod in staying {
            if self.random.below(3) == 0 {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                self.ask("DELETE", &format!("/api/v1/namespaces/default/pods/{name}"), &Value::Null)?;
            }
        }
        for _ in pods.len() as u64..PODS {
            self.next += 1;
            let kind = self.random.below(3);
            self.ask("POST", "/api/v1/namespaces/default/pods", &pod(self.next, kind))?;
        }
        Ok(())
    }

    /// Every pod that should sleep does, once; nobody else does.
    fn settled(&self) -> anyhow::Result<()> {
        let mut want = BTreeMap::new();
        for pod in self.pods()? {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            ensure!(pod["metadata"]["deletionTimestamp"].is_null(), "{name} is still there");
            if pod["metadata"]["labels"]["kind"] != "1" {
                let serial =
                    name.strip_prefix('p').and_then(|n| n.parse::<u64>().ok()).context("a number")?;
                want.insert(serial, 1);
                let state = &pod["status"]["containerStatuses"][0]["state"]["running"];
                ensure!(state.is_object(), "{name} does not run: {}", pod["status"]);
            }
        }
        let runs = running(self.cluster);
        ensure!(runs == want, "running {runs:?}, which should be {want:?}");
        Ok(())
    }
}

#[test]
fn a_node_killed_at_any_moment_loses_nothing() {
    let options = Options::with(&["--token", TOKEN, "--kubelet-arg=sync-frequency=1s"]);
    Cluster::test(YARE, options, |cluster| {
        cluster.import_busybox(IMAGE)?;
        let seed = number("YARE_SEED", u64::from(std::process::id()));
        println!("YARE_SEED={seed}");
        cluster.soon(|| cluster.kubectl(&["get", "serviceaccount", "default"]))?;
        let mut churn = Churn { cluster, random: Random(seed), next: 0 };
        churn.stir()?;
        for round in 0..number("YARE_KILLS", KILLS) {
            let until = Instant::now() + Duration::from_millis(churn.random.below(LIFE_MS));
            while Instant::now() < until {
                // The server is on its way up, or works.
                if churn.stir().is_err() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let runs = running(churn.cluster);
            ensure!(runs.values().all(|n| *n == 1), "round {round}: running {runs:?}");
            churn.cluster.kill()?;
            churn.cluster.spawn()?;
        }
        churn.cluster.wait_ready()?;
        churn.cluster.eventually(SOON, || churn.settled())?;
        // When all are gone, nothing of them stays, not even an address.
        for pod in churn.pods()? {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            churn.ask("DELETE", &format!("/api/v1/namespaces/default/pods/{name}"), &Value::Null)?;
        }
        let cluster = &*churn.cluster;
        cluster.eventually(SOON, || {
            ensure!(churn.pods()?.is_empty(), "pods are left");
            let processes = cluster.pod_processes();
            ensure!(processes.is_empty(), "processes are left: {processes:?}");
            for (what, path) in [
                ("sandboxes", "data/runtime/sandboxes"),
                ("containers", "data/runtime/containers"),
                ("pods", "data/agent/pods"),
                ("addresses", "data/network"),
            ] {
                let entries = fs::read_dir(cluster.path(path)).into_iter().flatten().flatten();
                let names = entries.filter_map(|e| e.file_name().into_string().ok());
                let left: Vec<_> =
                    names.filter(|n| what != "addresses" || n.parse::<std::net::IpAddr>().is_ok()).collect();
                ensure!(left.is_empty(), "{what} are left: {left:?}");
            }
            let links = cluster.run(cluster.command("ls").arg("/sys/class/net"))?;
            let links = String::from_utf8_lossy(&links.stdout).into_owned();
            ensure!(!links.lines().any(|l| l.starts_with("yare") && l != "yare0"), "links are left: {links}");
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            let directory = cluster.path("data/agent/pods").display().to_string();
            ensure!(!mounts.contains(&directory), "mounts are left");
            Ok(())
        })
    });
}

const STRUCK: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: struck, labels: {app: struck}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "yare.local/busybox:1", command: [sh, -c, "echo up; exec sleep 1000"]}
"#;

/// The shim of a container's pod: above its first process.
fn shim_of(cluster: &Cluster, id: &str) -> anyhow::Result<i32> {
    let path = cluster.path("data/runtime/containers").join(id.rsplit('/').next().unwrap_or(id));
    let record: Value = serde_json::from_slice(&fs::read(path.join("run.json"))?)?;
    let mut pid = record["pid"].as_i64().context("its process")?;
    while pid > 1 {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        if line.split('\0').nth(1) == Some("shim") {
            return Ok(i32::try_from(pid)?);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        pid = parent.context("its parent")?.parse()?;
    }
    anyhow::bail!("no shim above the container {id}")
}

#[test]
fn a_pod_outlives_its_shim() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        cluster.apply(STRUCK)?;
        cluster.ready(&["struck"])?;
        let id = cluster.field("pod/struck", ".status.containerStatuses[0].containerID")?;
        let shim = shim_of(cluster, &id)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)?;
        cluster.becomes("pod/struck", ".status.containerStatuses[0].restartCount", "1")?;
        cluster.event(
            "struck",
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.",
        )?;
        let ended = ".status.containerStatuses[0].lastState.terminated.exitCode";
        ensure!(cluster.field("pod/struck", ended)? == "137");
        cluster.ready(&["struck"])?;
        ensure!(cluster.kubectl(&["exec", "struck", "--", "echo", "again"])? == "again\n");
        ensure!(cluster.kubectl(&["logs", "struck", "--previous"])? == "up\n");
        Ok(())
    });
}

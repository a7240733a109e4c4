//! Pods from binding to deletion: phases, restarts, hooks, volumes, environment, probes, takeover.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, NODE, condition};
use serde_json::{Value, json};

fn one(command: Value) -> Value {
    json!({"containers": [{"name": "web", "image": "present:1", "command": command}], "terminationGracePeriodSeconds": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_and_becomes_ready() {
    let cluster = Cluster::start().await;
    let node =
        cluster.wait(&format!("/api/v1/nodes/{NODE}"), "Ready", |n| condition(n, "Ready") == "True").await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1.0");
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    assert_eq!(node["status"]["images"][0]["names"][0], "present:1");
    assert_eq!(condition(&node, "MemoryPressure"), "False");
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}");
    let lease = cluster.wait(&lease, "lease", |l| l["spec"]["holderIdentity"] == NODE).await;
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_and_goes() {
    let cluster = Cluster::start().await;
    let uid = cluster.pod("web", one(json!(["run"]))).await;
    let pod = cluster.wait_ready("web").await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.42.0.1");
    assert_eq!(pod["status"]["hostIP"], "127.0.0.1");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["started"], true);
    assert!(status["containerID"].as_str().unwrap().starts_with("fake://container-"));
    let sandbox = cluster.runtime.sandbox_config().unwrap();
    assert_eq!(sandbox.cgroup_parent, format!("kubepods/besteffort/pod{uid}"));
    assert_eq!(sandbox.dns.servers, ["10.43.0.10"]);
    cluster.wait_event("web", "Started").await;
    cluster.wait_event("web", "Pulled").await;

    cluster.delete_pod("web", 1).await;
    cluster.wait_gone("web").await;
    cluster.wait_event("web", "Killing").await;
    for _ in 0..500 {
        if cluster.runtime.counts() == (0, 0) && !cluster.data().join("pods").join(&uid).exists() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{:?} sandboxes and containers or the pod's directory are still there", cluster.runtime.counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_phases() {
    let cluster = Cluster::start().await;
    for (name, command, phase, code, reason) in [
        ("good", json!(["exit", "0"]), "Succeeded", 0, "Completed"),
        ("bad", json!(["exit", "3"]), "Failed", 3, "Error"),
    ] {
        let mut spec = one(command);
        spec["restartPolicy"] = json!("Never");
        cluster.pod(name, spec).await;
        let pod = cluster.wait_phase(name, phase).await;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (ended["exitCode"].as_i64(), ended["reason"].as_str()),
            (Some(code), Some(reason)),
            "{pod:#}"
        );
        assert_eq!(condition(&pod, "Ready"), "False");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_loops_are_held_back() {
    let cluster = Cluster::start().await;
    cluster.pod("crash", one(json!(["exit", "1"]))).await;
    let waiting =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = cluster.wait_pod("crash", "CrashLoopBackOff", waiting).await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
    assert!(
        status["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 10s restarting failed container=web pod=crash_default(")
    );
    assert_eq!(pod["status"]["phase"], "Running");
    cluster.wait_event("crash", "BackOff").await;

    // Another image has not failed yet: it is started at once, and its wait is the first one again.
    let mut containers = pod["spec"]["containers"].clone();
    containers[0]["image"] = json!("present:2");
    let path = "/api/v1/namespaces/default/pods/crash";
    cluster.patch(path, &json!({"spec": {"containers": containers}})).await;
    let again = |p: &Value| waiting(p) && p["status"]["containerStatuses"][0]["restartCount"] == 2;
    let pod = cluster.wait_pod("crash", "CrashLoopBackOff again", again).await;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("back-off 10s"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_asked_for_what_they_can_do() {
    let cluster = Cluster::start().await;
    let class = json!({"metadata": {"name": "deep"}, "handler": "deep"});
    cluster.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await;
    let spec = |class: Option<&str>, mode: &str, host_users: bool| {
        let mut spec = one(json!(["run"]));
        spec["runtimeClassName"] = json!(class);
        if !host_users {
            spec["hostUsers"] = json!(false);
        }
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        spec["containers"][0]["volumeMounts"] =
            json!([{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": mode}]);
        spec
    };
    for (name, class, mode, deep) in [
        ("deep", Some("deep"), "Enabled", true),
        ("maybe-deep", Some("deep"), "IfPossible", true),
        ("maybe", None, "IfPossible", false),
    ] {
        let mut spec = spec(class, mode, true);
        spec["containers"][0]["name"] = json!(name);
        cluster.pod(name, spec).await;
        cluster.wait_ready(name).await;
        let (_, config) = cluster.runtime.container_named(name).unwrap();
        let mount = config.mounts.iter().find(|m| m.container_path.ends_with("v")).unwrap();
        assert_eq!(mount.recursive_readonly, deep, "{name}");
    }
    cluster.pod("shallow", spec(None, "Enabled", true)).await;
    let waits = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let reason = "CreateContainerConfigError";
    let pod = cluster.wait_pod("shallow", reason, |pod| waits(pod)["reason"] == reason).await;
    let want = "volume \"v\" requested recursive read-only mode, but it is not supported by the runtime";
    assert_eq!(waits(&pod)["message"], want);

    cluster.pod("users", spec(None, "Disabled", false)).await;
    cluster.wait_ready("users").await;
    cluster.pod("no-users", spec(Some("deep"), "Disabled", false)).await;
    let event = cluster.wait_event("no-users", "FailedCreatePodSandBox").await;
    let want = "Failed to create pod sandbox: can't set `spec.hostUsers: false`, RuntimeClass handler \"deep\" \
                does not support user namespaces";
    assert_eq!(event["message"], want);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_and_sidecars_have_their_order() {
    let cluster = Cluster::start().await;
    let spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "initContainers": [
            {"name": "first", "image": "present:1", "command": ["exit", "0"]},
            {"name": "side", "image": "present:1", "command": ["run"], "restartPolicy": "Always"},
            {"name": "second", "image": "present:1", "command": ["exit", "0"]},
        ],
        "containers": [{"name": "main", "image": "present:1", "command": ["run"]}],
    });
    cluster.pod("order", spec).await;
    let pod = cluster.wait_ready("order").await;
    assert_eq!(condition(&pod, "Initialized"), "True");
    let started =
        |calls: &[String]| calls.iter().filter(|c| c.starts_with("start ")).cloned().collect::<Vec<_>>();
    assert_eq!(
        started(&cluster.runtime.calls()),
        ["start first", "start side", "start second", "start main"]
    );
    cluster.runtime.exit("main", 0);
    let pod = cluster.wait_phase("order", "Succeeded").await;
    assert_eq!(pod["status"]["initContainerStatuses"][1]["state"]["terminated"]["exitCode"], 143);
    let calls = cluster.runtime.calls();
    assert!(calls.contains(&"stop side".to_owned()) && !calls.contains(&"stop main".to_owned()), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_takes_the_pod_back_to_its_beginning() {
    let cluster = Cluster::start().await;
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "first", "image": "present:1", "command": ["exit", "0"]},
            {"name": "side", "image": "present:1", "command": ["run"], "restartPolicy": "Always"},
        ],
        "containers": [
            {"name": "done", "image": "present:1", "command": ["exit", "3"]},
            {"name": "main", "image": "present:1", "command": ["run"],
                "restartPolicy": "Never", "restartPolicyRules": rules},
        ],
    });
    cluster.pod("again", spec).await;
    let runs = |p: &Value| p["status"]["containerStatuses"][1]["state"]["running"].is_object();
    let pod = cluster.wait_pod("again", "running", runs).await;
    assert_eq!(condition(&pod, "AllContainersRestarting"), "False");
    cluster.runtime.exit("main", 42);
    let again = |p: &Value| runs(p) && p["status"]["containerStatuses"][1]["restartCount"] == 1;
    let pod = cluster.wait_pod("again", "all containers again", again).await;
    let status = &pod["status"];
    for container in
        ["initContainerStatuses", "containerStatuses"].iter().flat_map(|k| status[k].as_array().unwrap())
    {
        assert_eq!(container["restartCount"], 1, "{container}");
        let ended = &container["lastState"]["terminated"];
        assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("RestartingAllContainers"), &json!(137)));
    }
    assert_eq!(status["phase"], "Running");
    assert_eq!(condition(&pod, "Initialized"), "True");
    let calls = cluster.runtime.calls();
    let of = |what: &str| calls.iter().filter(|c| c.starts_with(what)).cloned().collect::<Vec<_>>();
    let once = ["start first", "start side", "start done", "start main"];
    assert_eq!(of("start "), [once, once].concat());
    assert_eq!((of("stop "), of("sandbox ").len()), (vec!["stop side".to_owned()], 1), "{calls:?}");
    // The log of the first life is still there.
    let (last, _) = cluster.runtime.container_named("main").unwrap();
    assert!(last.log_path.with_file_name("0.log").exists() && last.log_path.ends_with("1.log"));
    cluster.runtime.exit("main", 0);
    cluster.wait_phase("again", "Failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_init_container_fails_the_pod() {
    let cluster = Cluster::start().await;
    let mut spec = one(json!(["run"]));
    spec["restartPolicy"] = json!("Never");
    spec["initContainers"] = json!([{"name": "setup", "image": "present:1", "command": ["exit", "2"]}]);
    cluster.pod("broken", spec).await;
    let pod = cluster.wait_phase("broken", "Failed").await;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 2);
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sandbox_is_replaced() {
    let cluster = Cluster::start().await;
    cluster.pod("web", one(json!(["run"]))).await;
    cluster.wait_ready("web").await;
    cluster.runtime.kill_sandbox();
    let again = |p: &Value| {
        condition(p, "Ready") == "True" && p["status"]["containerStatuses"][0]["restartCount"] == 1
    };
    let pod = cluster.wait_pod("web", "second sandbox", again).await;
    assert_ne!(pod["status"]["podIP"], "10.42.0.1");
    assert_eq!(pod["status"]["podIPs"].as_array().unwrap().len(), 1);
    cluster.wait_event("web", "SandboxChanged").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_config_maps() {
    let cluster = Cluster::start().await;
    let mut spec = one(json!(["run", "$(GREETING)-$(NOPE)"]));
    spec["containers"][0]["env"] = json!([
        {"name": "BASE", "value": "hi"},
        {"name": "GREETING", "value": "$(BASE) $(FROM_MAP)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "k", "optional": true}}},
    ]);
    spec["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "settings"}, "prefix": "FROM_"}]);
    cluster.pod("env", spec).await;
    let waiting = |p: &Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    };
    let pod = cluster.wait_pod("env", "CreateContainerConfigError", waiting).await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "configmap \"settings\" not found"
    );
    // The watch on the ConfigMap starts the container; nothing waits for a retry.
    cluster
        .post(
            "/api/v1/namespaces/default/configmaps",
            &json!({"metadata": {"name": "settings"}, "data": {"MAP": "there"}}),
        )
        .await;
    let pod = cluster.wait_ready("env").await;
    let config = cluster.runtime.container_named("web").unwrap().1;
    assert_eq!(config.command, ["run", "hi there-$(NOPE)"]);
    let env: std::collections::HashMap<_, _> = config.env.into_iter().collect();
    assert_eq!(env["POD"], "env");
    assert_eq!(env["IP"], pod["status"]["podIP"].as_str().unwrap());
    assert!(env.contains_key("KUBERNETES_SERVICE_HOST") && !env.contains_key("MAYBE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_follow_their_sources() {
    let cluster = Cluster::start().await;
    cluster
        .post(
            "/api/v1/namespaces/default/configmaps",
            &json!({"metadata": {"name": "files"}, "data": {"a": "1"}}),
        )
        .await;
    let mut spec = one(json!(["run"]));
    spec["volumes"] = json!([
        {"name": "files", "configMap": {"name": "files"}},
        {"name": "me", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "scratch", "emptyDir": {}},
    ]);
    spec["containers"][0]["volumeMounts"] = json!([
        {"name": "files", "mountPath": "/files", "readOnly": true},
        {"name": "me", "mountPath": "/me"},
        {"name": "scratch", "mountPath": "/scratch"},
    ]);
    cluster.pod("vol", spec).await;
    cluster.wait_ready("vol").await;
    let mounts = cluster.runtime.container_named("web").unwrap().1.mounts;
    let host = |path: &str| {
        mounts.iter().find(|m| m.container_path.to_str() == Some(path)).unwrap().host_path.clone()
    };
    let (file, labels) = (host("/files").join("a"), host("/me").join("labels"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    assert_eq!(std::fs::read_to_string(&labels).unwrap(), "app=\"vol\"");
    assert!(host("/scratch").is_dir());
    assert!(std::fs::read_to_string(host("/etc/hosts")).unwrap().contains("10.42.0.1\tvol\n"));
    cluster.patch("/api/v1/namespaces/default/configmaps/files", &json!({"data": {"a": "2"}})).await;
    cluster
        .patch("/api/v1/namespaces/default/pods/vol", &json!({"metadata": {"labels": {"app": "new"}}}))
        .await;
    for _ in 0..1000 {
        let now = (std::fs::read_to_string(&file).unwrap(), std::fs::read_to_string(&labels).unwrap());
        if now == ("2".to_owned(), "app=\"new\"".to_owned()) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the volumes were not brought up to date");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_readiness_and_restarts() {
    let cluster = Cluster::start().await;
    cluster.runtime.set_exec("ready", 1);
    let mut spec = one(json!(["run"]));
    spec["containers"][0]["startupProbe"] = json!({"exec": {"command": ["started"]}, "periodSeconds": 1});
    spec["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    spec["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.pod("probed", spec).await;
    let pod = cluster
        .wait_pod("probed", "started", |p| p["status"]["containerStatuses"][0]["started"] == true)
        .await;
    assert_eq!(condition(&pod, "Ready"), "False");
    let reasons = |pod: &Value| {
        let of = |condition: &Value| condition["reason"].as_str().map(str::to_owned);
        pod["status"]["conditions"].as_array().unwrap().iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&pod), ["ContainersNotReady", "ContainersNotReady"]);
    cluster.wait_event("probed", "Unhealthy").await;
    cluster.runtime.set_exec("ready", 0);
    let pod = cluster.wait_ready("probed").await;
    assert_eq!(reasons(&pod), [""; 0], "what is met has no reason not to be");
    cluster.runtime.set_exec("alive", 1);
    cluster
        .wait_pod("probed", "restart", |p| {
            p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
    let event = cluster.wait_event("probed", "Killing").await;
    assert_eq!(event["message"], "Container web failed liveness probe, will be restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_cannot_be_carried_out_says_nothing() {
    let cluster = Cluster::start().await;
    let mut spec = one(json!(["run"]));
    spec["containers"][0]["env"] = json!([{"name": "WHAT", "value": "ready"}]);
    let probe =
        |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    spec["containers"][0]["readinessProbe"] = probe("$(WHAT)");
    spec["containers"][0]["livenessProbe"] = probe("alive");
    cluster.pod("probed", spec).await;
    cluster.wait_ready("probed").await;

    // Three attempts each time, and more than one time: neither readiness nor liveness changes.
    let (ready, alive) = (cluster.runtime.times("exec ready"), cluster.runtime.times("exec alive"));
    for command in ["ready", "alive"] {
        cluster.runtime.set_broken(command, Some("the shim is away"));
    }
    let event = cluster.wait_event("probed", "Unhealthy").await;
    let message = event["message"].as_str().unwrap();
    let (kind, rest) = message.split_once(' ').unwrap();
    assert!(["Readiness", "Liveness"].contains(&kind), "{message}");
    assert_eq!(rest, "probe errored and resulted in unknown state: the shim is away");
    let asked = || {
        (cluster.runtime.times("exec ready") >= ready + 7, cluster.runtime.times("exec alive") >= alive + 7)
    };
    let pod = cluster.wait_pod("probed", "more attempts", |_| asked() == (true, true)).await;
    assert_eq!(condition(&pod, "Ready"), "True");

    // It is asked again afterwards.
    cluster.runtime.set_exec("ready", 1);
    cluster.runtime.set_broken("ready", None);
    let pod = cluster.wait_pod("probed", "unready", |p| condition(p, "Ready") == "False").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_and_grace_periods_end() {
    let cluster = Cluster::start().await;
    let mut spec = one(json!(["ignore"]));
    spec["terminationGracePeriodSeconds"] = json!(60);
    spec["containers"][0]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["goodbye"]}}});
    cluster.pod("hooked", spec).await;
    cluster.wait_ready("hooked").await;
    assert!(cluster.runtime.calls().contains(&"exec hello".to_owned()));
    cluster.delete_pod("hooked", 60).await;
    let stopping = |c: &Cluster| c.runtime.calls().contains(&"stop web".to_owned());
    for _ in 0..500 {
        if stopping(&cluster) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(stopping(&cluster) && cluster.runtime.calls().contains(&"exec goodbye".to_owned()));
    // A shorter grace period takes effect while the longer one runs.
    cluster.delete_pod("hooked", 1).await;
    cluster.wait_gone("hooked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_rejected() {
    let cluster = Cluster::start().await;
    let mut spec = one(json!(["run"]));
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": "10000"}});
    cluster.pod("huge", spec).await;
    let pod = cluster.wait_phase("huge", "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert!(pod["status"]["message"].as_str().unwrap().starts_with(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 10000000, used: 0"
    ));
    let mut spec = one(json!(["run"]));
    spec["activeDeadlineSeconds"] = json!(1);
    cluster.pod("late", spec).await;
    let pod = cluster.wait_phase("late", "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_is_told_how_the_pod_is_to_run() {
    let cluster = Cluster::start().await;
    let class = json!({"metadata": {"name": "quick"}, "handler": "micro-vm"});
    cluster.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await;
    let mut spec = one(json!(["run"]));
    spec["runtimeClassName"] = json!("quick");
    spec["securityContext"] = json!({"supplementalGroups": [7], "supplementalGroupsPolicy": "Strict"});
    cluster.pod("p", spec).await;
    cluster.wait_ready("p").await;
    assert_eq!(cluster.runtime.sandbox_config().unwrap().runtime_handler, "micro-vm");
    let (_, config) = cluster.runtime.container_named("web").unwrap();
    assert!(config.security.supplemental_groups_strict);
    assert_eq!(config.security.supplemental_groups, [7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_takes_over() {
    let mut cluster = Cluster::start().await;
    cluster.pod("keep", one(json!(["run"]))).await;
    cluster.pod("drop", one(json!(["run"]))).await;
    cluster.wait_ready("drop").await;
    let before = cluster.wait_ready("keep").await;
    cluster.stop_node().await;
    cluster.delete_pod("drop", 0).await;
    let starts = |c: &Cluster| c.runtime.calls().iter().filter(|c| c.starts_with("start ")).count();
    assert_eq!(starts(&cluster), 2);
    let lost = cluster.data().join("pods/lost");
    std::fs::create_dir_all(&lost).unwrap();
    cluster.start_node(common::open).await;
    // The deleted pod's containers are stopped and removed, the other's are not touched.
    for _ in 0..1000 {
        if cluster.runtime.counts() == (1, 1) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(cluster.runtime.counts(), (1, 1), "{:?}", cluster.runtime.calls());
    assert_eq!(starts(&cluster), 2);
    let after = cluster.wait_ready("keep").await;
    assert_eq!(
        after["status"]["containerStatuses"][0]["containerID"],
        before["status"]["containerStatuses"][0]["containerID"]
    );
    cluster.wait_metric("kubelet_orphaned_runtime_pods_total 1").await;
    cluster.wait_metric("kubelet_orphan_pod_cleaned_volumes 1").await;
    cluster.wait_metric("kubelet_orphan_pod_cleaned_volumes_errors 0").await;
    assert!(!lost.exists());
    cluster.delete_pod("keep", 1).await;
    cluster.wait_gone("keep").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_pods_take_debuggers_and_new_limits() {
    let cluster = Cluster::start().await;
    let mut spec = one(json!(["run"]));
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}});
    cluster.pod("web", spec).await;
    cluster.wait_ready("web").await;
    assert_eq!(cluster.runtime.container_named("web").unwrap().1.resources.cpu_quota_us, Some(20_000));

    let debugger = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "present:1", "command": ["exit", "0"], "targetContainerName": "web"}]}});
    let path = "/api/v1/namespaces/default/pods/web/ephemeralcontainers";
    let (code, answer) =
        cluster.call("PATCH", path, "application/strategic-merge-patch+json", &debugger).await;
    assert_eq!(code, 200, "{answer}");
    let ended =
        |p: &Value| p["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0;
    let pod = cluster.wait_pod("web", "debugger", ended).await;
    assert_eq!(condition(&pod, "Ready"), "True");
    let target = cluster.runtime.container_named("debug").unwrap().1.pid_target;
    assert_eq!(target, Some(cluster.runtime.container_named("web").unwrap().0.id));

    let limits = json!({"spec": {"containers": [{"name": "web", "resources": {"limits": {"cpu": "400m"}}}]}});
    let (code, answer) = cluster
        .call(
            "PATCH",
            "/api/v1/namespaces/default/pods/web/resize",
            "application/strategic-merge-patch+json",
            &limits,
        )
        .await;
    assert_eq!(code, 200, "{answer}");
    let resized = |p: &Value| p["status"]["containerStatuses"][0]["resources"]["limits"]["cpu"] == "400m";
    cluster.wait_pod("web", "resize", resized).await;
    let calls = cluster.runtime.calls();
    assert!(calls.contains(&"update web shares=102 quota=40000".to_owned()), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_says_how_it_is_run() {
    let cluster = Cluster::start().await;
    let class = json!({"metadata": {"name": "special"}, "handler": "other"});
    cluster.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await;
    let mut spec = one(json!(["run"]));
    spec["runtimeClassName"] = json!("special");
    spec["securityContext"] = json!({"supplementalGroupsPolicy": "Strict", "supplementalGroups": [7]});
    cluster.pod("web", spec).await;
    cluster.wait_ready("web").await;
    assert_eq!(cluster.runtime.sandbox_config().unwrap().runtime_handler, "other");
    let security = cluster.runtime.container_named("web").unwrap().1.security;
    assert!(security.supplemental_groups_strict && security.supplemental_groups == [7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_pod_is_given_room() {
    let mut cluster = Cluster::without_node().await;
    cluster
        .start_node(|config| {
            let mut capacity = yare_node::Capacity::detect(&config.data_dir, 110);
            capacity.cpu_milli = 2000;
            config.capacity = Some(capacity);
        })
        .await;
    let asks = |name: &str, cpu: &str| {
        json!({"containers": [{"name": name, "image": "present:1", "command": ["run"],
            "resources": {"requests": {"cpu": cpu}}}], "terminationGracePeriodSeconds": 1})
    };
    for (name, cpu) in [("large", "1200m"), ("small", "500m")] {
        cluster.pod(name, asks(name, cpu)).await;
        cluster.wait_ready(name).await;
    }
    let mut critical = asks("critical", "700m");
    critical["priorityClassName"] = json!("system-node-critical");
    cluster.pod("critical", critical.clone()).await;
    let pod = cluster.wait_phase("small", "Failed").await;
    assert_eq!(
        (pod["status"]["reason"].as_str(), pod["status"]["message"].as_str()),
        (Some("Preempting"), Some("Preempted in order to admit critical pod"))
    );
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let disrupted = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(disrupted["message"], "Pod was preempted by Kubelet to accommodate a critical pod.");
    cluster.wait_event("small", "Preempting").await;
    cluster.wait_ready("critical").await;
    // It came when the other one had gone.
    let calls = cluster.runtime.calls();
    let at = |call: &str| calls.iter().position(|c| c == call).unwrap();
    assert!(at("stop small") < at("start critical"), "{calls:?}");
    assert!(!calls.contains(&"stop large".to_owned()));
    // Where nobody's end would do, nobody goes.
    critical["containers"][0]["resources"]["requests"]["cpu"] = json!("5");
    cluster.pod("huge", critical).await;
    let pod = cluster.wait_phase("huge", "Failed").await;
    assert_eq!(pod["status"]["reason"], "UnexpectedAdmissionError");
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("no set of running pods found to reclaim resources: [(res: cpu, q: 3700), ]"),
        "{message}"
    );
    assert!(!cluster.runtime.calls().contains(&"stop large".to_owned()));
}

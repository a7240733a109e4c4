//! A pod's life: restarts, init containers and sidecars, probes, hooks, its end; and what keeps it from living.

use std::time::{Duration, Instant};

use anyhow::ensure;
use yare_testkit::{Cluster, Options, Runtime, registry};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";

yare_testkit::on_both! { ends_and_failures init_containers_probes_and_hooks security_and_limits resized_in_place }

/// A pod of one container that runs a shell line; `container` and `spec` are further fields, in flow style.
fn pod(name: &str, line: &str, container: &str, spec: &str) -> String {
    let line = serde_json::json!(line);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  {spec}\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
         command: [sh, -c, {line}]\n    {container}\n---\n"
    )
}

/// Name, shell line, container fields, pod fields; then a field of the pod and what it comes to be.
const ENDS: &[(&str, &str, &str, &str, &str, &str)] = &[
    ("succeeds", "exit 0", "", "restartPolicy: Never", ".status.phase", "Succeeded"),
    ("fails", "exit 4", "", "restartPolicy: Never", ".status.phase", "Failed"),
    (
        "code",
        "exit 4",
        "",
        "restartPolicy: Never",
        ".status.containerStatuses[0].state.terminated.exitCode",
        "4",
    ),
    (
        "reason",
        "exit 4",
        "",
        "restartPolicy: Never",
        ".status.containerStatuses[0].state.terminated.reason",
        "Error",
    ),
    (
        "done",
        "true",
        "",
        "restartPolicy: OnFailure",
        ".status.containerStatuses[0].state.terminated.reason",
        "Completed",
    ),
    (
        "message",
        "echo farewell >/dev/termination-log; exit 1",
        "",
        "restartPolicy: Never",
        ".status.containerStatuses[0].state.terminated.message",
        "farewell\n",
    ),
    (
        "fallback",
        "echo last words; exit 1",
        "terminationMessagePolicy: FallbackToLogsOnError",
        "restartPolicy: Never",
        ".status.containerStatuses[0].state.terminated.message",
        "last words\n",
    ),
    (
        "again",
        "[ -e /dev/shm/once ] && exit 0; touch /dev/shm/once; exit 42",
        "restartPolicy: Never\n    restartPolicyRules: [{action: RestartAllContainers, \
         exitCodes: {operator: In, values: [42]}}]",
        "restartPolicy: Never",
        ".status.containerStatuses[0].lastState.terminated.reason",
        "RestartingAllContainers",
    ),
    (
        "named",
        "exit 0",
        "",
        "restartPolicy: Never",
        ".status.containerStatuses[0].image",
        "yare.local/busybox:1",
    ),
    ("crashes", "exit 1", "", "", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff"),
    (
        "signalled",
        "sleep 1000 & kill -9 $!; wait $!",
        "",
        "restartPolicy: Never",
        ".status.containerStatuses[0].state.terminated.exitCode",
        "137",
    ),
    (
        "deadline",
        "exec sleep 1000",
        "",
        "activeDeadlineSeconds: 1, restartPolicy: Never",
        ".status.reason",
        "DeadlineExceeded",
    ),
    (
        "greedy",
        "sleep 1; exec tail /dev/zero",
        "resources: {limits: {memory: 24Mi}}",
        "restartPolicy: Never",
        ".status.containerStatuses[0].state.terminated.reason",
        "OOMKilled",
    ),
    (
        "unreachable",
        "true",
        "imagePullPolicy: Always",
        "",
        ".status.containerStatuses[0].state.waiting.reason",
        "ImagePullBackOff",
    ),
    (
        "never",
        "true",
        "imagePullPolicy: Never",
        "",
        ".status.containerStatuses[0].state.waiting.reason",
        "ErrImageNeverPull",
    ),
    ("bad-name", "true", "", "", ".status.containerStatuses[0].state.waiting.reason", "InvalidImageName"),
    (
        "root",
        "true",
        "securityContext: {runAsNonRoot: true}",
        "",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    ),
];

/// Pods with another image than the one that is there.
const IMAGES: &[(&str, &str)] = &[
    ("unreachable", "127.0.0.1:1/no/such:1"),
    ("never", "yare.local/absent:1"),
    ("bad-name", "Not/An:Image:Name"),
];

/// Events: the pod, the reason, a part of the message.
const EVENTS: &[(&str, &str, &str)] = &[
    ("crashes", "BackOff", "Back-off restarting failed container main in pod crashes_default"),
    ("crashes", "Started", "ontainer"),
    ("classed", "FailedCreatePodSandBox", r#"no runtime for "absent" is configured"#),
    ("unreachable", "Failed", r#"Failed to pull image "127.0.0.1:1/no/such:1""#),
    ("unreachable", "BackOff", r#"Back-off pulling image "127.0.0.1:1/no/such:1""#),
    (
        "never",
        "ErrImageNeverPull",
        r#"Container image "yare.local/absent:1" is not present with pull policy of Never"#,
    ),
    ("bad-name", "InspectFailed", r#"Failed to apply default image tag "Not/An:Image:Name""#),
    ("root", "Failed", "container has runAsNonRoot and image will run as root"),
    ("huge", "FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu."),
    (
        "elsewhere",
        "FailedScheduling",
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
    ),
    ("succeeds", "Scheduled", "Successfully assigned default/succeeds to node-1"),
    ("succeeds", "Pulled", r#"Container image "yare.local/busybox:1" already present on machine"#),
];

fn ends_and_failures(runtime: Runtime) {
    Cluster::test(YARE, Options::on(runtime), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let mut manifest = String::new();
        for (name, line, container, spec, _, _) in ENDS {
            let fields = spec.split(", ").collect::<Vec<_>>().join("\n  ");
            let mut text = pod(name, line, container, &fields);
            if let Some((_, image)) = IMAGES.iter().find(|(pod, _)| pod == name) {
                text = text.replace(IMAGE, image);
            }
            manifest.push_str(&text);
        }
        manifest.push_str(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: absent}\nhandler: absent\n---\n",
        );
        manifest.push_str(&pod("classed", "true", "", "runtimeClassName: absent"));
        manifest.push_str(&pod("huge", "true", "resources: {requests: {cpu: 1000}}", ""));
        manifest.push_str(&pod("elsewhere", "true", "", "nodeSelector: {kubernetes.io/hostname: moon}"));
        cluster.apply(&manifest)?;
        let mut wrong = Vec::new();
        for (name, _, _, _, path, want) in ENDS {
            wrong.extend(cluster.becomes(&format!("pod/{name}"), path, want).err().map(|e| format!("{e:#}")));
        }
        for (name, reason, text) in EVENTS {
            wrong.extend(cluster.event(name, reason, text).err().map(|e| format!("{e:#}")));
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        cluster.becomes("pod/huge", ".status.conditions[0].observedGeneration", "1")?;

        if runtime != Runtime::Embedded {
            return Ok(());
        }
        // Half an image is refused whole, and what was there stays.
        let archive = yare_testkit::busybox(&cluster.path(""), "yare.local/half:1")?;
        let half = std::fs::metadata(&archive)?.len() / 2;
        std::fs::File::options().write(true).open(&archive)?.set_len(half)?;
        let error =
            cluster.yare(&["image", "import", &archive.display().to_string()]).expect_err("half an image");
        ensure!(format!("{error:#}").contains(&archive.display().to_string()), "{error:#}");
        let images = cluster.yare(&["image", "ls"])?;
        ensure!(images.contains("yare.local/busybox") && !images.contains("half"), "{images}");
        Ok(())
    });
}

/// Names in a registry, what is wrong with the image there, and a part of the event on the pod.
const PULLED: &[(&str, registry::Layer, &str)] = &[
    ("whole", registry::Layer::Whole, "Successfully pulled image"),
    ("half", registry::Layer::Half, r#"Failed to pull image "127.0.0.1:5000/half:1""#),
    ("short", registry::Layer::Short, r#"Failed to pull image "127.0.0.1:5000/short:1""#),
    ("flipped", registry::Layer::Flipped, r#"Failed to pull image "127.0.0.1:5000/flipped:1""#),
];

#[test]
fn damaged_images_are_named_in_events_and_leave_nothing() {
    Cluster::test(YARE, Options::default(), |cluster| {
        let images: Vec<_> = PULLED.iter().map(|(name, damage, _)| (*name, *damage)).collect();
        registry::serve(cluster.namespace(), 5000, &images)?;
        let wanted = |name: &str| {
            let image = format!("127.0.0.1:5000/{name}:1");
            pod(name, "exit 0", "", "restartPolicy: Never").replace(IMAGE, &image)
        };
        let (whole, damaged): (Vec<_>, Vec<_>) =
            PULLED.iter().partition(|(_, damage, _)| *damage == registry::Layer::Whole);
        let manifest: String = damaged.iter().map(|(name, _, _)| wanted(name)).collect();
        cluster.apply(&(manifest + &wanted("absent")))?;
        for (name, _, text) in &damaged {
            cluster.event(name, "Failed", text)?;
            let reason = ".status.containerStatuses[0].state.waiting.reason";
            cluster.becomes(&format!("pod/{name}"), reason, "ImagePullBackOff")?;
        }
        cluster.event("absent", "Failed", "not found")?;
        let images = cluster.yare(&["image", "ls"])?;
        ensure!(!images.contains("127.0.0.1:5000"), "{images}");
        // After that, since it brings the layer that the others lack.
        for (name, _, text) in &whole {
            cluster.apply(&wanted(name))?;
            cluster.becomes(&format!("pod/{name}"), ".status.phase", "Succeeded")?;
            cluster.event(name, "Pulled", text)?;
        }
        // What was fetched in vain is gone.
        let half_way: Vec<_> = std::fs::read_dir(cluster.path("data/images/ingest"))?.flatten().collect();
        ensure!(half_way.is_empty(), "{half_way:?}");
        Ok(())
    });
}

const LIVES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: init}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - name: one
    image: yare.local/busybox:1
    command: [sh, -c, "echo one >>/v/order"]
    volumeMounts: [{name: v, mountPath: /v}]
  - name: sidecar
    image: yare.local/busybox:1
    restartPolicy: Always
    command: [sh, -c, "echo sidecar >>/v/order; sleep 1; touch /up; exec sleep 1000"]
    startupProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1, failureThreshold: 30}
    volumeMounts: [{name: v, mountPath: /v}]
  - name: two
    image: yare.local/busybox:1
    command: [sh, -c, "[ -e /v/tried ] && echo two >>/v/order && exit 0; touch /v/tried; exit 1"]
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "echo main >>/v/order; exec sleep 1000"]
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: sidecar
    image: yare.local/busybox:1
    restartPolicy: Always
    command: [sh, -c, "exec sleep 1000"]
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exit 0"]
---
apiVersion: v1
kind: Pod
metadata: {name: ready, labels: {app: ready}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "touch /up; exec sleep 1000"]
    readinessProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: ready}
spec:
  selector: {app: ready}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: live}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exec httpd -f -p 8080 -h /www"]
    volumeMounts: [{name: www, mountPath: /www}]
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    livenessProbe: {httpGet: {port: 8080, path: /index.html}, periodSeconds: 1, failureThreshold: 1}
  initContainers:
  - name: page
    image: yare.local/busybox:1
    command: [sh, -c, "echo page >/www/index.html"]
    volumeMounts: [{name: www, mountPath: /www}]
  volumes: [{name: www, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: serves}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/hello
    startupProbe: {grpc: {port: 8080}, periodSeconds: 1}
    readinessProbe: {grpc: {port: 8080, service: hello}, periodSeconds: 1}
    livenessProbe: {grpc: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/hello
    readinessProbe: {grpc: {port: 8080, service: absent}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {grpc: {port: 8081}, initialDelaySeconds: 1, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exec sleep 1000"]
    startupProbe: {exec: {command: [test, -e, /started]}, periodSeconds: 1, failureThreshold: 100, timeoutSeconds: 10}
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10}
---
apiVersion: v1
kind: Pod
metadata: {name: hooks}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "trap 'echo terminated >>/host/hooks; exit 0' TERM; while :; do sleep 0.1; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo started >>/host/hooks"]}}
      preStop: {exec: {command: [sh, -c, "sleep 0.5; echo stopping >>/host/hooks"]}}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: DIRECTORY}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"]
"#;

fn init_containers_probes_and_hooks(runtime: Runtime) {
    Cluster::test(YARE, Options::on(runtime), |cluster| {
        cluster.import_busybox(IMAGE)?;
        // The demonstration's image is in the embedded store only.
        let own_images = runtime == Runtime::Embedded;
        let here = |pod: &&str| own_images || !pod.contains("yare.local/hello");
        let pods: Vec<&str> = LIVES.split("---\n").filter(here).collect();
        let directory = cluster.path("").display().to_string();
        cluster.apply(&pods.join("---\n").replace("DIRECTORY", directory.trim_end_matches('/')))?;
        cluster.ready(&["ready", "live", "hooks", "stubborn"])?;

        // Readiness decides about traffic, at once.
        let serving = "jsonpath={.items[0].endpoints[0].conditions.ready}";
        let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=ready", "-o", serving];
        for (line, want) in [("true", "true"), ("rm /up", "false"), ("touch /up", "true")] {
            cluster.shell("ready", line)?;
            let since = Instant::now();
            cluster.soon(|| {
                let got = cluster.kubectl(&slices)?;
                ensure!(got == want, "after {line}: {got:?}");
                Ok(())
            })?;
            ensure!(since.elapsed() < Duration::from_secs(8), "after {line}: {:?}", since.elapsed());
        }
        ensure!(cluster.field("pod/ready", ".status.containerStatuses[0].restartCount")? == "0");
        cluster.event("ready", "Unhealthy", "Readiness probe failed")?;

        // Liveness restarts.
        ensure!(cluster.field("pod/live", ".status.containerStatuses[0].restartCount")? == "0");
        cluster.shell("live", "mv /www/index.html /www/away")?;
        cluster.event(
            "live",
            "Unhealthy",
            "Liveness probe failed: HTTP probe failed with statuscode: 404",
        )?;
        cluster.event("live", "Killing", "Container main failed liveness probe, will be restarted")?;
        cluster.becomes("pod/live", ".status.containerStatuses[0].restartCount", "1")?;

        // By gRPC: a server that serves, a service that it does not know, and nobody there.
        if own_images {
            cluster.ready(&["serves"])?;
            cluster.event("absent", "Unhealthy", "Readiness probe failed: error: health rpc probe failed")?;
            cluster.event(
                "absent",
                "Unhealthy",
                "Liveness probe failed: timeout: failed to connect service",
            )?;
            cluster.event("absent", "Killing", "Container main failed liveness probe, will be restarted")?;
            ensure!(cluster.field("pod/absent", ".status.containerStatuses[0].ready")? == "false");
            ensure!(cluster.field("pod/serves", ".status.containerStatuses[0].restartCount")? == "0");
        }

        // The startup probe holds the others back.
        ensure!(cluster.field("pod/slow", ".status.containerStatuses[0].restartCount")? == "0");
        ensure!(cluster.field("pod/slow", ".status.containerStatuses[0].started")? == "false");
        cluster.shell("slow", "touch /started")?;
        cluster.event("slow", "Unhealthy", "Liveness probe failed")?;

        cluster.ready(&["init"])?;
        let order = cluster.kubectl(&["exec", "init", "-c", "main", "--", "cat", "/v/order"])?;
        ensure!(order == "one\nsidecar\ntwo\nmain\n", "{order}");
        let restarts = cluster.field("pod/init", ".status.initContainerStatuses[*].restartCount")?;
        ensure!(restarts == "0 0 1", "{restarts}");
        // Sidecars do not keep a pod alive.
        cluster.becomes("pod/job", ".status.phase", "Succeeded")?;

        cluster.kubectl(&["delete", "pod", "hooks"])?;
        let hooks = std::fs::read_to_string(cluster.path("hooks"))?;
        ensure!(hooks == "started\nstopping\nterminated\n", "{hooks}");

        let since = Instant::now();
        cluster.kubectl(&["delete", "pod", "stubborn"])?;
        let took = since.elapsed();
        ensure!(took >= Duration::from_secs(2) && took < Duration::from_secs(12), "{took:?}");
        let since = Instant::now();
        cluster.kubectl(&["delete", "pod", "live", "--grace-period=0", "--force"])?;
        ensure!(since.elapsed() < Duration::from_secs(10));
        Ok(())
    });
}

/// Container security fields, a shell line, its output.
const SECURITY: &[(&str, &str, &str)] = &[
    ("{runAsUser: 1000, runAsGroup: 2000}", "id -u; id -g", "1000\n2000"),
    ("{readOnlyRootFilesystem: true}", "touch /x 2>&1", "touch: /x: Read-only file system"),
    ("{capabilities: {drop: [ALL]}}", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
    (
        "{capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}",
        "grep CapEff /proc/self/status",
        "CapEff:\t0000000000000400",
    ),
    ("{}", "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"),
    ("{allowPrivilegeEscalation: false}", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
    ("{seccompProfile: {type: RuntimeDefault}}", "grep Seccomp: /proc/self/status", "Seccomp:\t2"),
    (
        "{seccompProfile: {type: RuntimeDefault}}",
        "unshare -m true 2>&1",
        "unshare: unshare(0x20000): Operation not permitted",
    ),
    ("{seccompProfile: {type: Unconfined}}", "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
    // The node's configuration says what a pod gets that does not.
    ("{}", "grep Seccomp: /proc/self/status", "Seccomp:\t2"),
    ("{privileged: true}", "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
    ("{}", "cat /proc/1/comm; ls /proc | grep -c '^[0-9]'", "sh\n"),
    (
        "{}",
        "echo x >/proc/sys/kernel/hostname 2>&1",
        "sh: can't create /proc/sys/kernel/hostname: Read-only file system",
    ),
    ("{privileged: true}", "grep CapEff /proc/self/status | cut -c1-15", "CapEff:\t000001f"),
];

/// Starts twenty processes; the shell gives up where it cannot.
const FORKS: &str = "for i in $(seq 20); do sleep 1000 & done; echo started; sleep 2; exit 0";

/// Twice that in one pod.
const FORKS_TWICE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: many}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: "yare.local/busybox:1", command: [sh, -c, LINE]}
  - {name: two, image: "yare.local/busybox:1", command: [sh, -c, LINE]}
---
"#;

fn security_and_limits(runtime: Runtime) {
    let args = [
        "--kubelet-arg",
        "pod-max-pids=30",
        "--kubelet-arg=max-pods=50",
        "--kubelet-arg=seccomp-default=true",
    ];
    let limited = Options { runtime, ..Options::with(&args) };
    Cluster::test(YARE, limited, |cluster| {
        cluster.import_busybox(IMAGE)?;
        let mut manifest = String::new();
        for (number, (context, line, _)) in SECURITY.iter().enumerate() {
            let container = format!("securityContext: {context}");
            manifest.push_str(&pod(
                &format!("s{number}"),
                &format!("{line}; exit 0"),
                &container,
                "restartPolicy: Never",
            ));
        }
        manifest.push_str(&pod(
            "limited",
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; \
             cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us; exit 0",
            "resources: {limits: {cpu: 500m, memory: 32Mi}}",
            "restartPolicy: Never",
        ));
        manifest.push_str(&pod("few", FORKS, "", "restartPolicy: Never"));
        // Both must be there at a time, and runc takes its time on a busy machine.
        let together = match runtime {
            Runtime::Embedded => FORKS.to_owned(),
            Runtime::Containerd => FORKS.replace("sleep 2;", "sleep 15;"),
        };
        manifest.push_str(&FORKS_TWICE.replace("LINE", &serde_json::json!(together).to_string()));
        cluster.apply(&manifest)?;
        let mut wrong = Vec::new();
        for (number, (context, line, want)) in SECURITY.iter().enumerate() {
            let object = format!("pod/s{number}");
            cluster.becomes(&object, ".status.phase", "Succeeded")?;
            let got = cluster.kubectl(&["logs", &object])?;
            if !got.starts_with(want) {
                wrong.push(format!("{context}: {line}\n   is {got:?}\n  not {want:?}"));
            }
        }
        cluster.becomes("pod/limited", ".status.phase", "Succeeded")?;
        let limits = cluster.kubectl(&["logs", "limited"])?;
        if !limits.contains("33554432") || !limits.contains("50000") {
            wrong.push(limits);
        }
        // The limit is the pod's: what one container may start, two together may not.
        cluster.becomes("pod/few", ".status.phase", "Succeeded")?;
        cluster.becomes("pod/many", ".status.phase", "Failed")?;
        let log = cluster.kubectl(&["logs", "many", "--all-containers"])?;
        ensure!(log.contains("can't fork: Resource temporarily unavailable"), "{log}");
        let path = ".status.allocatable.pods";
        ensure!(cluster.field("node/node-1", path)? == "50", "max-pods is not in force");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}

const TOKEN: &str = "administrator-of-a-test";

/// Two containers, of which one starts again for more memory, and a pod that takes room.
const SIZED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: sized}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sleep, "1000"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
  - name: again
    image: yare.local/busybox:1
    command: [sleep, "1000"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
---
apiVersion: v1
kind: Pod
metadata: {name: full}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sleep, "1000"]
    resources: {requests: {cpu: 500m}}
"#;

fn resized_in_place(runtime: Runtime) {
    let options =
        Options { runtime, ..Options::with(&["--token", TOKEN, "--kubelet-arg=system-reserved=cpu=500m"]) };
    Cluster::test(YARE, options, |cluster| {
        cluster.import_busybox(IMAGE)?;
        cluster.apply(SIZED)?;
        cluster.ready(&["sized", "full"])?;
        let https = cluster.https(TOKEN)?;
        let resize = |container: &str, cpu: &str, memory: u32| -> anyhow::Result<()> {
            let size = serde_json::json!({"spec": {"containers": [{"name": container, "resources": {
                "requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": format!("{memory}Mi")}}}]}});
            let path = "/api/v1/namespaces/default/pods/sized/resize";
            let kind = "application/strategic-merge-patch+json";
            let send = || https.send("PATCH", path, kind, size.to_string().as_bytes());
            let answer = cluster.namespace().run(send)??;
            ensure!(answer.code == 200, "{}", answer.body);
            Ok(())
        };
        // As the container itself sees it, on either version of cgroups.
        let holds = |container: &str, quota: &str, memory: u32| {
            let line = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory.max \
                        /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
            cluster.soon(|| {
                let seen = cluster.kubectl(&["exec", "sized", "-c", container, "--", "sh", "-c", line])?;
                let words: Vec<&str> = seen.split_whitespace().collect();
                let bytes = (u64::from(memory) << 20).to_string();
                ensure!(words.contains(&quota) && words.contains(&bytes.as_str()), "{container}: {words:?}");
                Ok(())
            })
        };
        let status = |index: u8, field: &str| {
            cluster.field("pod/sized", &format!(".status.containerStatuses[{index}].{field}"))
        };
        resize("main", "400m", 96)?;
        holds("main", "40000", 96)?;
        cluster.event("sized", "ResizeCompleted", "Pod resize completed: {")?;
        cluster.becomes("pod/sized", ".status.containerStatuses[0].resources.limits.memory", "96Mi")?;
        resize("main", "300m", 64)?;
        holds("main", "30000", 64)?;
        ensure!(status(0, "restartCount")? == "0" && status(1, "restartCount")? == "0");
        resize("again", "200m", 96)?;
        cluster.becomes("pod/sized", ".status.containerStatuses[1].restartCount", "1")?;
        holds("again", "20000", 96)?;
        ensure!(status(0, "restartCount")? == "0");
        // There is no room beside the other pod, and then there is.
        let processors = cluster.field("node/node-1", ".status.allocatable.cpu")?;
        let milli = processors
            .strip_suffix('m')
            .map_or_else(|| processors.parse::<u32>().map(|n| n * 1000), |milli| milli.parse::<u32>())?;
        let cpu = format!("{}m", milli - 300);
        resize("main", &cpu, 64)?;
        let pending = ".status.conditions[?(@.type==\"PodResizePending\")].reason";
        cluster.becomes("pod/sized", pending, "Deferred")?;
        cluster.event("sized", "ResizeDeferred", "Node didn't have enough resource: cpu")?;
        let counts = |wanted: &[&str]| {
            cluster.soon(|| {
                let page = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"])?;
                for series in wanted {
                    ensure!(page.lines().any(|line| line.starts_with(series)), "no {series}");
                }
                Ok(())
            })
        };
        counts(&[
            "kubelet_pod_pending_resizes{reason=\"deferred\"} 1",
            "kubelet_pod_in_progress_resizes 0",
            // The first; both containers' later ones; and the one that waits.
            "kubelet_container_requested_resizes_total{operation=\"increase\",requirement=\"limits\",resource=\"memory\"} 2",
            "kubelet_container_requested_resizes_total{operation=\"decrease\",requirement=\"requests\",resource=\"cpu\"} 1",
            "kubelet_pod_resize_duration_milliseconds_count{success=\"true\"}",
        ])?;
        cluster.kubectl(&["delete", "pod", "full"])?;
        holds("main", &format!("{}", (milli - 300) * 100), 64)?;
        cluster.becomes("pod/sized", pending, "")?;
        counts(&["kubelet_pod_deferred_accepted_resizes_total{retry_trigger=\""])
    });
}

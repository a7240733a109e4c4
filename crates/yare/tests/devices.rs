//! Claims for devices, from the template to the container: a real driver of the testkit, whose devices are CDI's.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, ensure};
use yare_testkit::{ClaimedDevice, Cluster, DraBehaviour, DraDriver, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";
const DRIVER: &str = "gpu.yare.example";

/// What the runtime reads of the driver's devices: the environment says which one a container has.
struct Cdi {
    file: PathBuf,
    kind: String,
}

impl Cdi {
    fn new() -> anyhow::Result<Self> {
        let directory = PathBuf::from("/var/run/cdi");
        std::fs::create_dir_all(&directory)?;
        // The directory is the machine's own: no other test has this vendor.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let kind = format!("test{}-{number}.yare.example/gpu", std::process::id());
        let file = directory.join(format!("{}.json", kind.replace('/', "-")));
        let device = |name: &str| {
            format!(r#"{{"name": "{name}", "containerEdits": {{"env": ["DEVICE_{name}=here"]}}}}"#)
        };
        let spec = format!(
            r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "devices": [{}, {}]}}"#,
            device("gpu0"),
            device("gpu1")
        );
        let made = Self { file, kind };
        std::fs::write(&made.file, spec)?;
        Ok(made)
    }

    fn gives(&self, name: &str) -> Vec<ClaimedDevice> {
        vec![ClaimedDevice {
            pool: "node-1".into(),
            name: name.into(),
            cdi: vec![format!("{}={name}", self.kind)],
            ..ClaimedDevice::default()
        }]
    }
}

impl Drop for Cdi {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        // Stays where others use it.
        let _ = self.file.parent().map(std::fs::remove_dir);
    }
}

/// A cluster with a driver on its node that gives each claim its device of `claims`, and all others the first.
fn with_driver(claims: &[(&str, &str)], test: impl FnOnce(&Cluster, &DraDriver) -> anyhow::Result<()>) {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let cdi = Cdi::new()?;
        let runtime = tokio::runtime::Runtime::new()?;
        let _inside = runtime.enter();
        let devices = claims.iter().map(|(claim, device)| ((*claim).to_owned(), cdi.gives(device))).collect();
        let behaviour = DraBehaviour { devices, others: cdi.gives("gpu0"), ..DraBehaviour::default() };
        test(cluster, &DraDriver::start(&cluster.path("data/agent"), DRIVER, behaviour)?)
    });
}

/// Devices of the node, of which the driver tells by this.
fn slice(devices: &str) -> String {
    format!(
        "apiVersion: resource.k8s.io/v1\nkind: ResourceSlice\nmetadata: {{name: gpus}}\nspec: {{driver: {DRIVER}, \
         nodeName: node-1, devices: [{devices}], pool: {{name: node-1, generation: 1, resourceSliceCount: 1}}}}\n"
    )
}

const OBJECTS: &str = r#"apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu}
spec: {selectors: [{cel: {expression: "device.driver == 'gpu.yare.example'"}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one}
spec:
  spec:
    devices:
      requests:
      - name: gpu
        exactly:
          deviceClassName: gpu
          selectors: [{cel: {expression: "device.attributes['gpu.yare.example'].index < 1"}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: shared}
spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu}}]}}
"#;

/// A pod of two containers that both use the claim; `claim` is the rest of the entry.
fn pod(name: &str, claim: &str) -> String {
    let container = |name: &str| {
        format!(
            "  - {{name: {name}, image: {IMAGE}, command: [sh, -c, exec sleep 1000], resources: {{claims: [{{name: g}}]}}}}\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         resourceClaims: [{{name: g, {claim}}}]\n  containers:\n{}{}",
        container("a"),
        container("b")
    )
}

/// Which of the devices both containers of a pod see.
fn sees(cluster: &Cluster, pod: &str) -> anyhow::Result<Vec<&'static str>> {
    let look = "env | grep ^DEVICE_ | sort";
    let text = |container: &str| cluster.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", look]);
    let (a, b) = (text("a")?, text("b")?);
    ensure!(a == b, "{a:?} {b:?}");
    Ok(["gpu0", "gpu1"].into_iter().filter(|name| a.contains(&format!("DEVICE_{name}=here"))).collect())
}

/// The claim that was made for the pod.
fn made(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    cluster.soon(|| {
        let name =
            cluster.field(&format!("pod/{pod}"), ".status.resourceClaimStatuses[0].resourceClaimName")?;
        ensure!(!name.is_empty(), "{pod} has no claim yet");
        Ok(name)
    })
}

fn goes(cluster: &Cluster, object: &str) -> anyhow::Result<()> {
    let wait = ["wait", "--for=delete", "--timeout=30s", object];
    cluster.kubectl(&wait).map(drop).with_context(|| format!("{object} stays"))
}

/// A class that stands for a resource, and for one by its own name.
const RESOURCES: &str = r#"apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu}
spec:
  extendedResourceName: yare.example/gpu
  selectors: [{cel: {expression: "device.driver == 'gpu.yare.example'"}}]
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: all}
spec: {hard: {requests.yare.example/gpu: 3, gpu.deviceclass.resource.k8s.io/devices: 10}}
---
"#;

/// A pod that asks for devices as for any other resource.
fn asks(name: &str, resource: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{name: a, image: {IMAGE}, command: [sh, -c, exec sleep 1000], \
         resources: {{limits: {{{resource}: 1}}}}}}\n  \
         - {{name: b, image: {IMAGE}, command: [sh, -c, exec sleep 1000]}}\n---\n"
    )
}

#[test]
fn devices_stand_behind_resources() {
    with_driver(&[], |cluster, driver| {
        // Nothing stands behind the resource, until a class does; then there is one device.
        cluster.apply(&asks("web", "yare.example/gpu"))?;
        cluster.event("web", "FailedScheduling", "1 Insufficient yare.example/gpu")?;
        cluster.apply(RESOURCES)?;
        cluster.event("web", "FailedScheduling", "1 cannot allocate all claims")?;
        cluster.apply(&slice("{name: gpu0}"))?;
        cluster.ready(&["web"])?;
        let look = |pod: &str, container: &str| {
            cluster.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", "env | grep ^DEVICE_; true"])
        };
        // Only who asked for it has it.
        ensure!(look("web", "a")? == "DEVICE_gpu0=here\n" && look("web", "b")?.is_empty());
        let status = ".status.extendedResourceClaimStatus";
        let claim = cluster.field("pod/web", &format!("{status}.resourceClaimName"))?;
        ensure!(claim.starts_with("web-extended-resources-"), "{claim}");
        let mapping = cluster.field("pod/web", &format!("{status}.requestMappings[0]"))?;
        ensure!(
            mapping
                == r#"{"containerName":"a","requestName":"container-0-request-0","resourceName":"yare.example/gpu"}"#,
            "{mapping}"
        );
        let object = format!("resourceclaim/{claim}");
        for (path, want) in [
            (".spec.devices.requests[0].exactly.deviceClassName", "gpu"),
            (".status.allocation.devices.results[0].device", "gpu0"),
            (".status.reservedFor[0].name", "web"),
        ] {
            let got = cluster.field(&object, path)?;
            ensure!(got == want, "{path}: {got}");
        }
        let counts = |path: &str, wanted: &[&str]| {
            cluster.soon(|| {
                let page = cluster.kubectl(&["get", "--raw", path])?;
                for series in wanted {
                    ensure!(page.lines().any(|line| line.starts_with(series)), "no {series}");
                }
                Ok(())
            })
        };
        counts(
            "/metrics",
            &[
                "scheduler_resourceclaim_creates_total{status=\"success\"} 1",
                "resourceclaim_controller_resource_claims{admin_access=\"false\",allocated=\"true\",source=\"extended_resource\"} 1",
            ],
        )?;
        counts(
            "/api/v1/nodes/node-1/proxy/metrics",
            &[
                "dra_resource_claims_in_use{driver_name=\"<any>\"} 1",
                "dra_operations_duration_seconds_count{is_error=\"false\",operation_name=\"PrepareResources\"} 1",
                "dra_grpc_operations_duration_seconds_count{driver_name=\"gpu.yare.example\",grpc_status_code=\"OK\",method_name=\"/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources\"} 1",
            ],
        )?;
        // The pod counts by the resource, its claim by the class.
        for name in [r"requests\.yare\.example/gpu", r"gpu\.deviceclass\.resource\.k8s\.io/devices"] {
            cluster.becomes("resourcequota/all", &format!(".status.used.{name}"), "1")?;
        }

        // Claims that users make count by the resource, too.
        let claim_of = |name: &str, count: u32| {
            format!(
                "apiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {{name: {name}}}\nspec: {{devices: \
                 {{requests: [{{name: r, exactly: {{deviceClassName: gpu, count: {count}}}}}]}}}}\n"
            )
        };
        let (status, _, err) = cluster.kubectl_with(&["create", "-f", "-"], &claim_of("many", 3))?;
        let over = "exceeded quota: all, requested: requests.yare.example/gpu=3, used: \
                    requests.yare.example/gpu=1, limited: requests.yare.example/gpu=3";
        ensure!(!status.success() && err.contains(over), "{err}");
        cluster.apply(&claim_of("own", 2))?;
        let used = r".status.used.requests\.yare\.example/gpu";
        cluster.becomes("resourcequota/all", used, "3")?;
        cluster.kubectl(&["delete", "resourceclaim", "own"])?;
        cluster.becomes("resourcequota/all", used, "1")?;

        // The next waits for the device, whichever name it asks by; the claim goes with its pod.
        cluster.apply(&asks("next", "deviceclass.resource.kubernetes.io/gpu"))?;
        cluster.event("next", "FailedScheduling", "1 cannot allocate all claims")?;
        cluster.kubectl(&["delete", "pod", "web", "--wait=false"])?;
        goes(cluster, &object)?;
        cluster.ready(&["next"])?;
        ensure!(look("next", "a")? == "DEVICE_gpu0=here\n");

        // A pod that has ended keeps no device.
        let once = asks("once", "yare.example/gpu").replace("exec sleep 1000", "exit 0");
        cluster.apply(&once.replace("  containers:", "  restartPolicy: Never\n  containers:"))?;
        cluster.kubectl(&["delete", "pod", "next"])?;
        cluster.becomes("pod/once", ".status.phase", "Succeeded")?;
        cluster.apply(&asks("last", "yare.example/gpu"))?;
        cluster.ready(&["last"])?;
        cluster.kubectl(&["delete", "pod", "last", "once"])?;
        cluster.soon(|| {
            let left = cluster.kubectl(&["get", "resourceclaims", "-o", "name"])?;
            ensure!(left.is_empty(), "{left}");
            let calls = driver.calls();
            let times = |call: &str| calls.iter().filter(|c| c.starts_with(call)).count();
            ensure!(times("prepare ") == 4 && times("unprepare ") == 4, "{calls:?}");
            Ok(())
        })
    });
}

#[test]
fn pods_wait_until_their_devices_are_attached() {
    with_driver(&[], |cluster, _| {
        cluster.apply(OBJECTS)?;
        cluster.apply(&slice(
            "{name: gpu0, bindingConditions: [yare.example/here], bindingFailureConditions: [yare.example/broken]}",
        ))?;
        let says = |claim: &str, kind: &str| {
            let status = format!(
                r#"{{"status": {{"devices": [{{"driver": "{DRIVER}", "pool": "node-1", "device": "gpu0", "conditions": [
                {{"type": "{kind}", "status": "True", "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}}]}}]}}}}"#
            );
            let patch = ["--subresource=status", "--type=merge", "-p", &status];
            cluster.kubectl(&[&["patch", "resourceclaim", claim][..], &patch].concat())
        };
        let counted = |status: &str| {
            let name = "scheduler_dra_bindingconditions_allocations_total";
            let series = format!(
                "{name}{{driver=\"{DRIVER}\",profile=\"default-scheduler\",status=\"{status}\"}} 1\n"
            );
            cluster.soon(|| {
                let page = cluster.kubectl(&["get", "--raw", "/metrics"])?;
                ensure!(page.contains(&series), "no {series}");
                ensure!(page.contains("scheduler_dra_bindingconditions_wait_duration_seconds_count"));
                Ok(())
            })
        };
        cluster.apply(&pod("web", "resourceClaimName: shared"))?;
        let waits = "waiting for binding conditions for device on node node-1";
        cluster.event("web", "BindingConditionsPending", waits)?;
        ensure!(cluster.field("pod/web", ".spec.nodeName")?.is_empty());
        says("shared", "yare.example/broken")?;
        let failed = "device binding failed: claim=shared, reason=R, message=\"m\"";
        cluster.event("web", "FailedScheduling", failed)?;
        counted("failure")?;
        // It is tried again; now the device comes.
        cluster.soon(|| {
            // Both at once: between two looks the allocation is taken back and made again.
            let both = "jsonpath={.status.allocation.devices.results[0].device},{.status.devices}";
            let found = cluster.kubectl(&["get", "resourceclaim/shared", "-o", both])?;
            ensure!(found == "gpu0,", "{found}");
            Ok(())
        })?;
        says("shared", "yare.example/here")?;
        cluster.ready(&["web"])?;
        counted("success")
    });
}

#[test]
fn pods_get_the_devices_that_they_claim() {
    with_driver(&[("shared", "gpu1")], |cluster, driver| {
        cluster.apply(OBJECTS)?;

        // There are no devices yet: the pod says so, and runs when there are.
        cluster.apply(&pod("web", "resourceClaimTemplateName: one"))?;
        let claim = made(cluster, "web")?;
        ensure!(claim.starts_with("web-g-"), "{claim}");
        let none = "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        cluster.event("web", "FailedScheduling", none)?;
        let device =
            |name: &str, index: u8| format!("{{name: {name}, attributes: {{index: {{int: {index}}}}}}}");
        cluster.apply(&slice(&format!("{}, {}", device("gpu0", 0), device("gpu1", 1))))?;
        cluster.ready(&["web"])?;
        ensure!(sees(cluster, "web")? == ["gpu0"]);
        let object = format!("resourceclaim/{claim}");
        ensure!(cluster.field(&object, ".status.allocation.devices.results[0].device")? == "gpu0");
        ensure!(cluster.field(&object, ".status.reservedFor[*].name")? == "web");
        let nodes = ".status.allocation.nodeSelector.nodeSelectorTerms[0].matchFields[0].values[0]";
        ensure!(cluster.field(&object, nodes)? == "node-1");

        // The only device of its kind is in use, until the first pod goes, and its claim with it.
        cluster.apply(&pod("next", "resourceClaimTemplateName: one"))?;
        cluster.event("next", "FailedScheduling", none)?;
        cluster.kubectl(&["delete", "pod", "web", "--wait=false"])?;
        goes(cluster, &object)?;
        cluster.ready(&["next"])?;
        ensure!(sees(cluster, "next")? == ["gpu0"]);

        // Pods that share a claim share its device; it stays allocated while one of them is there.
        let own = "resourceClaimName: shared";
        cluster.apply(&format!("{}---\n{}", pod("left", own), pod("right", own)))?;
        cluster.ready(&["left", "right"])?;
        ensure!(sees(cluster, "left")? == ["gpu1"] && sees(cluster, "right")? == ["gpu1"]);
        cluster.kubectl(&["delete", "pod", "left"])?;
        cluster.becomes("resourceclaim/shared", ".status.reservedFor[*].name", "right")?;
        ensure!(
            cluster.field("resourceclaim/shared", ".status.allocation.devices.results[0].device")? == "gpu1"
        );
        cluster.kubectl(&["delete", "pod", "right", "next"])?;
        cluster.becomes("resourceclaim/shared", ".status", "{}")?;
        ensure!(cluster.field("resourceclaim/shared", ".metadata.finalizers")?.is_empty());
        cluster.soon(|| {
            let calls = driver.calls();
            let times = |call: &str| calls.iter().filter(|c| *c == call).count();
            ensure!(times("prepare shared") == 1 && times("unprepare shared") == 1, "{calls:?}");
            Ok(())
        })
    });
}

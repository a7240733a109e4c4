//! What happens to claims and their volumes while time passes: of drivers, and of devices of the node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Cluster, NODE};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tower::{Service as _, service_fn};
use yare_apiserver::User;
use yare_client::{Client, in_process};
use yare_testkit::{CsiDriver, CsiFault, csi::Code};

const DRIVER: &str = "csi.yare.example";
const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/c";

/// A cluster whose node's clock is ahead by so many seconds.
async fn ahead_by(clock: &Arc<AtomicI64>) -> Cluster {
    let mut cluster = Cluster::without_node().await;
    let ahead = clock.clone();
    cluster
        .start_node(move |config| {
            config.seams.now =
                Arc::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)));
            config.seams.random = Arc::new(|| 0.0);
        })
        .await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_rejected_where_no_more_volumes_can_be_attached() {
    let clock = Arc::new(AtomicI64::new(0));
    let cluster = ahead_by(&clock).await;
    let object =
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}});
    cluster.post("/apis/storage.k8s.io/v1/csidrivers", &object).await;
    let size = json!({"storage": "1Mi"});
    chosen(&cluster, &size, json!({"csi": {"driver": DRIVER, "volumeHandle": "far"}})).await;
    bind(&cluster, &size).await;
    let hash = Sha256::digest(format!("far{DRIVER}{NODE}"));
    let name = hash.iter().fold("csi-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let attachment = json!({"metadata": {"name": name}, "spec": {
        "attacher": DRIVER, "nodeName": NODE, "source": {"persistentVolumeName": "pv"}}});
    let attachments = "/apis/storage.k8s.io/v1/volumeattachments";
    cluster.post(attachments, &attachment).await;
    cluster.pod("p", user_of_the_claim()).await;
    let path = format!("/api/v1/nodes/{NODE}");
    cluster.wait(&path, "a volume in use", |n| n["status"]["volumesInUse"][0].is_string()).await;

    // Each time as if the pod had waited long enough to be told why.
    let mut at = 0;
    let mut look = async || {
        at += 130;
        clock.store(at, Ordering::Relaxed);
        let note = json!({"metadata": {"annotations": {"look": at.to_string()}}});
        cluster.patch("/api/v1/namespaces/default/pods/p", &note).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.get("/api/v1/namespaces/default/pods/p").await
    };
    for _ in 0..5 {
        assert_eq!(look().await["status"]["phase"], "Pending");
    }
    let full = json!({"status": {"attached": false, "attachError": {
        "time": "2026-11-29T00:00:00Z", "message": "rpc error: code = ResourceExhausted", "errorCode": 8}}});
    cluster.patch(&format!("{attachments}/{name}/status"), &full).await;
    let mut pod = Value::Null;
    for _ in 0..300 {
        pod = look().await;
        if pod["status"]["phase"] == "Failed" {
            break;
        }
    }
    assert_eq!(pod["status"]["reason"], "VolumeAttachmentLimitExceeded", "{pod}");
    let want = "Pod was rejected: Node has reached its volume attachment limit, rejecting pod. ";
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(message.starts_with(want), "{message}");
    cluster.wait_event("p", "VolumeAttachmentLimitExceeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_in_use_are_published_again_and_grow() {
    let clock = Arc::new(AtomicI64::new(0));
    let cluster = ahead_by(&clock).await;
    let driver = CsiDriver::started(DRIVER, &cluster.data()).unwrap();
    let spec = json!({"attachRequired": false, "requiresRepublish": true, "podInfoOnMount": true});
    let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": spec});
    cluster.post("/apis/storage.k8s.io/v1/csidrivers", &object).await;
    let handle = driver.create("c", 1 << 20, false).unwrap();
    let size = json!({"storage": "1Mi"});
    chosen(&cluster, &size, json!({"csi": {"driver": DRIVER, "volumeHandle": handle}})).await;
    bind(&cluster, &size).await;
    cluster.pod("p", user_of_the_claim()).await;
    cluster.wait_ready("p").await;
    assert_eq!(driver.calls_of("NodePublishVolume").len(), 1);
    assert_eq!(driver.calls_of("NodeExpandVolume").len(), 0);

    // The volume is larger by now, and the controller leaves the rest to the node.
    let larger = json!({"storage": "2Mi"});
    cluster.patch("/api/v1/persistentvolumes/pv", &json!({"spec": {"capacity": larger}})).await;
    let pending = json!({"status": {
        "allocatedResources": larger, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}],
    }});
    cluster.patch(&format!("{CLAIM}/status"), &pending).await;
    driver.fault("NodeExpandVolume", Some(CsiFault::Fails(Code::Internal, "too tight".into())));
    let look = async |at: i64| {
        clock.store(at, Ordering::Relaxed);
        let note = json!({"metadata": {"annotations": {"look": at.to_string()}}});
        cluster.patch("/api/v1/namespaces/default/pods/p", &note).await;
    };
    look(61).await;
    let failed = cluster
        .wait(CLAIM, "a failed expansion", |c| {
            let all = c["status"]["conditions"].as_array();
            all.is_some_and(|all| all.iter().any(|c| c["type"] == "NodeResizeError"))
        })
        .await;
    assert_eq!(failed["status"]["allocatedResourceStatuses"]["storage"], "NodeResizeInProgress");
    assert_eq!(driver.calls_of("NodePublishVolume").len(), 2, "{:?}", driver.calls());

    driver.fault("NodeExpandVolume", None);
    look(75).await;
    let done = cluster.wait(CLAIM, "an expansion", |c| c["status"]["capacity"] == larger).await;
    assert_eq!(done["status"]["allocatedResourceStatuses"], json!(null), "{done}");
    let left = done["status"]["conditions"].as_array().map_or(0, Vec::len);
    assert_eq!(left, 0, "{done}");
    let expansions = driver.calls_of("NodeExpandVolume");
    assert!(expansions.iter().all(|c| c.fields["bytes"] == 2 << 20), "{expansions:?}");
    assert!(expansions[0].fields["path"].as_str().unwrap().ends_with("/kubernetes.io~csi/pv/mount"));

    // Once is enough.
    let before = driver.calls_of("NodeExpandVolume").len();
    look(200).await;
    for _ in 0..500 {
        if driver.calls_of("NodePublishVolume").len() > 3 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(driver.calls_of("NodePublishVolume").len() > 3);
    assert_eq!(driver.calls_of("NodeExpandVolume").len(), before);

    cluster.delete_pod("p", 0).await;
    cluster.wait_gone("p").await;
    for _ in 0..500 {
        if driver.calls_of("NodeUnstageVolume").len() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(driver.mounted().is_empty());
    assert_eq!(driver.calls_of("NodeUnstageVolume").len(), 1);
}

/// Makes the claim `c` of the volume `pv`, and that volume, as the binder does before it writes the claim's phase.
async fn chosen(cluster: &Cluster, size: &Value, source: Value) {
    let claim = json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "volumeName": "pv", "storageClassName": "",
        "resources": {"requests": size},
    }});
    let claim = cluster.post("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    let mut volume = json!({"metadata": {"name": "pv"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": size,
        "claimRef": {"namespace": "default", "name": "c", "uid": claim["metadata"]["uid"]},
    }});
    volume["spec"].as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    cluster.post("/api/v1/persistentvolumes", &volume).await;
}

/// The binder's second write.
async fn bind(cluster: &Cluster, size: &Value) {
    let bound = json!({"status": {"phase": "Bound", "capacity": size, "accessModes": ["ReadWriteOnce"]}});
    cluster.patch(&format!("{CLAIM}/status"), &bound).await;
}

fn user_of_the_claim() -> Value {
    json!({
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_being_bound_is_no_failure() {
    let mut cluster = Cluster::without_node().await;
    // Each time the node has read the claim, it is told here before it gets the answer.
    let (reads, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let inner = cluster.api.service(User::admin());
    let (counted, notified, may) = (reads.clone(), seen.clone(), go_on.clone());
    let watched = service_fn(move |request: http::Request<_>| {
        let mut inner = inner.clone();
        let is_claim = request.method() == "GET" && request.uri().path() == CLAIM;
        let (reads, seen, go_on) = (counted.clone(), notified.clone(), may.clone());
        async move {
            let answer = inner.call(request).await;
            if is_claim && reads.fetch_add(1, Ordering::SeqCst) == 0 {
                seen.notify_one();
                let _ = go_on.acquire().await;
            }
            answer
        }
    });
    cluster.start_node(move |config| config.client = Client::new(in_process(watched))).await;
    let size = json!({"storage": "1Mi"});
    let path = cluster.dir.path().join("volume");
    std::fs::create_dir(&path).unwrap();
    chosen(&cluster, &size, json!({"hostPath": {"path": path.to_str().unwrap()}})).await;
    cluster.pod("p", user_of_the_claim()).await;
    seen.notified().await;
    bind(&cluster, &size).await;
    go_on.add_permits(1);
    cluster.wait_ready("p").await;
    assert!(reads.load(Ordering::SeqCst) >= 2);
    let events = cluster.get("/api/v1/namespaces/default/events").await;
    let all = events["items"].as_array().unwrap();
    assert!(all.iter().all(|e| e["reason"] != "FailedMount"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_stays_unbound_is_told() {
    let cluster = Cluster::start().await;
    let size = json!({"storage": "1Mi"});
    let path = cluster.dir.path().join("volume");
    std::fs::create_dir(&path).unwrap();
    chosen(&cluster, &size, json!({"hostPath": {"path": path.to_str().unwrap()}})).await;
    cluster.pod("p", user_of_the_claim()).await;
    let told = cluster.wait_event("p", "FailedMount").await;
    let text = told["message"].as_str().unwrap();
    assert!(text.ends_with("error processing PVC default/c: PVC is not bound"), "{text}");
    bind(&cluster, &size).await;
    cluster.wait_ready("p").await;
}

/// A disk of the node.
struct Disk {
    file: std::path::PathBuf,
    device: String,
}

impl Disk {
    fn new(file: std::path::PathBuf, bytes: u64) -> Self {
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let device = run("losetup", &["-f", "--show", file.to_str().unwrap()]);
        Disk { file, device }
    }

    fn grow(&self, bytes: u64) {
        std::fs::File::options().write(true).open(&self.file).unwrap().set_len(bytes).unwrap();
        run("losetup", &["-c", &self.device]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// `CAP_SYS_RESOURCE`, without which a mounted ext4 stays as it is; many a CI has none.
fn may_enlarge() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 24 != 0
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_directories_of_the_node_grow_by_word_alone() {
    let clock = Arc::new(AtomicI64::new(0));
    let cluster = ahead_by(&clock).await;
    let directory = tempfile::tempdir().unwrap();
    let here = json!({"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [common::NODE]},
    ]});
    let source = json!({
        "local": {"path": directory.path()},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
    });
    let size = json!({"storage": "16Mi"});
    chosen(&cluster, &size, source).await;
    bind(&cluster, &size).await;
    let mut spec = user_of_the_claim();
    spec["securityContext"] = json!({"fsGroup": 1234});
    cluster.pod("p", spec).await;
    cluster.wait_ready("p").await;
    let group_of = |path: &std::path::Path| std::os::unix::fs::MetadataExt::gid(&path.metadata().unwrap());
    assert_eq!(group_of(directory.path()), 1234);
    let later = directory.path().join("later");
    std::fs::write(&later, "").unwrap();
    std::os::unix::fs::chown(&later, None, Some(4321)).unwrap();

    let larger = json!({"storage": "64Mi"});
    cluster.patch("/api/v1/persistentvolumes/pv", &json!({"spec": {"capacity": larger}})).await;
    let pending = json!({"status": {
        "allocatedResources": larger, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
    }});
    cluster.patch(&format!("{CLAIM}/status"), &pending).await;
    clock.store(61, Ordering::Relaxed);
    let note = json!({"metadata": {"annotations": {"look": "61"}}});
    cluster.patch("/api/v1/namespaces/default/pods/p", &note).await;
    let done = cluster.wait(CLAIM, "a larger claim", |c| c["status"]["capacity"] == larger).await;
    assert_eq!(done["status"]["allocatedResourceStatuses"], json!(null), "{done}");
    // What pods made of their files since is left alone.
    assert_eq!(group_of(&later), 4321);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_node_becomes_a_file_system() {
    const MIB: u64 = 1 << 20;
    let files = tempfile::tempdir().unwrap();
    let disk = Disk::new(files.path().join("disk"), 16 * MIB);
    let clock = Arc::new(AtomicI64::new(0));
    let mut cluster = Cluster::without_node().await;
    let settle = |config: &mut yare_node::NodeConfig| {
        let ahead = clock.clone();
        config.seams.now =
            Arc::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)));
        config.seams.random = Arc::new(|| 0.0);
    };
    cluster.start_node(settle).await;
    let here = json!({"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [common::NODE]},
    ]});
    let size = json!({"storage": "16Mi"});
    let source = json!({
        "local": {"path": disk.device},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
    });
    chosen(&cluster, &size, source).await;
    bind(&cluster, &size).await;
    let mut paths = Vec::new();
    for pod in ["p", "q"] {
        let mut spec = user_of_the_claim();
        spec["containers"][0]["name"] = json!(pod);
        spec["securityContext"] = json!({"fsGroup": 1234});
        cluster.pod(pod, spec).await;
        cluster.wait_ready(pod).await;
        let (_, config) = cluster.runtime.container_named(pod).unwrap();
        let mount = config.mounts.iter().find(|m| m.container_path == std::path::Path::new("/v")).unwrap();
        paths.push(mount.host_path.clone());
    }
    // One file system, at a place of its own for each pod, which the group may use.
    std::fs::write(paths[0].join("file"), "kept").unwrap();
    assert_eq!(std::fs::read_to_string(paths[1].join("file")).unwrap(), "kept");
    assert_ne!(paths[0], paths[1]);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&paths[0].metadata().unwrap()), 1234);
    let room = || nix::sys::statvfs::statvfs(&paths[0]).unwrap();
    let bytes = |room: nix::sys::statvfs::Statvfs| room.blocks() * room.fragment_size();
    let before = bytes(room());

    // The disk grew; so does the file system, while it is used.
    disk.grow(64 * MIB);
    let larger = json!({"storage": "64Mi"});
    cluster.patch("/api/v1/persistentvolumes/pv", &json!({"spec": {"capacity": larger}})).await;
    clock.store(61, Ordering::Relaxed);
    let note = json!({"metadata": {"annotations": {"look": "61"}}});
    cluster.patch("/api/v1/namespaces/default/pods/p", &note).await;
    if may_enlarge() {
        cluster.wait(CLAIM, "a larger claim", |c| c["status"]["capacity"] == larger).await;
        assert!(bytes(room()) > 2 * before, "{before}");
    } else {
        let told = cluster.wait_event("p", "VolumeResizeFailed").await;
        let text = told["message"].as_str().unwrap();
        assert!(
            text.starts_with("NodeExpandVolume.NodeExpandVolume failed for volume \"pv\" : resize of"),
            "{text}"
        );
    }

    // Another life of the agent knows what is mounted for whom.
    cluster.stop_node().await;
    cluster.start_node(settle).await;
    cluster.delete_pod("p", 0).await;
    cluster.wait_gone("p").await;
    assert_eq!(std::fs::read_to_string(paths[1].join("file")).unwrap(), "kept");
    cluster.delete_pod("q", 0).await;
    cluster.wait_gone("q").await;
    let mounts = cluster.data().join("plugins/kubernetes.io/local-volume/mounts");
    let mut left = true;
    for _ in 0..1500 {
        left = mounts.read_dir().unwrap().next().is_some();
        if !left {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!left, "the device is still mounted");
}

//! The StorageClass of a new cluster: a claim just works, its content lasts as long as it should, and what the
//! user does to the class stays done.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";
const DEFAULT: &str = ".metadata.annotations.storageclass\\.kubernetes\\.io/is-default-class";

fn claim(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  {spec}\n  \
         resources: {{requests: {{storage: 10Mi}}}}\n---\n"
    )
}

fn pod(name: &str, claim: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  {more}\n  \
         containers:\n  - name: main\n    image: {IMAGE}\n    command: [sh, -c, 'exec sleep 1000']\n    \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  - name: data\n    \
         persistentVolumeClaim: {{claimName: {claim}}}\n---\n"
    )
}

fn directory(cluster: &Cluster, claim: &str) -> anyhow::Result<PathBuf> {
    let volume = cluster.field(&format!("pvc/{claim}"), ".spec.volumeName")?;
    Ok(cluster.field(&format!("pv/{volume}"), ".spec.local.path")?.into())
}

fn gone(cluster: &Cluster, kind: &str) -> anyhow::Result<()> {
    cluster.eventually(Duration::from_secs(60), || {
        let left = cluster.kubectl(&["get", kind, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
}

#[test]
fn a_claim_just_works() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let once = "accessModes: [ReadWriteOnce]";
        cluster.eventually(Duration::from_secs(30), || {
            cluster.kubectl(&["get", "sc", "local-path"]).map(drop)
        })?;
        cluster.apply(&claim("data", once))?;
        cluster.event("data", "WaitForFirstConsumer", "waiting for first consumer")?;
        // Whatever user the pod runs as.
        cluster.apply(&pod("one", "data", "securityContext: {runAsUser: 4321, fsGroup: 777}"))?;
        cluster.ready(&["one"])?;
        cluster.shell("one", "echo kept >/data/file; ln -s /etc/passwd /data/link")?;
        let path = directory(cluster, "data")?;
        ensure!(path.starts_with(cluster.path("data/storage")), "{}", path.display());
        ensure!(std::fs::read_to_string(path.join("file"))? == "kept\n");
        ensure!(std::fs::metadata(&path)?.gid() == 777);
        cluster.event("data", "ProvisioningSucceeded", "Successfully provisioned volume pvc-")?;
        let annotations = cluster.field("pv", ".items[0].metadata.annotations")?;
        ensure!(!annotations.contains("pending"), "{annotations}");

        // The content outlives its pod; a copy of it is made, on the same node, and is its own.
        cluster.kubectl(&["delete", "pod", "one"])?;
        let source = format!("{once}\n  dataSource: {{kind: PersistentVolumeClaim, name: data}}");
        cluster.apply(&(pod("two", "data", "") + &claim("copy", &source) + &pod("three", "copy", "")))?;
        cluster.ready(&["two", "three"])?;
        ensure!(cluster.shell("two", "cat /data/file")? == "kept\n");
        ensure!(cluster.shell("three", "cat /data/file; readlink /data/link")? == "kept\n/etc/passwd\n");
        cluster.shell("three", "echo changed >/data/file")?;
        ensure!(cluster.shell("two", "cat /data/file")? == "kept\n");
        cluster.becomes("pvc/data", ".metadata.finalizers", "[\"kubernetes.io/pvc-protection\"]")?;

        // Who comes later with another group is told so, and changes nothing.
        cluster.apply(&pod("four", "data", "securityContext: {fsGroup: 778}"))?;
        cluster.ready(&["four"])?;
        let told = format!(
            "The requested fsGroup is 778, but the volume {} has GID 777. The volume may not be shareable.",
            cluster.field("pvc/data", ".spec.volumeName")?
        );
        cluster.event("four", "AlreadyMountedVolume", &told)?;
        ensure!(std::fs::metadata(&path)?.gid() == 777);

        // It grows by being asked to.
        let grow = r#"{"spec": {"resources": {"requests": {"storage": "1Gi"}}}}"#;
        cluster.kubectl(&["patch", "pvc", "data", "-p", grow])?;
        cluster.becomes("pvc/data", ".status.capacity.storage", "1Gi")?;
        let volume = cluster.field("pvc/data", ".spec.volumeName")?;
        ensure!(cluster.field(&format!("pv/{volume}"), ".spec.capacity.storage")? == "1Gi");

        // A claim in use stays, then its files go with it; those of a volume to be retained stay.
        let copied = directory(cluster, "copy")?;
        let kept = cluster.field("pvc/copy", ".spec.volumeName")?;
        let retain = r#"{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}"#;
        cluster.kubectl(&["patch", "pv", &kept, "-p", retain])?;
        cluster.becomes(
            &format!("pv/{kept}"),
            ".metadata.finalizers",
            "[\"kubernetes.io/pv-protection\"]",
        )?;
        cluster.kubectl(&["delete", "pvc", "data", "copy", "--wait=false"])?;
        ensure!(path.exists());
        cluster.kubectl(&["delete", "pod", "two", "three", "four"])?;
        gone(cluster, "pvc")?;
        cluster.becomes(&format!("pv/{kept}"), ".status.phase", "Released")?;
        cluster.eventually(Duration::from_secs(30), || {
            ensure!(!path.exists(), "{} is still there", path.display());
            Ok(())
        })?;
        cluster.kubectl(&["delete", "pv", &kept])?;
        gone(cluster, "pv")?;
        ensure!(std::fs::read_to_string(copied.join("file"))? == "changed\n");
        Ok(())
    });
}

/// Claims that cannot be, and what their event says.
const IMPOSSIBLE: &[(&str, &str, &str)] = &[
    ("many", "accessModes: [ReadWriteMany]", "access mode ReadWriteMany is not possible"),
    ("block", "accessModes: [ReadWriteOnce]\n  volumeMode: Block", "volume mode Block is not possible"),
];

#[test]
fn what_cannot_be_is_said() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        // A class that does not wait gets a node as well.
        cluster.apply(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: now}\n\
             provisioner: yare.io/local-path\nvolumeBindingMode: Immediate\n---\n",
        )?;
        for (name, spec, _) in IMPOSSIBLE {
            cluster.apply(&claim(name, &format!("{spec}\n  storageClassName: now")))?;
        }
        for (name, _, text) in IMPOSSIBLE {
            cluster.event(name, "ProvisioningFailed", text)?;
        }
        cluster.apply(
            &(claim("good", "accessModes: [ReadWriteOncePod]\n  storageClassName: now")
                + &pod("p", "good", "")),
        )?;
        cluster.ready(&["p"])?;
        let path = directory(cluster, "good")?;
        // One that is lost is not made again as if nothing had happened.
        cluster.kubectl(&["delete", "pod", "p"])?;
        std::fs::remove_dir(&path).context("the volume's directory")?;
        cluster.apply(&pod("q", "good", ""))?;
        cluster.event("q", "FailedMount", "does not exist")?;
        cluster.kubectl(&["delete", "pod", "q", "--force"])?;
        cluster.kubectl(&["delete", "pvc", "--all"])?;
        gone(cluster, "pv")
    });
}

#[test]
fn the_class_is_the_users() {
    Cluster::test(YARE, Options::control_plane(), |cluster| {
        let exists = |cluster: &Cluster| cluster.kubectl(&["get", "sc", "local-path", "-o", "name"]);
        let made = Duration::from_secs(30);
        cluster.eventually(made, || exists(cluster))?;
        ensure!(cluster.field("sc/local-path", DEFAULT)? == "true");
        // Changed, it stays changed; deleted, it stays deleted.
        let none =
            format!("{}=false", DEFAULT.trim_start_matches(".metadata.annotations.").replace('\\', ""));
        cluster.kubectl(&["annotate", "--overwrite", "sc", "local-path", &none])?;
        cluster.eventually(made, || cluster.kubectl(&["get", "cm", "-n", "kube-system", "yare-addons"]))?;
        cluster.stop()?;
        cluster.launch()?;
        ensure!(cluster.field("sc/local-path", DEFAULT)? == "false");
        cluster.kubectl(&["delete", "sc", "local-path"])?;
        cluster.stop()?;
        cluster.launch()?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(exists(cluster).is_err());
        Ok(())
    });
}

#[test]
fn who_does_not_want_it_does_not_get_it() {
    let options = Options { args: vec!["--disable=local-storage".into()], ..Options::control_plane() };
    Cluster::test(YARE, options, |cluster| {
        // It would be there by now: the server was asked for its classes at its start.
        cluster.apply(&claim("c", "accessModes: [ReadWriteOnce]"))?;
        cluster.event("c", "FailedBinding", "no storage class is set")?;
        ensure!(cluster.kubectl(&["get", "sc", "-o", "name"])?.is_empty());
        Ok(())
    });
}

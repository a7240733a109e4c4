//! Volumes of a CSI driver: a real one of the testkit, over its sockets.

use std::path::Path;

use anyhow::ensure;
use serde_json::{Value, json};
use yare_testkit::{
    Cluster, CsiCall, CsiDriver, CsiFault, Options,
    csi::{Code, proto::NodeCapability},
};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const DRIVER: &str = "csi.yare.example";
const IMAGE: &str = "yare.local/busybox:1";

/// A driver for the cluster's node.
fn driver(cluster: &Cluster) -> anyhow::Result<CsiDriver> {
    CsiDriver::new(DRIVER, &cluster.path("data/agent"))
}

/// The CSIDriver object, with a spec in flow style.
fn object(cluster: &Cluster, spec: &str) -> anyhow::Result<()> {
    let yaml = format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {DRIVER}}}\nspec: {{{spec}}}"
    );
    cluster.apply(&yaml).map(drop)
}

/// A volume of the driver and the claim that is bound to it, both named `name`. `spec` and `csi` are further
/// fields, in flow style.
fn claim(
    cluster: &Cluster,
    driver: &CsiDriver,
    name: &str,
    block: bool,
    spec: &str,
    csi: &str,
) -> anyhow::Result<String> {
    let handle = driver.create(name, 1 << 20, block)?;
    let mode = if block { "Block" } else { "Filesystem" };
    let modes = if spec.contains("accessModes") { "" } else { "accessModes: [ReadWriteOnce]," };
    cluster.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  \
         {{{modes} capacity: {{storage: 1Mi}}, volumeMode: {mode}, persistentVolumeReclaimPolicy: Retain,\n   \
         claimRef: {{namespace: default, name: {name}}}, csi: {{driver: {DRIVER}, volumeHandle: {handle}, {csi}}}, {spec}}}\n\
         ---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: \
         {{{modes} storageClassName: \"\", volumeMode: {mode}, volumeName: {name}, resources: {{requests: {{storage: 1Mi}}}}, {}}}",
        if modes.is_empty() { spec } else { "" }
    ))?;
    cluster.becomes(&format!("pvc/{name}"), ".status.phase", "Bound")?;
    Ok(handle)
}

/// A pod with one volume `v`; `source`, `container` and `spec` are in flow style.
fn pod(name: &str, source: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         volumes: [{{name: v, {source}}}]\n  {spec}\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
         command: [sh, -c, exec sleep 1000]\n    {container}\n---\n"
    )
}

const MOUNT: &str = "volumeMounts: [{name: v, mountPath: /v}]";

fn claimed(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}}}")
}

/// Waits until the driver got these calls, in this order, and no others.
fn sees(cluster: &Cluster, driver: &CsiDriver, methods: &[&str]) -> anyhow::Result<Vec<CsiCall>> {
    cluster.soon(|| {
        let calls = driver.calls();
        let got: Vec<&str> = calls.iter().map(|c| c.method).collect();
        ensure!(got == methods, "calls {got:?}, not {methods:?}");
        Ok(calls)
    })
}

/// The paths below the node's directory that are of the plugin and not empty directories.
fn left(cluster: &Cluster) -> anyhow::Result<String> {
    let places = ["data/agent/plugins/kubernetes.io", "data/agent/pods"].map(|p| cluster.path(p));
    let mut command = cluster.command("find");
    command.args(&places).args(["-path", "*csi*", "-not", "-type", "d"]);
    Ok(String::from_utf8_lossy(&cluster.run(&mut command)?.stdout).into_owned())
}

#[test]
fn drivers_register_and_go() {
    Cluster::test(YARE, Options::default(), |cluster| {
        // The object is there before any driver is, and the node is not ready without it.
        ensure!(cluster.field("csinode/node-1", ".spec.drivers[*].name")?.is_empty());
        let owner = cluster.field("csinode/node-1", ".metadata.ownerReferences[0].uid")?;
        ensure!(owner == cluster.field("node/node-1", ".metadata.uid")?, "{owner}");

        let mut first = driver(cluster)?;
        first.change(|b| {
            b.max_volumes = 7;
            b.topology.insert("topology.csi.yare.example/rack".into(), "r1".into());
        });
        first.start()?;
        cluster.becomes("csinode/node-1", ".spec.drivers[0].nodeID", "test-node")?;
        ensure!(cluster.field("csinode/node-1", ".spec.drivers[0].allocatable.count")? == "7");
        let keys = cluster.field("csinode/node-1", ".spec.drivers[0].topologyKeys")?;
        ensure!(keys == r#"["topology.csi.yare.example/rack"]"#, "{keys}");
        let ids = r".metadata.annotations.csi\.volume\.kubernetes\.io/nodeid";
        cluster.becomes("node/node-1", ids, &format!(r#"{{"{DRIVER}":"test-node"}}"#))?;
        ensure!(cluster.field("node/node-1", r".metadata.labels.topology\.csi\.yare\.example/rack")? == "r1");
        cluster.soon(|| {
            ensure!(first.registrations() == [(true, String::new())], "{:?}", first.registrations());
            Ok(())
        })?;

        // The same name again is refused, until the first is gone.
        let mut second = CsiDriver::new(DRIVER, &cluster.path("data/agent"))?;
        second.socket_name("other");
        second.start()?;
        cluster.soon(|| {
            let said = second.registrations();
            let why = "Another driver with the same name is already registered with a higher supported version: \"1.0.0\"";
            ensure!(said.iter().any(|(taken, text)| !taken && text.contains(why)), "{said:?}");
            Ok(())
        })?;
        second.stop();

        // An agent that was away finds its drivers again.
        cluster.kill()?;
        cluster.launch()?;
        cluster.soon(|| {
            ensure!(first.registrations().len() == 2, "{:?}", first.registrations());
            Ok(())
        })?;

        // A driver whose limit changed says so where the object asks for it.
        cluster.apply(&format!(
            "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {DRIVER}}}\nspec: {{nodeAllocatableUpdatePeriodSeconds: 10}}"
        ))?;
        first.change(|b| b.max_volumes = 9);
        cluster.becomes("csinode/node-1", ".spec.drivers[0].allocatable.count", "9")?;

        first.stop();
        cluster.becomes("csinode/node-1", ".spec.drivers[*].name", "")?;
        cluster.becomes("node/node-1", ids, "")
    });
}

#[test]
fn drivers_that_cannot_say_who_they_are_are_not_registered() {
    Cluster::test(YARE, Options::default(), |cluster| {
        let mut driver = driver(cluster)?;
        driver.fault("NodeGetInfo", Some(CsiFault::Fails(Code::Internal, "not yet".into())));
        driver.start()?;
        cluster.soon(|| {
            let said = driver.registrations();
            let why = "RegisterPlugin error -- plugin registration failed with err: rpc error: code = Internal desc = not yet";
            ensure!(said.first().is_some_and(|(taken, text)| !taken && text == why), "{said:?}");
            Ok(())
        })?;
        ensure!(cluster.field("csinode/node-1", ".spec.drivers[*].name")?.is_empty());
        // It is asked again.
        driver.fault("NodeGetInfo", None);
        cluster.becomes("csinode/node-1", ".spec.drivers[0].name", DRIVER)?;
        driver.stop();

        driver.change(|b| b.versions = vec!["0.3.0".into()]);
        driver.start()?;
        cluster.soon(|| {
            let said = driver.registrations();
            let why = "RegisterPlugin error -- plugin validation failed with err: validation failed for CSI Driver csi.yare.example at endpoint";
            ensure!(said.last().is_some_and(|(taken, text)| !taken && text.starts_with(why)), "{said:?}");
            Ok(())
        })
    });
}

#[test]
fn volumes_are_staged_once_and_published_for_each_pod() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let mut driver = driver(cluster)?;
        driver.start()?;
        object(cluster, "attachRequired: false, podInfoOnMount: true, fsGroupPolicy: File")?;
        cluster.apply(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: stage}\nstringData: {key: s}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {name: publish}\nstringData: {key: p}",
        )?;
        let handle = claim(
            cluster,
            &driver,
            "shared",
            false,
            "mountOptions: [noatime]",
            "fsType: ext4, volumeAttributes: {color: blue}, nodeStageSecretRef: {name: stage, namespace: default}, \
             nodePublishSecretRef: {name: publish, namespace: default}",
        )?;
        let security = "securityContext: {fsGroup: 1234}";
        cluster.apply(
            &(pod("a", &claimed("shared"), MOUNT, security) + &pod("b", &claimed("shared"), MOUNT, "")),
        )?;
        cluster.ready(&["a", "b"])?;
        let calls = sees(cluster, &driver, &["NodeStageVolume", "NodePublishVolume", "NodePublishVolume"])?;
        let stage = &calls[0].fields;
        ensure!(calls.iter().all(|c| c.volume == handle), "{calls:?}");
        for (field, want) in [
            ("secrets", json!({"key": "s"})),
            ("context", json!({"color": "blue"})),
            ("mode", json!("SingleNodeMultiWriter")),
            ("fs_type", json!("ext4")),
            ("flags", json!(["noatime"])),
            ("group", json!("")),
        ] {
            ensure!(stage[field] == want, "{field}: {stage}");
        }
        let of = |pod: &str| {
            let by = |c: &&CsiCall| c.fields["context"]["csi.storage.k8s.io/pod.name"] == pod;
            calls.iter().find(by).map(|c| c.fields.clone()).unwrap_or_default()
        };
        let publish = of("a");
        ensure!(publish["secrets"] == json!({"key": "p"}), "{publish}");
        ensure!(publish["staging"] == stage["staging"], "{publish}");
        let context = &publish["context"];
        ensure!(
            context["color"] == "blue" && context["csi.storage.k8s.io/ephemeral"] == "false",
            "{context}"
        );
        ensure!(context["csi.storage.k8s.io/serviceAccount.name"] == "default", "{context}");
        ensure!(
            context["csi.storage.k8s.io/pod.uid"] == cluster.field("pod/a", ".metadata.uid")?,
            "{context}"
        );

        cluster.shell("a", "echo hello >/v/file")?;
        ensure!(cluster.shell("b", "cat /v/file")? == "hello\n");
        ensure!(cluster.shell("a", "stat -c %g /v")?.trim() == "1234");

        // The agent dies; one pod goes meanwhile, for good.
        driver.forget_calls();
        cluster.kill()?;
        cluster.launch()?;
        cluster.soon(|| {
            let again = driver.calls_of("NodePublishVolume").len();
            ensure!(again == 2, "published {again} times again");
            Ok(())
        })?;
        ensure!(cluster.shell("a", "cat /v/file")? == "hello\n");
        driver.forget_calls();
        cluster.kubectl(&["delete", "pod", "a", "--force", "--grace-period=0"])?;
        sees(cluster, &driver, &["NodeUnpublishVolume"])?;
        ensure!(cluster.shell("b", "cat /v/file")? == "hello\n");
        // A driver that is away is waited for.
        driver.stop();
        cluster.becomes("csinode/node-1", ".spec.drivers[*].name", "")?;
        driver.forget_calls();
        cluster.kubectl(&["delete", "pod", "b", "--wait=false"])?;
        driver.start()?;
        sees(cluster, &driver, &["NodeUnpublishVolume", "NodeUnstageVolume"])?;
        cluster.kubectl(&["wait", "--for=delete", "pod/b", "--timeout=30s"])?;
        cluster.soon(|| {
            let left = left(cluster)?;
            ensure!(left.is_empty() && driver.mounted().is_empty(), "{left}{:?}", driver.mounted());
            Ok(())
        })?;
        ensure!(std::fs::read_to_string(driver.files(&handle).join("file"))? == "hello\n");
        Ok(())
    });
}

#[test]
fn volumes_that_pods_bring() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let mut driver = driver(cluster)?;
        driver.change(|b| b.node.extend([NodeCapability::VolumeMountGroup]));
        driver.start()?;
        let inline = format!("csi: {{driver: {DRIVER}, readOnly: false, volumeAttributes: {{size: small}}}}");
        // Without the object nobody knows that the driver can do it.
        cluster.apply(&pod("early", &inline, MOUNT, ""))?;
        cluster.event(
            "early",
            "FailedMount",
            "MountVolume.SetUp failed for volume \"v\" : kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: volume mode \"Ephemeral\" not supported by driver csi.yare.example (no CSIDriver object)",
        )?;
        object(
            cluster,
            "attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Ephemeral], requiresRepublish: true, \
             tokenRequests: [{audience: vault}, {audience: \"\", expirationSeconds: 7200}]",
        )?;
        cluster.ready(&["early"])?;
        cluster.apply(&pod("late", &inline, MOUNT, "securityContext: {fsGroup: 77}"))?;
        cluster.ready(&["late"])?;
        let calls = driver.calls_of("NodePublishVolume");
        let late = &calls.last().ok_or_else(|| anyhow::anyhow!("no call"))?.fields;
        ensure!(late["group"] == "77" && late["mode"] == "SingleNodeMultiWriter", "{late}");
        ensure!(late["staging"] == "" && late["context"]["size"] == "small", "{late}");
        ensure!(late["context"]["csi.storage.k8s.io/ephemeral"] == "true", "{late}");
        let tokens = late["context"]["csi.storage.k8s.io/serviceAccount.tokens"].as_str().unwrap_or_default();
        let tokens: Value = serde_json::from_str(tokens)?;
        for audience in ["vault", ""] {
            let token = tokens[audience]["token"].as_str().unwrap_or_default();
            ensure!(token.split('.').count() == 3, "{tokens}");
            ensure!(tokens[audience]["expirationTimestamp"].is_string(), "{tokens}");
        }
        cluster.shell("late", "echo x >/v/file")?;
        cluster.kubectl(&["delete", "pod", "early", "late"])?;
        cluster.soon(|| {
            ensure!(driver.calls_of("NodeUnpublishVolume").len() == 2);
            ensure!(driver.calls_of("NodeStageVolume").is_empty());
            let left = left(cluster)?;
            ensure!(left.is_empty() && driver.mounted().is_empty(), "{left}");
            Ok(())
        })
    });
}

#[test]
fn failures_leave_nothing_behind() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let driver = CsiDriver::started(DRIVER, &cluster.path("data/agent"))?;
        object(cluster, "attachRequired: false")?;
        claim(cluster, &driver, "one", false, "accessModes: [ReadWriteOncePod],", "")?;

        // Certainly nothing happened: nothing is undone.
        driver.fault("NodeStageVolume", Some(CsiFault::Fails(Code::Internal, "broken".into())));
        cluster.apply(&pod("p", &claimed("one"), MOUNT, ""))?;
        cluster.event(
            "p",
            "FailedMount",
            "MountVolume.MountDevice failed for volume \"one\" : rpc error: code = Internal desc = broken",
        )?;
        let called = |method: &str| driver.calls_of(method).len();
        cluster.soon(|| {
            let left = left(cluster)?;
            ensure!(left.is_empty(), "{left}");
            // Of an attempt that the pod's end cuts off nobody knows; after the third there is time before the next.
            ensure!(called("NodeStageVolume") >= 3);
            Ok(())
        })?;
        cluster.kubectl(&["delete", "pod", "p"])?;
        ensure!(called("NodeUnstageVolume") + called("NodeUnpublishVolume") == 0, "{:?}", driver.calls());

        // It may have happened: it is undone.
        driver.fault("NodeStageVolume", Some(CsiFault::DoneButFails(Code::Unavailable, "gone".into())));
        cluster.apply(&pod("p", &claimed("one"), MOUNT, ""))?;
        cluster.event(
            "p",
            "FailedMount",
            "MountVolume.MountDevice failed for volume \"one\" : rpc error: code = Unavailable desc = gone",
        )?;
        cluster.kubectl(&["delete", "pod", "p"])?;
        cluster.soon(|| {
            ensure!(called("NodeUnstageVolume") >= 1 && left(cluster)?.is_empty(), "{:?}", driver.calls());
            Ok(())
        })?;
        driver.fault("NodeStageVolume", None);

        // It hangs: the pod can go all the same.
        driver.fault("NodePublishVolume", Some(CsiFault::Hangs));
        cluster.apply(&pod("p", &claimed("one"), MOUNT, ""))?;
        cluster.soon(|| {
            ensure!(called("NodePublishVolume") > 0);
            Ok(())
        })?;
        cluster.kubectl(&["delete", "pod", "p", "--timeout=30s"])?;
        // Without a grace period the pod's object goes first.
        cluster.soon(|| {
            ensure!(called("NodeUnpublishVolume") >= 1, "{:?}", driver.calls());
            Ok(())
        })?;
        driver.fault("NodePublishVolume", None);

        // One pod at a time.
        cluster.apply(&pod("p", &claimed("one"), MOUNT, ""))?;
        cluster.ready(&["p"])?;
        cluster.apply(&pod("q", &claimed("one"), MOUNT, "nodeName: node-1"))?;
        cluster.event(
            "q",
            "FailedMount",
            "MountVolume.SetUp failed for volume \"one\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod",
        )?;
        // A pod whose volume cannot be given back stays until it can.
        driver.fault("NodeUnpublishVolume", Some(CsiFault::Fails(Code::Internal, "busy".into())));
        driver.forget_calls();
        cluster.kubectl(&["delete", "pod", "p", "--wait=false", "--grace-period=1"])?;
        cluster.soon(|| {
            ensure!(called("NodeUnpublishVolume") > 0);
            Ok(())
        })?;
        ensure!(!cluster.field("pod/p", ".metadata.deletionTimestamp")?.is_empty());
        driver.fault("NodeUnpublishVolume", None);
        cluster.kubectl(&["wait", "--for=delete", "pod/p", "--timeout=60s"])?;
        cluster.ready(&["q"])?;
        cluster.kubectl(&["delete", "pod", "q"])?;
        cluster.soon(|| {
            ensure!(left(cluster)?.is_empty() && driver.mounted().is_empty(), "{}", left(cluster)?);
            Ok(())
        })
    });
}

#[test]
fn the_nodes_directory_is_where_drivers_look_for_it() {
    // A driver's manifest names its sockets and the pods' directory as the node does: here, too, they are one path.
    let options = Options::with(&["--kubelet-arg=root-dir=DIRECTORY/kubelet"]);
    Cluster::test(YARE, options, |cluster| {
        cluster.import_busybox(IMAGE)?;
        let root = cluster.path("kubelet");
        let driver = CsiDriver::started(DRIVER, &root)?;
        cluster.becomes("csinode/node-1", ".spec.drivers[0].name", DRIVER)?;
        object(cluster, "attachRequired: false")?;
        claim(cluster, &driver, "c", false, "", "")?;
        cluster.apply(&pod("p", &claimed("c"), MOUNT, ""))?;
        cluster.ready(&["p"])?;
        let calls = sees(cluster, &driver, &["NodeStageVolume", "NodePublishVolume"])?;
        let below = |field: &str, directory: &str| {
            let path = calls[1].fields[field].as_str().unwrap_or_default();
            Path::new(path).starts_with(root.join(directory))
        };
        ensure!(below("staging", "plugins") && below("target", "pods"), "{calls:?}");
        for own in ["pods", "plugins", "plugins_registry", "device-plugins", "pod-resources"] {
            ensure!(!cluster.path("data/agent").join(own).exists(), "{own} is in two places");
        }

        // What is mounted there is taken away by whoever says where that is.
        cluster.kill()?;
        ensure!(!driver.mounted().is_empty());
        let root_dir = format!("root-dir={}", root.display());
        let said = cluster.yare(&["cleanup", "--kubelet-arg", &root_dir])?;
        ensure!(said.contains("ended 1 pods") && !said.contains("unmounted 0 volumes"), "{said}");
        let mut mounts = cluster.command("cat");
        let mounts = cluster.run(mounts.arg("/proc/self/mounts"))?;
        ensure!(!String::from_utf8_lossy(&mounts.stdout).contains(&*root.to_string_lossy()), "{mounts:?}");
        Ok(())
    });
}

#[test]
fn devices_grow_and_are_counted() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let driver = CsiDriver::started(DRIVER, &cluster.path("data/agent"))?;
        object(cluster, "attachRequired: false")?;
        claim(cluster, &driver, "disk", true, "", "")?;
        cluster.apply(&pod("wrong", &claimed("disk"), MOUNT, ""))?;
        cluster.event(
            "wrong",
            "FailedMount",
            "volume v has volumeMode Block, but is specified in volumeMounts",
        )?;
        cluster.kubectl(&["delete", "pod", "wrong"])?;

        let device = "volumeDevices: [{name: v, devicePath: /dev/disk}]";
        cluster.apply(&pod("block", &claimed("disk"), device, ""))?;
        cluster.ready(&["block"])?;
        let calls = sees(cluster, &driver, &["NodeStageVolume", "NodePublishVolume"])?;
        ensure!(calls.iter().all(|c| c.fields["block"] == true), "{calls:?}");
        cluster.shell("block", "test -b /dev/disk && echo written | dd of=/dev/disk conv=notrunc")?;
        ensure!(cluster.shell("block", "head -c 7 /dev/disk")? == "written");

        claim(cluster, &driver, "files", false, "", "")?;
        cluster.apply(&pod("files", &claimed("files"), MOUNT, ""))?;
        cluster.ready(&["files"])?;
        driver.change(|b| b.abnormal = Some("it rattles".into()));
        let summary = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"])?;
        let summary: Value = serde_json::from_str(&summary)?;
        let volumes =
            summary["pods"].as_array().into_iter().flatten().filter(|p| p["podRef"]["name"] == "files");
        let volumes: Vec<&Value> = volumes.filter_map(|p| p["volume"].as_array()).flatten().collect();
        let files = volumes.iter().find(|v| v["name"] == "v");
        ensure!(
            files.is_some_and(|v| v["capacityBytes"] == 1 << 20
                && v["inodesUsed"] == 10
                && v["pvcRef"]["name"] == "files"
                && v["volumeHealthStats"]["abnormal"] == true),
            "{volumes:?}"
        );
        cluster.event("files", "VolumeConditionAbnormal", "Volume v: it rattles")?;
        cluster.kubectl(&["delete", "pod", "files"])?;

        // Its object goes before its volume.
        cluster.soon(|| {
            let calls = driver.calls_of("NodeUnstageVolume").len();
            ensure!(calls == 1, "{calls}");
            Ok(())
        })?;
        // The controller has made the volumes larger; mounted anew they are expanded.
        driver.forget_calls();
        let larger = r#"{"spec": {"capacity": {"storage": "2Mi"}}}"#;
        cluster.kubectl(&["patch", "pv", "files", "--type=merge", "-p", larger])?;
        cluster.apply(&pod("files", &claimed("files"), MOUNT, ""))?;
        cluster.ready(&["files"])?;
        let expand = driver.calls_of("NodeExpandVolume");
        ensure!(expand.len() == 1 && expand[0].fields["bytes"] == 2 << 20, "{expand:?}");
        ensure!(
            expand[0].fields["staging"].as_str().is_some_and(|s| s.ends_with("/globalmount")),
            "{expand:?}"
        );
        cluster.becomes("pvc/files", ".status.capacity.storage", "2Mi")?;
        cluster.event(
            "files",
            "FileSystemResizeSuccessful",
            "MountVolume.NodeExpandVolume succeeded for volume \"files\" node-1",
        )?;

        // What kept the device open is still there after the agent was away, and goes with the pod.
        cluster.kill()?;
        cluster.launch()?;
        cluster.kubectl(&["delete", "pod", "block", "files"])?;
        cluster.soon(|| {
            let calls = driver.calls_of("NodeUnstageVolume").len();
            let left = left(cluster)?;
            ensure!(calls == 2 && left.is_empty() && driver.mounted().is_empty(), "{calls} {left}");
            Ok(())
        })
    });
}

#[test]
fn volumes_wait_until_they_are_attached() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let driver = CsiDriver::started(DRIVER, &cluster.path("data/agent"))?;
        let _sidecars = driver.sidecars(cluster)?;
        let handle = claim(cluster, &driver, "far", false, "", "")?;
        cluster.apply(&pod("p", &claimed("far"), MOUNT, ""))?;
        let name = format!("kubernetes.io/csi/{DRIVER}^{handle}");
        cluster.becomes("node/node-1", ".status.volumesInUse", &format!("[\"{name}\"]"))?;
        cluster.ready(&["p"])?;
        let calls =
            sees(cluster, &driver, &["ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"])?;
        for call in &calls[1..] {
            ensure!(call.fields["publish_context"] == json!({"attached-to": "test-node"}), "{call:?}");
        }
        cluster.kubectl(&["delete", "pod", "p"])?;
        cluster.becomes("node/node-1", ".status.volumesInUse[*]", "")?;
        ensure!(driver.mounted().is_empty());
        Ok(())
    });
}
#[test]
fn tools_that_are_missing_are_named() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let nfs = "nfs: {server: 127.0.0.1, path: /export}";
        let iscsi = "iscsi: {targetPortal: 127.0.0.1, iqn: iqn.2026-11.example:none, lun: 1, fsType: ext4}";
        cluster.apply(&(pod("files", nfs, MOUNT, "") + &pod("disk", iscsi, MOUNT, "")))?;
        // Without the tool, or without a server behind the address: what was run, or what is missing, is told.
        cluster.event(
            "files",
            "FailedMount",
            "MountVolume.SetUp failed for volume \"v\" : mount failed: exit status",
        )?;
        cluster.event("files", "FailedMount", "Mounting arguments: -t nfs 127.0.0.1:/export")?;
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("iscsiadm").exists()));
        let why = if found {
            "MountVolume.WaitForAttach failed for volume \"v\" : "
        } else {
            "MountVolume.WaitForAttach failed for volume \"v\" : exec: \"iscsiadm\": executable file not found in $PATH"
        };
        cluster.event("disk", "FailedMount", why)?;
        cluster.kubectl(&["delete", "pod", "files", "disk", "--timeout=30s"])?;
        let iscsi = cluster.path("data/agent/plugins/kubernetes.io/iscsi");
        cluster.soon(|| {
            let left = std::fs::read_dir(iscsi.join("iface-default")).into_iter().flatten().count();
            ensure!(left == 0, "{left} records are left");
            Ok(())
        })
    });
}

//! Devices by their CDI names, and OCI hooks in their order.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::*;
use serde_json::{Value, json};
use yare_runtime::*;

fn write_spec(rig: &Rig, edits: Value) {
    let dir = rig.dir.path().join("cdi");
    std::fs::create_dir_all(&dir).unwrap();
    let spec = json!({
        "cdiVersion": "1.0.0",
        "kind": "yare.test/thing",
        "devices": [{"name": "one", "containerEdits": edits}],
    });
    std::fs::write(dir.join("thing.json"), spec.to_string()).unwrap();
}

fn one(config: &mut ContainerConfig) {
    config.cdi_devices = vec!["yare.test/thing=one".into()];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_comes_with_its_edits() {
    let rig = Rig::new().await;
    let files = rig.dir.path().join("files");
    std::fs::create_dir_all(&files).unwrap();
    std::fs::write(files.join("x"), "driver").unwrap();
    write_spec(
        &rig,
        json!({
            "env": ["THING=1"],
            "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero", "permissions": "rw"},
                            {"path": "/dev/made/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640}],
            "mounts": [{"hostPath": files, "containerPath": "/opt/thing", "options": ["ro", "nosuid", "nodev", "bind"]}],
            "additionalGids": [44],
        }),
    );
    let script = "echo $THING; head -c2 /dev/thing | od -An -tx1; cat /opt/thing/x; echo; \
                  touch /opt/thing/y 2>&1; ls -l /dev/made/null | cut -c1-10; echo a > /dev/made/null && echo ok; \
                  grep -o 'nosuid,nodev' /proc/self/mounts | head -1; grep /opt/thing /proc/self/mounts | grep -c nosuid; id -G";
    let (status, log) = rig.script(script, one).await;
    assert_eq!(
        log,
        "1\n 00 00\ndriver\ntouch: /opt/thing/y: Read-only file system\ncrw-r-----\nok\nnosuid,nodev\n1\n0 44\n",
        "{status:?}"
    );
    // What nobody describes is refused when the container is made.
    let sandbox = rig.engine().run_sandbox(rig.pod("unknown")).await.unwrap();
    let config = ContainerConfig { cdi_devices: vec!["yare.test/thing=two".into()], ..sh("true") };
    let error = rig.engine().create_container(&sandbox, config).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "CDI device injection failed: unresolvable CDI devices yare.test/thing=two"
    );
    assert_eq!(error.code(), "InvalidArgument");
    rig.finish().await;
}

/// A hook that writes what it sees to a file of its own.
fn hook(dir: &Path, name: &str, extra: &str) -> Value {
    let script = dir.join(format!("{name}.sh"));
    let text = format!(
        "#!/bin/sh\ncat > {dir}/{name}.state\necho {name} $1 >> {dir}/order\n{extra}\n",
        dir = dir.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    json!({"hookName": name, "path": script, "args": [name, "arg"], "env": ["PATH=/usr/bin:/bin"], "timeout": 20})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_in_order() {
    let rig = Rig::new().await;
    let dir = rig.dir.path().join("hooks");
    std::fs::create_dir_all(&dir).unwrap();
    let own_net = std::fs::read_link("/proc/self/ns/net").unwrap();
    let root = r#"root=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' "$D/createContainer.state")/rootfs; "#;
    let in_container = format!(
        "D={}; {root} echo made > $root/from-hook; ls $root/proc/1 > /dev/null && echo proc >> $D/saw",
        dir.display()
    );
    let hooks = json!([
        hook(&dir, "poststop", ""),
        hook(&dir, "poststart", ""),
        hook(&dir, "prestart", ""),
        hook(&dir, "createRuntime", &format!("readlink /proc/self/ns/net > {}/net", dir.display())),
        hook(&dir, "createContainer", &in_container),
        {"hookName": "startContainer", "path": "/bin/busybox", "args": ["sh", "-c", "cat > /dev/shm/state; echo start > /dev/shm/started"]},
    ]);
    write_spec(&rig, json!({"hooks": hooks}));
    let (status, log) = rig
        .script("cat /from-hook /dev/shm/started; cat /dev/shm/state; echo", |config| {
            one(config);
            // What a hook writes must not be stopped by it.
            config.security.readonly_rootfs = true;
            config.security.readonly_paths = vec!["/proc/sys".into()];
        })
        .await;
    let text = log.strip_prefix("made\nstart\n").unwrap_or_else(|| panic!("{log} {status:?}"));
    let inside: Value = serde_json::from_str(text).unwrap();
    assert_eq!((&inside["status"], &inside["pid"]), (&json!("created"), &json!(1)));
    let order = || std::fs::read_to_string(dir.join("order")).unwrap_or_default();
    for _ in 0..500 {
        if order().lines().count() == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let got = order();
    let lines: Vec<&str> = got.lines().collect();
    assert_eq!(lines[..3], ["prestart arg", "createRuntime arg", "createContainer arg"]);
    let mut rest = lines[3..].to_vec();
    rest.sort_unstable();
    assert_eq!(rest, ["poststart arg", "poststop arg"]);
    assert_eq!(std::fs::read_to_string(dir.join("net")).unwrap().trim(), own_net.to_str().unwrap());
    assert_eq!(std::fs::read_to_string(dir.join("saw")).unwrap(), "proc\n");
    let state = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join(format!("{name}.state"))).unwrap()).unwrap()
    };
    for (name, want) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let state = state(name);
        assert_eq!(state["status"], want, "{name}");
        assert_eq!(state["id"].as_str().unwrap(), status.id, "{name}");
    }
    assert_eq!(state("createContainer")["pid"], state("createRuntime")["pid"]);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_fails_fails_the_start() {
    let rig = Rig::new().await;
    let dir = rig.dir.path().join("hooks");
    std::fs::create_dir_all(&dir).unwrap();
    for (i, name) in ["createRuntime", "createContainer"].into_iter().enumerate() {
        write_spec(&rig, json!({"hooks": [hook(&dir, name, "echo out of power >&2; exit 3")]}));
        let sandbox = rig.engine().run_sandbox(rig.pod(&format!("h{i}"))).await.unwrap();
        let mut config = sh("true");
        one(&mut config);
        let id = rig.engine().create_container(&sandbox, config).await.unwrap();
        let error = rig.engine().start_container(&id).await.unwrap_err().to_string();
        let want = format!("error running {name} hook #0: exit status: 3, stdout: , stderr: out of power");
        assert!(error.contains(&want), "{error}");
        let status = rig.engine().container(&id).await.unwrap();
        assert_eq!((status.state, status.reason.as_str()), (ContainerState::Exited, "ContainerCannotRun"));
    }
    // One that hangs is killed.
    let mut slow = hook(&dir, "createRuntime", "exec sleep 100");
    slow["timeout"] = json!(1);
    write_spec(&rig, json!({"hooks": [slow]}));
    let sandbox = rig.engine().run_sandbox(rig.pod("slow")).await.unwrap();
    let mut config = sh("true");
    one(&mut config);
    let id = rig.engine().create_container(&sandbox, config).await.unwrap();
    let error = rig.engine().start_container(&id).await.unwrap_err().to_string();
    assert!(error.contains("not done after 1 s"), "{error}");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_go_into_user_namespaces() {
    let rig = Rig::new().await;
    let dir = rig.dir.path().join("hooks");
    std::fs::create_dir_all(&dir).unwrap();
    let hooks = json!([hook(&dir, "createRuntime", "")]);
    write_spec(
        &rig,
        json!({"deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero"}], "hooks": hooks, "env": ["THING=1"]}),
    );
    let mut pod = rig.pod("users");
    let ids = vec![IdMapping { host_id: 2_000_000, container_id: 0, length: 65536 }];
    pod.namespaces.user = Some(UserNamespace { uids: ids.clone(), gids: ids });
    let mut config = sh("echo $THING; head -c2 /dev/thing | od -An -tx1");
    one(&mut config);
    let sandbox = rig.engine().run_sandbox(pod).await.unwrap();
    let id = rig.engine().create_container(&sandbox, config).await.unwrap();
    match rig.engine().start_container(&id).await {
        Ok(()) => {
            let status = rig.wait(&id).await;
            assert_eq!(rig.log(&status), "1\n 00 00\n");
        }
        // As for every pod with a user namespace where the filesystem cannot map ids.
        Err(error) => assert!(error.to_string().contains("map"), "{error}"),
    }
    rig.finish().await;
}

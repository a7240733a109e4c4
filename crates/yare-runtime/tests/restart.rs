//! The engine comes and goes, shims die, and nothing is lost or left.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use yare_runtime::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_do_not_notice_a_restart() {
    let mut rig = Rig::new().await;
    let (sandbox, long) =
        rig.run(rig.pod("r"), sh("echo a; while ! test -e /go; do sleep 0.02; done; echo b; exit 5")).await;
    let mut short = sh("sleep 0.3; exit 9");
    short.name = "short".into();
    let short = rig.engine().create_container(&sandbox, short).await.unwrap();
    rig.engine().start_container(&short).await.unwrap();
    let before = rig.engine().container(&long).await.unwrap();
    rig.engine = None;
    tokio::time::sleep(Duration::from_millis(600)).await;
    rig.open().await;
    let e = rig.engine();
    let after = e.container(&long).await.unwrap();
    assert_eq!(before, after);
    let status = e.container(&short).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 9), "it ended meanwhile");
    assert_eq!(e.sandbox(&sandbox).await.unwrap().state, SandboxState::Ready);
    let mut events = e.events();
    e.exec_sync(&long, argv(&["touch", "/go"]), None).await.unwrap();
    let status = rig.wait(&long).await;
    assert_eq!(status.exit_code, 5);
    assert_eq!(rig.log(&status), "a\nb\n");
    assert!(matches!(events.recv().await.unwrap(), RuntimeEvent::ContainerExited { exit_code: 5, .. }));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_takes_its_containers_along() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let (sandbox, id) = rig.run(rig.pod("k"), sh("sleep 1000")).await;
    let mut events = e.events();
    let shim = e.sandbox(&sandbox).await.unwrap().shim_pid;
    let pid = e.container(&id).await.unwrap().pid;
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    let status = rig.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    assert!(status.message.contains("shim"), "{}", status.message);
    loop {
        if let RuntimeEvent::SandboxGone { sandbox: gone } = events.recv().await.unwrap() {
            assert_eq!(gone, sandbox);
            break;
        }
    }
    assert_eq!(e.sandbox(&sandbox).await.unwrap().state, SandboxState::NotReady);
    let end = Instant::now() + Duration::from_secs(5);
    while std::path::Path::new(&format!("/proc/{pid}/exe")).exists() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_while_the_engine_was_away() {
    let mut rig = Rig::new().await;
    let (sandbox, id) = rig.run(rig.pod("k"), sh("sleep 1000")).await;
    let shim = rig.engine().sandbox(&sandbox).await.unwrap().shim_pid;
    rig.engine = None;
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.open().await;
    let status = rig.engine().container(&id).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 137));
    assert_eq!(rig.engine().sandbox(&sandbox).await.unwrap().state, SandboxState::NotReady);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_made_sandboxes_are_unmade() {
    let mut rig = Rig::new().await;
    let (sandbox, _) = rig.run(rig.pod("h"), sh("sleep 1000")).await;
    let path = rig.dir.path().join("data/runtime/sandboxes").join(&sandbox).join("sandbox.json");
    rig.engine = None;
    // As if the engine had been killed while it made the sandbox.
    let text = std::fs::read_to_string(&path).unwrap().replace("\"Ready\"", "\"Making\"");
    std::fs::write(&path, text).unwrap();
    let garbage = rig.dir.path().join("data/runtime/sandboxes/feed");
    std::fs::create_dir(&garbage).unwrap();
    std::fs::write(garbage.join("sandbox.json"), "").unwrap();
    rig.open().await;
    assert!(rig.engine().sandboxes().await.unwrap().is_empty());
    assert!(rig.engine().containers().await.unwrap().is_empty());
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_network_leaves_nothing() {
    let rig = Rig::new().await;
    *rig.network.refuse.lock() = true;
    let error = rig.engine().run_sandbox(rig.pod("n")).await.unwrap_err().to_string();
    assert!(error.contains("no address left"), "{error}");
    assert!(rig.engine().sandboxes().await.unwrap().is_empty());
    *rig.network.refuse.lock() = false;
    rig.engine().run_sandbox(rig.pod("n")).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_polite_and_then_not() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let (sandbox, polite) =
        rig.run(rig.pod("s"), sh("trap 'echo bye; exit 6' TERM; while :; do sleep 0.02; done")).await;
    let mut rude = sh("trap '' TERM; sleep 1000 & while :; do wait; done");
    rude.name = "rude".into();
    let rude = e.create_container(&sandbox, rude).await.unwrap();
    e.start_container(&rude).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    e.stop_container(&polite, Duration::from_secs(10)).await.unwrap();
    let status = e.container(&polite).await.unwrap();
    assert_eq!((status.exit_code, rig.log(&status).as_str()), (6, "bye\n"));
    let start = Instant::now();
    e.stop_container(&rude, Duration::from_millis(300)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(3));
    assert_eq!(e.container(&rude).await.unwrap().exit_code, 137);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_share_what_they_should() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let mut pod = rig.pod("shared");
    pod.namespaces.pid = NamespaceMode::Pod;
    pod.sysctls =
        [("net.core.somaxconn".into(), "77".into()), ("kernel.shm_rmid_forced".into(), "1".into())].into();
    let (sandbox, first) = rig.run(pod, sh("echo data > /dev/shm/x; sleep 1000")).await;
    let mut second = sh(
        "sleep 0.1; cat /dev/shm/x; ps | grep -c '[s]leep 1000'; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced; head -1 /proc/1/status",
    );
    second.name = "second".into();
    let second = e.create_container(&sandbox, second).await.unwrap();
    e.start_container(&second).await.unwrap();
    let status = rig.wait(&second).await;
    assert_eq!(rig.log(&status), "data\n1\n77\n1\nName:\tpause\n");
    let out = e.exec_sync(&first, argv(&["sh", "-c", "ps | grep -c pause"]), None).await.unwrap();
    assert_eq!(out.exit_code, 0);
    e.stop_container(&first, Duration::ZERO).await.unwrap();
    assert_eq!(e.container(&first).await.unwrap().exit_code, 137);

    let mut host = rig.pod("host");
    host.namespaces = NamespaceModes {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
        user: None,
    };
    let mut config =
        sh("for n in net ipc pid; do readlink /proc/self/ns/$n; done; sleep 1000 & sleep 1000 & exit 0");
    config.security.privileged = true;
    let (sandbox, id) = rig.run(host, config).await;
    let status = rig.wait(&id).await;
    let own: String = ["net", "ipc", "pid"]
        .map(|n| format!("{}\n", std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display()))
        .concat();
    assert_eq!(rig.log(&status), own);
    assert!(e.sandbox(&sandbox).await.unwrap().ips.is_empty());
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_mounted() {
    let rig = Rig::new().await;
    let host = rig.dir.path().join("vol");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("f"), "content\n").unwrap();
    let mount = |path: &str, host: &std::path::Path, readonly| Mount {
        container_path: path.into(),
        host_path: host.into(),
        readonly,
        ..Mount::default()
    };
    let missing = rig.dir.path().join("made/by/runtime");
    let (_, log) = rig
        .script("cat /v/f; echo new > /v/g; cat /one; touch /ro/x 2>&1; ls /etc/app; ls -d /made; cat /img/bin/noexec; touch /img/x 2>&1", |c| {
            c.mounts = vec![
                mount("/v", &host, false),
                mount("/one", &host.join("f"), true),
                mount("/ro", &host, true),
                mount("/etc/app/deep", &host, true),
                mount("/made", &missing, false),
                Mount { container_path: "/img".into(), image: Some(BUSYBOX.into()), ..Mount::default() },
            ];
        })
        .await;
    assert_eq!(
        log,
        "content\ncontent\ntouch: /ro/x: Read-only file system\ndeep\n/made\n#!/bin/sh\ntouch: /img/x: Read-only file system\n"
    );
    assert_eq!(std::fs::read_to_string(host.join("g")).unwrap(), "new\n");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shims_are_small() {
    let rig = Rig::new().await;
    let (sandbox, _) = rig.run(rig.pod("m"), sh("sleep 1000")).await;
    rig.run(rig.pod("n"), sh("sleep 1000")).await;
    let pid = rig.engine().sandbox(&sandbox).await.unwrap().shim_pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib = |key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key))
            .and_then(|v| v.split_whitespace().next())
            .and_then(|v| v.parse::<u64>().ok())
            .unwrap()
    };
    let private = kib("Private_Dirty:") + kib("Private_Clean:");
    eprintln!("a shim: {private} KiB private, {} KiB resident", kib("Rss:"));
    assert!(private < 1024, "{private} KiB");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_may_have_users_of_their_own() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let range = IdMapping { host_id: 700_000, container_id: 0, length: 65_536 };
    let volume = rig.dir.path().join("vol");
    std::fs::create_dir(&volume).unwrap();
    for (i, pid) in [NamespaceMode::Container, NamespaceMode::Pod].into_iter().enumerate() {
        let mut pod = rig.pod(&format!("u{i}"));
        pod.namespaces.user = Some(UserNamespace { uids: vec![range], gids: vec![range] });
        pod.namespaces.pid = pid;
        let mut config = sh(
            "id -u; cat /proc/self/uid_map; echo x > /dev/stdout; touch /f /vol/g; stat -c %u /bin/sh /f /vol/g /dev/shm; echo > /dev/null; ls /sys/class/net; test -e /go && exit; sleep 1000",
        );
        config.mounts =
            vec![Mount { container_path: "/vol".into(), host_path: volume.clone(), ..Mount::default() }];
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        let (_, id) = rig.run(pod, config).await;
        let status = e.container(&id).await.unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while !rig.log(&status).ends_with("lo\n") {
            assert!(Instant::now() < end, "{}", rig.log(&status));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = rig.log(&status);
        assert_eq!(log, "0\n         0     700000      65536\nx\n0\n0\n0\n0\nlo\n");
        let uid =
            |path: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
        assert_eq!(uid(std::path::Path::new(&format!("/proc/{}", status.pid))), 700_000, "nobody outside");
        assert_eq!(uid(&volume.join("g")), 0, "volumes keep their ids");
        let out = e
            .exec_sync(&id, argv(&["sh", "-c", "id -u; grep CapEff /proc/self/status; hostname"]), None)
            .await
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), format!("0\nCapEff:\t00000000a80425fb\nu{i}\n"));
        e.stop_container(&id, Duration::ZERO).await.unwrap();
        assert_eq!(e.container(&id).await.unwrap().exit_code, 137);
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_is_succeeded_by_another() {
    use std::io::BufRead;
    let mut rig = Rig::new().await;
    rig.engine = None;
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_yare-shim-test"))
        .arg("engine")
        .args([rig.dir.path().join("data"), rig.dir.path().join("run")])
        .arg(&rig.name)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let (sandbox, id) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{line}"));
    rig.open().await;
    let e = rig.engine();
    assert_eq!(e.sandbox(sandbox).await.unwrap().state, SandboxState::Ready, "{line}");
    assert_eq!(e.container(id).await.unwrap().state, ContainerState::Running);
    e.exec_sync(id, argv(&["touch", "/go"]), None).await.unwrap();
    assert_eq!(rig.wait(id).await.exit_code, 8);
    rig.finish().await;
}

/// A small generator, so that a failure can be had again.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_killed_at_any_moment_leave_nothing_behind() {
    use std::io::BufRead;
    let mut rig = Rig::new().await;
    let mut seed = std::env::var("YARE_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("YARE_SEED={seed}");
    for round in 0..200 {
        rig.engine = None;
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_yare-shim-test"))
            .arg("churn")
            .args([rig.dir.path().join("data"), rig.dir.path().join("run")])
            .arg(&rig.name)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        tokio::time::sleep(Duration::from_micros(next(&mut seed) % 60_000)).await;
        child.kill().unwrap();
        // The next one comes at once, while the kernel is still at the last one's end.
        rig.open().await;
        child.wait().unwrap();
        let e = rig.engine();
        for container in e.containers().await.unwrap() {
            let sandbox = e.sandbox(&container.sandbox_id).await.unwrap();
            if container.state == ContainerState::Running {
                assert_eq!(sandbox.state, SandboxState::Ready, "round {round}: {container:?}");
                kill(Pid::from_raw(container.pid), None).unwrap();
            }
        }
        for sandbox in e.sandboxes().await.unwrap() {
            e.remove_sandbox(&sandbox.id).await.unwrap();
        }
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            // This engine's own spawner is no leftover.
            let own = format!("process {} ", spawner_of_this_process());
            let left: Vec<_> = rig.leftovers().into_iter().filter(|l| !l.starts_with(&own)).collect();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "round {round}: {left:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    rig.finish().await;
}

/// The newest child of this process that is a spawner.
fn spawner_of_this_process() -> u32 {
    let own = std::process::id();
    let tasks = std::fs::read_dir(format!("/proc/{own}/task")).unwrap().flatten();
    let children = tasks.flat_map(|task| {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    children
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "yare-spawner\n")
        })
        .max()
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_engine_at_a_time() {
    let rig = Rig::new().await;
    let error = Engine::open(rig.config()).await.err().unwrap().to_string();
    let expected = format!("is used by process {}; stop it first", std::process::id());
    assert!(error.ends_with(&expected), "{error}");
    rig.finish().await;
}

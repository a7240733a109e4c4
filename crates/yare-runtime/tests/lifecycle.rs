//! Containers from creation to removal, with real kernel objects.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use yare_runtime::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_logs_and_ends() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let sandbox = e.run_sandbox(rig.pod("a")).await.unwrap();
    assert_eq!(e.run_sandbox(rig.pod("a")).await.unwrap(), sandbox, "same uid and attempt");
    let status = e.sandbox(&sandbox).await.unwrap();
    assert_eq!(status.state, SandboxState::Ready);
    assert_eq!(status.ips, ["10.42.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert!(status.netns.unwrap().exists() && status.shim_pid > 1);

    let id = e.create_container(&sandbox, sh("echo out; echo err >&2; exit 3")).await.unwrap();
    assert_eq!(e.create_container(&sandbox, sh("other")).await.unwrap(), id, "same name and attempt");
    assert_eq!(e.container(&id).await.unwrap().state, ContainerState::Created);
    let mut events = e.events();
    e.start_container(&id).await.unwrap();
    let status = rig.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at_ns >= status.created_at_ns && status.finished_at_ns >= status.started_at_ns);
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    assert!(matches!(events.recv().await.unwrap(), RuntimeEvent::ContainerStarted { .. }));
    assert!(matches!(events.recv().await.unwrap(), RuntimeEvent::ContainerExited { exit_code: 3, .. }));
    assert!(e.start_container(&id).await.is_err(), "a container runs once");
    e.remove_container(&id).await.unwrap();
    e.remove_container(&id).await.unwrap();
    assert!(e.container(&id).await.unwrap_err().is_not_found());
    e.stop_sandbox(&sandbox).await.unwrap();
    e.stop_sandbox(&sandbox).await.unwrap();
    assert_eq!(e.sandbox(&sandbox).await.unwrap().state, SandboxState::NotReady);
    e.remove_sandbox(&sandbox).await.unwrap();
    e.remove_sandbox(&sandbox).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starting_is_quick() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); 5];
    for i in 0..20 {
        let mut t = Instant::now();
        let mut lap = |k: usize| {
            times[k].push(t.elapsed());
            t = Instant::now();
        };
        let pod = e.run_sandbox(rig.pod(&format!("q{i}"))).await.unwrap();
        lap(0);
        let c = e.create_container(&pod, sh("exec sleep 100")).await.unwrap();
        lap(1);
        e.start_container(&c).await.unwrap();
        lap(2);
        e.stop_container(&c, Duration::ZERO).await.unwrap();
        lap(3);
        e.remove_sandbox(&pod).await.unwrap();
        lap(4);
    }
    let mut all = Duration::ZERO;
    for (what, mut t) in ["sandbox", "create", "start", "stop", "remove"].iter().zip(times) {
        t.sort();
        eprintln!("{what}: {:?} median, {:?} slowest", t[10], t[19]);
        all += t[10];
    }
    // Far above what it takes: this catches a wait that crept in, not a busy machine.
    assert!(all < Duration::from_millis(200), "{all:?}");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once() {
    let rig = std::sync::Arc::new(Rig::new().await);
    let t = Instant::now();
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let rig = std::sync::Arc::clone(&rig);
            tokio::spawn(async move {
                let (sandbox, id) =
                    rig.run(rig.pod(&format!("m{i}")), sh(&format!("echo {i}; exit {i}"))).await;
                let status = rig.wait(&id).await;
                assert_eq!((status.exit_code, rig.log(&status)), (i, format!("{i}\n")));
                rig.engine().remove_sandbox(&sandbox).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    eprintln!("40 pods made, run and removed: {:?}", t.elapsed());
    std::sync::Arc::into_inner(rig).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_sees_the_processes_of_another() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let (sandbox, target) =
        rig.run(rig.pod("t"), sh("while ! test -e /go; do sleep 0.05; done; exit 4")).await;
    let mut debug = sh("ps; kill -0 1 && echo there; exec sleep 1000");
    debug.name = "debug".into();
    debug.log_path = "debug/0.log".into();
    debug.pid_target = Some(target.clone());
    let debug = e.create_container(&sandbox, debug).await.unwrap();
    e.start_container(&debug).await.unwrap();
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let (of_target, of_debug) = (e.container(&target).await.unwrap(), e.container(&debug).await.unwrap());
    assert_eq!(namespace(of_target.pid), namespace(of_debug.pid));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !rig.log(&of_debug).contains("there\n") {
        assert!(std::time::Instant::now() < end, "{}", rig.log(&of_debug));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(rig.log(&of_debug).contains("test -e /go"), "{}", rig.log(&of_debug));
    // It cannot outlive the namespace, and does not keep it.
    e.exec_sync(&target, argv(&["touch", "/go"]), None).await.unwrap();
    assert_eq!(rig.wait(&target).await.exit_code, 4);
    assert_eq!(rig.wait(&debug).await.exit_code, 137);
    let mut late = sh("exit 0");
    late.name = "late".into();
    late.pid_target = Some(target.clone());
    let late = e.create_container(&sandbox, late).await.unwrap();
    let error = e.start_container(&late).await.unwrap_err().to_string();
    assert!(error.contains("does not run"), "{error}");
    rig.finish().await;
}

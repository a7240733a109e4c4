//! What containers and the machine do to a runtime: orphans, closed output, a full disk, a cgroup that is taken away.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use yare_runtime::*;

/// Waits until `done`.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A small disk; unmounted when the test ends.
struct Disk(PathBuf);

impl Disk {
    fn new(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        mount(Some("none"), &at, Some("tmpfs"), MsFlags::empty(), Some(&*format!("size={size}"))).unwrap();
        Self(at)
    }

    fn resize(&self, size: &str) {
        let options = format!("size={size}");
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(&*options)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// State and parent of a process, by `/proc/PID/stat`.
fn stat(pid: &str) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// Children of a process that have ended and were not waited for.
fn zombies(parent: i32) -> Vec<String> {
    let names = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.file_name());
    let pids = names.filter_map(|n| n.into_string().ok()).filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    pids.filter(|pid| stat(pid) == Some(('Z', parent))).collect()
}

/// Leaves orphans: children of children that end later than those.
const ORPHANS: &str = "for i in 1 2 3 4 5 6 7 8; do sh -c 'sh -c \"sleep 0.3; exit 0\" & exit 0'; done; echo left; \
                       while ! test -e /go; do sleep 0.05; done; exit 3";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_buried() {
    let rig = Rig::new().await;
    let e = rig.engine();
    for (name, pid) in
        [("own", NamespaceMode::Container), ("shared", NamespaceMode::Pod), ("host", NamespaceMode::Node)]
    {
        let mut pod = rig.pod(name);
        pod.namespaces.pid = pid;
        let (sandbox, id) = rig.run(pod, sh(ORPHANS)).await;
        let shim = e.sandbox(&sandbox).await.unwrap().shim_pid;
        let status = e.container(&id).await.unwrap();
        until("the container starts", || rig.log(&status) == "left\n").await;
        // The first process of the namespace: the container's, the pod's, or (on the node's) the shim.
        let children = |parent: i32| {
            let text =
                std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
            text.split_whitespace().map(|p| p.parse::<i32>().unwrap()).collect::<Vec<_>>()
        };
        until("orphans are there no more", || {
            let parents = children(shim).into_iter().chain([shim]);
            parents.into_iter().all(|parent| {
                let comm = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
                zombies(parent).is_empty() && (comm != "pause\n" || children(parent).is_empty())
            }) && (pid != NamespaceMode::Node || children(shim).len() == 1)
        })
        .await;
        e.exec_sync(&id, argv(&["touch", "/go"]), None).await.unwrap();
        assert_eq!(rig.wait(&id).await.exit_code, 3, "{name}");
        e.remove_sandbox(&sandbox).await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_output_is_not_the_end() {
    let rig = Rig::new().await;
    let e = rig.engine();
    for (name, pid) in [("own", NamespaceMode::Container), ("shared", NamespaceMode::Pod)] {
        let mut pod = rig.pod(name);
        pod.namespaces.pid = pid;
        let closes = "echo before; exec <&- >&- 2>&-; while ! test -e /go; do sleep 0.02; done; exit 7";
        let (sandbox, id) = rig.run(pod, sh(closes)).await;
        // One that ends while a child still holds its output, in a namespace that lives on.
        let mut holder = sh("sleep 1000 & echo gone; exit 8");
        holder.name = "holder".into();
        holder.log_path = "holder/0.log".into();
        let holder = e.create_container(&sandbox, holder).await.unwrap();
        e.start_container(&holder).await.unwrap();
        let status = rig.wait(&holder).await;
        assert_eq!((status.exit_code, rig.log(&status).as_str()), (8, "gone\n"), "{name}");
        let status = e.container(&id).await.unwrap();
        until("the first line", || rig.log(&status) == "before\n").await;
        // The container ends when it sees the file, and what runs in it with it.
        let out = e.exec_sync(&id, argv(&["sh", "-c", "echo still here; touch /go"]), None).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "still here\n", "{name}");
        assert_eq!(rig.wait(&id).await.exit_code, 7, "{name}");
        e.remove_sandbox(&sandbox).await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_log_lines_and_nothing_else() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let disk = Disk::new(rig.dir.path().join("logs/full"), "1m");
    let talks = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"line $i of a log that does not fit on its disk\"; done; \
                 touch /talked; while ! test -e /go; do sleep 0.02; done; echo after; exit 0";
    let (_, id) = rig.run(rig.pod("full"), sh(talks)).await;
    let talked =
        async || e.exec_sync(&id, argv(&["sh", "-c", "test -e /talked"]), None).await.unwrap().exit_code == 0;
    let end = Instant::now() + Duration::from_secs(30);
    while !talked().await {
        assert!(Instant::now() < end, "the container hangs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = e.container(&id).await.unwrap();
    e.exec_sync(&id, argv(&["sh", "-c", "echo hardly >/proc/1/fd/1"]), None).await.unwrap();
    disk.resize("4m");
    e.exec_sync(&id, argv(&["touch", "/go"]), None).await.unwrap();
    let ended = rig.wait(&id).await;
    assert_eq!(ended.exit_code, 0);
    let text = std::fs::read_to_string(&status.log_path).unwrap();
    let lines = text.lines().count();
    assert!(lines < 20_000 && text.ends_with(" stdout F after\n"), "{lines} lines, {} bytes", text.len());
    let broken = text.lines().find(|line| {
        let mut words = line.splitn(4, ' ');
        let stamp = words.next().unwrap_or_default();
        let content = words.nth(2).unwrap_or_default();
        stamp.len() != "2026-01-01T00:00:00.000000000Z".len()
            || !(["hardly", "after"].contains(&content) || content.ends_with("does not fit on its disk"))
    });
    assert_eq!(broken, None, "a line is not whole");
    e.remove_sandbox(&ended.sandbox_id).await.unwrap();
    drop(disk);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_an_image_whole() {
    let mut rig = Rig::new().await;
    let archive = rig.dir.path().join("large.tar");
    let layer = image::layer(&[image::Entry::File("large", 0o644, &vec![7; 3 << 20])]);
    image::docker_archive(&archive, "yare.test/large", &[layer], serde_json::json!({"Cmd": ["sh"]}));
    // A store of its own on a small disk.
    rig.engine = None;
    let images = rig.dir.path().join("data/images");
    std::fs::remove_dir_all(&images).unwrap();
    let disk = Disk::new(images.clone(), "2m");
    rig.open().await;
    let files = |dir: &Path| {
        let mut all = Vec::new();
        let mut open = vec![dir.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    open.push(entry.path());
                } else if meta.len() > 4096 {
                    all.push(entry.path());
                }
            }
        }
        all
    };
    for round in 0..3 {
        let error = rig.engine().images().import(&archive, None).unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(files(&images), Vec::<PathBuf>::new(), "round {round}");
    }
    assert!(rig.engine().images().list().is_empty());
    disk.resize("16m");
    rig.engine().images().import(&archive, None).unwrap();
    assert_eq!(rig.engine().images().list().len(), 1);
    rig.engine = None;
    drop(disk);
    rig.open().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_cgroup_was_taken_away_still_stops() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let (sandbox, id) =
        rig.run(rig.pod("bare"), sh("trap 'exit 5' TERM; while :; do sleep 0.05; done")).await;
    let group = |hierarchy: &Path| hierarchy.join(&rig.name).join("pod-bare");
    let mut taken = 0;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()) {
        let below = std::fs::read_dir(group(&hierarchy)).into_iter().flatten().flatten().map(|e| e.path());
        for dir in below.filter(|p| p.is_dir()) {
            until("its processes leave", || {
                for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                    let _ = std::fs::write(hierarchy.join("cgroup.procs"), pid);
                }
                std::fs::remove_dir(&dir).is_ok() || !dir.exists()
            })
            .await;
            taken += 1;
        }
    }
    assert!(taken > 0, "no cgroup was found");
    // What is asked of it is answered, with or without success.
    let stats = e.container_stats(std::slice::from_ref(&id)).await.unwrap();
    assert_eq!(stats[0].memory_usage_bytes, 0);
    let update = Resources { cpu_shares: Some(512), ..Resources::default() };
    assert!(e.update_resources(&id, update).await.is_err());
    let out = e.exec_sync(&id, argv(&["echo", "x"]), Some(Duration::from_secs(10))).await;
    assert!(out.is_err() || out.unwrap().stdout == b"x\n");
    assert_eq!(e.container(&id).await.unwrap().state, ContainerState::Running);
    e.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(e.container(&id).await.unwrap().exit_code, 5);
    // Another one in the same pod has its cgroup again.
    let mut second = sh("exit 6");
    second.name = "second".into();
    let second = e.create_container(&sandbox, second).await.unwrap();
    e.start_container(&second).await.unwrap();
    assert_eq!(rig.wait(&second).await.exit_code, 6);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_writes_without_end_costs_no_memory() {
    const LINES: usize = 300_000;
    let rig = Rig::new().await;
    let e = rig.engine();
    let writes =
        format!("yes a line that is written over and over again | head -n {LINES}; echo end >&2; exit 4");
    let (sandbox, id) = rig.run(rig.pod("loud"), sh(&writes)).await;
    let shim = e.sandbox(&sandbox).await.unwrap().shim_pid;
    let status = e.container(&id).await.unwrap();
    let private_kib = || {
        let text = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap_or_default();
        let of = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        text.lines().filter(|l| l.starts_with("Private_")).map(of).sum::<u64>()
    };
    // Rotated while it writes: nothing is lost in between.
    let mut files = Vec::new();
    let mut most = 0;
    let end = Instant::now() + Duration::from_secs(60);
    while e.container(&id).await.unwrap().state == ContainerState::Running {
        assert!(Instant::now() < end, "the container hangs");
        most = most.max(private_kib());
        let moved = status.log_path.with_extension(files.len().to_string());
        if std::fs::rename(&status.log_path, &moved).is_ok() {
            files.push(moved);
            // It may have ended meanwhile.
            let _ = e.reopen_log(&id).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(e.container(&id).await.unwrap().exit_code, 4);
    files.push(status.log_path.clone());
    let texts: Vec<String> = files.iter().map(|f| std::fs::read_to_string(f).unwrap_or_default()).collect();
    let lines = texts.iter().flat_map(|t| t.lines());
    assert_eq!(
        lines.filter(|l| l.ends_with(" stdout F a line that is written over and over again")).count(),
        LINES
    );
    assert!(texts.iter().any(|t| t.contains(" stderr F end\n")));
    assert!(most < 4096, "the shim grew to {most} KiB");
    e.remove_sandbox(&sandbox).await.unwrap();
    rig.finish().await;
}

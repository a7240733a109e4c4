//! Isolation: what a container is and may not do.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use yare_runtime::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn low_ports_and_pings_are_for_everybody() {
    const SETTINGS: [&str; 2] = ["ip_unprivileged_port_start", "ping_group_range"];
    let of_machine = || SETTINGS.map(|s| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{s}")).unwrap());
    let before = of_machine();
    let rig = Rig::new().await;
    let range = IdMapping { host_id: 700_000, container_id: 0, length: 65_536 };
    let users = Some(UserNamespace { uids: vec![range], gids: vec![range] });
    let told = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned())];
    let refused = "nc: bind: Permission denied\n0\n";
    let cases = [
        ("all", None, [].into(), "0\n0 2147483647\n", "1\n"),
        ("told", None, told.into(), "1024\n0 2147483647\n", refused),
        // The kernel's own range, seen from where its groups are nobody's.
        ("users", users, [].into(), "0\n65534 65534\n", "1\n"),
    ];
    for (name, user, sysctls, settings, said) in cases {
        let mut pod = rig.pod(name);
        pod.namespaces.user = user;
        pod.sysctls = sysctls;
        let mut config = sh(
            "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start; tr '\\t' ' ' < ping_group_range; nc -l -p 80 2>&1 & sleep 0.5; cat /proc/net/tcp /proc/net/tcp6 | grep -c ':0050 '",
        );
        config.security.uid = Some(1000);
        config.security.drop_caps = vec!["ALL".into()];
        let (_, id) = rig.run(pod, config).await;
        let status = rig.wait(&id).await;
        assert_eq!(rig.log(&status), format!("{settings}{said}"), "{name}");
    }
    assert_eq!(of_machine(), before, "the machine's own are not touched");
    rig.finish().await;
}

/// Scripts, what changes in the configuration, and what they must print.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_and_limits() {
    let rig = Rig::new().await;
    type Change = fn(&mut ContainerConfig);
    let cases: [(&str, Change, &str); 22] = [
        ("id -u; id -g; id -G; echo $HOME", |_| {}, "0\n0\n0\n/root\n"),
        ("id -u; id -g; id -G; echo $HOME", |c| c.security.uid = Some(1000), "1000\n1001\n1001 77\n/tmp\n"),
        (
            "id -u; id -g; id -G",
            |c| {
                c.security.username = Some("app".into());
                c.security.gid = Some(5);
                c.security.supplemental_groups = vec![8, 9];
                c.security.supplemental_groups_strict = true;
            },
            "1000\n5\n5 8 9\n",
        ),
        ("pwd", |c| c.working_dir = "/made/here".into(), "/made/here\n"),
        (
            "echo $A $B; hostname",
            |c| c.env = vec![("A".into(), "1".into()), ("B".into(), "x=y".into())],
            "1 x=y\nHOST\n",
        ),
        (
            "touch /f 2>&1 || echo no; touch /dev/shm/x && echo yes",
            |c| c.security.readonly_rootfs = true,
            "touch: /f: Read-only file system\nno\nyes\n",
        ),
        ("grep CapBnd /proc/self/status", |_| {}, "CapBnd:\t00000000a80425fb\n"),
        (
            "grep CapEff /proc/self/status",
            |c| c.security.drop_caps = vec!["ALL".into()],
            "CapEff:\t0000000000000000\n",
        ),
        (
            "grep CapEff /proc/self/status",
            |c| {
                c.security.drop_caps = vec!["ALL".into()];
                c.security.add_caps = vec!["NET_ADMIN".into()];
            },
            "CapEff:\t0000000000001000\n",
        ),
        ("grep CapEff /proc/self/status", |c| c.security.uid = Some(1000), "CapEff:\t0000000000000000\n"),
        ("grep NoNewPrivs /proc/self/status", |c| c.security.no_new_privs = true, "NoNewPrivs:\t1\n"),
        ("grep '^Seccomp:' /proc/self/status", |_| {}, "Seccomp:\t0\n"),
        (
            "grep '^Seccomp:' /proc/self/status; unshare -m true 2>&1 | head -1",
            |c| c.security.seccomp = SeccompProfile::RuntimeDefault,
            "Seccomp:\t2\nunshare: unshare(0x20000): Operation not permitted\n",
        ),
        (
            "grep '^Seccomp:' /proc/self/status; id -u",
            |c| {
                c.security.seccomp = SeccompProfile::RuntimeDefault;
                c.security.no_new_privs = true;
                c.security.uid = Some(7);
            },
            "Seccomp:\t2\n7\n",
        ),
        (
            "cat /proc/interrupts | wc -c; ls /sys/firmware | wc -l; touch /proc/sys/kernel/hostname 2>&1",
            |c| {
                c.security.masked_paths = DEFAULT_MASKED_PATHS.map(String::from).into();
                c.security.readonly_paths = DEFAULT_READONLY_PATHS.map(String::from).into();
            },
            "0\n0\ntouch: /proc/sys/kernel/hostname: Read-only file system\n",
        ),
        (
            "echo hi > /dev/null && echo ok; mknod /tmp/sda b 8 0 && head -c1 /tmp/sda 2>&1",
            |_| {},
            "ok\nhead: /tmp/sda: Operation not permitted\n",
        ),
        ("echo $$; ls -d /proc/1", |_| {}, "1\n/proc/1\n"),
        ("grep -c . /proc/net/dev; ls /sys/class/net", |_| {}, "3\nlo\n"),
        ("echo x > /dev/stdout; echo y > /dev/stderr", |c| c.security.uid = Some(1000), "x\ny\n"),
        ("cat /proc/self/oom_score_adj", |c| c.resources.oom_score_adj = Some(500), "500\n"),
        (
            "ls -d /sys/fs/cgroup/*/ | wc -l | grep -q '^0' || echo some; touch /sys/fs/cgroup/x 2>/dev/null || echo ro",
            |_| {},
            "some\nro\n",
        ),
        ("cat /etc/hostname; grep nameserver /etc/resolv.conf", |_| {}, "HOST\nnameserver 10.43.0.10\n"),
    ];
    for (i, (script, change, expected)) in cases.iter().enumerate() {
        let mut pod = rig.pod(&format!("c{i}"));
        pod.dns.servers = vec!["10.43.0.10".into()];
        let mut config = sh(script);
        change(&mut config);
        let (sandbox, id) = rig.run(pod, config).await;
        let status = rig.wait(&id).await;
        assert_eq!(rig.log(&status), expected.replace("HOST", &format!("c{i}")), "{script} {status:?}");
        rig.engine().remove_sandbox(&sandbox).await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    let rig = Rig::new().await;
    let e = rig.engine();
    type Change = fn(&mut ContainerConfig);
    let cases: [(Change, i32, &str); 7] = [
        (|c| c.command = argv(&["foo"]), 127, "exec: \"foo\": executable file not found in $PATH"),
        (
            |c| c.command = argv(&["/foo/bar"]),
            127,
            "exec: \"/foo/bar\": stat /foo/bar: no such file or directory",
        ),
        (|c| c.command = argv(&["/etc"]), 126, "exec: \"/etc\": is a directory"),
        (|c| c.command = argv(&["/bin/noexec"]), 126, "exec: \"/bin/noexec\": permission denied"),
        (|c| c.command = argv(&["noexec"]), 126, "exec: \"noexec\": permission denied"),
        (
            |c| c.security.username = Some("nobody".into()),
            128,
            "unable to find user nobody: no matching entries in passwd file",
        ),
        (
            |c| {
                c.mounts = vec![Mount {
                    container_path: "/proc/x".into(),
                    host_path: "/etc".into(),
                    ..Mount::default()
                }]
            },
            128,
            "/proc",
        ),
    ];
    let sandbox = e.run_sandbox(rig.pod("p")).await.unwrap();
    for (i, (change, code, words)) in cases.iter().enumerate() {
        let mut config = sh("true");
        config.attempt = i as u32;
        change(&mut config);
        let id = e.create_container(&sandbox, config).await.unwrap();
        let error = e.start_container(&id).await.unwrap_err().to_string();
        assert!(error.starts_with("failed to create container: ") && error.contains(words), "{error}");
        let status = e.container(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, *code), "{error}");
        assert_eq!(status.reason, "ContainerCannotRun");
        assert_eq!(status.message, error);
    }
    let mut unknown = sh("true");
    unknown.image = "nope".into();
    unknown.attempt = 99;
    assert!(e.create_container(&sandbox, unknown).await.unwrap_err().is_not_found());
    let (_, id) = rig.run(rig.pod("q"), sh("sleep 100")).await;
    let error = e.exec_sync(&id, argv(&["foo"]), None).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "exec failed: unable to start container process: exec: \"foo\": executable file not found in $PATH"
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cgroups_hold() {
    let rig = Rig::new().await;
    let (status, _) = rig
        .script("head -c 100m /dev/zero | tail -c 90m | wc -c; sleep 1; echo alive", |c| {
            c.command = argv(&["sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=200M count=1"]);
            c.resources.memory_limit_bytes = Some(32 << 20);
            c.resources.memory_swap_limit_bytes = Some(32 << 20);
        })
        .await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let (status, log) = rig
        .script("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait", |c| {
            c.resources.pids_limit = Some(8)
        })
        .await;
    assert!(log.contains("can't fork") && status.exit_code != 0, "{log} {status:?}");
    let (_, id) = rig
        .run(rig.pod("limits"), {
            let mut c = sh("while :; do :; done");
            c.resources.cpu_shares = Some(512);
            c.resources.cpu_quota_us = Some(20_000);
            c.resources.cpu_period_us = Some(100_000);
            c.resources.memory_limit_bytes = Some(64 << 20);
            c
        })
        .await;
    let e = rig.engine();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let stats = e.stats().await.unwrap();
    assert_eq!(stats[0].id, id);
    assert_eq!(stats[0].memory_limit_bytes, 64 << 20);
    assert!(stats[0].cpu_usage_ns > 10_000_000 && stats[0].cpu_usage_ns < 200_000_000, "{:?}", stats[0]);
    assert!(stats[0].pids == 1 && stats[0].memory_usage_bytes > 0);
    let update =
        Resources { memory_limit_bytes: Some(128 << 20), cpu_quota_us: Some(-1), ..Resources::default() };
    e.update_resources(&id, update).await.unwrap();
    assert_eq!(e.stats().await.unwrap()[0].memory_limit_bytes, 128 << 20);
    assert_eq!(e.container(&id).await.unwrap().resources.cpu_shares, Some(512));
    rig.finish().await;
}

/// The engine's limits are those of each process; what this process may not give is given as far as it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_have_limits_of_their_own() {
    let mut rig = Rig::new().await;
    let show = "ulimit -Sn; ulimit -Hn; ulimit -c";
    let own = std::fs::read_to_string("/proc/self/limits").unwrap();
    let own = own.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let own: u64 = own.split_whitespace().nth(4).unwrap().parse().unwrap();
    let most = format!("100\n{own}\n0\n");
    // More than the kernel gives anybody, as long as `fs.nr_open` is what it is.
    for (files, expected) in [("nofile=100:200", "100\n200\n0\n"), ("nofile=100:-1", &most)] {
        rig.engine = None;
        let mut config = rig.config();
        config.ulimits = [files, "core=0"].map(|limit| limit.parse().unwrap()).into();
        rig.engine = Some(Engine::open(config).await.unwrap());
        let (_, log) = rig.script(show, |_| {}).await;
        assert_eq!(log, expected, "{files}");
        let (sandbox, id) = rig.run(rig.pod("stays"), sh("sleep 100")).await;
        let exec = rig.engine().exec_sync(&id, argv(&["sh", "-c", show]), None).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&exec.stdout), expected, "{files}");
        rig.engine().remove_sandbox(&sandbox).await.unwrap();
    }
    rig.finish().await;
}

//! A server that cannot start says why in one line, and one that needs no root starts without.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::ensure;
use yare_testkit::{Https, Namespace};

use crate::YARE;

/// Runs a server that cannot start; the one line that it wrote to its standard error.
fn complaint(namespace: &Namespace, command: &mut Command) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } = namespace.run(|| command.output())??;
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(!status.success(), "{command:?} succeeds:\n{out}{err}");
    ensure!(status.code().is_some(), "{command:?}: {status}\n{err}");
    ensure!(err.lines().count() == 1, "not one line:\n{err}");
    Ok(err.into_owned())
}

/// Adds the arguments of a control plane that keeps everything in `directory`.
fn server(program: &mut Command, directory: &Path) {
    program.args(["server", "--disable-agent", "--data-dir"]).arg(directory.join("data"));
    program
        .arg("--run-dir")
        .arg(directory.join("run"))
        .arg("--write-kubeconfig")
        .arg(directory.join("kubeconfig"));
}

/// Programs that take something away from the program that they run, and what that says then.
const LACKS: &[(&str, &[&str], &[&str])] = &[
    (
        "unshare",
        &["--mount", "sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"", "sh"],
        &["no cgroups are mounted: mount them (mount -t cgroup2 none /sys/fs/cgroup)"],
    ),
    (
        "setpriv",
        &["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
        &["root lacks CAP_SYS_ADMIN here, which mounts and namespaces need", "start that one as privileged"],
    ),
    (
        "setpriv",
        &["--bounding-set=-net_admin", "--inh-caps=-net_admin"],
        &["root lacks CAP_NET_ADMIN here, which the pod network needs"],
    ),
];

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    // Where another user can run it from; a hard link where the disk is the same.
    let binary = directory.path().join("yare");
    if fs::hard_link(YARE, &binary).is_err() {
        fs::copy(YARE, &binary)?;
    }
    let nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        command
    };

    // A port in use.
    let taken = namespace.run(|| TcpListener::bind("127.0.0.1:6443"))??;
    let mut command = Command::new(&binary);
    server(&mut command, directory.path());
    let line = complaint(&namespace, &mut command)?;
    for part in ["cannot listen on", ":6443", "another process uses this port", "choose another"] {
        ensure!(line.contains(part), "no {part:?} in {line}");
    }
    ensure!(line.matches("Address already in use").count() == 1, "{line}");
    ensure!(!directory.path().join("data").exists(), "something was written before the port was taken");
    drop(taken);

    // No root.
    let mut command = nobody();
    command.arg("server").arg("--data-dir").arg(directory.path().join("data"));
    let line = complaint(&namespace, &mut command)?;
    ensure!(line.contains("containers need root: run as root") && line.contains("--disable-agent"), "{line}");

    // What containers need of the machine, taken away one by one.
    for (program, args, parts) in LACKS {
        let mut command = Command::new(program);
        command.args(*args).arg(&binary).arg("server").arg("--data-dir").arg(directory.path().join("data"));
        let line = complaint(&namespace, &mut command)?;
        for part in parts.iter().chain(&["or run the control plane only with --disable-agent"]) {
            ensure!(line.contains(part), "no {part:?} in {line}");
        }
    }

    // A flag of the kubelet that is none.
    let mut command = Command::new(&binary);
    command.args(["server", "--kubelet-arg=no-such=1"]);
    let line = complaint(&namespace, &mut command)?;
    ensure!(line.contains("--kubelet-arg no-such is not known; known are"), "{line}");

    // Flags of kube-apiserver: one that is none, one that has no meaning here, one that is said twice.
    for (args, part) in [
        (&["--kube-apiserver-arg=no-such=1"][..], "kube-apiserver 1.36 has no flag no-such"),
        (
            &["--kube-apiserver-arg=etcd-servers=http://127.0.0.1:2379"],
            "objects are in this server's own store",
        ),
        (&["--kube-apiserver-arg=event-ttl=1h", "--event-ttl=2h"], "--event-ttl is given as well"),
        (
            &["--disable-agent", "--kube-apiserver-arg=tls-cipher-suites=TLS_RSA_WITH_RC4_128_SHA"],
            "Cipher suite TLS_RSA_WITH_RC4_128_SHA not supported or doesn't exist",
        ),
        (
            &["--disable-agent", "--kube-apiserver-arg=cors-allowed-origins=example.com"],
            "does not pin to start/end of host",
        ),
    ] {
        let mut command = Command::new(&binary);
        command.arg("server").arg("--data-dir").arg(directory.path().join("flags")).args(args);
        let line = complaint(&namespace, &mut command)?;
        ensure!(line.contains(part), "no {part:?} in {line}");
    }

    // A data directory that cannot be written, or is none.
    let mut command = nobody();
    server(&mut command, directory.path());
    let line = complaint(&namespace, &mut command)?;
    let data = directory.path().join("data").display().to_string();
    for part in ["--data-dir", &data, "Permission denied"] {
        ensure!(line.contains(part), "no {part:?} in {line}");
    }
    fs::write(directory.path().join("data"), "")?;
    let mut command = Command::new(&binary);
    server(&mut command, directory.path());
    let line = complaint(&namespace, &mut command)?;
    ensure!(line.contains("--data-dir") && line.contains(&data), "{line}");
    fs::remove_file(directory.path().join("data"))?;

    // Without root, the control plane alone runs.
    let own = directory.path().join("own");
    fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(65534), Some(65534))?;
    let mut command = nobody();
    server(&mut command, &own);
    let mut running = namespace.run(|| command.spawn())??;
    let ready = || -> anyhow::Result<bool> {
        let ca = fs::read_to_string(own.join("data/tls/ca.crt"))?;
        let client = Https::new(([127, 0, 0, 1], 6443).into(), &ca, "")?;
        Ok(namespace.run(|| client.get("/readyz"))??.code == 200)
    };
    let mut came = false;
    for _ in 0..300 {
        came = ready().unwrap_or(false);
        if came || running.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    running.kill()?;
    running.wait()?;
    ensure!(came, "the control plane does not start without root");
    Ok(())
}

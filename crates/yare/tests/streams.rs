//! What goes through a container's streams: logs, exec, attach, cp, port-forward.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, Options, Runtime};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";

yare_testkit::on_both! { logs exec_and_attach copies_and_forwards debuggers_and_full_logs }

const SOON: Duration = Duration::from_secs(15);

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: first
    image: yare.local/busybox:1
    command: [sh, -c, "echo one; echo two; echo three >&2; while :; do sleep 0.2; echo tick; done"]
  - name: second
    image: yare.local/busybox:1
    command: [sh, -c, "echo I am second; exec sleep 1000"]
---
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: OnFailure
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "if [ -e /m/x ]; then echo second run; exec sleep 1000; fi; touch /m/x; echo first run; exit 3"]
    volumeMounts: [{name: m, mountPath: /m}]
  volumes: [{name: m, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: echoer}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    stdin: true
    command: [sh, -c, "while read line; do echo got $line; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "mkdir /www; echo hello from web >/www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"#;

fn start(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.import_busybox(IMAGE)?;
    cluster.apply(PODS)?;
    cluster.ready(&["talker", "echoer", "web"])
}

fn logs(runtime: Runtime) {
    Cluster::test(YARE, Options::on(runtime), |cluster| {
        start(cluster)?;
        // A container runs before it has said anything.
        for (container, last) in [("first", "tick\n"), ("second", "I am second\n")] {
            cluster.kubectl_spawn(&["logs", "-f", "talker", "-c", container])?.says(last)?;
        }
        // Arguments, and what the output has to begin with.
        let cases: &[(&[&str], &str)] = &[
            (&["logs", "talker", "-c", "second"], "I am second\n"),
            (&["logs", "talker", "--tail=1"], "tick\n"),
            (&["logs", "talker", "-c", "second", "--limit-bytes=3"], "I a"),
            (&["logs", "talker", "-c", "second", "--prefix"], "[pod/talker/second] I am second\n"),
            (&["logs", "-l", "app=talker", "-c", "second"], "I am second\n"),
        ];
        for (args, want) in cases {
            let got = cluster.kubectl(args)?;
            ensure!(got.starts_with(want), "{args:?}: {got:?}");
        }
        ensure!(cluster.kubectl(&["logs", "talker", "--tail=1"])?.lines().count() == 1);
        // Standard error is in the log too. It has a pipe of its own: only the order within one stream is kept.
        let all = cluster.kubectl(&["logs", "talker"])?;
        ensure!(all.contains("three\n"), "{all:?}");
        ensure!(all.replacen("three\n", "", 1).starts_with("one\ntwo\n"), "{all:?}");
        let stamped = cluster.kubectl(&["logs", "talker", "-c", "second", "--timestamps"])?;
        ensure!(stamped.starts_with("20") && stamped.contains("Z I am second"), "{stamped}");
        let error = cluster.kubectl_fails(&["logs", "talker", "-c", "third"])?;
        ensure!(error.contains("container third is not valid for pod talker"), "{error}");

        let mut follow = cluster.kubectl_spawn(&["logs", "-f", "talker", "--tail=1"])?;
        for _ in 0..3 {
            follow.says("tick\ntick\ntick\n")?;
        }
        drop(follow);

        cluster.becomes("pod/twice", ".status.containerStatuses[0].restartCount", "1")?;
        cluster.ready(&["twice"])?;
        ensure!(cluster.kubectl(&["logs", "twice", "--previous"])? == "first run\n");
        ensure!(cluster.kubectl(&["logs", "twice"])? == "second run\n");
        let code =
            cluster.field("pod/twice", ".status.containerStatuses[0].lastState.terminated.exitCode")?;
        ensure!(code == "3", "{code}");

        // A follower sees the end.
        let mut follow = cluster.kubectl_spawn(&["logs", "-f", "talker", "-c", "second"])?;
        follow.says("I am second\n")?;
        cluster.kubectl(&["delete", "pod", "talker", "--wait=false"])?;
        follow.finish().map(drop)
    });
}

fn exec_and_attach(runtime: Runtime) {
    Cluster::test(YARE, Options::on(runtime), |cluster| {
        start(cluster)?;
        let (status, out, err) = cluster
            .kubectl_with(&["exec", "talker", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "")?;
        ensure!(
            status.code() == Some(7) && out == "out\n" && err.contains("err\n"),
            "{status} {out:?} {err:?}"
        );
        let big = "0123456789abcde\n".repeat(20_000);
        let (status, out, err) =
            cluster.kubectl_with(&["exec", "-i", "talker", "-c", "second", "--", "cat"], &big)?;
        ensure!(status.success() && out == big, "{status}, {} bytes of {}, {err}", out.len(), big.len());
        let error = cluster.kubectl_fails(&["exec", "talker", "--", "/no/such"])?;
        ensure!(error.contains("/no/such"), "{error}");
        let error = cluster.kubectl_fails(&["exec", "nobody", "--", "true"])?;
        ensure!(error.contains(r#"pods "nobody" not found"#), "{error}");

        let mut shell = cluster.kubectl_terminal(&["exec", "-it", "talker", "--", "sh"])?;
        shell.shows("#", SOON)?;
        shell.type_in("echo size: $(stty size); echo name: $(tty)\n")?;
        shell.shows("size: 37 101", SOON)?;
        shell.shows("name: /dev/pts/0", SOON)?;
        // Control-C reaches the command and not the shell.
        shell.type_in("sleep 1000\n")?;
        std::thread::sleep(Duration::from_millis(300));
        shell.type_in("\u{3}")?;
        shell.type_in("echo status $?\n")?;
        shell.shows("status 130", SOON)?;
        shell.type_in("exit 5\n")?;
        let (status, screen) = shell.finish(SOON)?;
        ensure!(status.code() == Some(5), "{status}: {screen}");

        let mut attached = cluster.kubectl_spawn(&["attach", "-i", "echoer"])?;
        attached.write("hello\n")?;
        attached.says("got hello\n")?;
        drop(attached);
        let mut again = cluster.kubectl_spawn(&["attach", "-i", "echoer"])?;
        again.write("again\n")?;
        again.says("got again\n")?;
        drop(again);
        ensure!(cluster.kubectl(&["logs", "echoer"])? == "got hello\ngot again\n");
        // A client without more to say is let go, and the container's input stays open.
        let (status, out, err) = cluster.kubectl_with(&["attach", "-i", "echoer"], "piped\n")?;
        ensure!(status.success(), "{status} {out:?} {err:?}");
        cluster.eventually(SOON, || {
            let log = cluster.kubectl(&["logs", "echoer"])?;
            ensure!(log.ends_with("got piped\n"), "{log}");
            Ok(())
        })?;

        let run = |name: &'static str, flags: &[&'static str], script: &'static str| {
            [&["run", name, "--restart=Never", "--image", IMAGE], flags, &["--", "sh", "-c", script]].concat()
        };
        let ran = cluster.kubectl(&run("once", &["--rm", "-i", "--quiet"], "sleep 1; echo ran"))?;
        ensure!(ran.contains("ran"), "{ran}");

        // An attach says nothing of how its container ended; kubectl run asks the pod for that.
        let fails = run("fails", &["-i", "--quiet"], "read x; exit 5");
        let (status, out, err) = cluster.kubectl_with(&fails, "x\n")?;
        ensure!(status.code() == Some(5) && err.contains("terminated (Error)"), "{status} {out:?} {err:?}");
        cluster.kubectl(&run("waits", &["-i", "--attach=false"], "read x; echo read $x; exit 5"))?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/waits"])?;
        let (status, out, err) = cluster.kubectl_with(&["attach", "-i", "waits"], "x\n")?;
        ensure!(status.success() && out == "read x\n", "{status} {out:?} {err:?}");
        Ok(())
    });
}

/// The address of a node is one at which it listens, though nobody gave it.
#[test]
fn a_server_for_its_own_machine_reaches_its_containers() {
    Cluster::test(YARE, Options::with(&["--bind-address", "127.0.0.1"]), |cluster| {
        start(cluster)?;
        let address = cluster.field("node/node-1", ".status.addresses[?(@.type=='InternalIP')].address")?;
        ensure!(address == "127.0.0.1", "{address}");
        ensure!(cluster.kubectl(&["exec", "talker", "-c", "second", "--", "echo", "out"])? == "out\n");
        ensure!(cluster.kubectl(&["logs", "talker", "-c", "second"])? == "I am second\n");
        Ok(())
    });
}

fn copies_and_forwards(runtime: Runtime) {
    Cluster::test(YARE, Options::on(runtime), |cluster| {
        start(cluster)?;
        let tree = cluster.path("tree");
        std::fs::create_dir_all(tree.join("below"))?;
        let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(tree.join("below/data"), &bytes)?;
        let text = |p: &std::path::Path| p.display().to_string();
        cluster.kubectl(&["cp", &text(&tree), "web:/tmp/tree"])?;
        let sum = cluster.shell("web", "wc -c </tmp/tree/below/data")?;
        ensure!(sum.trim() == bytes.len().to_string(), "{sum}");
        cluster.kubectl(&["cp", "web:/tmp/tree/below/data", &text(&cluster.path("back"))])?;
        ensure!(std::fs::read(cluster.path("back"))? == bytes, "the copy differs");

        for target in ["pod/web", "service/web"] {
            let port = if target == "pod/web" { ":8080" } else { ":80" };
            let mut forward = cluster.kubectl_spawn(&["port-forward", target, port])?;
            let said = forward.says("-> 8080")?.to_owned();
            let local =
                said.split("127.0.0.1:").nth(1).and_then(|s| s.split(' ').next()).context(said.clone())?;
            let address = SocketAddr::from(([127, 0, 0, 1], local.parse()?));
            // More than one connection goes through.
            for _ in 0..3 {
                let answer = cluster.http(address, "/")?;
                ensure!(answer.code == 200 && answer.body == "hello from web\n", "{answer:?}");
            }
        }
        Ok(())
    });
}

/// Counts aloud; a hundred lines at a time.
const COUNTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: counts}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "n=0; while [ $n -lt 20000 ]; do n=$((n+100)); seq $((n-99)) $n | sed 's/^/this is line number /'; sleep 0.02; done; exec sleep 1000"]
"#;

/// A debugger sees the processes of its target, and a log takes no more room than the configuration says.
fn debuggers_and_full_logs(runtime: Runtime) {
    let limits = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                  containerLogMaxSize: 16Ki\ncontainerLogMaxFiles: 3\ncontainerLogMonitorInterval: 3s\n";
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(limits.as_bytes()).expect("a file");
    let argument = format!("--kubelet-arg=config={}", file.path().display());
    let options = Options { runtime, ..Options::with(&[&argument]) };
    Cluster::test(YARE, options, |cluster| {
        cluster.import_busybox(IMAGE)?;
        cluster.apply(COUNTS)?;
        cluster.ready(&["counts"])?;

        let ps = "tr '\\0' ' ' </proc/1/cmdline; echo; echo I am not $$ but the target is 1";
        for (name, target) in [("sees", Some("main")), ("alone", None)] {
            let target = target.map(|t| format!("--target={t}"));
            let mut args = vec!["debug", "counts", "--profile=general", "--image", IMAGE, "-c", name];
            args.extend(target.as_deref());
            args.extend(["--", "sh", "-c", ps]);
            cluster.kubectl(&args)?;
            let end = format!(
                ".status.ephemeralContainerStatuses[?(@.name==\"{name}\")].state.terminated.exitCode"
            );
            cluster.becomes("pod/counts", &end, "0")?;
            let said = cluster.kubectl(&["logs", "counts", "-c", name])?;
            let own = said.starts_with("sh -c tr ");
            ensure!(own == target.is_none() && (own || said.starts_with("sh -c n=0;")), "{name}: {said}");
        }
        let error =
            cluster.kubectl_fails(&["debug", "counts", "--image", IMAGE, "--target=nobody", "--", "true"])?;
        ensure!(error.contains("nobody"), "{error}");

        // The files of the log: one that is written to, at most two before it, of which all but the last are compressed.
        let uid = cluster.field("pod/counts", ".metadata.uid")?;
        let directory = cluster.path("log").join(format!("pods/default_counts_{uid}/main"));
        let files = || -> anyhow::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&directory)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        let mut follow = cluster.kubectl_spawn(&["logs", "-f", "counts"])?;
        cluster.soon(|| {
            let names = files()?;
            ensure!(names.iter().any(|n| n.ends_with(".gz")), "{names:?}");
            Ok(())
        })?;
        // It is read on to its end across rotations.
        follow.says("this is line number 20000\n")?;
        drop(follow);
        cluster.soon(|| {
            let names = files()?;
            let zipped = names.iter().filter(|n| n.ends_with(".gz")).count();
            ensure!(names.len() == 3 && zipped == 1 && names[0] == "0.log", "{names:?}");
            Ok(())
        })
    });
}

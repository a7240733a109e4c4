//! Exec, attach, terminals, port-forward, logs.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use yare_runtime::*;

async fn read_all(stream: Option<BoxRead>) -> String {
    let mut text = Vec::new();
    let mut stream = stream.unwrap();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.unwrap().unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_runs_in_the_container() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let mut config = sh("sleep 1000");
    config.env = vec![("COLOR".into(), "blue".into())];
    config.security.uid = Some(1000);
    let (_, id) = rig.run(rig.pod("x"), config).await;
    let out = e
        .exec_sync(&id, argv(&["sh", "-c", "id -u; echo $COLOR $HOME; hostname; echo e >&2; exit 7"]), None)
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "1000\nblue /tmp\nx\n");
    assert_eq!((String::from_utf8_lossy(&out.stderr).as_ref(), out.exit_code), ("e\n", 7));
    let out = e.exec_sync(&id, argv(&["ps"]), None).await.unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("sleep 1000"), "the same PID namespace");
    let timeout = Some(Duration::from_millis(200));
    let error = e.exec_sync(&id, argv(&["sleep", "30"]), timeout).await.unwrap_err();
    assert_eq!(error.code(), "DeadlineExceeded");
    let big = e.exec_sync(&id, argv(&["dd", "if=/dev/zero", "bs=1M", "count=20"]), None).await.unwrap();
    assert_eq!(big.stdout.len(), 16 << 20);
    // Half close: the process sees the end of its input and answers afterwards.
    let s = e.exec(&id, argv(&["sh", "-c", "cat; echo end"]), false, true).await.unwrap();
    let mut stdin = s.stdin.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    assert_eq!(read_all(s.stdout).await, "hello\nend\n");
    assert_eq!(s.exit.await.unwrap(), 0);
    let ended = e.exec(&id, argv(&["sh", "-c", "kill -9 $$"]), false, false).await.unwrap();
    assert_eq!(ended.exit.await.unwrap(), 137);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_with_a_terminal() {
    let rig = Rig::new().await;
    let (_, id) = rig.run(rig.pod("t"), sh("sleep 1000")).await;
    let s = rig
        .engine()
        .exec(
            &id,
            argv(&["sh", "-c", "read x; stty size; echo $x $TERM; tty 2>/dev/null; exit 4"]),
            true,
            true,
        )
        .await
        .unwrap();
    s.resize.send((120, 40)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut stdin = s.stdin.unwrap();
    stdin.write_all(b"hey\n").await.unwrap();
    let text = read_all(s.stdout).await;
    assert!(text.contains("40 120\r\nhey xterm\r\n"), "{text:?}");
    assert!(s.stderr.is_none());
    assert_eq!(s.exit.await.unwrap(), 4);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_sees_output_and_gives_input() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let mut config = sh("while read l; do echo got $l; echo err $l >&2; done; echo over");
    config.stdin = true;
    config.stdin_once = true;
    let (_, id) = rig.run(rig.pod("a"), config).await;
    let s = e.attach(&id, false, true).await.unwrap();
    let mut stdin = s.stdin.unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    assert_eq!(read_all(s.stdout).await, "got one\ngot two\nover\n");
    assert_eq!(read_all(s.stderr).await, "err one\nerr two\n");
    assert_eq!(s.exit.await.unwrap(), 0);
    let status = rig.wait(&id).await;
    let log = rig.log(&status);
    assert!(log.contains("got two\n") && log.contains("over\n"), "the log has it, too: {log}");
    assert_eq!(e.attach(&id, false, true).await.err().unwrap().code(), "FailedPrecondition");

    let mut config = sh("read x; echo =$x=; stty size; exit 3");
    config.tty = true;
    config.stdin = true;
    let (_, id) = rig.run(rig.pod("b"), config).await;
    let s = e.attach(&id, false, true).await.unwrap();
    s.resize.send((90, 30)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    s.stdin.unwrap().write_all(b"w\n").await.unwrap();
    let text = read_all(s.stdout).await;
    assert!(text.contains("=w=\r\n30 90"), "{text:?}");
    assert_eq!(s.exit.await.unwrap(), 0, "the container's own end is told by its status");
    assert_eq!(rig.wait(&id).await.exit_code, 3);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_that_is_kept_open_outlives_its_clients() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let mut config = sh("while read l; do echo got $l; done; echo over; sleep 1000");
    config.stdin = true;
    let (_, id) = rig.run(rig.pod("a"), config).await;
    for line in ["one", "two"] {
        let s = e.attach(&id, false, true).await.unwrap();
        let (mut stdin, mut stdout) = (s.stdin.unwrap(), s.stdout.unwrap());
        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut text = vec![0; "got one\n".len()];
        stdout.read_exact(&mut text).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&text), format!("got {line}\n"));
        // The client is done: its session ends, and nothing else does.
        stdin.shutdown().await.unwrap();
        assert_eq!(read_all(Some(stdout)).await, "");
        assert_eq!(s.exit.await.unwrap(), 0);
    }
    let mut config = sh("while read l; do echo got $l; done; echo over");
    config.stdin = true;
    config.stdin_once = true;
    let (_, once) = rig.run(rig.pod("b"), config).await;
    // Who wants no input does not take the only one.
    let watches = e.attach(&once, false, false).await.unwrap();
    assert!(watches.stdin.is_none());
    let s = e.attach(&once, false, true).await.unwrap();
    let mut stdin = s.stdin.unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    assert_eq!(read_all(s.stdout).await, "got one\nover\n");
    assert_eq!(read_all(watches.stdout).await, "got one\nover\n");
    assert_eq!(watches.exit.await.unwrap(), 0);
    assert_eq!(e.container(&id).await.unwrap().state, ContainerState::Running);
    e.stop_container(&id, Duration::ZERO).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_loses_nothing() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let mut config = sh("read go; seq 1 200000");
    config.stdin = true;
    let (_, id) = rig.run(rig.pod("slow"), config).await;
    let s = e.attach(&id, false, true).await.unwrap();
    let gone = e.attach(&id, false, true).await.unwrap();
    drop(gone.stdout);
    s.stdin.unwrap().write_all(b"\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let text = read_all(s.stdout).await;
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    assert_eq!(text.len(), expected.len());
    assert!(text == expected);
    let status = rig.wait(&id).await;
    assert_eq!(rig.log(&status), expected);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_reopened_after_rotation() {
    let rig = Rig::new().await;
    let (_, id) = rig
        .run(rig.pod("r"), sh("echo a; while ! test -e /go; do sleep 0.02; done; echo b; sleep 1000"))
        .await;
    let e = rig.engine();
    let path = e.container(&id).await.unwrap().log_path;
    while !std::fs::read_to_string(&path).unwrap().ends_with("a\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    e.reopen_log(&id).await.unwrap();
    e.exec_sync(&id, argv(&["touch", "/go"]), None).await.unwrap();
    for _ in 0..400 {
        if std::fs::read_to_string(&path).unwrap().ends_with("b\n") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(rig.log(&e.container(&id).await.unwrap()), "b\n");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_into_the_pod() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let (sandbox, id) = rig.run(rig.pod("f"), sh("while :; do echo hello | nc -l -p 8080; done")).await;
    let mut stream = loop {
        match e.port_forward(&sandbox, 8080).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut text = String::new();
    stream.write_all(b"x\n").await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello\n");
    let error = e.port_forward(&sandbox, 9).await.err().unwrap().to_string();
    assert!(error.contains("failed to connect to localhost:9 inside pod f"), "{error}");
    e.stop_container(&id, Duration::ZERO).await.unwrap();
    rig.finish().await;
}

//! kill -9 under load, 200 times on one directory: no acknowledged write is lost, none is there twice, none is
//! there by half, and revisions only grow. The writing process is this test executable itself.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{TestIndexer, open, padded, value, write};
use yare_store::{Expect, Op, Options, Store};

const DIR: &str = "YARE_STORE_KILL_DIR";
const WRITERS: usize = 8;
const KILLS: usize = 200;
/// Both are written by every transaction, so that half of one would show.
const KINDS: [&str; 2] = ["pods", "apps/deployments"];

fn options(dir: &std::path::Path) -> Options {
    let mut options = Options::new(dir.join("db"));
    // Small, so that segments and checkpoints come and go while the kills hit.
    options.segment_bytes = 40_000;
    options.checkpoint_bytes = 120_000;
    options
}

/// The writing process; an ordinary test run finds no directory in the environment and has nothing to do.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(options(dir.as_ref())).await;
        let tasks: Vec<_> = (0..WRITERS).map(|w| tokio::spawn(write_forever(store.clone(), w))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

async fn write_forever(store: Store, writer: usize) {
    let key = format!("ns/{writer}");
    let mut current = store.get(KINDS[0], &key);
    loop {
        let next = current.as_ref().map_or(0, |o| value(o)) + 1;
        let expect = current.as_ref().map_or(Expect::Absent, |o| Expect::Revision(o.revision));
        let padding = (next as usize * 7919 + writer * 104_729) % 3000;
        let writes = KINDS.map(|kind| write(kind, &key, expect, Op::Put(padded(next, padding))));
        let objects = store.commit(writes.into()).await.unwrap();
        current = Some(objects[0].clone());
        // One write to the pipe: it arrives whole or not at all.
        let line = format!("ack {writer} {next} {}\n", objects[0].revision);
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

/// Kills and reaps the process also when the test fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writer, number and revision of a whole line. The test harness may have begun the line with words of its own.
fn acknowledgement(line: &str) -> Option<[u64; 3]> {
    let (_, numbers) = line.strip_suffix('\n')?.split_once("ack ")?;
    let numbers: Vec<u64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
    numbers.try_into().ok()
}

#[test]
fn two_hundred_kills_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 0x5EED_u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    let mut known = [(0u64, 0u64); WRITERS];
    let mut revision = 1;
    let mut acknowledged = 0;
    for round in 0..KILLS {
        let mut victim = Victim(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture", "--test-threads=1"])
                .env(DIR, dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut output = BufReader::new(victim.0.stdout.take().unwrap());
        let mut lines = Vec::new();
        // Most kills come after some acknowledgements, some while the process starts and recovers.
        let acks = if random(5) == 0 { 0 } else { 1 + random(150) };
        while lines.len() < acks as usize {
            let mut line = String::new();
            if output.read_line(&mut line).unwrap() == 0 {
                let mut errors = String::new();
                victim.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("round {round}: the writer ended by itself: {errors}");
            }
            lines.extend(acknowledgement(&line));
        }
        std::thread::sleep(Duration::from_micros(random(if acks == 0 { 15_000 } else { 1500 })));
        victim.0.kill().unwrap();
        victim.0.wait().unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        lines.extend(rest.split_inclusive('\n').filter_map(acknowledgement));

        let before = known;
        let mut last = revision;
        let mut seen = Vec::new();
        for [writer, next, at] in lines {
            let (n, r) = &mut known[writer as usize];
            // The first acknowledgement may follow a write whose acknowledgement the last kill swallowed; the
            // check after that kill has counted it.
            assert_eq!(next, *n + 1, "round {round}: {writer} {next} {at}");
            assert!(at > *r, "round {round}: {writer} {next} {at}");
            (*n, *r) = (next, at);
            last = last.max(at);
            seen.push(at);
        }
        seen.sort_unstable();
        assert!(seen.windows(2).all(|w| w[0] < w[1]), "round {round}: a revision was given out twice");
        acknowledged += seen.len();

        let store = Store::open_blocking(options(dir.path()), Arc::new(TestIndexer)).unwrap();
        let mut written = 0;
        for (writer, (n, r)) in known.iter_mut().enumerate() {
            let [a, b] = KINDS.map(|kind| store.get(kind, &format!("ns/{writer}")));
            let state =
                |o: &Option<Arc<yare_store::Object>>| o.as_ref().map_or((0, 0), |o| (value(o), o.revision));
            assert_eq!(state(&a), state(&b), "round {round}: half a transaction");
            let (now, at) = state(&a);
            assert!(
                now == *n && at == *r || now == *n + 1 && at > *r,
                "round {round}, writer {writer}: {now} at {at}, acknowledged {n} at {r}"
            );
            written += now - before[writer].0;
            (*n, *r) = (now, at);
        }
        assert!(store.revision() >= last);
        assert_eq!(store.revision() - revision, written, "round {round}: one revision per transaction");
        revision = store.revision();
    }
    assert!(acknowledged > KILLS * 20, "only {acknowledged} writes were acknowledged");
}

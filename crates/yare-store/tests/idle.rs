//! An idle store wakes no thread. Alone in its file, because it looks at all threads of the process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{one, open, put};
use yare_store::Options;

/// How often the store's threads have gone to sleep so far, and how many there are.
fn sleeps() -> (u64, usize) {
    let (mut sleeps, mut threads) = (0, 0);
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("yare-") {
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            sleeps += line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or_default();
            threads += 1;
        }
    }
    (sleeps, threads)
}

#[tokio::test]
async fn an_idle_store_wakes_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Options::new(dir.path().join("db"))).await;
    one(&store, put("pods", "a", 1)).await.unwrap();
    let _watcher = store.watch("pods", store.revision()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let before = sleeps();
        assert_eq!(before.1, 1, "the writer is the only thread");
        std::thread::sleep(Duration::from_millis(300));
        // The first look may come before the writer has gone to sleep.
        if sleeps() == before {
            break;
        }
        assert!(Instant::now() < deadline, "the writer keeps waking up");
    }
}

//! The contract of the store as its users see it: transactions, reads, history, watches, restart.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use common::{TestIndexer, delete, draft, one, open, put, value, write};
use proptest::prelude::*;
use yare_store::sim::SimDisk;
use yare_store::{
    Clock, CommitError, EventKind, Expect, HistoryBounds, Lagged, Op, OpenError, Options, SnapshotError,
    Store,
};

fn simulated() -> Options {
    let mut options = Options::new("/data");
    options.disk = Arc::new(SimDisk::new(1));
    options
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing_at_one_revision() {
    let store = open(simulated()).await;
    assert_eq!((store.revision(), store.oldest(), store.kinds().len()), (1, 1, 0));
    let made = store.commit(vec![put("pods", "a/x", 1), put("apps/deployments", "a/y", 2)]).await.unwrap();
    assert_eq!(
        made.iter().map(|o| (o.revision, o.created, value(o))).collect::<Vec<_>>(),
        [(2, 2, 1), (2, 2, 2)]
    );
    assert_eq!(made[0].attrs.label("v"), Some("1"));
    assert_eq!(made[0].attrs.field("metadata.name"), Some("n1"));
    assert!(Arc::ptr_eq(&made[0], &store.get("pods", "a/x").unwrap()));

    // (what is tried beside a good write, what is answered)
    let absent = |key: &str| write("pods", key, Expect::Absent, Op::Put(draft(9)));
    let cases = [
        (absent("a/x"), r#"pods "a/x" already exists"#),
        (
            write("pods", "a/x", Expect::Revision(1), Op::Put(draft(9))),
            r#"pods "a/x" was changed at revision 2"#,
        ),
        (write("pods", "a/x", Expect::Revision(1), Op::Delete), r#"pods "a/x" was changed at revision 2"#),
        (write("pods", "a/z", Expect::Revision(2), Op::Put(draft(9))), r#"pods "a/z" not found"#),
        (delete("pods", "a/z"), r#"pods "a/z" not found"#),
        (write("pods", "a/z", Expect::Revision(2), Op::Check), r#"pods "a/z" not found"#),
        (write("pods", "a/x", Expect::Absent, Op::Check), r#"pods "a/x" already exists"#),
        (write("pods", "a/x", Expect::Revision(3), Op::Check), r#"pods "a/x" was changed at revision 2"#),
        (put("pods", "good", 1), r#"invalid transaction: pods "good" is written twice"#),
        (write("pods", "a/x", Expect::Absent, Op::Delete), "invalid transaction"),
        (put("pods", "", 1), "invalid transaction"),
        (put("", "x", 1), "invalid transaction"),
        (put("pods", &"k".repeat(2000), 1), "invalid transaction"),
        (
            write(
                "pods",
                "x",
                Expect::Anything,
                Op::Put(yare_store::Draft { json: b"{}".to_vec(), rv_at: 1, attrs: None }),
            ),
            r#"invalid transaction: pods "x": rv_at is not at an empty resourceVersion"#,
        ),
        (
            write("pods", "x", Expect::Anything, Op::Put(common::padded(1, 9 << 20))),
            r#"invalid transaction: pods "x" has"#,
        ),
    ];
    for (bad, message) in cases {
        let error = store.commit(vec![put("pods", "good", 1), bad]).await.unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert_eq!((store.revision(), store.get("pods", "good").is_none()), (2, true));
    }
    let error = one(&store, write("pods", "a/x", Expect::Revision(1), Op::Delete)).await.unwrap_err();
    let CommitError::Conflict { current, .. } = error else { panic!("{error}") };
    assert_eq!(value(&current), 1);

    // Checks hold, write nothing and take no revision.
    let check = |expect| write("pods", "a/x", expect, Op::Check);
    assert!(store.commit(vec![check(Expect::Revision(2))]).await.unwrap().is_empty());
    assert!(store.commit(vec![]).await.unwrap().is_empty());
    assert_eq!(store.revision(), 2);
    let made = store.commit(vec![check(Expect::Revision(2)), put("pods", "a/x", 3)]).await.unwrap();
    assert_eq!((made.len(), made[0].revision, made[0].created), (1, 3, 2));

    let gone = one(&store, delete("pods", "a/x")).await.unwrap();
    assert_eq!((gone.revision, gone.created, value(&gone)), (4, 2, 3));
    assert!(store.get("pods", "a/x").is_none());
    assert_eq!(store.kinds(), [("apps/deployments".into(), 1)]);
    assert!(!format!("{gone:?}").contains("name"), "debug output must not show content");
}

#[tokio::test]
async fn snapshots_are_ordered_ranges_that_never_change() {
    let store = open(simulated()).await;
    for (i, key) in ["b/1", "a/2", "a/1", "a-b/1", "a/3", "c"].into_iter().enumerate() {
        one(&store, put("pods", key, i as u64)).await.unwrap();
    }
    let snapshot = store.snapshot("pods");
    one(&store, delete("pods", "a/2")).await.unwrap();
    let keys =
        |from, prefix: &str| snapshot.range(from, prefix).map(|o| o.key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys(Bound::Unbounded, ""), ["a-b/1", "a/1", "a/2", "a/3", "b/1", "c"]);
    assert_eq!(keys(Bound::Unbounded, "a/"), ["a/1", "a/2", "a/3"]);
    assert_eq!(keys(Bound::Included("a/2"), "a/"), ["a/2", "a/3"]);
    assert_eq!(keys(Bound::Excluded("a/2"), "a/"), ["a/3"]);
    assert_eq!(keys(Bound::Excluded("a/2"), ""), ["a/3", "b/1", "c"]);
    assert_eq!(keys(Bound::Excluded("z"), "a/"), Vec::<String>::new());
    assert_eq!(keys(Bound::Included("0"), "b/"), ["b/1"]);
    assert_eq!([snapshot.count(""), snapshot.count("a/"), snapshot.count("d")], [6, 3, 0]);
    assert_eq!(snapshot.count_from(Bound::Excluded("a/1"), "a/"), 2);
    assert_eq!(snapshot.count_from(Bound::Excluded("z"), "a/"), 0);
    assert_eq!((snapshot.len(), snapshot.revision(), snapshot.is_empty()), (6, 7, false));
    assert!(snapshot.get("a/2").is_some() && store.snapshot("pods").get("a/2").is_none());
    assert!(store.snapshot("none").is_empty());
}

type Content = BTreeMap<String, u64>;

fn content(snapshot: &yare_store::Snapshot) -> Content {
    snapshot.range(Bound::Unbounded, "").map(|o| (o.key.to_string(), value(o))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every revision of the past reads as it was, and a watch from it leads to the present; also after a
    /// restart, which reads history back from the log.
    #[test]
    fn the_past_reads_as_it_was(
        ops in prop::collection::vec((0usize..2, 0u32..40, 0u8..4), 1..400),
        probes in prop::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = simulated();
            let store = open(options.clone()).await;
            let kinds = ["pods", "leases"];
            let mut now = [Content::new(), Content::new()];
            let mut past = vec![now.clone()];
            for (i, (kind, key, op)) in ops.into_iter().enumerate() {
                let (key, other) = (format!("k{key:02}"), format!("k{:02}", key + 1));
                let both = [(kind, key.clone()), (1 - kind, key.clone()), (kind, other)];
                let mut writes = Vec::new();
                for (kind, key) in &both[..if op == 3 { 3 } else { 1 }] {
                    if op == 0 && now[*kind].remove(key).is_some() {
                        writes.push(delete(kinds[*kind], key));
                    } else {
                        now[*kind].insert(key.clone(), i as u64);
                        writes.push(put(kinds[*kind], key, i as u64));
                    }
                }
                store.commit(writes).await.unwrap();
                past.push(now.clone());
            }
            let newest = store.revision();
            assert_eq!(newest, past.len() as u64);
            let restarted = {
                let seen = verify(&store, &past, &probes).await;
                store.close().await;
                let store = open(options).await;
                assert_eq!(seen, verify(&store, &past, &probes).await);
                store
            };
            assert_eq!(restarted.snapshot_at("pods", newest + 1).err(),
                Some(SnapshotError::Future { requested: newest + 1, newest }));
            let middle = newest / 2;
            restarted.compact(middle).await;
            for (i, kind) in kinds.into_iter().enumerate() {
                if middle > 1 {
                    let compacted = Some(SnapshotError::Compacted { requested: middle - 1, oldest: middle });
                    assert_eq!(restarted.snapshot_at(kind, middle - 1).err(), compacted);
                    assert_eq!(restarted.watch(kind, middle - 1).err(), compacted);
                    assert_eq!(content(&restarted.snapshot_at(kind, middle).unwrap()), past[middle as usize - 1][i]);
                }
                assert!(restarted.watch(kind, middle.max(1)).is_ok());
            }
        });
    }
}

/// Compares what is said of sizes with what is there.
fn weigh(store: &Store) {
    let held =
        |kind: &str| store.snapshot(kind).range(Bound::Unbounded, "").map(|o| o.bytes.len()).sum::<usize>();
    for (kind, bytes) in store.sizes() {
        assert_eq!(bytes, held(&kind) as u64, "{kind}");
    }
}

/// Compares probed revisions with the model; returns all events of all kinds as text.
async fn verify(store: &Store, past: &[[Content; 2]], probes: &[prop::sample::Index]) -> Vec<String> {
    let mut seen = Vec::new();
    for probe in probes {
        let revision = probe.index(past.len()) as u64 + 1;
        for (i, kind) in ["pods", "leases"].into_iter().enumerate() {
            let then = store.snapshot_at(kind, revision).unwrap();
            assert_eq!(then.revision(), revision);
            let mut state = content(&then);
            assert_eq!(state, past[revision as usize - 1][i], "{kind} at {revision}");
            let mut watcher = store.watch(kind, revision).unwrap();
            let mut last = revision;
            while let Some(events) = watcher.ready().unwrap() {
                assert!(!events.is_empty() && events.len() <= 256);
                for event in events {
                    assert!(event.revision > revision && event.revision >= last);
                    last = event.revision;
                    let key = event.object.key.to_string();
                    let previous = event.previous.as_ref().map(|p| value(p));
                    assert_eq!(event.object.revision, event.revision);
                    let old = match event.kind {
                        EventKind::Put => state.insert(key, value(&event.object)),
                        EventKind::Delete => {
                            assert_eq!(Some(value(&event.object)), previous);
                            state.remove(&key)
                        }
                    };
                    assert_eq!(old, previous);
                    assert!(watcher.seen() + 1 >= last);
                    seen.push(format!("{:?} {:?}", event.kind, event.object));
                }
            }
            assert_eq!(watcher.seen(), past.len() as u64);
            assert_eq!(state, past[past.len() - 1][i]);
        }
    }
    weigh(store);
    seen
}

#[tokio::test]
async fn a_watcher_sleeps_through_other_kinds_and_its_bookmark_moves_on() {
    let store = open(simulated()).await;
    let mut watcher = store.watch("pods", 1).unwrap();
    {
        let mut others = store.watch("leases", 1).unwrap();
        let (next, other) = (watcher.next(), others.next());
        tokio::pin!(next, other);
        // Polled once, so that they are registered; then only its own kind may wake each.
        let (pods, leases) = (Wakes::register(next.as_mut()), Wakes::register(other.as_mut()));
        for i in 0..20 {
            one(&store, put("leases", "x", i)).await.unwrap();
        }
        // Who wrote has the answer first; then the watchers are told.
        leases.wait().await;
        assert_eq!(pods.count(), 0);
        one(&store, put("pods", "a", 7)).await.unwrap();
        pods.wait().await;
        let events = next.await.unwrap();
        assert_eq!((events.len(), events[0].revision), (1, 22));
    }
    assert_eq!(watcher.seen(), 22);
    one(&store, put("leases", "x", 100)).await.unwrap();
    assert_eq!((watcher.seen(), watcher.kind()), (23, "pods"));
    one(&store, put("pods", "a", 8)).await.unwrap();
    one(&store, put("leases", "x", 100)).await.unwrap();
    assert_eq!(watcher.seen(), 23, "an event that was not handed out has not been seen");
    assert_eq!(watcher.next().await.unwrap().len(), 1);
    assert_eq!(watcher.seen(), 25);

    // A future event of a kind that does not exist yet; then the end.
    let mut early = store.watch("new", store.revision()).unwrap();
    let waiting =
        tokio::spawn(async move { (early.next().await.map(|e| e.len()), early.next().await.err()) });
    one(&store, put("new", "a", 1)).await.unwrap();
    store.close().await;
    assert_eq!(waiting.await.unwrap(), (Ok(1), Some(Lagged)));
}

#[derive(Default)]
struct Wakes(std::sync::atomic::AtomicUsize);

impl Wakes {
    /// Polls once, and counts from then on.
    fn register<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Arc<Self> {
        let wakes = Arc::new(Self::default());
        let waker = std::task::Waker::from(wakes.clone());
        assert!(future.poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        wakes
    }

    fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    async fn wait(&self) {
        let woken = async {
            while self.count() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(15), woken).await.expect("nobody was woken");
    }
}

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[derive(Default)]
struct ManualClock(parking_lot::Mutex<Duration>);

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.lock()
    }
}

#[tokio::test]
async fn history_is_bounded_and_a_slow_watcher_lags_alone() {
    // (bounds, seconds between writes, most events that may be left of 200)
    let wide = HistoryBounds { events_per_kind: 1000, bytes: 1 << 30, age: Duration::from_secs(3600) };
    let cases = [
        (HistoryBounds { events_per_kind: 50, ..wide }, 0, 50),
        (HistoryBounds { bytes: 50 * 1024, ..wide }, 0, 160),
        (HistoryBounds { age: Duration::from_secs(30), ..wide }, 1, 31),
    ];
    for (history, seconds, most) in cases {
        let clock = Arc::new(ManualClock::default());
        let options = Options { history, clock: clock.clone(), ..simulated() };
        let store = open(options).await;
        one(&store, put("quiet", "x", 0)).await.unwrap();
        let mut slow = store.watch("busy", 2).unwrap();
        let mut quick = store.watch("busy", 2).unwrap();
        for i in 0..200 {
            *clock.0.lock() += Duration::from_secs(seconds);
            one(&store, put("busy", "x", i)).await.unwrap();
            assert_eq!(quick.next().await.unwrap().len(), 1);
        }
        assert_eq!(slow.next().await.unwrap_err(), Lagged);
        assert_eq!(slow.seen(), 2);
        let oldest = store.oldest();
        assert!(oldest >= store.revision() - most, "{oldest} {history:?}");
        assert!(oldest < store.revision() - 10, "{oldest} {history:?}");
        assert_eq!(value(store.snapshot_at("busy", oldest).unwrap().get("x").unwrap()), oldest - 3);
        assert!(matches!(store.snapshot_at("busy", oldest - 1), Err(SnapshotError::Compacted { .. })));
        assert!(store.watch("busy", oldest).is_ok());
        if history.events_per_kind == 50 {
            // A busy kind does not take the history of a quiet one away.
            assert_eq!(store.watch("quiet", 1).unwrap().next().await.unwrap().len(), 1);
        }
    }
}

#[tokio::test]
async fn an_old_list_expires_even_of_a_quiet_kind() {
    let clock = Arc::new(ManualClock::default());
    let history = HistoryBounds { age: Duration::from_secs(300), ..HistoryBounds::default() };
    let store = open(Options { history, clock: clock.clone(), ..simulated() }).await;
    one(&store, put("quiet", "x", 0)).await.unwrap();
    let listed = store.revision();
    for i in 0..28 {
        *clock.0.lock() += Duration::from_secs(10);
        one(&store, put("busy", "x", i)).await.unwrap();
        assert!(store.snapshot_at("quiet", listed).is_ok(), "after {} s", 10 * (i + 1));
    }
    for i in 0..5 {
        *clock.0.lock() += Duration::from_secs(10);
        one(&store, put("busy", "x", i)).await.unwrap();
    }
    assert!(matches!(store.snapshot_at("quiet", listed), Err(SnapshotError::Compacted { .. })));
    // Nothing is lost to a watcher: the kind has not changed.
    assert!(store.watch("quiet", listed).is_ok());
}

#[tokio::test]
async fn wait_for_returns_when_the_revision_is_visible() {
    let store = open(simulated()).await;
    assert!(store.wait_for(1, Duration::ZERO).await);
    assert!(!store.wait_for(2, Duration::from_millis(5)).await);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait_for(3, Duration::from_secs(60)).await }
    });
    for i in 0..2 {
        one(&store, put("pods", "x", i)).await.unwrap();
    }
    assert!(waiting.await.unwrap());
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait_for(9, Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    let reader = store.clone();
    store.close().await;
    assert!(!waiting.await.unwrap());
    assert!(matches!(one(&reader, put("pods", "x", 1)).await, Err(CommitError::Closed)));
    assert_eq!(reader.revision(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_the_disk_and_every_precondition_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Options::new(dir.path().join("db"))).await;
    one(&store, put("counters", "x", 0)).await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    loop {
                        let current = store.get("counters", "x").unwrap();
                        let next = Op::Put(draft(value(&current) + 1));
                        let expect = Expect::Revision(current.revision);
                        match one(&store, write("counters", "x", expect, next)).await {
                            Ok(_) => break,
                            Err(CommitError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(value(&store.get("counters", "x").unwrap()), 320);
    assert_eq!(store.revision(), 322);
}

#[tokio::test]
async fn a_directory_has_one_owner_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut options = Options::new(&path);
    options.checkpoint_bytes = 20_000;
    options.segment_bytes = 10_000;
    let store = open(options.clone()).await;
    let second = Store::open(options.clone(), Arc::new(TestIndexer)).await.err().unwrap();
    let line = second.to_string();
    assert!(matches!(second, OpenError::Locked { .. }));
    assert!(
        line.contains(&format!("{} is in use by process {}", path.display(), std::process::id())),
        "{line}"
    );
    for i in 0..400 {
        one(&store, put("secrets", &format!("ns/{}", i % 20), i)).await.unwrap();
    }
    // Dropping releases the directory, too.
    drop(store);
    let store = open(options).await;
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap()).collect();
    assert!(names.iter().any(|e| e.file_name().to_string_lossy().starts_with("checkpoint-")));
    for entry in names {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!((store.revision(), store.snapshot("secrets").len()), (401, 20));
}

#[tokio::test]
async fn old_log_goes_when_a_checkpoint_holds_it_and_a_backup_opens() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path().join("db"));
    options.checkpoint_bytes = 50_000;
    options.segment_bytes = 20_000;
    // What is looked at is the log, not the room ahead of it.
    options.ahead_bytes = 4096;
    let store = open(options.clone()).await;
    for i in 0..3000u64 {
        let put = Op::Put(common::padded(i, 200));
        one(&store, write("pods", &format!("ns/{}", i % 50), Expect::Anything, put)).await.unwrap();
    }
    store.clone().close().await;
    let size: u64 =
        std::fs::read_dir(&options.dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(size < 300_000, "{size} bytes are kept of a state of 15,000");

    let other = dir.path().join("restored");
    std::fs::create_dir(&other).unwrap();
    let revision = store.backup(&other.join("checkpoint-00000000000000003001")).await.unwrap();
    assert_eq!(revision, 3001);
    let restored = open(Options::new(&other)).await;
    assert_eq!(restored.revision(), 3001);
    assert_eq!(content(&restored.snapshot("pods")), content(&store.snapshot("pods")));
    assert_eq!((restored.oldest(), restored.sizes()), (3001, store.sizes()));
    weigh(&restored);
    one(&restored, put("pods", "new", 1)).await.unwrap();
    drop(restored);
    assert_eq!(open(Options::new(&other)).await.revision(), 3002);
}

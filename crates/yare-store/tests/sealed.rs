//! What lies on disk in the place of JSON: sealers that work, that fail, and that lose and find their keys.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use common::{delete, one, open, padded, put, value, write};
use tempfile::TempDir;
use yare_store::{CommitError, Expect, Lagged, Op, Options, Sealer, SnapshotError};

/// Flips the bits of `secrets`; a value tells the key it was sealed with.
#[derive(Default)]
struct Flip {
    /// The key; 0: none, nothing can be sealed.
    key: AtomicU8,
    /// Whether plain JSON is taken for JSON.
    takes_plain: bool,
}

impl Sealer for Flip {
    fn seal(&self, kind: &str, _key: &str, json: &[u8]) -> Result<Option<Box<[u8]>>, String> {
        match self.key.load(Ordering::Relaxed) {
            _ if kind != "secrets" => Ok(None),
            0 => Err("no key".into()),
            key => Ok(Some(std::iter::once(key).chain(json.iter().map(|b| !b)).collect())),
        }
    }

    fn open(&self, _kind: &str, _key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        match sealed {
            [b'{', ..] if self.takes_plain => Ok(sealed.to_vec()),
            [key, rest @ ..] if *key == self.key.load(Ordering::Relaxed) => {
                Ok(rest.iter().map(|b| !b).collect())
            }
            _ => Err("another key".into()),
        }
    }

    fn reads_plain(&self, kind: &str) -> bool {
        kind != "secrets" || self.takes_plain
    }
}

fn flip(key: u8) -> Arc<Flip> {
    Arc::new(Flip { key: key.into(), takes_plain: false })
}

fn options(dir: &TempDir, sealer: &Arc<Flip>) -> Options {
    let mut options = Options::new(dir.path().join("store"));
    options.sealer = sealer.clone();
    options
}

/// How often the text is in any file of the directory.
fn count(dir: &TempDir, text: &str) -> usize {
    let files = std::fs::read_dir(dir.path().join("store")).unwrap();
    let bytes = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect::<Vec<u8>>();
    bytes.windows(text.len()).filter(|w| *w == text.as_bytes()).count()
}

#[tokio::test]
async fn log_and_checkpoints_hold_what_was_sealed() {
    let (dir, sealer) = (tempfile::tempdir().unwrap(), flip(1));
    let mut small = options(&dir, &sealer);
    small.checkpoint_bytes = 4096;
    let store = open(small).await;
    for n in 0..64 {
        let op = Op::Put(padded(n, 200));
        one(&store, write("secrets", &format!("a/{n}"), Expect::Absent, op)).await.unwrap();
    }
    one(&store, put("pods", "a/x", 7)).await.unwrap();
    one(&store, delete("secrets", "a/0")).await.unwrap();
    assert_eq!(value(&store.get("secrets", "a/9").unwrap()), 9);
    assert!(store.get("secrets", "a/9").unwrap().sealed().is_some());
    assert!(store.get("pods", "a/x").unwrap().sealed().is_none());
    let at = store.revision();
    store.close().await;
    assert!(
        std::fs::read_dir(dir.path().join("store"))
            .unwrap()
            .any(|f| { f.unwrap().file_name().to_string_lossy().starts_with("checkpoint-") })
    );
    assert_eq!((count(&dir, "\"n9\""), count(&dir, "\"n7\"")), (0, 1), "only the pod is plain");

    let store = open(options(&dir, &sealer)).await;
    assert_eq!((store.revision(), store.is_locked()), (at, false));
    assert_eq!(store.snapshot("secrets").len(), 63);
    let object = store.get("secrets", "a/9").unwrap();
    assert_eq!((value(&object), object.attrs.label("v")), (9, Some("9")));
    // A snapshot starts another store.
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join("store")).unwrap();
    let path = other.path().join("store").join(format!("checkpoint-{at:020}"));
    store.backup(&path).await.unwrap();
    assert_eq!((count(&other, "\"n9\""), count(&other, "\"n7\"")), (0, 1));
    let restored = open(options(&other, &sealer)).await;
    assert_eq!(value(&restored.get("secrets", "a/9").unwrap()), 9);
}

#[tokio::test]
async fn what_cannot_be_sealed_is_not_committed() {
    let (dir, sealer) = (tempfile::tempdir().unwrap(), flip(0));
    let store = open(options(&dir, &sealer)).await;
    let refused = store.commit(vec![put("pods", "a/x", 1), put("secrets", "a/y", 2)]).await;
    assert!(matches!(refused, Err(CommitError::Sealing(why)) if why == "no key"));
    assert!(store.get("pods", "a/x").is_none());
    one(&store, put("pods", "a/x", 1)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_opened_is_locked_until_it_can() {
    let (dir, sealer) = (tempfile::tempdir().unwrap(), flip(1));
    let store = open(options(&dir, &sealer)).await;
    let first = one(&store, put("secrets", "a/x", 1)).await.unwrap().revision;
    one(&store, put("secrets", "a/y", 2)).await.unwrap();
    one(&store, put("pods", "a/p", 3)).await.unwrap();
    store.close().await;

    let sealer = flip(2);
    let store = open(options(&dir, &sealer)).await;
    let at = store.revision();
    let locked = store.get("secrets", "a/x").unwrap();
    assert!(store.is_locked() && locked.is_locked() && locked.attrs.labels.is_empty());
    assert_eq!((locked.revision, store.why_locked(&locked).as_deref()), (first, Some("another key")));
    assert_eq!(value(&store.get("pods", "a/p").unwrap()), 3);
    // Its history cannot be shown.
    assert!(matches!(store.snapshot_at("secrets", first), Err(SnapshotError::Compacted { .. })));
    let mut watcher = store.watch("secrets", at).unwrap();
    // It can be written over and deleted by whoever does not ask what it was.
    one(&store, delete("secrets", "a/y")).await.unwrap();
    assert!(watcher.next().await.unwrap()[0].object.is_locked());
    one(&store, put("secrets", "a/z", 4)).await.unwrap();
    watcher.next().await.unwrap();
    assert_eq!(store.unlock().await.unwrap(), 1);
    assert!(store.is_locked());

    let now = store.revision();
    sealer.key.store(1, Ordering::Relaxed);
    assert_eq!(store.unlock().await.unwrap(), 0);
    let object = store.get("secrets", "a/x").unwrap();
    assert_eq!((value(&object), object.revision, object.attrs.label("v")), (1, first, Some("1")));
    assert_eq!((store.is_locked(), store.revision()), (false, now));
    // Whoever watches starts over, and nobody sees a locked object in the past.
    assert_eq!(watcher.next().await.unwrap_err(), Lagged);
    assert!(matches!(store.snapshot_at("secrets", at), Err(SnapshotError::Compacted { .. })));
    let mut watcher = store.watch("secrets", now).unwrap();
    one(&store, put("secrets", "a/w", 5)).await.unwrap();
    assert_eq!(value(&watcher.next().await.unwrap()[0].object), 5);
    // What was unlocked in memory lies on disk as it did.
    store.close().await;
    let store = open(options(&dir, &flip(1))).await;
    assert_eq!(value(&store.get("secrets", "a/x").unwrap()), 1);
    assert!(store.get("secrets", "a/z").unwrap().is_locked());
}

#[tokio::test]
async fn what_cannot_be_opened_any_more_is_locked_as_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sealer = flip(1);
    let store = open(options(&dir, &sealer)).await;
    let first = one(&store, put("secrets", "a/x", 1)).await.unwrap().revision;
    one(&store, put("pods", "a/p", 1)).await.unwrap();
    assert_eq!(store.lock_unreadable().await.unwrap(), 0);
    assert!(!store.is_locked());

    let mut watcher = store.watch("secrets", store.revision()).unwrap();
    sealer.key.store(2, Ordering::Relaxed);
    let after = one(&store, put("secrets", "a/y", 2)).await.unwrap().revision;
    watcher.next().await.unwrap();
    assert_eq!(store.lock_unreadable().await.unwrap(), 1);
    assert_eq!(store.lock_unreadable().await.unwrap(), 0, "it is locked already");
    let locked = store.get("secrets", "a/x").unwrap();
    assert_eq!((locked.is_locked(), locked.revision, store.revision()), (true, first, after));
    assert_eq!(store.why_locked(&locked).as_deref(), Some("another key"));
    assert_eq!(value(&store.get("secrets", "a/y").unwrap()), 2);
    assert_eq!(value(&store.get("pods", "a/p").unwrap()), 1);
    // The past would still show it.
    assert_eq!(watcher.next().await.unwrap_err(), Lagged);
    assert!(matches!(store.snapshot_at("secrets", first), Err(SnapshotError::Compacted { .. })));

    sealer.key.store(1, Ordering::Relaxed);
    assert_eq!(store.unlock().await.unwrap(), 0);
    assert_eq!(value(&store.get("secrets", "a/x").unwrap()), 1);
}

#[tokio::test]
async fn plain_values_are_locked_where_they_may_not_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Options::new(dir.path().join("store"))).await;
    let before = one(&store, put("secrets", "a/x", 1)).await.unwrap();
    store.close().await;
    for _ in 0..2 {
        let store = open(options(&dir, &flip(1))).await;
        let locked = store.get("secrets", "a/x").unwrap();
        assert_eq!(store.why_locked(&locked).as_deref(), Some("another key"));
        // From now on out of a checkpoint.
        let path = dir.path().join("store").join(format!("checkpoint-{:020}", store.revision()));
        let _ = store.backup(&path).await;
        store.close().await;
    }
    let store = open(options(&dir, &Arc::new(Flip { key: 1.into(), takes_plain: true }))).await;
    let after = store.get("secrets", "a/x").unwrap();
    assert_eq!((&after.bytes, after.revision), (&before.bytes, before.revision));
}

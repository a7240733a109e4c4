//! What users of the store see when the disk misbehaves: full, failing, damaged, torn.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{TestIndexer, delete, one, open, padded, put, value, write};
use yare_store::sim::{Faults, SimDisk};
use yare_store::{CommitError, Expect, Op, OpenError, Options, Store};

fn simulated(seed: u64) -> (SimDisk, Options) {
    let disk = SimDisk::new(seed);
    let mut options = Options::new("/data");
    options.disk = Arc::new(disk.clone());
    (disk, options)
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_reads_and_recovers() {
    let (disk, mut options) = simulated(1);
    options.segment_bytes = 4000;
    // What fits is counted to the byte here.
    options.ahead_bytes = 0;
    let store = open(options.clone()).await;
    let mut watcher = store.watch("pods", 1).unwrap();
    for round in 0..20u64 {
        one(&store, put("pods", "small", round)).await.unwrap();
        let used: usize = disk.files().iter().map(|f| f.1).sum();
        // The write needs about 1,150 bytes: what fits differs, also whether a new segment's header does.
        disk.set_faults(Faults { capacity: Some(used as u64 + round * 55), ..Faults::default() });
        let revision = store.revision();
        for _ in 0..3 {
            let big = write("pods", "big", Expect::Anything, Op::Put(padded(round, 1000)));
            let error = one(&store, big).await.unwrap_err();
            assert!(matches!(error, CommitError::Full(_)), "{error}");
            assert!(error.to_string().contains("/data/log-"), "{error}");
            assert_eq!((store.revision(), store.get("pods", "big").is_none()), (revision, true));
            assert_eq!(value(&store.get("pods", "small").unwrap()), round);
        }
        disk.set_faults(Faults::default());
        assert_eq!(one(&store, put("pods", "small", round + 100)).await.unwrap().revision, revision + 1);
    }
    for _ in 0..40 {
        let event = watcher.ready().unwrap().into_iter().flatten().next();
        assert!(event.is_none_or(|e| &*e.object.key == "small"));
    }
    let revision = store.revision();
    drop(store);
    let store = open(options).await;
    assert_eq!((store.revision(), value(&store.get("pods", "small").unwrap())), (revision, 119));
    assert!(store.get("pods", "big").is_none());
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_until_restart() {
    let (disk, options) = simulated(2);
    let store = open(options.clone()).await;
    one(&store, put("pods", "a", 1)).await.unwrap();
    disk.set_faults(Faults { syncs_left: Some(0), ..Faults::default() });
    let error = one(&store, put("pods", "a", 2)).await.unwrap_err();
    assert!(matches!(error, CommitError::Io(_)), "{error}");
    // The disk may claim to work again: the kernel has forgotten what it could not write.
    disk.set_faults(Faults::default());
    assert!(matches!(one(&store, put("pods", "b", 2)).await, Err(CommitError::Io(_))));
    assert!(matches!(one(&store, delete("pods", "a")).await, Err(CommitError::Io(_))));
    // What rests on durable state alone is still answered for what it is.
    assert!(matches!(one(&store, delete("pods", "none")).await, Err(CommitError::Missing { .. })));
    assert_eq!((store.revision(), value(&store.get("pods", "a").unwrap())), (2, 1));
    drop(store);
    disk.reboot();
    let store = open(options).await;
    // The write that was not acknowledged is there or not; either is right.
    assert!([2, 3].contains(&store.revision()));
    assert!(store.get("pods", "b").is_none());
    one(&store, put("pods", "b", 1)).await.unwrap();
}

fn newest_log(disk: &SimDisk) -> (PathBuf, usize) {
    disk.files().into_iter().rfind(|(path, _)| path.to_string_lossy().contains("log-")).unwrap()
}

#[tokio::test]
async fn an_unfinished_end_is_cut_at_every_length_and_damage_before_it_is_refused() {
    let (disk, mut options) = simulated(3);
    options.ahead_bytes = 0;
    let store = open(options.clone()).await;
    for i in 0..10 {
        one(&store, put("pods", &format!("k{i}"), i)).await.unwrap();
    }
    drop(store);
    let (path, len) = newest_log(&disk);
    let mut whole = Vec::new();
    disk.tamper(&path, |bytes| whole = bytes.clone());
    let mut last = 0;
    for end in 0..=len {
        disk.tamper(&path, |bytes| *bytes = whole[..end].to_vec());
        let store = open(options.clone()).await;
        assert!(store.revision() >= last && store.revision() <= 11);
        assert_eq!(store.snapshot("pods").len() as u64, store.revision() - 1);
        last = store.revision();
        // It goes on from there.
        one(&store, put("pods", "new", 1)).await.unwrap();
        drop(store);
        let store = open(options.clone()).await;
        assert_eq!(store.revision(), last + 1);
        drop(store);
        for (other, _) in disk.files() {
            if other != path {
                use yare_store::disk::Disk;
                disk.remove(&other).unwrap();
            }
        }
        disk.tamper(&path, |bytes| *bytes = whole.clone());
    }
    assert_eq!(last, 11);

    // The store was closed in order, so every flipped bit before the closing mark is proven damage.
    for at in (0..len - 32).step_by(3) {
        disk.tamper(&path, |bytes| bytes[at] ^= 4);
        let error = Store::open(options.clone(), Arc::new(TestIndexer)).await.err();
        let Some(OpenError::Corrupt { file, offset, .. }) = &error else {
            panic!("{at} of {len}: {error:?}")
        };
        assert!(*file == path && *offset <= at as u64);
        disk.tamper(&path, |bytes| *bytes = whole.clone());
    }
}

#[tokio::test]
async fn a_missing_segment_and_a_newer_format_are_named() {
    use yare_store::disk::Disk;
    let (disk, mut options) = simulated(4);
    options.segment_bytes = 1000;
    let store = open(options.clone()).await;
    for i in 0..40 {
        one(&store, put("pods", "x", i)).await.unwrap();
    }
    drop(store);
    let files = disk.files();
    let (path, _) = &files[files.len() / 2];
    disk.remove(path).unwrap();
    let error = Store::open(options.clone(), Arc::new(TestIndexer)).await.err().unwrap();
    assert!(error.to_string().contains("the segment before it is missing"), "{error}");

    let (disk, options) = simulated(5);
    drop(open(options.clone()).await);
    let (path, _) = newest_log(&disk);
    disk.tamper(&path, |bytes| {
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    });
    let error = Store::open(options, Arc::new(TestIndexer)).await.err().unwrap();
    assert!(matches!(error, OpenError::Version { version: 2, newest: 1, .. }), "{error}");
}

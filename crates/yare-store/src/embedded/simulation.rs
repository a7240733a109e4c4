//! Seeded simulation of the engine: random group commits on a disk that loses power at any change (also while
//! it recovers, rolls segments or writes checkpoints), tears sectors, writes short and runs full. One seed is
//! one exact run: the writer is driven from the test's thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use super::queue::Queue;
use super::recover::recover;
use super::writer::{Outcome, Writer};
use crate::disk::Disk;
use crate::engine::{Prepared, PreparedOp, Transaction};
use crate::sim::{Faults, SimDisk};
use crate::{Attrs, CommitError, Draft, Event, EventKind, Expect, Indexer, OpenError, Options};

struct NoAttrs;
impl Indexer for NoAttrs {
    fn attrs(&self, _kind: &str, _json: &[u8]) -> Attrs {
        Attrs::default()
    }
}

/// splitmix64, apart from the disk's own.
struct Random(u64);
impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

const KINDS: [&str; 3] = ["pods", "secrets", "apps/deployments"];

/// (kind, key) → (number that was written, revision, revision of creation).
type Model = BTreeMap<(usize, String), (u64, u64, u64)>;

#[derive(Clone)]
struct Change {
    kind: usize,
    key: String,
    /// `None` deletes.
    value: Option<u64>,
}

fn draft(value: u64, padding: usize) -> Draft {
    let json = format!(r#"{{"v":{value},"rv":"","pad":"{}"}}"#, "x".repeat(padding));
    let rv_at = json.find("\"\"").expect("the empty string") + 1;
    Draft { json: json.into_bytes(), rv_at, attrs: None }
}

fn value_of(json: &[u8]) -> (u64, u64) {
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    (json["v"].as_u64().unwrap(), json["rv"].as_str().unwrap().parse().unwrap())
}

struct Sim {
    random: Random,
    disk: SimDisk,
    options: Options,
    model: Model,
    revision: u64,
    /// Transactions of a batch whose fate is unknown, in order.
    uncertain: Vec<Vec<Change>>,
    counter: u64,
    met: Met,
}

/// What a run came across: a simulation that never gets anywhere proves nothing.
#[derive(Clone, Copy, Default, Debug)]
struct Met {
    full: u32,
    io: u32,
    survived_unacknowledged: u32,
    checkpoints: u32,
    failed_recoveries: u32,
    acknowledged: u32,
}

impl std::ops::AddAssign for Met {
    fn add_assign(&mut self, other: Met) {
        self.full += other.full;
        self.io += other.io;
        self.survived_unacknowledged += other.survived_unacknowledged;
        self.checkpoints += other.checkpoints;
        self.failed_recoveries += other.failed_recoveries;
        self.acknowledged += other.acknowledged;
    }
}

fn apply(model: &mut Model, changes: &[Change], revision: u64) {
    for Change { kind, key, value } in changes {
        let at = (*kind, key.clone());
        match value {
            Some(value) => {
                let created = model.get(&at).map_or(revision, |old| old.2);
                model.insert(at, (*value, revision, created));
            }
            None => drop(model.remove(&at)),
        }
    }
}

impl Sim {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let mut options = Options::new("/data");
        options.segment_bytes = 3000;
        options.ahead_bytes = [0, 100, 2000][seed as usize % 3];
        options.checkpoint_bytes = 8000;
        options.disk = Arc::new(disk.clone());
        Sim {
            random: Random(!seed),
            disk,
            options,
            model: Model::new(),
            revision: 1,
            uncertain: Vec::new(),
            counter: 0,
            met: Met::default(),
        }
    }

    /// Opens and compares everything with the model. `None` when the machine went down meanwhile.
    fn open(&mut self) -> Option<Writer> {
        let recovered = match recover(&self.options, &NoAttrs) {
            Ok(recovered) => recovered,
            Err(OpenError::Io { .. }) if self.disk.is_down() => {
                self.met.failed_recoveries += 1;
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let cache = recovered.cache.clone();
        // Unacknowledged transactions are there in order and whole, or not at all.
        let survived = cache.revision().checked_sub(self.revision).expect("an acknowledged revision is lost");
        let uncertain = std::mem::take(&mut self.uncertain);
        self.met.survived_unacknowledged += survived as u32;
        self.met.checkpoints += u32::from(recovered.checkpoint_bytes > 0);
        assert!(survived <= uncertain.len() as u64, "{survived} of {} uncertain", uncertain.len());
        for changes in &uncertain[..survived as usize] {
            self.revision += 1;
            apply(&mut self.model, changes, self.revision);
        }
        self.compare(&cache);
        // The history that was read back is complete: undoing it and doing it again changes nothing.
        for (i, kind) in KINDS.iter().enumerate() {
            let oldest = cache.oldest();
            let mut then = BTreeMap::new();
            for object in cache.snapshot_at(kind, oldest).unwrap().range(std::ops::Bound::Unbounded, "") {
                then.insert(object.key.to_string(), object.revision);
            }
            let mut watcher = cache.watch(kind, oldest).unwrap();
            let mut last = oldest;
            while let Some(events) = watcher.ready().unwrap() {
                for event in events {
                    let Event { revision, object, previous, kind } = &*event;
                    assert!(*revision >= last);
                    last = *revision;
                    assert_eq!(then.get(&*object.key).copied(), previous.as_ref().map(|p| p.revision));
                    match kind {
                        EventKind::Put => drop(then.insert(object.key.to_string(), *revision)),
                        EventKind::Delete => drop(then.remove(&*object.key)),
                    }
                }
            }
            assert_eq!(watcher.seen(), cache.revision());
            let now = self.model.iter().filter(|((k, _), _)| *k == i);
            assert!(then.into_iter().eq(now.map(|((_, key), (_, revision, _))| (key.clone(), *revision))));
        }
        Some(Writer::new(
            Arc::new(Queue::default()),
            recovered,
            self.options.disk.clone(),
            self.options.checkpoint_bytes,
        ))
    }

    fn compare(&self, cache: &crate::cache::Cache) {
        let mut seen = 0;
        for (i, kind) in KINDS.iter().enumerate() {
            for object in cache.snapshot(kind).range(std::ops::Bound::Unbounded, "") {
                let (value, revision, created) = self.model[&(i, object.key.to_string())];
                assert_eq!(value_of(&object.bytes), (value, revision));
                assert_eq!((object.revision, object.created), (revision, created));
                seen += 1;
            }
        }
        assert_eq!(seen, self.model.len());
        assert_eq!(cache.revision(), self.revision);
    }

    fn transaction(
        &mut self,
        model: &Model,
        places: &Arc<Semaphore>,
    ) -> (Vec<Change>, Transaction, oneshot::Receiver<Outcome>) {
        let mut changes: Vec<Change> = Vec::new();
        let mut writes = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let (kind, key) = (self.random.below(3) as usize, format!("ns/{:02}", self.random.below(30)));
            if changes.iter().any(|c| (c.kind, &c.key) == (kind, &key)) {
                continue;
            }
            let current = model.get(&(kind, key.clone()));
            let delete = current.is_some() && self.random.below(4) == 0;
            let padding = self.random.below(700) as usize;
            self.counter += 1;
            writes.push(Prepared {
                kind: KINDS[kind].into(),
                key: key.clone(),
                expect: current.map_or(Expect::Absent, |c| Expect::Revision(c.1)),
                op: if delete {
                    PreparedOp::Delete
                } else {
                    PreparedOp::Put(draft(self.counter, padding), Attrs::default(), None)
                },
            });
            changes.push(Change { kind, key, value: (!delete).then_some(self.counter) });
        }
        let (reply, answer) = oneshot::channel();
        let place = places.clone().try_acquire_owned().unwrap();
        (changes, Transaction { writes, bytes: 0, reply, _place: place }, answer)
    }

    /// One group commit; false when the writer takes no more.
    fn commit(&mut self, writer: &mut Writer, places: &Arc<Semaphore>) -> bool {
        let mut ahead = self.model.clone();
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        for i in 0..1 + self.random.below(5) {
            let (changes, transaction, answer) = self.transaction(&ahead, places);
            apply(&mut ahead, &changes, self.revision + 1 + i);
            batch.push(transaction);
            expected.push((changes, answer));
        }
        writer.commit(batch);
        let mut outcomes = expected.into_iter().map(|(c, mut answer)| (c, answer.try_recv().unwrap()));
        let (first, outcome) = outcomes.next().unwrap();
        match outcome {
            Ok(_) => {
                for (changes, outcome) in std::iter::once((first, outcome)).chain(outcomes) {
                    self.revision += 1;
                    self.met.acknowledged += 1;
                    assert_eq!(outcome.unwrap().len(), changes.len());
                    apply(&mut self.model, &changes, self.revision);
                }
                true
            }
            Err(CommitError::Full(_)) => {
                self.met.full += 1;
                assert!(outcomes.all(|(_, o)| matches!(o, Err(CommitError::Full(_)))));
                true
            }
            Err(CommitError::Io(_)) => {
                self.met.io += 1;
                let mut rest: Vec<_> = outcomes.map(|(c, o)| (c, o.unwrap_err())).collect();
                self.uncertain = vec![first];
                self.uncertain.extend(rest.drain(..).map(|(c, _)| c));
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn run(&mut self, boots: u32) {
        let places = Arc::new(Semaphore::new(100));
        for _ in 0..boots {
            // Sometimes the power fails while the last failure is being recovered from.
            if self.random.below(3) == 0 {
                let changes_left = Some(self.random.below(8) as u32);
                self.disk.set_faults(Faults { changes_left, ..Faults::default() });
            }
            let uncertain = self.uncertain.clone();
            if let Some(mut writer) = self.open() {
                // What was visible once must stay, even when nothing is written before the power fails.
                if self.random.below(4) == 0 {
                    self.disk.reboot();
                    continue;
                }
                let used: usize = self.disk.files().iter().map(|f| f.1).sum();
                let broken_sync = self.random.below(8) == 0;
                self.disk.set_faults(Faults {
                    short_write_1_in: self.random.below(3) as u32,
                    capacity: (self.random.below(4) == 0).then(|| used as u64 + self.random.below(9000)),
                    syncs_left: broken_sync.then(|| self.random.below(60) as u32),
                    changes_left: Some(self.random.below(500) as u32),
                });
                for step in 0..80 {
                    if step == 60 && !self.disk.is_down() {
                        // Space comes back, and the same writer goes on.
                        self.disk.set_faults(Faults::default());
                    }
                    if !self.commit(&mut writer, &places) {
                        break;
                    }
                    self.compare(&writer.cache());
                    writer.checkpoint_if_due();
                    writer.join_checkpoint();
                }
                self.compare(&writer.cache());
            } else {
                self.uncertain = uncertain;
            }
            // Not every end of the process is one of the machine.
            if self.random.below(2) == 0 {
                self.disk.reboot();
            } else {
                self.disk.kill();
            }
        }
        self.open().expect("nothing fails any more");
    }
}

#[test]
fn no_acknowledged_write_is_lost_whatever_fails() {
    let mut met = Met::default();
    for seed in 0..100 {
        let mut sim = Sim::new(seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.run(8)));
        if let Err(panic) = result {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
        met += sim.met;
    }
    let Met { full, io, survived_unacknowledged, checkpoints, failed_recoveries, acknowledged } = met;
    let least = [full, io, survived_unacknowledged, checkpoints, failed_recoveries].into_iter().min();
    assert!(least > Some(50) && acknowledged > 10_000, "the simulation meets too little: {met:?}");
}

#[test]
fn a_seed_is_one_exact_run() {
    let digest = |seed| {
        let mut sim = Sim::new(seed);
        sim.run(5);
        (sim.revision, sim.model, sim.disk.files())
    };
    assert_eq!(digest(7), digest(7));
}

#[test]
fn every_flipped_bit_is_refused_with_file_and_offset_or_only_cuts_the_unproven_end() {
    let mut sim = Sim::new(3);
    let places = Arc::new(Semaphore::new(100));
    let mut writer = sim.open().unwrap();
    while sim.disk.files().len() < 4 {
        assert!(sim.commit(&mut writer, &places));
        writer.checkpoint_if_due();
        writer.join_checkpoint();
    }
    drop(writer);
    let files = sim.disk.files();
    assert!(files.iter().any(|(path, _)| path.to_string_lossy().contains("checkpoint-")), "{files:?}");
    let last = files.iter().rfind(|(path, _)| path.to_string_lossy().contains("log-")).unwrap().0.clone();
    let mut cut = 0;
    for (path, len) in &files {
        for at in (0..*len).step_by(5) {
            let bit = 1 << sim.random.below(8);
            let mut whole = Vec::new();
            sim.disk.tamper(path, |bytes| {
                whole = bytes.clone();
                bytes[at] ^= bit;
            });
            match recover(&sim.options, &NoAttrs) {
                Err(error @ OpenError::Corrupt { .. }) => {
                    let OpenError::Corrupt { file, offset, .. } = &error else { unreachable!() };
                    assert_eq!(file, path);
                    assert!(*offset <= at as u64, "{error}");
                    let line = error.to_string();
                    assert!(line.contains(&path.display().to_string()) && line.contains("offset"), "{line}");
                }
                Err(error) => panic!("{} at {at}: {error}", path.display()),
                // The very last frame cannot be told from an unfinished one.
                Ok(recovered) => {
                    assert_eq!(*path, last, "a flip at {at} of {len} was not noticed");
                    assert!(recovered.cache.revision() < sim.revision);
                    cut += 1;
                }
            }
            sim.disk.tamper(path, |bytes| *bytes = whole);
        }
    }
    assert!(cut > 0);
    assert!(sim.disk.list(&sim.options.dir).unwrap().len() >= 4);
}

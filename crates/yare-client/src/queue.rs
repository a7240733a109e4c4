//! The work queue of a controller: deduplicating, with delays and per-key exponential back-off.
//!
//! A key is handed to one worker at a time; added again meanwhile, it comes back after [`Queue::done`].
//! Time is tokio's clock, so that tests pause it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::queue_metrics::{Load, Measured, Meter, Queues};

/// Upstream's bounds of the per-key back-off.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1000);
/// The longest delay. Delays come from objects, where people write what they like; whoever is woken early
/// looks at the time and asks again.
const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// See the module's description. Cheap to clone.
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    notify: Notify,
    min: Duration,
    max: Duration,
    meter: Arc<Meter>,
}

struct State<K> {
    ready: VecDeque<K>,
    /// In `ready`, or to be put there when the worker that has it is done; since when.
    dirty: HashMap<K, Instant>,
    /// With workers; since when.
    processing: HashMap<K, Instant>,
    /// By due time; the number keeps equal times apart.
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    next: u64,
    closed: bool,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// With upstream's back-off: 5 ms doubling up to 1,000 s.
    pub fn new() -> Self {
        Self::with_backoff(BACKOFF_MIN, BACKOFF_MAX)
    }

    /// With a back-off from `min` doubling up to `max`.
    pub fn with_backoff(min: Duration, max: Duration) -> Self {
        Self::build(min, max, Arc::default())
    }

    /// With upstream's back-off, and measured under a name.
    pub fn measured(name: &str, queues: &Queues) -> Self
    where
        K: Send + Sync + 'static,
    {
        let queue = Self::build(BACKOFF_MIN, BACKOFF_MAX, queues.meter(name));
        let measured: Arc<dyn Measured> = queue.shared.clone();
        queues.register(name, &measured);
        queue
    }

    fn build(min: Duration, max: Duration, meter: Arc<Meter>) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            processing: HashMap::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            next: 0,
            closed: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), notify: Notify::new(), min, max, meter }) }
    }

    /// Adds a key now, unless it is waiting already.
    pub fn add(&self, key: K) {
        if self.shared.state.lock().add(key, Instant::now(), &self.shared.meter) {
            self.shared.notify.notify_one();
        }
    }

    /// Adds a key after a delay; of several delays of one key the shortest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.shared.meter.retried();
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay.min(DELAY_MAX);
        let mut state = self.shared.state.lock();
        if state.closed {
            return;
        }
        if let Some(&earlier) = state.due.get(&key) {
            if earlier.0 <= due {
                return;
            }
            state.delayed.remove(&earlier);
        }
        let slot = (due, state.next);
        state.next += 1;
        state.due.insert(key.clone(), slot);
        state.delayed.insert(slot, key);
        drop(state);
        // A waiting worker has to shorten its sleep.
        self.shared.notify.notify_one();
    }

    /// Adds a key after a delay that doubles with every failure since [`Queue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.shared.state.lock();
            let count = state.failures.entry(key.clone()).or_insert(0);
            let failures = *count;
            *count = count.saturating_add(1);
            failures
        };
        let delay = self.shared.min.saturating_mul(2u32.saturating_pow(failures)).min(self.shared.max);
        self.add_after(key, delay);
    }

    /// How often a key was added with [`Queue::add_rate_limited`] since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.shared.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Ends the back-off of a key.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// The next key, exclusively until [`Queue::done`]; `None` after [`Queue::close`]. Cancel safe.
    pub async fn get(&self) -> Option<K> {
        loop {
            let notified = self.shared.notify.notified();
            let wake = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    drop(state);
                    // Pass it on: every worker has to leave.
                    self.shared.notify.notify_one();
                    return None;
                }
                let now = Instant::now();
                state.release_due(now, &self.shared.meter);
                if let Some(key) = state.ready.pop_front() {
                    if let Some(since) = state.dirty.remove(&key) {
                        self.shared.meter.waited(now - since);
                    }
                    state.processing.insert(key.clone(), now);
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.shared.notify.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.first_key_value().map(|(slot, _)| slot.0)
            };
            match wake {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => notified.await,
            }
        }
    }

    /// The worker has finished with a key from [`Queue::get`].
    pub fn done(&self, key: &K) {
        let mut state = self.shared.state.lock();
        if let Some(since) = state.processing.remove(key) {
            self.shared.meter.worked(since.elapsed());
        }
        if state.dirty.contains_key(key) && !state.closed {
            state.ready.push_back(key.clone());
            drop(state);
            self.shared.notify.notify_one();
        }
    }

    /// Keys that are ready, not counting those with workers.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nothing is handed out any more.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.ready.clear();
        state.dirty.clear();
        state.delayed.clear();
        state.due.clear();
        drop(state);
        self.shared.notify.notify_waiters();
        self.shared.notify.notify_one();
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Whether a worker should be told.
    fn add(&mut self, key: K, now: Instant, meter: &Meter) -> bool {
        if self.closed {
            return false;
        }
        let Entry::Vacant(place) = self.dirty.entry(key.clone()) else { return false };
        place.insert(now);
        meter.added();
        if self.processing.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn release_due(&mut self, now: Instant, meter: &Meter) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key, now, meter);
        }
    }
}

impl<K: Send + Sync> Measured for Shared<K> {
    fn load(&self) -> Load {
        let state = self.state.lock();
        let now = Instant::now();
        let mut load = Load { depth: state.dirty.len(), ..Load::default() };
        for since in state.processing.values() {
            let for_s = (now - *since).as_secs_f64();
            load.unfinished_s += for_s;
            load.longest_s = load.longest_s.max(for_s);
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_with_one_worker_at_a_time() {
        let q = Queue::new();
        q.add("a");
        q.add("a");
        assert_eq!(q.get().await, Some("a"));
        q.add("a");
        assert_eq!(q.len(), 0, "still being worked on");
        q.done(&"a");
        assert_eq!(q.get().await, Some("a"));
        q.done(&"a");
        assert!(q.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_count_from_now_and_the_shortest_wins() {
        let q = Queue::new();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(10));
        q.add_after("a", Duration::from_secs(3));
        q.add_after("a", Duration::from_secs(5));
        q.add_after("b", Duration::from_secs(4));
        assert_eq!(q.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(q.get().await, Some("b"));
        assert_eq!(start.elapsed().as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_delay_until_forgotten() {
        let q = Queue::with_backoff(Duration::from_secs(1), Duration::from_secs(4));
        for expected in [1, 2, 4, 4] {
            let start = Instant::now();
            q.add_rate_limited("a");
            let key = q.get().await.unwrap();
            assert_eq!(start.elapsed().as_secs(), expected);
            q.done(&key);
        }
        assert_eq!(q.failures(&"a"), 4);
        q.forget(&"a");
        let start = Instant::now();
        q.add_rate_limited("a");
        q.get().await;
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_sends_every_worker_home() {
        let q = Queue::<u8>::new();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let q = q.clone();
                tokio::spawn(async move { q.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        q.close();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}

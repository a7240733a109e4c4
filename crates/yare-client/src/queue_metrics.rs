//! What work queues count, under upstream's names (`workqueue_…`), by the names of the queues.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use yare_metrics::{text::Page, timing::Timing};

/// Upper bounds of both histograms: from ten nanoseconds to ten seconds.
const BOUNDS_S: [f64; 10] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// Counts of all queues of one name.
#[derive(Default)]
pub(crate) struct Meter {
    adds: AtomicU64,
    retries: AtomicU64,
    waited: Timing<10>,
    worked: Timing<10>,
}

impl Meter {
    /// A key came that was not waiting.
    pub(crate) fn added(&self) {
        self.adds.fetch_add(1, Ordering::Relaxed);
    }

    /// A key is to come again later.
    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker took a key.
    pub(crate) fn waited(&self, long: Duration) {
        self.waited.observe(&BOUNDS_S, long);
    }

    /// A worker is done with a key.
    pub(crate) fn worked(&self, long: Duration) {
        self.worked.observe(&BOUNDS_S, long);
    }
}

/// What a queue holds at a moment.
#[derive(Default)]
pub(crate) struct Load {
    /// Keys that wait.
    pub(crate) depth: usize,
    /// How long workers have been busy with the keys they have, together.
    pub(crate) unfinished_s: f64,
    /// The longest of these.
    pub(crate) longest_s: f64,
}

/// A queue that says what it holds.
pub(crate) trait Measured: Send + Sync {
    /// Now.
    fn load(&self) -> Load;
}

#[derive(Default)]
struct Named {
    meter: Arc<Meter>,
    queues: Vec<Weak<dyn Measured>>,
}

impl Named {
    fn load(&self) -> Load {
        let mut all = Load::default();
        for one in self.queues.iter().filter_map(Weak::upgrade).map(|queue| queue.load()) {
            all.depth += one.depth;
            all.unfinished_s += one.unfinished_s;
            all.longest_s = all.longest_s.max(one.longest_s);
        }
        all
    }
}

/// The measured queues of a process. Queues that share a name count together.
#[derive(Default)]
pub struct Queues(Mutex<BTreeMap<Box<str>, Named>>);

impl Queues {
    pub(crate) fn meter(&self, name: &str) -> Arc<Meter> {
        self.0.lock().entry(name.into()).or_default().meter.clone()
    }

    pub(crate) fn register(&self, name: &str, queue: &Arc<dyn Measured>) {
        let mut all = self.0.lock();
        let named = all.entry(name.into()).or_default();
        named.queues.retain(|queue| queue.strong_count() > 0);
        named.queues.push(Arc::downgrade(queue));
    }
}

/// A family with one sample per queue.
type Row<T> = (&'static str, &'static str, &'static str, fn(&Meter, &Load) -> T);

const NUMBERS: [Row<f64>; 5] = [
    ("workqueue_adds_total", "counter", "[BETA] Total number of adds handled by workqueue", |m, _| {
        m.adds.load(Ordering::Relaxed) as f64
    }),
    ("workqueue_depth", "gauge", "[BETA] Current depth of workqueue", |_, load| load.depth as f64),
    (
        "workqueue_longest_running_processor_seconds",
        "gauge",
        "[BETA] How many seconds has the longest running processor for workqueue been running.",
        |_, load| load.longest_s,
    ),
    ("workqueue_retries_total", "counter", "[BETA] Total number of retries handled by workqueue", |m, _| {
        m.retries.load(Ordering::Relaxed) as f64
    }),
    (
        "workqueue_unfinished_work_seconds",
        "gauge",
        "[BETA] How many seconds of work has done that is in progress and hasn't been observed by work_duration. Large values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this increases.",
        |_, load| load.unfinished_s,
    ),
];

impl Queues {
    /// Adds everything.
    pub fn expose(&self, page: &mut Page) {
        let all = self.0.lock();
        let loads: Vec<(&str, &Meter, Load)> =
            all.iter().map(|(name, named)| (&**name, &*named.meter, named.load())).collect();
        for (name, kind, help, value) in NUMBERS {
            page.family(name, kind, help);
            for (queue, meter, load) in &loads {
                page.sample(name, &[("name", queue)], value(meter, load));
            }
        }
        let name = "workqueue_queue_duration_seconds";
        page.family(
            name,
            "histogram",
            "[BETA] How long in seconds an item stays in workqueue before being requested.",
        );
        for (queue, meter, _) in &loads {
            meter.waited.expose(page, name, &[("name", queue)], &BOUNDS_S);
        }
        let name = "workqueue_work_duration_seconds";
        page.family(name, "histogram", "[BETA] How long in seconds processing an item from workqueue takes.");
        for (queue, meter, _) in &loads {
            meter.worked.expose(page, name, &[("name", queue)], &BOUNDS_S);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Queue;

    #[tokio::test(start_paused = true)]
    async fn queues_of_one_name_count_together() {
        let queues = Queues::default();
        let (a, b) = (Queue::measured("work", &queues), Queue::measured("work", &queues));
        let gone = Queue::<u8>::measured("gone", &queues);
        gone.add(1);
        drop(gone);
        a.add(1);
        a.add(1);
        a.add(2);
        b.add(3);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(a.get().await, Some(1));
        a.add(1);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(b.get().await, Some(3));
        b.done(&3);
        b.add_after(3, Duration::from_secs(60));
        let mut page = Page::new();
        queues.expose(&mut page);
        let page = page.finish();
        for line in [
            "workqueue_adds_total{name=\"work\"} 4",
            "workqueue_adds_total{name=\"gone\"} 1",
            "workqueue_depth{name=\"gone\"} 0",
            "workqueue_depth{name=\"work\"} 2",
            "workqueue_longest_running_processor_seconds{name=\"work\"} 3",
            "workqueue_retries_total{name=\"work\"} 1",
            "workqueue_unfinished_work_seconds{name=\"work\"} 3",
            "workqueue_queue_duration_seconds_bucket{name=\"work\",le=\"1\"} 0",
            "workqueue_queue_duration_seconds_bucket{name=\"work\",le=\"10\"} 2",
            "workqueue_queue_duration_seconds_sum{name=\"work\"} 7",
            "workqueue_work_duration_seconds_bucket{name=\"work\",le=\"1e-08\"} 1",
            "workqueue_work_duration_seconds_count{name=\"work\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}

//! Backends with their modes: an event is waited for, or put into a bounded buffer that never holds a request
//! up; an event that is too large is cut down to its metadata.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::{log::Writer, webhook::Receiver};

/// Whether requests wait for their events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// No.
    Batch,
    /// Yes; a failure is counted and that is all.
    Blocking,
    /// Yes; a request whose first event fails is refused.
    BlockingStrict,
}

/// How events are gathered in batch mode.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Events that are held; more are dropped and counted.
    pub buffer: usize,
    /// Events that go out together.
    pub max_size: usize,
    /// How long an event waits for others.
    pub max_wait: Duration,
    /// Batches a second, and how many more after a pause; none: any number.
    pub throttle: Option<(f64, u32)>,
}

/// Bounds in bytes; none: no bounds.
#[derive(Clone, Copy, Debug)]
pub struct Truncate {
    /// Of one event.
    pub event_bytes: usize,
    /// Of those that go out together.
    pub batch_bytes: usize,
}

/// An event in all forms that backends need.
pub struct Rendered {
    /// JSON.
    pub json: Bytes,
    /// JSON without objects, where it has some.
    pub trimmed: Option<Bytes>,
    /// One line of text.
    pub line: String,
}

/// Failures, by what failed.
#[derive(Default, Debug)]
pub struct Errors {
    /// Buffers that were full.
    pub buffered: AtomicU64,
    /// The log.
    pub log: AtomicU64,
    /// Events that were too large.
    pub truncate: AtomicU64,
    /// The webhook.
    pub webhook: AtomicU64,
}

struct Item {
    bytes: Bytes,
    done: Option<oneshot::Sender<bool>>,
}

/// One backend at work.
pub struct Backend {
    mode: Mode,
    text: bool,
    truncate: Option<Truncate>,
    sender: Mutex<Option<mpsc::Sender<Item>>>,
    errors: Arc<Errors>,
    worker: Mutex<Option<JoinHandle<()>>>,
    stopping: Arc<AtomicBool>,
}

/// Events that requests wait for at a time, where they wait.
const WAITING: usize = 10_000;
/// Lines that are written together.
const LINES: usize = 256;
/// Posts that are under way at a time.
const POSTS: usize = 32;

impl Backend {
    /// Lines in a file; as JSON, or (`text`) as upstream's old one-line form.
    pub fn log(
        writer: Writer,
        text: bool,
        mode: Mode,
        batching: Batching,
        truncate: Option<Truncate>,
        errors: &Arc<Errors>,
    ) -> Self {
        let capacity = if mode == Mode::Batch { batching.buffer } else { WAITING };
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let stopping = Arc::new(AtomicBool::new(false));
        let batching = match mode {
            Mode::Batch => batching,
            // What is there is written together.
            _ => Batching { max_size: 1, max_wait: Duration::ZERO, throttle: None, ..batching },
        };
        let lines = Lines { writer, batching, errors: errors.clone(), stopping: stopping.clone() };
        let handle = tokio::runtime::Handle::current();
        let worker = tokio::task::spawn_blocking(move || handle.block_on(lines.run(receiver)));
        Self::new(mode, text, truncate, sender, errors, worker, stopping)
    }

    /// Posts to a receiver.
    pub fn webhook(
        receiver: Receiver,
        first_pause: Duration,
        mode: Mode,
        batching: Batching,
        truncate: Option<Truncate>,
        errors: &Arc<Errors>,
    ) -> Self {
        let (capacity, batching) = match mode {
            Mode::Batch => (batching.buffer, batching),
            // One at a time, at once.
            _ => (WAITING, Batching { max_size: 1, max_wait: Duration::ZERO, throttle: None, ..batching }),
        };
        let (sender, events) = mpsc::channel(capacity.max(1));
        let stopping = Arc::new(AtomicBool::new(false));
        let posts = Posts {
            receiver: Arc::new(receiver),
            first_pause,
            batching,
            batch_bytes: truncate.map_or(usize::MAX, |t| t.batch_bytes),
            errors: errors.clone(),
            stopping: stopping.clone(),
        };
        let worker = tokio::spawn(posts.run(events));
        Self::new(mode, false, truncate, sender, errors, worker, stopping)
    }

    fn new(
        mode: Mode,
        text: bool,
        truncate: Option<Truncate>,
        sender: mpsc::Sender<Item>,
        errors: &Arc<Errors>,
        worker: JoinHandle<()>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            mode,
            text,
            truncate,
            sender: Mutex::new(Some(sender)),
            errors: errors.clone(),
            worker: Mutex::new(Some(worker)),
            stopping,
        }
    }

    /// The bytes of an event for this backend; none where it is too large even without objects.
    fn fit(&self, event: &Rendered) -> Option<Bytes> {
        let bytes = match self.truncate {
            Some(truncate) if event.json.len() > truncate.event_bytes => {
                let trimmed = event.trimmed.as_ref().filter(|b| b.len() <= truncate.event_bytes);
                if trimmed.is_none() {
                    self.errors.truncate.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        size = event.json.len(),
                        "an audit event is too large even after truncating"
                    );
                }
                trimmed?
            }
            _ => &event.json,
        };
        Some(if self.text { Bytes::from(event.line.clone()) } else { bytes.clone() })
    }

    /// Takes an event without waiting, whatever the mode.
    pub fn offer(&self, event: &Rendered) {
        let Some(bytes) = self.fit(event) else { return };
        let sent =
            self.sender.lock().as_ref().is_some_and(|s| s.try_send(Item { bytes, done: None }).is_ok());
        if !sent {
            self.errors.buffered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes an event as the mode says. `false`: it is lost, and the request with it.
    pub async fn take(&self, event: &Rendered) -> bool {
        if self.mode == Mode::Batch {
            self.offer(event);
            return true;
        }
        // What is cut off by the operator's own bounds is no failure.
        let Some(bytes) = self.fit(event) else { return true };
        let sender = self.sender.lock().clone();
        let (done, written) = oneshot::channel();
        let sent = match sender {
            Some(sender) => sender.send(Item { bytes, done: Some(done) }).await.is_ok(),
            None => false,
        };
        let ok = sent && written.await.unwrap_or(false);
        ok || self.mode != Mode::BlockingStrict
    }

    /// Lets what was taken go out, within a bound of time.
    pub async fn close(&self, within: Duration) {
        self.stopping.store(true, Ordering::Release);
        drop(self.sender.lock().take());
        let worker = self.worker.lock().take();
        if let Some(worker) = worker
            && tokio::time::timeout(within, worker).await.is_err()
        {
            tracing::error!("audit events are lost: their backend does not take them in time");
        }
    }
}

/// Events that come together, and are waited for a while where they should. `first`: what came first.
async fn gather(
    first: Item,
    events: &mut mpsc::Receiver<Item>,
    batching: &Batching,
    max_bytes: usize,
    stopping: &AtomicBool,
) -> (Vec<Item>, Option<Item>) {
    let mut bytes = first.bytes.len();
    let mut batch = vec![first];
    let until = Instant::now() + batching.max_wait;
    while batch.len() < batching.max_size && !stopping.load(Ordering::Acquire) {
        match tokio::time::timeout_at(until, events.recv()).await {
            Ok(Some(item)) if bytes + item.bytes.len() > max_bytes => return (batch, Some(item)),
            Ok(Some(item)) => {
                bytes += item.bytes.len();
                batch.push(item);
            }
            Ok(None) | Err(_) => break,
        }
    }
    (batch, None)
}

/// What writes the log, on a thread of its own.
struct Lines {
    writer: Writer,
    batching: Batching,
    errors: Arc<Errors>,
    stopping: Arc<AtomicBool>,
}

impl Lines {
    async fn run(mut self, mut events: mpsc::Receiver<Item>) {
        let mut throttle = self.batching.throttle.map(|(per_s, burst)| Throttle::new(per_s, burst));
        while let Some(first) = events.recv().await {
            let (mut items, _) = gather(first, &mut events, &self.batching, usize::MAX, &self.stopping).await;
            if let Some(throttle) = &mut throttle
                && !self.stopping.load(Ordering::Acquire)
            {
                throttle.pass().await;
            } else {
                // What is there already costs no more than the first.
                while items.len() < LINES
                    && let Ok(item) = events.try_recv()
                {
                    items.push(item);
                }
            }
            self.write(items);
        }
    }

    fn write(&mut self, items: Vec<Item>) {
        let mut lines = Vec::with_capacity(items.iter().map(|i| i.bytes.len() + 1).sum());
        for item in &items {
            lines.extend_from_slice(&item.bytes);
            lines.push(b'\n');
        }
        let written = self.writer.write(&lines);
        if let Err(error) = &written {
            self.errors.log.fetch_add(items.len() as u64, Ordering::Relaxed);
            tracing::error!(%error, events = items.len(), "audit events cannot be written to the log");
        }
        for item in items {
            if let Some(done) = item.done {
                // A request that is gone needs no answer.
                let _ = done.send(written.is_ok());
            }
        }
    }
}

struct Posts {
    receiver: Arc<Receiver>,
    first_pause: Duration,
    batching: Batching,
    batch_bytes: usize,
    errors: Arc<Errors>,
    stopping: Arc<AtomicBool>,
}

impl Posts {
    async fn run(self, mut events: mpsc::Receiver<Item>) {
        let places = Arc::new(Semaphore::new(POSTS));
        let mut throttle = self.batching.throttle.map(|(per_s, burst)| Throttle::new(per_s, burst));
        let mut kept: Option<Item> = None;
        loop {
            let first = match kept.take() {
                Some(item) => item,
                None => match events.recv().await {
                    Some(item) => item,
                    None => break,
                },
            };
            let (batch, over) =
                gather(first, &mut events, &self.batching, self.batch_bytes, &self.stopping).await;
            kept = over;
            if let Some(throttle) = &mut throttle
                && !self.stopping.load(Ordering::Acquire)
            {
                throttle.pass().await;
            }
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let (receiver, errors, pause) = (self.receiver.clone(), self.errors.clone(), self.first_pause);
            tokio::spawn(async move {
                post(&receiver, batch, pause, &errors).await;
                drop(place);
            });
        }
        // All of them are back when the last post is done.
        let _ = places.acquire_many(u32::try_from(POSTS).unwrap_or(1)).await;
    }
}

async fn post(receiver: &Receiver, batch: Vec<Item>, pause: Duration, errors: &Errors) {
    let mut body = Vec::with_capacity(batch.iter().map(|i| i.bytes.len() + 1).sum::<usize>() + 96);
    body.extend_from_slice(
        b"{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{},\"items\":[",
    );
    for (at, item) in batch.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&item.bytes);
    }
    body.extend_from_slice(b"]}");
    let delivered = receiver.deliver(body.into(), pause).await;
    if let Err(error) = &delivered {
        errors.webhook.fetch_add(batch.len() as u64, Ordering::Relaxed);
        tracing::error!(%error, events = batch.len(), "audit events cannot be posted");
    }
    for done in batch.into_iter().filter_map(|item| item.done) {
        let _ = done.send(delivered.is_ok());
    }
}

/// A bucket of tokens.
struct Throttle {
    per_s: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl Throttle {
    fn new(per_s: f64, burst: u32) -> Self {
        Self { per_s, burst: f64::from(burst), tokens: f64::from(burst), last: Instant::now() }
    }

    async fn pass(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.last).as_secs_f64() * self.per_s;
        self.tokens = (self.tokens + gained).min(self.burst) - 1.0;
        self.last = now;
        if self.tokens < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.tokens / self.per_s)).await;
        }
    }
}

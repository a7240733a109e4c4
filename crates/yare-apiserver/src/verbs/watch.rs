//! `watch`: a stream of events from the store. What a watcher gets of a JSON event is a static prefix, the
//! object's shared bytes, and a static suffix; nothing is decoded or encoded for it.

use std::{collections::VecDeque, ops::RangeInclusive, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{Response, header};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::{sync::WaitForCancellationFutureOwned, task::task_tracker::TaskTrackerToken};
use yare_store::{Event, EventKind, Object, Watcher};

use crate::{
    body::{Body, Reply},
    core::Call,
    encodings::{self, Stream},
    encryption::locked,
    flow::{Ticket, watches::Watching},
    metrics::{Scope, Sharded, Watched},
    negotiate::{Asked, Shape},
    options::ListOptions,
    registry::Served,
    render::Renderer,
    selection::Selection,
    span,
    status::{ApiError, ApiResult},
    trace,
    verbs::list::{fresh, page},
};

/// How often a watcher that understands bookmarks gets one while nothing else happens.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// However long a client asks for, a watch lasts no longer.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Starts a watch.
pub async fn watch(call: &Call, served: &Arc<Served>) -> ApiResult<Reply> {
    let mut renderer = Renderer::new(call, served, Asked::One)?;
    renderer.accepted.pretty = false;
    let Some(framing) = &renderer.accepted.encoding.format().stream else {
        return Err(ApiError::not_acceptable(&encodings::stream_types(Some(&call.core.config.gates))));
    };
    let options = ListOptions::parse(&call.query, true, &call.core.config.gates)?;
    let selection = Selection::new(served, &call.info, &options)?;
    let store = call.core.store();
    let kind = &served.stored.kind_key;
    // Upstream gives no reason here, and 500.
    let wanted = options.revision().map_err(|e| ApiError::new(500, "", e.to_string()))?.filter(|r| *r > 0);
    let initial = options.send_initial_events.unwrap_or(wanted.is_none());
    let watched = call.core.metrics.watches.of(served);
    let mut stream = Watch {
        core: call.core.clone(),
        encoder: Encoder {
            renderer,
            framing,
            columns_sent: false,
            shared: call.in_process,
            watched: watched.clone(),
        },
        _sharded: selection.shard.as_ref().map(|_| watched.sharded()),
        selection,
        watcher: None,
        queue: VecDeque::new(),
        initial: VecDeque::new(),
        initial_end: None,
        began: (Scope::of(&call.info), Instant::now()),
        bookmarks: options.bookmarks,
        deadline: deadline(call, &options),
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        timer: Box::pin(sleep_until(Instant::now())),
        stop: Box::pin(call.core.stop.clone().cancelled_owned()),
        stopping: false,
        _open: call.core.farewell.open(),
        batch: Duration::ZERO,
        ended: false,
        ticket: call.take_ticket(),
        _watching: call.core.flow.watches.open(&call.info, &call.query),
        after: 0,
        spans: Vec::new(),
    };
    if initial && options.send_initial_events == Some(true) && options.bookmarks {
        stream.spans = trace::watch_list(call, framing.content_type);
    }
    let inside = stream.spans.last().map(yare_trace::Span::active);
    let watching = yare_trace::inside(inside, || trace::caches(call, &served.stored, "cacher.Watch"));
    match stream.start(&options, initial, wanted).await {
        Ok(from) => match store.watch(kind, from) {
            Ok(watcher) => stream.watcher = Some(watcher),
            Err(_) => stream.fail(&ApiError::too_old(from, store.oldest())),
        },
        // The request itself was fine: what is wrong comes as an event.
        Err(error) => stream.fail(&error),
    }
    drop(watching);
    let body =
        stream::unfold(Box::new(stream), |mut watch| async move { watch.next().await.map(|b| (b, watch)) });
    let mut response = Response::new(Body::stream(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(framing.content_type));
    Ok(response)
}

fn deadline(call: &Call, options: &ListOptions) -> Instant {
    let asked = options.timeout_s.map(|seconds| Duration::from_secs(seconds).min(MAX_TIMEOUT));
    let time = asked.unwrap_or_else(|| {
        let mut bytes = [0u8; 4];
        call.core.config.random.fill(&mut bytes);
        let more = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
        call.core.config.min_request_timeout.mul_f64(1.0 + more)
    });
    Instant::now() + time
}

struct Watch {
    core: Arc<crate::core::Core>,
    encoder: Encoder,
    selection: Selection,
    watcher: Option<Watcher>,
    /// Pieces ready to be sent.
    queue: VecDeque<Bytes>,
    /// Objects still to be sent as the state at the start.
    initial: VecDeque<Arc<Object>>,
    /// Revision of the bookmark that ends the initial state.
    initial_end: Option<u64>,
    /// How much it is about, and since when.
    began: (Scope, Instant),
    bookmarks: bool,
    deadline: Instant,
    next_bookmark: Instant,
    /// For the deadline, bookmarks and batches. One for the whole watch: making one costs more than an event.
    timer: Pin<Box<Sleep>>,
    /// The server stops.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// It does, and this watch has its turn to end.
    stopping: bool,
    /// While this is there, the server waits for it at the end.
    _open: TaskTrackerToken,
    /// How long a client that was just sent events waits for the next.
    batch: Duration,
    ended: bool,
    /// Seats, until the state at the start is sent.
    ticket: Option<Ticket>,
    /// Counts this watch among those that a write costs.
    _watching: Option<Watching>,
    /// Counts it among those of a shard.
    _sharded: Option<Sharded>,
    /// What traces say of the state at the start, until it is sent.
    spans: Vec<yare_trace::Span>,
    /// Events up to this revision are not sent: the client asked for what comes after.
    after: u64,
}

/// How long events for one network client are gathered after others were sent, for each watcher that its kind
/// has. A lone event goes out at once. Of a stream of them every client gets several with one write, which is
/// what an event costs; the more clients there are to write to, the more it pays.
const BATCH_PER_WATCHER: Duration = Duration::from_micros(50);
/// Shorter hardly pays, longer would be noticed.
const BATCH: RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(10);

/// Initial objects that are encoded at a time.
const INITIAL_BATCH: usize = 64;

impl Watch {
    /// Prepares what is sent first. Gives the revision behind which events follow.
    async fn start(&mut self, options: &ListOptions, initial: bool, wanted: Option<u64>) -> ApiResult<u64> {
        let kind = self.encoder.renderer.served.stored.kind_key.clone();
        let store = self.core.store();
        if initial {
            if let Some(wanted) = wanted {
                fresh(&self.core, &kind, wanted).await?;
            }
            let snapshot = store.snapshot(&kind);
            self.initial = page(&snapshot, &self.selection, None, 0).objects.into();
            self.encoder.watched.begins(self.initial.len());
            if options.send_initial_events == Some(true) && options.bookmarks {
                self.initial_end = Some(snapshot.revision());
            }
            return Ok(snapshot.revision());
        }
        let now = store.revision();
        let wanted = wanted.unwrap_or(now);
        // A revision that is not there yet is waited for while the watch is open already.
        self.after = wanted;
        Ok(wanted.min(now))
    }

    /// Ends the watch with an error.
    fn fail(&mut self, error: &ApiError) {
        self.encoder.error(error, &mut self.queue);
        self.ended = true;
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.queue.pop_front() {
                return Some(piece);
            }
            if !self.initial.is_empty() {
                let mut batch = Batch::new(self.encoder.shared);
                for _ in 0..INITIAL_BATCH {
                    let Some(object) = self.initial.pop_front() else { break };
                    self.encoder.event("ADDED", &object.bytes, &mut batch);
                }
                batch.finish(&mut self.queue);
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                self.bookmark(revision, true);
                self.encoder.watched.listed(self.began.0, self.began.1.elapsed());
                if let Some(server) = self.spans.first() {
                    server.event("Writing initial events done", &[]);
                }
                self.spans.clear();
                continue;
            }
            if self.ended {
                return None;
            }
            self.ticket = None;
            let batch = std::mem::take(&mut self.batch);
            if !batch.is_zero() {
                self.timer.as_mut().reset(Instant::now() + batch);
                self.timer.as_mut().await;
            }
            let watcher = self.watcher.as_mut()?;
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            if self.timer.deadline() != wake {
                self.timer.as_mut().reset(wake);
            }
            tokio::select! {
                events = watcher.next() => match events {
                    Ok(events) => {
                        let peers = u32::try_from(watcher.peers()).unwrap_or(u32::MAX);
                        self.events(&events);
                        if !self.encoder.shared && !self.queue.is_empty() {
                            let batch = BATCH_PER_WATCHER.saturating_mul(peers);
                            self.batch = batch.clamp(*BATCH.start(), *BATCH.end());
                        }
                    }
                    Err(_) => {
                        self.encoder.watched.terminated();
                        let seen = watcher.seen();
                        self.fail(&ApiError::too_old(seen, self.core.store().oldest()));
                    }
                },
                () = self.timer.as_mut() => {
                    let seen = watcher.seen();
                    if self.bookmarks && seen >= self.after {
                        self.bookmark(seen, false);
                    }
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    self.ended = Instant::now() >= self.deadline;
                }
                () = self.stop.as_mut(), if !self.stopping => match self.core.farewell.turn() {
                    Some(turn) => {
                        self.deadline = self.deadline.min(turn);
                        self.stopping = true;
                    }
                    None => self.ended = true,
                },
            }
        }
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) {
        self.encoder.bookmark(revision, initial_end, &mut self.queue);
    }

    fn events(&mut self, events: &[Arc<Event>]) {
        let mut batch = Batch::new(self.encoder.shared);
        for event in events {
            if event.revision <= self.after || !self.selection.has_key(&event.object.key) {
                continue;
            }
            let open = self.selection.is_open();
            if !open && !self.selection.is_in_shard(&event.object) {
                self.encoder.watched.filtered();
            }
            let before = event.previous.as_deref().is_some_and(|o| open || self.selection.matches(o));
            match event.kind {
                EventKind::Put => {
                    let now = open || self.selection.matches(&event.object);
                    match (before, now) {
                        (false, true) => self.encoder.event("ADDED", &event.object.bytes, &mut batch),
                        (true, true) => self.encoder.event("MODIFIED", &event.object.bytes, &mut batch),
                        (true, false) => {
                            // It left the selection: the watcher sees its last matching state go.
                            let last = event.previous.as_ref().map_or(&event.object.bytes, |o| &o.bytes);
                            let last = span::with_revision(last, event.revision);
                            self.encoder.event("DELETED", &last, &mut batch);
                        }
                        (false, false) => {}
                    }
                }
                EventKind::Delete if event.object.is_locked() => {
                    batch.finish(&mut self.queue);
                    return self.fail(&locked::deleted());
                }
                EventKind::Delete => {
                    if open || before || self.selection.matches(&event.object) {
                        self.encoder.event("DELETED", &event.object.bytes, &mut batch);
                    }
                }
            }
        }
        batch.finish(&mut self.queue);
    }
}

/// Pieces of events: kept apart and shared in this process, copied together for a network.
pub struct Batch {
    shared: bool,
    pieces: VecDeque<Bytes>,
    joined: BytesMut,
}

impl Batch {
    fn new(shared: bool) -> Self {
        Self { shared, pieces: VecDeque::new(), joined: BytesMut::new() }
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: Bytes) {
        if self.shared {
            self.pieces.push_back(piece);
        } else {
            self.joined.extend_from_slice(&piece);
        }
    }

    fn finish(self, queue: &mut VecDeque<Bytes>) {
        queue.extend(self.pieces);
        if !self.joined.is_empty() {
            queue.push_back(self.joined.freeze());
        }
    }
}

struct Encoder {
    renderer: Renderer,
    framing: &'static Stream,
    columns_sent: bool,
    shared: bool,
    watched: Arc<Watched>,
}

impl Encoder {
    fn event(&mut self, kind: &'static str, raw: &Bytes, batch: &mut Batch) {
        let object = match self.renderer.accepted.shape {
            // Only the first table says what its columns are.
            Shape::Table(version) => {
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                self.renderer.table(version, raw, columns)
            }
            _ => self.renderer.object(raw),
        };
        // Bytes at rest always render; should they not, the event would be lost, so it says so instead.
        match object.or_else(|error| self.renderer.status(&error)) {
            Ok(object) => {
                let length = (self.framing.event)(kind, object, batch);
                self.watched.event(length);
            }
            Err(error) => tracing::error!(%error, "an object at rest cannot be encoded for a watcher"),
        }
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool, queue: &mut VecDeque<Bytes>) {
        let columns = !std::mem::replace(&mut self.columns_sent, true);
        let object = self.renderer.bookmark(revision, initial_end, columns);
        self.single("BOOKMARK", object, queue);
    }

    fn error(&self, error: &ApiError, queue: &mut VecDeque<Bytes>) {
        self.single("ERROR", self.renderer.status(error), queue);
    }

    fn single(&self, kind: &'static str, object: ApiResult<Bytes>, queue: &mut VecDeque<Bytes>) {
        let Ok(object) = object else { return };
        let mut batch = Batch::new(false);
        (self.framing.event)(kind, object, &mut batch);
        batch.finish(queue);
    }
}

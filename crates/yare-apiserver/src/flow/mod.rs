//! API priority and fairness: who runs, who waits, who is refused (KEP-1040).
//!
//! A request finds its schema in a [`table::Table`], its level in the schema, and a seat or a place in a queue
//! in the level. What it costs is guessed beforehand ([`estimate`]). A [`Ticket`] holds its seats until it is
//! dropped, whatever ends the request: an answer, a panic, a client that is gone.
//!
//! Each level has one lock. While seats are free a request takes it twice and allocates nothing.

pub mod bootstrap;
pub mod debug;
pub mod estimate;
mod expose;
mod feed;
pub mod inflight;
pub mod limits;
pub mod queueset;
pub mod retry;
pub mod rules;
pub mod shard;
pub mod stats;
pub mod table;
pub mod watches;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
pub use feed::start;
use http::HeaderValue;
use inflight::{InFlight, Kind, Phase};
use parking_lot::MutexGuard;
use queueset::{Arrival, Arriving, Nanos};
use table::{Level, Schema, State, Table, wake};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::Instant,
};

use crate::core::Call;

/// How often seats are shared out anew.
const ADJUST_EVERY: Duration = Duration::from_secs(10);
/// No request waits longer.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The longest that a level's sleeper sleeps at a time.
const MAX_NAP_NS: Nanos = 5_000_000;

/// How flow control is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Priority and fairness; else only the two limits hold, each for itself.
    pub fair: bool,
    /// Requests that read at a time (0: any number, where not fair).
    pub readonly: usize,
    /// Requests that write at a time.
    pub mutating: usize,
    /// How long a request may take.
    pub request_timeout: Duration,
}

/// Flow control of a server.
pub struct FlowControl {
    settings: Settings,
    started: Instant,
    hasher: RandomState,
    table: ArcSwap<Table>,
    /// Requests by kind and phase.
    pub in_flight: InFlight,
    /// Watches that are open.
    pub watches: Arc<watches::Watches>,
    /// Requests that may be in queues, of all levels together.
    room: AtomicU64,
    /// Something came since the last adjustment.
    busy: AtomicBool,
    wake_adjuster: Notify,
    /// An unwanted level is empty.
    reap: Notify,
    fair_fraction: AtomicU64,
    plain: [Option<Arc<Semaphore>>; 2],
}

/// A request may run.
pub struct Pass {
    /// Holds its seats.
    pub ticket: Ticket,
    /// UIDs of its schema and level, for its headers.
    pub uids: Option<[HeaderValue; 2]>,
    /// How long it waited.
    pub waited: Duration,
}

/// A request may not run.
pub struct Refused {
    /// When to try again.
    pub retry_after_s: u64,
    /// UIDs of its schema and level, for its headers.
    pub uids: Option<[HeaderValue; 2]>,
}

impl FlowControl {
    /// Flow control with the mandatory configuration, until [`start`] reads the store.
    pub fn new(settings: Settings) -> Self {
        let total = Self::total_of(&settings);
        let (table, _) = Table::build(None, &[], &[], total, 0);
        let places = |limit: usize| (limit > 0).then(|| Arc::new(Semaphore::new(limit)));
        let flow = Self {
            settings,
            started: Instant::now(),
            hasher: RandomState::new(),
            table: ArcSwap::from_pointee(table),
            in_flight: InFlight::default(),
            watches: Arc::default(),
            room: AtomicU64::new(1),
            busy: AtomicBool::new(true),
            wake_adjuster: Notify::new(),
            reap: Notify::new(),
            fair_fraction: AtomicU64::new(0),
            plain: [places(settings.readonly), places(settings.mutating)],
        };
        flow.adjust(1.0);
        flow
    }

    /// How it is set up.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn total_of(settings: &Settings) -> u32 {
        u32::try_from(settings.readonly.saturating_add(settings.mutating)).unwrap_or(u32::MAX)
    }

    fn total(&self) -> u32 {
        Self::total_of(&self.settings)
    }

    fn now(&self) -> Nanos {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// What "all" is for requests of a kind that wait and that run.
    fn wholes(&self, kind: Kind) -> [u32; 2] {
        if self.settings.fair {
            let room = u32::try_from(self.room.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
            return [room, self.total()];
        }
        let limit = [self.settings.readonly, self.settings.mutating][kind as usize];
        [1, u32::try_from(limit).unwrap_or(u32::MAX)]
    }

    fn count(&self, kind: Kind, phase: Phase, more: bool, now: Nanos) {
        self.in_flight.change(kind, phase, more, now, self.wholes(kind)[phase as usize]);
    }

    /// Lets a request in, once it may run. `deadline`: when the request must be answered, none for a watch.
    pub async fn admit(
        self: &Arc<Self>,
        call: &Call,
        deadline: Option<Instant>,
    ) -> Result<Pass, Box<Refused>> {
        let kind = Kind::of(call.info.verb);
        if !self.settings.fair {
            return self.admit_plainly(call, kind);
        }
        if !self.busy.load(Ordering::Relaxed) && !self.busy.swap(true, Ordering::Relaxed) {
            self.wake_adjuster.notify_one();
        }
        let table = self.table.load();
        let Some(schema) = table.classify(&call.info, &call.user) else {
            // A table always has schemas.
            return Err(Box::new(Refused { retry_after_s: 1, uids: None }));
        };
        let uids = [schema.uid.clone(), schema.level_uid.clone()];
        let level = schema.level.clone();
        let now = self.now();
        let (arrival, woken) = self.arrive(call, schema, now);
        drop(table);
        let (id, running) = match arrival {
            Arrival::Runs(id) => (id, true),
            Arrival::Waits(id) => (id, false),
            Arrival::Refused(_) => return Err(self.refused(&level, now, uids)),
        };
        let phase = if running { Phase::Executing } else { Phase::Waiting };
        self.count(kind, phase, true, now);
        let watch = call.info.verb == "watch";
        let held = Held { flow: self.clone(), level: level.clone(), id, watch, kind, phase };
        let mut ticket = Ticket { held: Some(held), _place: None };
        let Some(woken) = woken else {
            return Ok(Pass { ticket, uids: Some(uids), waited: Duration::ZERO });
        };
        let limit = self.wait_limit(call.received, deadline);
        let came = tokio::time::timeout_at(limit, woken).await.is_ok();
        let now_ns = self.now();
        if !came && self.gave_up(&mut ticket, now_ns) {
            return Err(self.refused(&level, now_ns, uids));
        }
        if let Some(held) = &mut ticket.held {
            self.count(kind, Phase::Waiting, false, now_ns);
            self.count(kind, Phase::Executing, true, now_ns);
            held.phase = Phase::Executing;
        }
        Ok(Pass { ticket, uids: Some(uids), waited: Duration::from_nanos(now_ns.saturating_sub(now)) })
    }

    /// Takes a request that waited too long out of its queue. `false`: it was given a seat in that very moment.
    fn gave_up(&self, ticket: &mut Ticket, now: Nanos) -> bool {
        let Some(held) = &ticket.held else { return true };
        let (level, id, kind) = (held.level.clone(), held.id, held.kind);
        let mut state = level.state.lock();
        if !state.set.cancel(now, id) {
            return false;
        }
        ticket.held = None;
        self.settle(&level, state);
        self.count(kind, Phase::Waiting, false, now);
        true
    }

    fn arrive(&self, call: &Call, schema: &Schema, now: Nanos) -> (Arrival, Option<oneshot::Receiver<()>>) {
        let level = &schema.level;
        let (cost, watches) = estimate::cost(call, level.max_seats.load(Ordering::Relaxed));
        let by = schema.by.map_or("", |by| by.of(&call.info, &call.user));
        let hash = if level.exempt { 0 } else { self.hasher.hash_one((&*schema.name, by)) };
        let what = (call.info.clone(), call.user.clone());
        let mut state = level.state.lock();
        if let (Some(watches), Some(stats)) = (watches, state.set.flows.get_mut(schema.flow as usize)) {
            stats.watchers.observe(&stats::WATCH_BOUNDS, f64::from(watches));
        }
        let arrival = state.set.arrive(now, Arriving { cost, hash, flow: schema.flow, what });
        let woken = match arrival {
            Arrival::Waits(id) => {
                let (waker, woken) = oneshot::channel();
                state.set.park(id, waker);
                Some(woken)
            }
            _ => None,
        };
        wake(&mut state);
        let sleep_until = state.set.next_event();
        drop(state);
        if let Some(at) = sleep_until {
            self.wake_level_at(level, at);
        }
        (arrival, woken)
    }

    /// A request may wait a quarter of its time.
    fn wait_limit(&self, received: Instant, deadline: Option<Instant>) -> Instant {
        let time = deadline.map_or(self.settings.request_timeout, |d| d.saturating_duration_since(received));
        received + (time / 4).min(MAX_WAIT)
    }

    fn refused(&self, level: &Level, now: Nanos, uids: [HeaderValue; 2]) -> Box<Refused> {
        let retry_after_s = level.state.lock().retry.refuse(now / 1_000_000_000);
        Box::new(Refused { retry_after_s, uids: Some(uids) })
    }

    fn admit_plainly(self: &Arc<Self>, call: &Call, kind: Kind) -> Result<Pass, Box<Refused>> {
        let (ticket, uids, waited) = (Ticket::none(), None, Duration::ZERO);
        // Watches are bounded by connections.
        let Some(places) = self.plain[kind as usize].as_ref().filter(|_| call.info.verb != "watch") else {
            return Ok(Pass { ticket, uids, waited });
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let now = self.now();
                self.count(kind, Phase::Executing, true, now);
                let counted = Counted { flow: self.clone(), kind, _place: place };
                Ok(Pass { ticket: Ticket { held: None, _place: Some(counted) }, uids, waited })
            }
            // The administrator must get in to see what is wrong.
            Err(_) if call.user.in_group("system:masters") => Ok(Pass { ticket, uids, waited }),
            Err(_) => Err(Box::new(Refused { retry_after_s: 1, uids })),
        }
    }

    /// After something changed at a level: seats that come free by time are waited for, a level that nobody
    /// wants any more is taken away.
    fn settle(&self, level: &Arc<Level>, mut state: MutexGuard<'_, State>) {
        wake(&mut state);
        let (at, idle) = (state.set.next_event(), state.set.is_idle());
        drop(state);
        if let Some(at) = at {
            self.wake_level_at(level, at);
        }
        if idle && level.quiescing.load(Ordering::Relaxed) {
            self.reap.notify_one();
        }
    }

    /// One sleeper per level, and only while requests wait for seats that come free by time alone.
    fn wake_level_at(&self, level: &Arc<Level>, at: Nanos) {
        if level.timed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (level, started) = (level.clone(), self.started);
        tokio::spawn(async move {
            let mut at = at;
            let now = || u64::try_from(started.elapsed().as_nanos()).unwrap_or(Nanos::MAX);
            loop {
                // Seats that come free earlier may be taken meanwhile.
                let soon = at.min(now() + MAX_NAP_NS);
                tokio::time::sleep_until(started + Duration::from_nanos(soon)).await;
                let mut state = level.state.lock();
                let now = now();
                state.set.advance(now);
                wake(&mut state);
                match state.set.next_event() {
                    Some(next) => at = next,
                    None => {
                        // Under the lock, so that whoever waits next starts another sleeper.
                        level.timed.store(false, Ordering::Release);
                        return;
                    }
                }
            }
        });
    }

    /// Shares out seats by demand.
    fn adjust(&self, periods: f64) {
        let fair = self.table.load().adjust(self.now(), periods, self.total());
        self.fair_fraction.store(fair.to_bits(), Ordering::Relaxed);
    }

    /// Adjusts every ten seconds, but not while nothing happens.
    async fn keep_adjusted(&self) {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(ADJUST_EVERY).await;
            let quiet = !self.busy.swap(false, Ordering::Relaxed)
                && self.table.load().levels.values().all(|row| row.level.state.lock().set.is_idle());
            if quiet {
                self.wake_adjuster.notified().await;
            }
            let passed = last.elapsed();
            last = Instant::now();
            self.adjust((passed.as_secs_f64() / ADJUST_EVERY.as_secs_f64()).round());
        }
    }
}

struct Held {
    flow: Arc<FlowControl>,
    level: Arc<Level>,
    id: u32,
    watch: bool,
    kind: Kind,
    phase: Phase,
}

struct Counted {
    flow: Arc<FlowControl>,
    kind: Kind,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.flow.count(self.kind, Phase::Executing, false, self.flow.now());
    }
}

/// Seats of a request, or its place in a queue. Dropping it gives them back.
pub struct Ticket {
    held: Option<Held>,
    _place: Option<Counted>,
}

impl Ticket {
    /// No seats.
    pub fn none() -> Self {
        Self { held: None, _place: None }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let now = held.flow.now();
        let mut state = held.level.state.lock();
        if held.phase == Phase::Executing || !state.set.cancel(now, held.id) {
            state.set.finish(now, held.id, held.watch);
        }
        held.flow.settle(&held.level, state);
        held.flow.count(held.kind, held.phase, false, now);
    }
}

//! The queues of one priority level: fair queuing over seats in virtual time (KEP-1040).
//!
//! In: arrivals, ends and cancellations, each with the time. Out: who may run. Nothing here waits, locks, reads
//! a clock or draws a random number, so a simulation drives it as the server does.
//!
//! A request takes seats while it runs, and may hold some for a while longer for the watch events it causes.
//! Virtual time `R` counts the seat-nanoseconds that each busy queue has been given since the start. A queue's
//! next request is due at the queue's own reading; the queue whose head would be done first in that world is
//! served first. A request is assumed to run for 3 ms and the queue's reading is put right when it ends.
//!
//! Only queues that hold a request exist, so that a level may have millions of them. While nobody waits, an
//! arrival allocates nothing.

use std::{cmp::Reverse, collections::BinaryHeap};

mod held;

pub use held::{Dump, QueueDump};
use held::{Entry, Held, State};

use super::{
    shard,
    stats::{
        DEMAND_BOUNDS, Demand, FlowStats, LENGTH_BOUNDS, Moments, REQUEST_USE_BOUNDS, Readings, Refusal,
        SEAT_BOUNDS, SEAT_USE_BOUNDS, Totals, Usage,
    },
};

/// Nanoseconds since some start.
pub type Nanos = u64;
/// Seat-nanoseconds. 128 bits never overflow.
pub type Work = i128;

/// How long a request is assumed to run before it has.
const SERVICE_NS: u64 = 3_000_000;
const NONE: u32 = u32::MAX;
/// Seat-nanoseconds in a seat-second, for metrics and dumps.
const PER_SECOND: f64 = 1e9;

/// What a level does with requests that find no seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discipline {
    /// There is no limit.
    Exempt,
    /// They are refused.
    Reject,
    /// They wait.
    Queue {
        /// How many queues there are.
        queues: u32,
        /// How many of them a flow may use.
        hand: u32,
        /// Requests that a queue takes while no seat is free.
        length: u32,
    },
}

/// What a request takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Seats while it runs.
    pub seats: u32,
    /// Seats afterwards.
    pub final_seats: u32,
    /// How long afterwards.
    pub extra_ns: u64,
}

impl Cost {
    /// The seats that it holds all the time.
    pub fn max_seats(&self) -> u32 {
        self.seats.max(self.final_seats)
    }

    fn final_work(&self) -> Work {
        Work::from(self.final_seats) * Work::from(self.extra_ns)
    }

    fn total_work(&self) -> Work {
        Work::from(self.seats) * Work::from(SERVICE_NS) + self.final_work()
    }
}

/// A request as it arrives.
pub struct Arriving<D> {
    /// What it takes.
    pub cost: Cost,
    /// Of its flow.
    pub hash: u64,
    /// Row of [`QueueSet::flows`] that counts it.
    pub flow: u32,
    /// What it is, for dumps.
    pub what: D,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// It runs; [`QueueSet::finish`] is due.
    Runs(u32),
    /// It waits; [`QueueSet::park`] is due at once.
    Waits(u32),
    /// It is refused.
    Refused(Refusal),
}

/// The queues of one level. `W` wakes a request that waits, `D` describes one.
pub struct QueueSet<W, D> {
    discipline: Discipline,
    limit: u32,
    /// What "all seats" is for metrics, also where the limit is zero.
    whole: u32,
    held: Held<W, D>,
    active: u32,
    current_r: Work,
    last: Nanos,
    robin: u32,
    arrivals: u64,
    lingering: BinaryHeap<Reverse<(Nanos, u32)>>,
    totals: Totals,
    moments: Moments,
    woken: Vec<W>,
    readings: Readings,
    /// Counts per flow schema.
    pub flows: Vec<FlowStats>,
    /// Shares of the time.
    pub usage: Usage,
}

impl<W, D> QueueSet<W, D> {
    /// A level without requests.
    pub fn new(discipline: Discipline, limit: u32, whole: u32, now: Nanos) -> Self {
        Self {
            discipline,
            limit,
            whole: whole.max(1),
            held: Held::new(),
            active: 0,
            current_r: 0,
            last: now,
            robin: NONE,
            arrivals: 0,
            lingering: BinaryHeap::new(),
            totals: Totals::default(),
            moments: Moments::default(),
            woken: Vec::new(),
            readings: Readings::default(),
            flows: Vec::new(),
            usage: Usage::default(),
        }
    }

    /// Takes on another configuration. Requests stay where they are; queues beyond the new number drain.
    pub fn configure(&mut self, discipline: Discipline, limit: u32, whole: u32, now: Nanos) {
        self.advance(now);
        (self.discipline, self.limit, self.whole) = (discipline, limit, whole.max(1));
        self.dispatch(now);
    }

    /// The limit in seats.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Counts of all requests.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether there are no requests.
    pub fn is_idle(&self) -> bool {
        self.totals.waiting == 0 && self.totals.running == 0
    }

    /// Readings of virtual time.
    pub fn readings(&self) -> Readings {
        Readings { current: self.current_r as f64 / PER_SECOND, ..self.readings }
    }

    /// The demand since the last time this was asked.
    pub fn take_demand(&mut self, now: Nanos) -> Demand {
        self.advance(now);
        let demand = self.demand();
        self.moments.take(demand)
    }

    /// Wakers of requests that run now.
    pub fn take_woken(&mut self) -> Vec<W> {
        std::mem::take(&mut self.woken)
    }

    /// When [`QueueSet::advance`] must be called though nothing else happens: seats come free then that
    /// somebody waits for.
    pub fn next_event(&self) -> Option<Nanos> {
        if self.totals.waiting == 0 {
            return None;
        }
        self.lingering.peek().map(|Reverse((at, _))| *at)
    }

    /// Lets time pass: seats that were held for events come free.
    pub fn advance(&mut self, now: Nanos) {
        while let Some(Reverse((at, id))) = self.lingering.peek().copied() {
            if at > now {
                break;
            }
            self.lingering.pop();
            self.sync(at);
            self.release(id);
            self.dispatch(at);
        }
        self.sync(now);
    }

    /// A request comes.
    pub fn arrive(&mut self, now: Nanos, request: Arriving<D>) -> Arrival {
        self.advance(now);
        let seats = request.cost.max_seats();
        let flow = request.flow as usize;
        if let Some(stats) = self.flows.get_mut(flow)
            && self.discipline != Discipline::Exempt
        {
            stats.seats.observe(&SEAT_BOUNDS, f64::from(seats));
        }
        match self.discipline {
            Discipline::Queue { queues, hand, length } => {
                let index = self.choose(request.hash, queues, hand);
                let held = self.held.slot(index).map_or(0, |slot| self.held.queue(slot).waiting);
                if self.totals.seats >= u64::from(self.limit) && held >= length {
                    return self.refuse(flow, Refusal::QueueFull);
                }
                let id = self.enqueue(index, now, request);
                self.dispatch(now);
                let entry = self.held.entry(id);
                if entry.state == State::Running { Arrival::Runs(id) } else { Arrival::Waits(id) }
            }
            Discipline::Reject if !self.accommodates(seats) => self.refuse(flow, Refusal::ConcurrencyLimit),
            Discipline::Reject | Discipline::Exempt => {
                let id = self.insert(now, NONE, request);
                self.start(id, now);
                Arrival::Runs(id)
            }
        }
    }

    /// How a request that waits is woken.
    pub fn park(&mut self, id: u32, waker: W) {
        self.held.entry_mut(id).waker = Some(waker);
    }

    /// A request gives up. `true`: it was waiting and is gone. `false`: it runs, and must be finished.
    pub fn cancel(&mut self, now: Nanos, id: u32) -> bool {
        self.advance(now);
        let entry = self.held.entry(id);
        if entry.state != State::Waiting {
            return false;
        }
        let (flow, slot, waited) = (entry.flow as usize, entry.queue, now.saturating_sub(entry.arrived));
        self.unlink(id);
        self.totals.cancelled += 1;
        self.refuse(flow, Refusal::TimeOut);
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.wait_s[1].observe(&super::stats::DURATION_BOUNDS_S, waited as f64 / 1e9);
        }
        self.bound(slot);
        self.held.free(id);
        self.held.drop_queue_if_idle(slot);
        self.note();
        // It may have been a wide one that kept narrow ones waiting.
        self.dispatch(now);
        true
    }

    /// A request that ran is done. `watch`: it only got a watch under way.
    pub fn finish(&mut self, now: Nanos, id: u32, watch: bool) {
        self.advance(now);
        let entry = self.held.entry_mut(id);
        debug_assert_eq!(entry.state, State::Running);
        let (cost, slot, flow) = (entry.cost, entry.queue, entry.flow as usize);
        let took = now.saturating_sub(entry.started);
        entry.what = None;
        self.totals.running -= 1;
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.executing -= 1;
            stats.execution_s[usize::from(!watch)]
                .observe(&super::stats::DURATION_BOUNDS_S, took as f64 / 1e9);
        }
        if slot != NONE {
            let before = self.held.queue(slot).is_active();
            let queue = self.held.queue_mut(slot);
            queue.running -= 1;
            queue.next_r -= Work::from(cost.seats) * (Work::from(SERVICE_NS) - Work::from(took));
            self.active -= u32::from(before && !self.held.queue(slot).is_active());
            self.bound(slot);
        }
        if cost.extra_ns > 0 && cost.final_seats > 0 {
            self.held.entry_mut(id).state = State::Lingering;
            self.lingering.push(Reverse((now.saturating_add(cost.extra_ns), id)));
        } else {
            self.release(id);
        }
        self.dispatch(now);
    }

    /// Describes requests: `waiting` in the order of their queues, then those that run.
    pub fn dump(&self) -> Vec<Dump<'_, D>> {
        self.held.dump()
    }

    /// Describes the queues that hold a request.
    pub fn dump_queues(&self) -> impl Iterator<Item = QueueDump> {
        self.held.dump_queues()
    }

    fn demand(&self) -> f64 {
        (self.totals.seats + self.totals.waiting_seats) as f64
    }

    fn note(&mut self) {
        let demand = self.demand();
        self.moments.note(demand);
    }

    /// Virtual time and all integrals catch up: the present state has been so since `last`.
    fn sync(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.last);
        if passed == 0 {
            return;
        }
        self.last = now;
        if self.active > 0 {
            let wanted = (self.totals.seats + self.totals.waiting_seats).min(u64::from(self.limit));
            self.current_r += Work::from(wanted) * Work::from(passed) / Work::from(self.active);
        }
        let whole = f64::from(self.whole);
        self.moments.add(self.demand(), passed as f64 / 1e9);
        let room = match self.discipline {
            Discipline::Queue { queues, length, .. } => f64::from(queues) * f64::from(length),
            _ => 1.0,
        };
        let (totals, demand) = (self.totals, self.demand());
        let usage = &mut self.usage;
        usage.seats.observe_many(&SEAT_USE_BOUNDS, totals.seats as f64 / whole, passed);
        usage.running.observe_many(&REQUEST_USE_BOUNDS, f64::from(totals.running) / whole, passed);
        usage.waiting.observe_many(&REQUEST_USE_BOUNDS, f64::from(totals.waiting) / room.max(1.0), passed);
        usage.demand.observe_many(&DEMAND_BOUNDS, demand / whole, passed);
    }

    fn refuse(&mut self, flow: usize, why: Refusal) -> Arrival {
        self.totals.rejected += 1;
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.rejected[why as usize] += 1;
            if why != Refusal::TimeOut {
                stats.wait_s[0].observe(&super::stats::DURATION_BOUNDS_S, 0.0);
            }
        }
        Arrival::Refused(why)
    }

    /// The queue of the flow's hand with the least work waiting. Where several are equal the first in an order
    /// that turns with every request, so that hands with a common queue do not all begin there.
    fn choose(&mut self, hash: u64, queues: u32, hand: u32) -> u32 {
        let hand = shard::deal(hash, queues, hand);
        let cards = hand.cards();
        let turn = (self.arrivals % cards.len().max(1) as u64) as usize;
        self.arrivals += 1;
        let work = |index: u32| self.held.slot(index).map_or(0, |slot| self.held.queue(slot).waiting_work);
        let turned = cards[turn..].iter().chain(&cards[..turn]);
        turned.copied().min_by_key(|index| work(*index)).unwrap_or(0)
    }

    fn insert(&mut self, now: Nanos, queue: u32, request: Arriving<D>) -> u32 {
        self.held.insert(Entry {
            state: State::Waiting,
            queue,
            before: NONE,
            after: NONE,
            flow: request.flow,
            cost: request.cost,
            arrival_r: self.current_r,
            arrived: now,
            started: now,
            waker: None,
            what: Some(request.what),
        })
    }

    fn enqueue(&mut self, index: u32, now: Nanos, request: Arriving<D>) -> u32 {
        let slot = self.held.slot_or_new(index);
        let (cost, flow) = (request.cost, request.flow as usize);
        let id = self.insert(now, slot, request);
        let queue = self.held.queue_mut(slot);
        if !queue.is_active() {
            // What it was given while it had nothing to do is not carried over.
            queue.next_r = self.current_r;
            self.active += 1;
        }
        self.held.append(id);
        let length = self.held.queue(slot).waiting;
        self.totals.waiting += 1;
        self.totals.waiting_seats += u64::from(cost.max_seats());
        self.note();
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.waiting += 1;
            stats.waiting_seats += u64::from(cost.max_seats());
            stats.queue_length.observe(&LENGTH_BOUNDS, f64::from(length));
        }
        self.bound(slot);
        id
    }

    /// Takes a waiting request out of its queue.
    fn unlink(&mut self, id: u32) {
        let entry = self.held.entry(id);
        let (cost, flow, slot) = (entry.cost, entry.flow as usize, entry.queue);
        self.held.unlink(id);
        self.active -= u32::from(!self.held.queue(slot).is_active());
        self.totals.waiting -= 1;
        self.totals.waiting_seats -= u64::from(cost.max_seats());
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.waiting -= 1;
            stats.waiting_seats -= u64::from(cost.max_seats());
        }
    }

    /// A request begins to run.
    fn start(&mut self, id: u32, now: Nanos) {
        let entry = self.held.entry_mut(id);
        entry.state = State::Running;
        entry.started = now;
        let (seats, flow, slot) = (u64::from(entry.cost.max_seats()), entry.flow as usize, entry.queue);
        let waited = now.saturating_sub(entry.arrived);
        if let Some(waker) = entry.waker.take() {
            self.woken.push(waker);
        }
        self.totals.running += 1;
        self.totals.seats += seats;
        self.totals.dispatched += 1;
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.dispatched += 1;
            stats.executing += 1;
            stats.executing_seats += seats;
            if self.discipline != Discipline::Exempt {
                stats.wait_s[1].observe(&super::stats::DURATION_BOUNDS_S, waited as f64 / 1e9);
            }
        }
        if slot != NONE {
            let queue = self.held.queue_mut(slot);
            self.active += u32::from(!queue.is_active());
            queue.running += 1;
            queue.seats += seats;
        }
        self.note();
    }

    fn accommodates(&self, seats: u32) -> bool {
        if seats > self.limit {
            // It will never fit: it runs alone.
            return self.totals.seats == 0;
        }
        self.totals.seats + u64::from(seats) <= u64::from(self.limit)
    }

    /// Starts whatever may run.
    fn dispatch(&mut self, now: Nanos) {
        while self.totals.waiting > 0
            && self.totals.seats < u64::from(self.limit)
            && let Some(slot) = self.next_queue()
        {
            let id = self.held.queue(slot).head;
            let entry = self.held.entry(id);
            let (seats, flow) = (entry.cost.max_seats(), entry.flow as usize);
            if !self.accommodates(seats) {
                if let Some(stats) = self.flows.get_mut(flow) {
                    stats.not_accommodated += 1;
                }
                return;
            }
            self.unlink(id);
            self.narrow(id);
            let due = self.held.queue(slot).next_r;
            self.robin = self.held.queue(slot).index;
            self.readings.dispatch = self.current_r as f64 / PER_SECOND;
            self.readings.latest = due as f64 / PER_SECOND;
            self.start(id, now);
            self.held.queue_mut(slot).next_r = due + self.held.entry(id).cost.total_work();
            self.bound(slot);
        }
    }

    /// Seats for events that are more than there are become fewer for longer.
    fn narrow(&mut self, id: u32) {
        let cost = &mut self.held.entry_mut(id).cost;
        if cost.final_seats > self.limit && self.limit > 0 {
            let work = cost.final_work();
            cost.final_seats = self.limit;
            cost.extra_ns = u64::try_from(work / Work::from(self.limit)).unwrap_or(u64::MAX);
        }
    }

    /// The queue whose head is done first in virtual time; of equals the one after the last that was served.
    fn next_queue(&mut self) -> Option<u32> {
        let from = self.held.order.partition_point(|(index, _)| self.robin != NONE && *index <= self.robin);
        let mut best: Option<(Work, u32)> = None;
        let mut bounds = [Work::MAX, Work::MIN];
        let mut discounted = bounds;
        for (_, slot) in self.held.order[from..].iter().chain(&self.held.order[..from]) {
            let queue = self.held.queue(*slot);
            if queue.waiting == 0 {
                continue;
            }
            let finish = queue.next_r + self.held.entry(queue.head).cost.total_work();
            let progress = Work::from(queue.seats) * Work::from(SERVICE_NS);
            bounds = [bounds[0].min(queue.next_r), bounds[1].max(queue.next_r)];
            let due = queue.next_r - progress;
            discounted = [discounted[0].min(due), discounted[1].max(due)];
            if best.is_none_or(|(first, _)| finish < first) {
                best = Some((finish, *slot));
            }
        }
        if best.is_some() {
            self.readings.bounds = bounds.map(|r| r as f64 / PER_SECOND);
            self.readings.discounted = discounted.map(|r| r as f64 / PER_SECOND);
        }
        best.map(|(_, slot)| slot)
    }

    /// A queue that could not use what it was given must not catch up later: nothing is due in virtual time
    /// before it came.
    fn bound(&mut self, slot: u32) {
        let head = self.held.queue(slot).head;
        if head != NONE {
            let arrival_r = self.held.entry(head).arrival_r;
            let queue = self.held.queue_mut(slot);
            queue.next_r = queue.next_r.max(arrival_r);
        }
    }

    /// The seats of a request that is done come free.
    fn release(&mut self, id: u32) {
        let entry = self.held.entry(id);
        let (seats, slot, flow) = (u64::from(entry.cost.max_seats()), entry.queue, entry.flow as usize);
        self.totals.seats -= seats;
        if let Some(stats) = self.flows.get_mut(flow) {
            stats.executing_seats -= seats;
        }
        if slot != NONE {
            self.held.queue_mut(slot).seats -= seats;
            self.held.drop_queue_if_idle(slot);
        }
        self.held.free(id);
    }
}

//! The queueing core under a simulation: requests come, run, give up and end by a seeded plan, and what must
//! always hold is checked at every step.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use yare_apiserver::flow::{
    queueset::{Arrival, Arriving, Cost, Discipline, Nanos, QueueSet},
    stats::FlowStats,
};

const MS: Nanos = 1_000_000;

/// A small generator of numbers, so that a seed replays a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Served,
    Refused,
    GaveUp,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Ends(u32, u64),
    GivesUp(u64),
    Comes(u64),
}

struct Client {
    flow: u64,
    cost: Cost,
    service: Nanos,
    patience: Nanos,
}

struct World {
    set: QueueSet<u64, u64>,
    limit: u32,
    /// Seats of the widest request.
    widest: u32,
    steps: BinaryHeap<Reverse<(Nanos, Step)>>,
    clients: Vec<Client>,
    waiting: HashMap<u64, u32>,
    running: HashMap<u32, u64>,
    ends: BTreeMap<u64, End>,
    /// Seat time that each flow was given.
    served: BTreeMap<u64, u128>,
    waits: Vec<(u64, Nanos)>,
    came: HashMap<u64, Nanos>,
}

impl World {
    fn new(discipline: Discipline, limit: u32) -> Self {
        let mut set = QueueSet::new(discipline, limit, limit, 0);
        set.flows.push(FlowStats::default());
        Self {
            set,
            limit,
            widest: 0,
            steps: BinaryHeap::new(),
            clients: Vec::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            ends: BTreeMap::new(),
            served: BTreeMap::new(),
            waits: Vec::new(),
            came: HashMap::new(),
        }
    }

    fn comes(&mut self, at: Nanos, client: Client) {
        self.widest = self.widest.max(client.cost.max_seats());
        self.clients.push(client);
        self.steps.push(Reverse((at, Step::Comes(self.clients.len() as u64 - 1))));
    }

    fn starts(&mut self, now: Nanos, id: u32, number: u64) {
        let client = &self.clients[number as usize];
        assert!(self.running.insert(id, number).is_none(), "{number} runs twice");
        *self.served.entry(client.flow).or_default() +=
            u128::from(client.service) * u128::from(client.cost.max_seats());
        self.waits.push((client.flow, now - self.came[&number]));
        self.steps.push(Reverse((now + client.service, Step::Ends(id, number))));
    }

    fn end(&mut self, number: u64, end: End) {
        assert!(self.ends.insert(number, end).is_none(), "{number} ends twice");
    }

    fn woken(&mut self, now: Nanos) {
        for number in self.set.take_woken() {
            let id = self.waiting.remove(&number).expect("only who waits is woken");
            self.starts(now, id, number);
        }
    }

    /// Runs to the end; every request must have had one.
    fn run(&mut self) {
        loop {
            let next = self.steps.peek().map(|Reverse((at, _))| *at);
            let now = match (next, self.set.next_event()) {
                (Some(step), Some(event)) if event < step => event,
                (None, Some(event)) => event,
                (Some(step), _) => step,
                (None, None) => break,
            };
            if next == Some(now) {
                let Some(Reverse((_, step))) = self.steps.pop() else { break };
                self.step(now, step);
            } else {
                self.set.advance(now);
            }
            self.woken(now);
            self.check();
        }
        assert!(self.waiting.is_empty() && self.running.is_empty() && self.set.is_idle());
        assert_eq!(self.ends.len(), self.clients.len(), "every request is answered");
        let totals = self.set.totals();
        assert_eq!(totals.waiting_seats, 0);
        let count = |end| self.ends.values().filter(|e| **e == end).count() as u64;
        assert_eq!(totals.dispatched, count(End::Served));
        assert_eq!(totals.rejected, count(End::Refused) + count(End::GaveUp));
    }

    fn step(&mut self, now: Nanos, step: Step) {
        match step {
            Step::Comes(number) => {
                let client = &self.clients[number as usize];
                let (cost, hash, patience) =
                    (client.cost, client.flow.wrapping_mul(0x9e37_79b9_7f4a_7c15), client.patience);
                self.came.insert(number, now);
                match self.set.arrive(now, Arriving { cost, hash, flow: 0, what: number }) {
                    Arrival::Runs(id) => self.starts(now, id, number),
                    Arrival::Waits(id) => {
                        self.set.park(id, number);
                        self.waiting.insert(number, id);
                        self.steps.push(Reverse((now + patience, Step::GivesUp(number))));
                    }
                    Arrival::Refused(_) => self.end(number, End::Refused),
                }
            }
            Step::GivesUp(number) => {
                if let Some(id) = self.waiting.remove(&number) {
                    assert!(self.set.cancel(now, id), "who was not woken waits");
                    self.end(number, End::GaveUp);
                }
            }
            Step::Ends(id, number) => {
                assert_eq!(self.running.remove(&id), Some(number));
                self.set.finish(now, id, false);
                self.end(number, End::Served);
            }
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let totals = self.set.totals();
        assert_eq!(totals.waiting as usize, self.waiting.len());
        assert_eq!(totals.running as usize, self.running.len());
        // What is wider than all seats together runs alone.
        let alone = self.running.len() <= 1 && totals.seats <= u64::from(self.widest);
        let seats = totals.seats;
        assert!(seats <= u64::from(self.limit) || alone, "{seats} seats of {} are taken", self.limit);
        // No lost wake-up: nobody waits while nothing runs and no seat is held.
        if totals.waiting > 0 && self.limit > 0 {
            assert!(totals.seats > 0, "{} wait for nothing", totals.waiting);
        }
        let stats = &self.set.flows[0];
        assert_eq!(stats.waiting, totals.waiting);
        assert_eq!(stats.executing, totals.running);
        assert_eq!(stats.executing_seats, totals.seats);
    }

    fn p99_wait_ms(&self, flow: u64) -> u64 {
        let mut waits: Vec<Nanos> = self.waits.iter().filter(|(f, _)| *f == flow).map(|(_, w)| *w).collect();
        waits.sort_unstable();
        waits.get(waits.len() * 99 / 100).copied().unwrap_or(0) / MS
    }
}

const QUEUES: Discipline = Discipline::Queue { queues: 64, hand: 6, length: 50 };
const ONE: Cost = Cost { seats: 1, final_seats: 0, extra_ns: 0 };

#[test]
fn every_request_is_served_or_answered_whatever_happens() {
    for seed in 1..=60 {
        let mut dice = Dice(0x1234_5678_9abc_def1_u64.wrapping_mul(seed));
        let limit = 1 + dice.roll(12) as u32;
        let discipline = match dice.roll(6) {
            0 => Discipline::Reject,
            1 => Discipline::Queue { queues: 1, hand: 1, length: 3 },
            2 => Discipline::Queue { queues: 10_000_000, hand: 2, length: 5 },
            _ => QUEUES,
        };
        let mut world = World::new(discipline, limit);
        let flows = 1 + dice.roll(20);
        let mut at = 0;
        for _ in 0..1500 {
            at += dice.roll(3 * MS);
            let seats = 1 + if dice.roll(10) == 0 { dice.roll(15) as u32 } else { 0 };
            let (final_seats, extra_ns) =
                if dice.roll(4) == 0 { (1 + dice.roll(12) as u32, dice.roll(40 * MS)) } else { (0, 0) };
            let client = Client {
                flow: dice.roll(flows),
                cost: Cost { seats, final_seats, extra_ns },
                service: dice.roll(20 * MS),
                patience: if dice.roll(3) == 0 { dice.roll(30 * MS) } else { 15_000 * MS },
            };
            world.comes(at, client);
        }
        world.run();
    }
}

#[test]
fn a_flood_leaves_others_their_share() {
    // One flow offers ten times what the level can carry, ten others a little each.
    let mut world = World::new(QUEUES, 10);
    let service = 10 * MS;
    let patience = 15_000 * MS;
    for n in 0..100_000 {
        world.comes(n * MS / 10, Client { flow: 0, cost: ONE, service, patience });
    }
    for flow in 1..=10 {
        for n in 0..400 {
            world.comes(n * 25 * MS + flow * MS, Client { flow, cost: ONE, service, patience });
        }
    }
    world.run();
    for flow in 1..=10 {
        assert_eq!(world.served[&flow], 400 * u128::from(service), "flow {flow} gets all that it asks for");
        assert!(world.p99_wait_ms(flow) < 1000, "flow {flow}: {} ms", world.p99_wait_ms(flow));
    }
    // And the level is busy all the time.
    let all: u128 = world.served.values().sum();
    assert!(all >= 10 * 10_000 * u128::from(MS), "{all}");
}

#[test]
fn equal_floods_share_equally() {
    let mut world = World::new(QUEUES, 8);
    for flow in 0..4 {
        for n in 0..20_000 {
            let client = Client { flow, cost: ONE, service: 5 * MS, patience: 15_000 * MS };
            world.comes(n * MS / 4 + flow, client);
        }
    }
    world.run();
    let mean = world.served.values().sum::<u128>() / 4;
    for (flow, served) in &world.served {
        assert!(*served > mean * 8 / 10 && *served < mean * 12 / 10, "flow {flow}: {served} of {mean}");
    }
}

#[test]
fn wide_requests_are_not_starved() {
    let mut world = World::new(QUEUES, 10);
    for n in 0..40_000 {
        world.comes(n * MS / 2, Client { flow: n % 7, cost: ONE, service: 10 * MS, patience: 60_000 * MS });
    }
    let wide = Cost { seats: 10, final_seats: 0, extra_ns: 0 };
    for n in 0..20 {
        world.comes(n * 500 * MS, Client { flow: 99, cost: wide, service: 10 * MS, patience: 60_000 * MS });
    }
    world.run();
    assert_eq!(world.waits.iter().filter(|(flow, _)| *flow == 99).count(), 20);
    assert!(world.p99_wait_ms(99) < 5000, "{} ms", world.p99_wait_ms(99));
}

#[test]
fn a_level_without_seats_holds_requests_until_it_gets_some() {
    let mut set: QueueSet<u64, ()> = QueueSet::new(QUEUES, 0, 1, 0);
    let Arrival::Waits(id) = set.arrive(5, Arriving { cost: ONE, hash: 7, flow: 0, what: () }) else {
        panic!()
    };
    set.park(id, 1);
    set.configure(QUEUES, 2, 2, 10);
    assert_eq!(set.take_woken(), [1]);
    set.finish(20, id, false);
    assert!(set.is_idle());
}

#[test]
fn seats_for_events_come_free_by_time_alone() {
    let mut set: QueueSet<u64, ()> = QueueSet::new(QUEUES, 1, 1, 0);
    let cost = Cost { seats: 1, final_seats: 1, extra_ns: 5 * MS };
    let Arrival::Runs(first) = set.arrive(0, Arriving { cost, hash: 1, flow: 0, what: () }) else { panic!() };
    let Arrival::Waits(second) = set.arrive(1, Arriving { cost, hash: 2, flow: 0, what: () }) else {
        panic!()
    };
    set.park(second, 2);
    set.finish(MS, first, false);
    assert_eq!((set.next_event(), set.take_woken()), (Some(6 * MS), vec![]));
    set.advance(6 * MS);
    assert_eq!(set.take_woken(), [2]);
    assert_eq!(set.next_event(), None, "nobody waits");
    set.finish(7 * MS, second, false);
    set.advance(100 * MS);
    assert_eq!(set.totals().seats, 0);
}

#[test]
fn queues_that_are_too_many_drain() {
    let mut set: QueueSet<u64, ()> = QueueSet::new(QUEUES, 1, 1, 0);
    let mut waiting = Vec::new();
    for hash in 0..40 {
        match set.arrive(hash, Arriving { cost: ONE, hash: hash * 77_777, flow: 0, what: () }) {
            Arrival::Runs(id) => waiting.insert(0, id),
            Arrival::Waits(id) => {
                set.park(id, u64::from(id));
                waiting.push(id);
            }
            Arrival::Refused(why) => panic!("{why:?}"),
        }
    }
    set.configure(Discipline::Reject, 1, 1, 100);
    let mut running = vec![waiting[0]];
    let mut served = 0;
    while let Some(id) = running.pop() {
        set.finish(1000 + served, id, false);
        served += 1;
        running.extend(set.take_woken().into_iter().map(|id| id as u32));
    }
    assert_eq!((served, set.is_idle(), set.dump_queues().count()), (40, true, 0));
}

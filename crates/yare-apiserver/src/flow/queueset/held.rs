//! The requests that a level holds and the queues they stand in, as numbered places that are used again.
//!
//! A queue is a list through its requests; only queues with a request exist. Who is served when is not decided
//! here, and nothing is counted but what a queue itself holds.

use super::{Cost, NONE, Nanos, Work};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Waiting,
    Running,
    Lingering,
}

/// A request.
pub(super) struct Entry<W, D> {
    pub state: State,
    /// Slot of its queue.
    pub queue: u32,
    pub before: u32,
    pub after: u32,
    pub flow: u32,
    pub cost: Cost,
    pub arrival_r: Work,
    pub arrived: Nanos,
    pub started: Nanos,
    pub waker: Option<W>,
    pub what: Option<D>,
}

#[derive(Clone, Copy)]
pub(super) struct Queue {
    pub index: u32,
    pub head: u32,
    pub tail: u32,
    pub waiting: u32,
    pub running: u32,
    pub seats: u64,
    pub waiting_seats: u64,
    pub waiting_initial_seats: u64,
    pub waiting_work: Work,
    pub next_r: Work,
}

impl Queue {
    fn new(index: u32) -> Self {
        Self {
            index,
            head: NONE,
            tail: NONE,
            waiting: 0,
            running: 0,
            seats: 0,
            waiting_seats: 0,
            waiting_initial_seats: 0,
            waiting_work: 0,
            next_r: 0,
        }
    }

    pub fn is_active(&self) -> bool {
        self.waiting > 0 || self.running > 0
    }
}

/// All requests and queues of a level.
pub(super) struct Held<W, D> {
    pub entries: Vec<Entry<W, D>>,
    free_entries: Vec<u32>,
    pub queues: Vec<Queue>,
    free_queues: Vec<u32>,
    /// Queues that hold a request: index and slot, by index.
    pub order: Vec<(u32, u32)>,
}

impl<W, D> Held<W, D> {
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            free_entries: Vec::new(),
            queues: Vec::new(),
            free_queues: Vec::new(),
            order: Vec::new(),
        }
    }

    pub fn entry(&self, id: u32) -> &Entry<W, D> {
        &self.entries[id as usize]
    }

    pub fn entry_mut(&mut self, id: u32) -> &mut Entry<W, D> {
        &mut self.entries[id as usize]
    }

    pub fn queue(&self, slot: u32) -> &Queue {
        &self.queues[slot as usize]
    }

    pub fn queue_mut(&mut self, slot: u32) -> &mut Queue {
        &mut self.queues[slot as usize]
    }

    /// The slot of the queue with this index, if it holds a request.
    pub fn slot(&self, index: u32) -> Option<u32> {
        self.order.binary_search_by_key(&index, |(index, _)| *index).ok().map(|at| self.order[at].1)
    }

    /// The same; the queue comes to be where it was not.
    pub fn slot_or_new(&mut self, index: u32) -> u32 {
        match self.order.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => self.order[at].1,
            Err(at) => {
                let queue = Queue::new(index);
                let slot = match self.free_queues.pop() {
                    Some(slot) => {
                        self.queues[slot as usize] = queue;
                        slot
                    }
                    None => {
                        self.queues.push(queue);
                        u32::try_from(self.queues.len() - 1).unwrap_or(NONE)
                    }
                };
                self.order.insert(at, (index, slot));
                slot
            }
        }
    }

    /// Takes a request in.
    pub fn insert(&mut self, entry: Entry<W, D>) -> u32 {
        match self.free_entries.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
            }
        }
    }

    /// Puts a request at the end of its queue.
    pub fn append(&mut self, id: u32) {
        let (cost, slot) = (self.entry(id).cost, self.entry(id).queue);
        let queue = self.queue_mut(slot);
        let tail = std::mem::replace(&mut queue.tail, id);
        queue.waiting += 1;
        queue.waiting_seats += u64::from(cost.max_seats());
        queue.waiting_initial_seats += u64::from(cost.seats);
        queue.waiting_work += cost.total_work();
        if tail == NONE {
            queue.head = id;
        } else {
            self.entry_mut(id).before = tail;
            self.entry_mut(tail).after = id;
        }
    }

    /// Takes a waiting request out of its queue.
    pub fn unlink(&mut self, id: u32) {
        let entry = self.entry(id);
        let (before, after, cost, slot) = (entry.before, entry.after, entry.cost, entry.queue);
        let queue = self.queue_mut(slot);
        if before == NONE {
            queue.head = after;
        }
        if after == NONE {
            queue.tail = before;
        }
        queue.waiting -= 1;
        queue.waiting_seats -= u64::from(cost.max_seats());
        queue.waiting_initial_seats -= u64::from(cost.seats);
        queue.waiting_work -= cost.total_work();
        if before != NONE {
            self.entry_mut(before).after = after;
        }
        if after != NONE {
            self.entry_mut(after).before = before;
        }
        let entry = self.entry_mut(id);
        (entry.before, entry.after) = (NONE, NONE);
    }

    /// Lets a request go.
    pub fn free(&mut self, id: u32) {
        let entry = self.entry_mut(id);
        (entry.what, entry.waker) = (None, None);
        entry.state = State::Lingering;
        self.free_entries.push(id);
    }

    /// Lets a queue go that holds nothing any more.
    pub fn drop_queue_if_idle(&mut self, slot: u32) {
        let queue = self.queue(slot);
        if !queue.is_active() && queue.seats == 0 {
            let index = queue.index;
            if let Ok(at) = self.order.binary_search_by_key(&index, |(index, _)| *index) {
                self.order.remove(at);
                self.free_queues.push(slot);
            }
        }
    }

    /// Describes requests: those that wait in the order of their queues, then those that run.
    pub fn dump(&self) -> Vec<Dump<'_, D>> {
        let mut out = Vec::new();
        for (index, slot) in &self.order {
            let (mut id, mut position) = (self.queue(*slot).head, 0);
            while id != NONE {
                let entry = self.entry(id);
                out.push(Dump::new(entry, Some(*index), Some(position)));
                (id, position) = (entry.after, position + 1);
            }
        }
        let free: std::collections::HashSet<u32> = self.free_entries.iter().copied().collect();
        for (id, entry) in self.entries.iter().enumerate() {
            let taken = u32::try_from(id).is_ok_and(|id| !free.contains(&id));
            if taken && entry.state == State::Running {
                let index = (entry.queue != NONE).then(|| self.queue(entry.queue).index);
                out.push(Dump::new(entry, index, None));
            }
        }
        out
    }

    /// Describes the queues.
    pub fn dump_queues(&self) -> impl Iterator<Item = QueueDump> {
        self.order.iter().map(|(_, slot)| {
            let queue = self.queue(*slot);
            QueueDump {
                index: queue.index,
                waiting: queue.waiting,
                running: queue.running,
                seats: queue.seats,
                next_r: queue.next_r,
                initial_seats: queue.waiting_initial_seats,
                max_seats: queue.waiting_seats,
                work: queue.waiting_work,
            }
        })
    }
}

/// A request in a dump.
pub struct Dump<'a, D> {
    /// Its queue.
    pub queue: Option<u32>,
    /// Its place in it; none for one that runs.
    pub position: Option<u32>,
    /// Row of [`QueueSet::flows`](super::QueueSet::flows).
    pub flow: u32,
    /// What it takes.
    pub cost: Cost,
    /// When it came.
    pub arrived: Nanos,
    /// When it began to run.
    pub started: Option<Nanos>,
    /// What it is.
    pub what: Option<&'a D>,
}

impl<'a, D> Dump<'a, D> {
    fn new<W>(entry: &'a Entry<W, D>, queue: Option<u32>, position: Option<u32>) -> Self {
        Self {
            queue,
            position,
            flow: entry.flow,
            cost: entry.cost,
            arrived: entry.arrived,
            started: position.is_none().then_some(entry.started),
            what: entry.what.as_ref(),
        }
    }
}

/// A queue in a dump.
#[derive(Clone, Copy, Debug)]
pub struct QueueDump {
    /// Its number.
    pub index: u32,
    /// Requests in it.
    pub waiting: u32,
    /// Requests from it that run.
    pub running: u32,
    /// Seats that they hold.
    pub seats: u64,
    /// When the next is due.
    pub next_r: Work,
    /// Seats of the waiting while they run.
    pub initial_seats: u64,
    /// Seats of the waiting at most.
    pub max_seats: u64,
    /// Work that waits.
    pub work: Work,
}

//! The configuration as requests use it: schemas in the order in which they are tried, each with its level.
//!
//! A [`Table`] is immutable and replaced as a whole when an object changes; its levels, which hold requests,
//! live on from one table to the next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use http::HeaderValue;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;
use yare_auth::User;
use yare_kinds::view::View;

use super::{
    bootstrap,
    limits::{self, Limits, Shares, Smoothed},
    queueset::{Discipline, Nanos, QueueSet},
    retry::RetryAfter,
    rules::{Distinguisher, Rules},
    shard,
};
use crate::path::RequestInfo;

/// What a request in a queue is, for dumps.
pub type What = (Arc<RequestInfo>, Arc<User>);

/// A priority level at work.
pub struct Level {
    /// Its name.
    pub name: String,
    /// It has no limits.
    pub exempt: bool,
    /// Most seats of one request; 0: any number.
    pub max_seats: AtomicU32,
    /// Its object is gone; it ends when its requests have.
    pub quiescing: AtomicBool,
    /// Somebody sleeps until seats come free by time.
    pub timed: AtomicBool,
    /// Everything that changes with requests.
    pub state: Mutex<State>,
}

/// What of a level changes with requests.
pub struct State {
    /// Its queues.
    pub set: QueueSet<oneshot::Sender<()>, What>,
    /// Names of the schemas that its flows are counted under; none where a row is free.
    pub flows: Vec<Option<String>>,
    /// Its limits.
    pub limits: Limits,
    /// Its demand.
    pub demand: Smoothed,
    /// What it would like to have.
    pub target: f64,
    /// What refused clients are told.
    pub retry: RetryAfter,
}

impl State {
    /// The row of `flows` for a schema.
    fn flow(&mut self, schema: &str) -> u32 {
        let found = self.flows.iter().position(|f| f.as_deref() == Some(schema));
        let row = found.or_else(|| self.flows.iter().position(Option::is_none)).unwrap_or_else(|| {
            self.flows.push(None);
            self.set.flows.push(super::stats::FlowStats::default());
            self.flows.len() - 1
        });
        if found.is_none() {
            self.flows[row] = Some(schema.to_owned());
            self.set.flows[row] = super::stats::FlowStats::default();
        }
        u32::try_from(row).unwrap_or(0)
    }

    /// Rows of schemas that are gone and have no requests left can be used again.
    fn forget_flows(&mut self, keep: &[&str]) {
        for (name, stats) in self.flows.iter_mut().zip(&self.set.flows) {
            let used = stats.waiting > 0 || stats.executing > 0 || stats.executing_seats > 0;
            if !used && name.as_deref().is_some_and(|name| !keep.contains(&name)) {
                *name = None;
            }
        }
    }
}

/// A flow schema in use.
pub struct Schema {
    /// Its name.
    pub name: String,
    /// Its UID, as it is sent to clients.
    pub uid: HeaderValue,
    /// Where its requests go.
    pub level: Arc<Level>,
    /// UID of the level's object.
    pub level_uid: HeaderValue,
    /// Row of the level's counts.
    pub flow: u32,
    /// What tells its flows apart; none where the level has one queue at most.
    pub by: Option<Distinguisher>,
    rules: Rules,
}

/// A level with what its object says.
pub struct Row {
    /// The level.
    pub level: Arc<Level>,
    uid: String,
    shares: Shares,
    discipline: Discipline,
}

impl Row {
    /// What it does with requests that find no seat.
    pub fn discipline(&self) -> Discipline {
        self.discipline
    }
}

/// The configuration.
pub struct Table {
    /// Schemas in the order in which they are tried.
    pub schemas: Vec<Schema>,
    /// Levels by name.
    pub levels: BTreeMap<String, Row>,
}

/// A condition that a FlowSchema's status should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dangling {
    /// The schema.
    pub schema: String,
    /// Its level does not exist.
    pub dangling: bool,
    /// The level it names.
    pub level: String,
}

impl Table {
    /// The schema of a request.
    pub fn classify(&self, info: &RequestInfo, user: &User) -> Option<&Schema> {
        // Everybody is authenticated or not, so the last schema matches; should a user be neither, it does too.
        self.schemas.iter().find(|s| s.rules.matches(info, user)).or(self.schemas.last())
    }

    /// Builds the configuration from all objects, for a server of `total` seats. Levels of `old` go on.
    pub fn build(
        old: Option<&Self>,
        levels: &[Value],
        schemas: &[Value],
        total: u32,
        now: Nanos,
    ) -> (Self, Vec<Dangling>) {
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        let mandatory: Vec<Value> = bootstrap::levels().filter(|w| w.mandatory).map(|w| w.object).collect();
        for object in levels {
            let name = object.str_at("metadata.name");
            match read_level(object) {
                Some((shares, discipline)) => {
                    let uid = object.str_at("metadata.uid").to_owned();
                    let level = carry_on(old, name, discipline, now);
                    level.quiescing.store(false, Ordering::Relaxed);
                    rows.insert(name.to_owned(), Row { level, uid, shares, discipline });
                }
                None => tracing::warn!(name, "ignoring a PriorityLevelConfiguration whose spec is broken"),
            }
        }
        let (mut used, mut dangling) = (Vec::new(), Vec::new());
        for object in schemas {
            let level = object.str_at("spec.priorityLevelConfiguration.name");
            let exists = rows.contains_key(level);
            dangling.push(Dangling {
                schema: object.str_at("metadata.name").to_owned(),
                dangling: !exists,
                level: level.to_owned(),
            });
            if exists {
                used.push(object);
            }
        }
        // Levels that nobody wants any more drain; the mandatory ones are always there.
        for (name, row) in old.iter().flat_map(|old| &old.levels) {
            if rows.contains_key(name) {
                continue;
            }
            let needed = mandatory.iter().any(|m| m.str_at("metadata.name") == name);
            if needed || !row.level.state.lock().set.is_idle() {
                row.level.quiescing.store(!needed, Ordering::Relaxed);
                rows.insert(
                    name.clone(),
                    Row {
                        level: row.level.clone(),
                        uid: row.uid.clone(),
                        shares: row.shares,
                        discipline: row.discipline,
                    },
                );
            }
        }
        for object in &mandatory {
            let name = object.str_at("metadata.name");
            if !rows.contains_key(name)
                && let Some((shares, discipline)) = read_level(object)
            {
                let level = carry_on(None, name, discipline, now);
                rows.insert(name.to_owned(), Row { level, uid: String::new(), shares, discipline });
            }
        }
        set_limits(&rows, old, total, now);
        used.sort_by_key(|o| (o.int_at("spec.matchingPrecedence"), o.str_at("metadata.name")));
        let standing: Vec<Value> = bootstrap::schemas().filter(|w| w.mandatory).map(|w| w.object).collect();
        let missing = |name: &str| -> Option<&Value> {
            let named = |o: &&Value| o.str_at("metadata.name") == name;
            if used.iter().any(named) { None } else { standing.iter().find(named) }
        };
        let (first, last) = (missing(bootstrap::EXEMPT), missing(bootstrap::CATCH_ALL));
        let ordered: Vec<&Value> = first.into_iter().chain(used.iter().copied()).chain(last).collect();
        let schemas = ordered.into_iter().filter_map(|object| schema(object, &rows)).collect();
        let table = Self { schemas, levels: rows };
        for row in table.levels.values() {
            let of_level = table.schemas.iter().filter(|s| Arc::ptr_eq(&s.level, &row.level));
            let keep: Vec<&str> = of_level.map(|s| s.name.as_str()).collect();
            row.level.state.lock().forget_flows(&keep);
        }
        (table, dangling)
    }

    /// Shares the seats out anew by demand, which is asked of every level; `periods`: the time since the last
    /// time, in periods. The fair fraction.
    pub fn adjust(&self, now: Nanos, periods: f64, total: u32) -> f64 {
        let mut levels = Vec::with_capacity(self.levels.len());
        for row in self.levels.values() {
            let mut state = row.level.state.lock();
            let demand = state.set.take_demand(now);
            state.demand.update(demand, periods);
            levels.push(limits::Level {
                exempt: row.level.exempt,
                limits: state.limits,
                demand: state.demand,
            });
        }
        let shared = limits::distribute(&levels);
        for ((row, limit), target) in self.levels.values().zip(shared.current).zip(shared.targets) {
            let mut state = row.level.state.lock();
            state.target = target;
            state.set.configure(row.discipline, limit, whole(limit, total), now);
            wake(&mut state);
        }
        shared.fair
    }
}

/// Tells requests that run now.
pub fn wake(state: &mut State) {
    for waker in state.set.take_woken() {
        // One whose client is gone gives its seat back when it is dropped.
        let _ = waker.send(());
    }
}

/// What "all seats" is for metrics.
fn whole(limit: u32, total: u32) -> u32 {
    if limit > 0 { limit } else { (total / 10).max(1) }
}

fn carry_on(old: Option<&Table>, name: &str, discipline: Discipline, now: Nanos) -> Arc<Level> {
    if let Some(row) = old.and_then(|old| old.levels.get(name)) {
        return row.level.clone();
    }
    Arc::new(Level {
        name: name.to_owned(),
        exempt: discipline == Discipline::Exempt,
        max_seats: AtomicU32::new(0),
        quiescing: AtomicBool::new(false),
        timed: AtomicBool::new(false),
        state: Mutex::new(State {
            set: QueueSet::new(discipline, 0, 1, now),
            flows: Vec::new(),
            limits: Limits::default(),
            demand: Smoothed::default(),
            target: 0.0,
            retry: RetryAfter::default(),
        }),
    })
}

fn set_limits(rows: &BTreeMap<String, Row>, old: Option<&Table>, total: u32, now: Nanos) {
    let sum: f64 = rows.values().map(|row| f64::from(row.shares.nominal)).sum();
    for (name, row) in rows {
        let limits = Limits::new(&row.shares, total, sum);
        let mut state = row.level.state.lock();
        let known = old.is_some_and(|old| old.levels.contains_key(name));
        let limit = if known && limits == state.limits { state.set.limit() } else { limits.initial() };
        state.limits = limits;
        state.set.configure(row.discipline, limit, whole(limit, total), now);
        wake(&mut state);
        if let Discipline::Queue { hand, .. } = row.discipline {
            // One request may take 15 % of its level, and no more than one of its hand's queues would.
            let part = (f64::from(limits.nominal) * 0.15).ceil().min(f64::from(limits.nominal / hand.max(1)));
            row.level.max_seats.store(part.max(1.0) as u32, Ordering::Relaxed);
        } else {
            row.level.max_seats.store(0, Ordering::Relaxed);
        }
    }
}

fn schema(object: &Value, rows: &BTreeMap<String, Row>) -> Option<Schema> {
    let row = rows.get(object.str_at("spec.priorityLevelConfiguration.name"))?;
    let name = object.str_at("metadata.name").to_owned();
    let by = match row.discipline {
        Discipline::Queue { queues, .. } if queues > 1 => {
            match object.str_at("spec.distinguisherMethod.type") {
                "ByUser" => Some(Distinguisher::User),
                "ByNamespace" => Some(Distinguisher::Namespace),
                _ => None,
            }
        }
        _ => None,
    };
    let header = |uid: &str| HeaderValue::from_str(uid).unwrap_or_else(|_| HeaderValue::from_static(""));
    let flow = row.level.state.lock().flow(&name);
    Some(Schema {
        uid: header(object.str_at("metadata.uid")),
        level: row.level.clone(),
        level_uid: header(&row.uid),
        flow,
        by,
        rules: Rules::read(object.at("spec")),
        name,
    })
}

/// Shares and discipline of a PriorityLevelConfiguration; none where its spec contradicts itself.
fn read_level(object: &Value) -> Option<(Shares, Discipline)> {
    let spec = object.at("spec");
    let exempt = spec.str_at("type") == "Exempt";
    if exempt != (object.str_at("metadata.name") == bootstrap::EXEMPT)
        || exempt != spec.has("exempt")
        || exempt == spec.has("limited")
    {
        return None;
    }
    let own = if exempt { spec.at("exempt") } else { spec.at("limited") };
    let number = |field: &str| own.int_opt(field).and_then(|n| u32::try_from(n).ok());
    let shares = Shares {
        nominal: number("nominalConcurrencyShares").unwrap_or(0),
        lendable_percent: number("lendablePercent").unwrap_or(0).min(100),
        borrowing_percent: number("borrowingLimitPercent"),
    };
    if exempt {
        return Some((shares, Discipline::Exempt));
    }
    let queuing = own.at("limitResponse.queuing");
    let reject = own.str_at("limitResponse.type") == "Reject";
    if reject == own.has("limitResponse.queuing") {
        return None;
    }
    if reject {
        return Some((shares, Discipline::Reject));
    }
    let of = |field: &str| u32::try_from(queuing.int_at(field)).ok();
    let (queues, hand, length) = (of("queues")?, of("handSize")?, of("queueLengthLimit")?);
    shard::is_possible(queues, hand).then_some((shares, Discipline::Queue { queues, hand, length }))
}

/// Which schemas have another condition than they should: `present` is what each FlowSchema says.
pub fn outdated<'a>(wanted: &'a [Dangling], objects: &[Value]) -> Vec<&'a Dangling> {
    let by_name: HashMap<&str, &Value> = objects.iter().map(|o| (o.str_at("metadata.name"), o)).collect();
    let is_so = |want: &&Dangling| {
        let object = by_name.get(want.schema.as_str());
        let conditions = object.map(|o| o.items("status.conditions")).unwrap_or_default();
        let (status, reason, message) = want.condition();
        !conditions.iter().any(|c| {
            c.str_at("type") == "Dangling"
                && c.str_at("status") == status
                && c.str_at("reason") == reason
                && c.str_at("message") == message
        })
    };
    wanted.iter().filter(is_so).collect()
}

impl Dangling {
    /// Status, reason and message of the condition.
    pub fn condition(&self) -> (&'static str, &'static str, String) {
        let level = crate::status::quote(&self.level);
        let names = format!("This FlowSchema references the PriorityLevelConfiguration object named {level}");
        if self.dangling {
            ("True", "NotFound", format!("{names} but there is no such object"))
        } else {
            ("False", "Found", format!("{names} and it exists"))
        }
    }
}

//! Flow control's metrics under upstream's names (`apiserver_flowcontrol_*`).

use std::sync::atomic::Ordering;

use super::{
    FlowControl,
    inflight::{Kind, Phase},
    limits::{Limits, Smoothed},
    stats::{
        DEMAND_BOUNDS, DURATION_BOUNDS_S, FlowStats, Histogram, LENGTH_BOUNDS, READ_WRITE_BOUNDS,
        REQUEST_USE_BOUNDS, Readings, Refusal, SEAT_BOUNDS, SEAT_USE_BOUNDS, Usage, WATCH_BOUNDS,
    },
};
use crate::metrics::text::{Labels, Page};

/// What is read of a level, under its lock and at once.
struct Level {
    name: String,
    flows: Vec<(String, FlowStats)>,
    limits: Limits,
    current: u32,
    demand: Smoothed,
    target: f64,
    readings: Readings,
    usage: Usage,
}

type OfLevel = (&'static str, &'static str, fn(&Level) -> f64);
type OfFlow = (&'static str, &'static str, &'static str, fn(&FlowStats) -> u64);

const LEVEL_GAUGES: &[OfLevel] = &[
    (
        "current_limit_seats",
        "[ALPHA] current derived number of execution seats available to each priority level",
        |l| f64::from(l.current),
    ),
    ("current_r", "[ALPHA] R(time of last change)", |l| l.readings.current),
    (
        "demand_seats_average",
        "[ALPHA] Time-weighted average, over last adjustment period, of demand_seats",
        |l| l.demand.last.average,
    ),
    (
        "demand_seats_high_watermark",
        "[ALPHA] High watermark, over last adjustment period, of demand_seats",
        |l| l.demand.last.max,
    ),
    ("demand_seats_smoothed", "[ALPHA] Smoothed seat demands", |l| l.demand.smoothed),
    (
        "demand_seats_stdev",
        "[ALPHA] Time-weighted standard deviation, over last adjustment period, of demand_seats",
        |l| l.demand.last.deviation,
    ),
    ("dispatch_r", "[ALPHA] R(time of last dispatch)", |l| l.readings.dispatch),
    ("latest_s", "[ALPHA] S(most recently dispatched request)", |l| l.readings.latest),
    (
        "lower_limit_seats",
        "[ALPHA] Configured lower bound on number of execution seats available to each priority level",
        |l| f64::from(l.limits.lower),
    ),
    (
        "nominal_limit_seats",
        "[BETA] Nominal number of execution seats configured for each priority level",
        |l| f64::from(l.limits.nominal),
    ),
    ("target_seats", "[ALPHA] Seat allocation targets", |l| l.target),
    (
        "upper_limit_seats",
        "[ALPHA] Configured upper bound on number of execution seats available to each priority level",
        |l| f64::from(l.limits.upper),
    ),
];

const FLOW_VALUES: &[OfFlow] = &[
    (
        "current_executing_requests",
        "gauge",
        "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
        |f| u64::from(f.executing),
    ),
    (
        "current_executing_seats",
        "gauge",
        "[BETA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
        |f| f.executing_seats,
    ),
    (
        "current_inqueue_requests",
        "gauge",
        "[BETA] Number of requests currently pending in queues of the API Priority and Fairness subsystem",
        |f| u64::from(f.waiting),
    ),
    (
        "current_inqueue_seats",
        "gauge",
        "[ALPHA] Number of seats currently pending in queues of the API Priority and Fairness subsystem",
        |f| f.waiting_seats,
    ),
    (
        "dispatched_requests_total",
        "counter",
        "[BETA] Number of requests executed by API Priority and Fairness subsystem",
        |f| f.dispatched,
    ),
    (
        "request_dispatch_no_accommodation_total",
        "counter",
        "[ALPHA] Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats",
        |f| f.not_accommodated,
    ),
];

/// Adds what there is to say of one flow, under the labels of its schema and level.
type AddFlow<'a> = &'a dyn Fn(&mut Page, [(&str, &str); 2], &FlowStats);

fn full(name: &str) -> String {
    format!("apiserver_flowcontrol_{name}")
}

/// Histogram of values, with its samples one after the other.
fn histogram<const N: usize>(
    page: &mut Page,
    name: &str,
    labels: Labels<'_>,
    bounds: &[f64; N],
    of: &Histogram<N>,
) {
    if of.count > 0 {
        page.histogram(&full(name), labels, bounds, &of.buckets, of.count, of.sum);
    }
}

impl FlowControl {
    /// Adds all metrics.
    pub fn expose(&self, page: &mut Page) {
        let now = self.now();
        let gauges = self.in_flight.read(now, self.wholes(Kind::ReadOnly));
        for (phase, name, help) in [
            (
                Phase::Executing,
                "apiserver_current_inflight_requests",
                "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
            ),
            (
                Phase::Waiting,
                "apiserver_current_inqueue_requests",
                "[ALPHA] Maximal number of queued requests in this apiserver per request kind in last second.",
            ),
        ] {
            page.family(name, "gauge", help);
            for kind in Kind::ALL {
                let peak = gauges[kind as usize][phase as usize].peak();
                page.sample(name, &[("request_kind", kind.label())], peak);
            }
        }
        let name = "read_vs_write_current_requests";
        page.family(&full(name), "histogram", "EXPERIMENTAL: [ALPHA] Observations, at the end of every nanosecond, of the number of requests (as a fraction of the relevant limit) waiting or in regular stage of execution");
        for kind in Kind::ALL {
            for phase in Phase::ALL {
                let labels = [("phase", phase.label()), ("request_kind", kind.label())];
                let usage = &gauges[kind as usize][phase as usize].usage;
                histogram(page, name, &labels, &READ_WRITE_BOUNDS, usage);
            }
        }
        if self.settings.fair {
            let levels = self.read_levels(now);
            expose_levels(page, &levels);
            expose_flows(page, &levels);
            let fair = f64::from_bits(self.fair_fraction.load(Ordering::Relaxed));
            page.single(&full("seat_fair_frac"), "gauge", "[ALPHA] Fair fraction of server's concurrency to allocate to each priority level that can use it", fair);
        }
    }

    fn read_levels(&self, now: super::queueset::Nanos) -> Vec<Level> {
        let table = self.table.load();
        let read = |(name, row): (&String, &super::table::Row)| {
            let mut state = row.level.state.lock();
            state.set.advance(now);
            super::table::wake(&mut state);
            let named = state.flows.iter().zip(&state.set.flows);
            let flows = named.filter_map(|(name, stats)| Some((name.clone()?, stats.clone()))).collect();
            Level {
                name: name.clone(),
                flows,
                limits: state.limits,
                current: state.set.limit(),
                demand: state.demand,
                target: state.target,
                readings: state.set.readings(),
                usage: state.set.usage.clone(),
            }
        };
        table.levels.iter().map(read).collect()
    }
}

fn expose_levels(page: &mut Page, levels: &[Level]) {
    for (name, help, value) in LEVEL_GAUGES {
        page.family(&full(name), "gauge", help);
        for level in levels {
            page.sample(&full(name), &[("priority_level", &level.name)], value(level));
        }
    }
    for (name, help, of) in [
        (
            "next_s_bounds",
            "[ALPHA] min and max, over queues, of S(oldest waiting request in queue)",
            (|r| r.bounds) as fn(&Readings) -> [f64; 2],
        ),
        (
            "next_discounted_s_bounds",
            "[ALPHA] min and max, over queues, of S(oldest waiting request in queue) - estimated work in progress",
            |r| r.discounted,
        ),
    ] {
        page.family(&full(name), "gauge", help);
        for level in levels {
            for (bound, value) in ["min", "max"].into_iter().zip(of(&level.readings)) {
                page.sample(&full(name), &[("bound", bound), ("priority_level", &level.name)], value);
            }
        }
    }
    let name = "demand_seats";
    page.family(&full(name), "histogram", "EXPERIMENTAL: [ALPHA] Observations, at the end of every nanosecond, of (the number of seats each priority level could use) / (nominal number of seats for that level)");
    for level in levels {
        histogram(page, name, &[("priority_level", &level.name)], &DEMAND_BOUNDS, &level.usage.demand);
    }
    let name = "priority_level_seat_utilization";
    page.family(&full(name), "histogram", "EXPERIMENTAL: [ALPHA] Observations, at the end of every nanosecond, of utilization of seats for any stage of execution (but only initial stage for WATCHes)");
    for level in levels {
        let labels = [("phase", "executing"), ("priority_level", level.name.as_str())];
        histogram(page, name, &labels, &SEAT_USE_BOUNDS, &level.usage.seats);
    }
    let name = "priority_level_request_utilization";
    page.family(&full(name), "histogram", "EXPERIMENTAL: [ALPHA] Observations, at the end of every nanosecond, of number of requests (as a fraction of the relevant limit) waiting or in any stage of execution (but only initial stage for WATCHes)");
    for level in levels {
        for (phase, usage) in
            [(Phase::Waiting, &level.usage.waiting), (Phase::Executing, &level.usage.running)]
        {
            let labels = [("phase", phase.label()), ("priority_level", level.name.as_str())];
            histogram(page, name, &labels, &REQUEST_USE_BOUNDS, usage);
        }
    }
}

fn expose_flows(page: &mut Page, levels: &[Level]) {
    let each = |page: &mut Page, add: AddFlow<'_>| {
        for level in levels {
            for (schema, stats) in &level.flows {
                add(page, [("flow_schema", schema), ("priority_level", &level.name)], stats);
            }
        }
    };
    for (name, kind, help, value) in FLOW_VALUES {
        page.family(&full(name), kind, help);
        each(page, &|page, labels, stats| page.sample(&full(name), &labels, value(stats)));
    }
    let name = full("rejected_requests_total");
    page.family(
        &name,
        "counter",
        "[BETA] Number of requests rejected by API Priority and Fairness subsystem",
    );
    each(page, &|page, [schema, level], stats| {
        for why in Refusal::ALL {
            let count = stats.rejected[why as usize];
            if count > 0 {
                page.sample(&name, &[schema, level, ("reason", why.reason())], count);
            }
        }
    });
    let name = "request_wait_duration_seconds";
    page.family(&full(name), "histogram", "[BETA] Length of time a request spent waiting in its queue");
    each(page, &|page, [schema, level], stats| {
        for (execute, of) in ["false", "true"].into_iter().zip(&stats.wait_s) {
            let labels = [("execute", execute), schema, level];
            histogram(page, name, &labels, &DURATION_BOUNDS_S, of);
        }
    });
    let name = "request_execution_seconds";
    page.family(&full(name), "histogram", "[ALPHA] Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem");
    each(page, &|page, [schema, level], stats| {
        for (kind, of) in ["watch", "regular"].into_iter().zip(&stats.execution_s) {
            let labels = [schema, level, ("type", kind)];
            histogram(page, name, &labels, &DURATION_BOUNDS_S, of);
        }
    });
    let name = "request_queue_length_after_enqueue";
    page.family(&full(name), "histogram", "[ALPHA] Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued");
    each(page, &|page, labels, stats| {
        histogram(page, name, &labels, &LENGTH_BOUNDS, &stats.queue_length);
    });
    let name = "watch_count_samples";
    page.family(
        &full(name),
        "histogram",
        "[ALPHA] count of watchers for mutating requests in API Priority and Fairness",
    );
    each(page, &|page, labels, stats| histogram(page, name, &labels, &WATCH_BOUNDS, &stats.watchers));
    let name = "work_estimated_seats";
    page.family(&full(name), "histogram", "[ALPHA] Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness");
    each(page, &|page, labels, stats| histogram(page, name, &labels, &SEAT_BOUNDS, &stats.seats));
}

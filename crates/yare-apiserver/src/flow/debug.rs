//! `/debug/api_priority_and_fairness/dump_*`: what levels, queues and requests are up to, as upstream's
//! comma-separated tables with aligned columns.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{FlowControl, queueset::Nanos};
use crate::{
    body::{self, Reply},
    core::Call,
};

/// Requests that are shown of one level at most.
const MAX_SHOWN: usize = 10_000;
const DETAILS: &str = "includeRequestDetails";

/// Answers `dump_priority_levels`, `dump_queues` and `dump_requests`.
pub fn handle(call: &Call, what: &str) -> Option<Reply> {
    let flow = &call.core.flow;
    if !flow.settings().fair {
        return None;
    }
    let text = match what {
        "dump_priority_levels" => levels(flow),
        "dump_queues" => queues(flow),
        "dump_requests" => requests(flow, call),
        _ => return None,
    };
    Some(body::text_reply(http::StatusCode::OK, text))
}

fn levels(flow: &FlowControl) -> String {
    let mut rows = vec![strings(&[
        "PriorityLevelName",
        "ActiveQueues",
        "IsIdle",
        "IsQuiescing",
        "WaitingRequests",
        "ExecutingRequests",
        "DispatchedRequests",
        "RejectedRequests",
        "TimedoutRequests",
        "CancelledRequests",
    ])];
    let now = flow.now();
    for (name, row) in &flow.table.load().levels {
        let mut state = row.level.state.lock();
        state.set.advance(now);
        let totals = state.set.totals();
        let active = state.set.dump_queues().filter(|q| q.waiting > 0).count();
        rows.push(vec![
            name.clone(),
            active.to_string(),
            state.set.is_idle().to_string(),
            row.level.quiescing.load(std::sync::atomic::Ordering::Relaxed).to_string(),
            totals.waiting.to_string(),
            totals.running.to_string(),
            totals.dispatched.to_string(),
            totals.rejected.to_string(),
            // Upstream counts these as cancelled, too.
            "0".into(),
            totals.cancelled.to_string(),
        ]);
    }
    align(&rows)
}

fn queues(flow: &FlowControl) -> String {
    let mut rows = vec![strings(&[
        "PriorityLevelName",
        "Index",
        "PendingRequests",
        "ExecutingRequests",
        "SeatsInUse",
        "NextDispatchR",
        "InitialSeatsSum",
        "MaxSeatsSum",
        "TotalWorkSum",
    ])];
    let now = flow.now();
    for (name, row) in &flow.table.load().levels {
        let mut state = row.level.state.lock();
        state.set.advance(now);
        for queue in state.set.dump_queues().take(MAX_SHOWN) {
            rows.push(vec![
                name.clone(),
                queue.index.to_string(),
                queue.waiting.to_string(),
                queue.running.to_string(),
                queue.seats.to_string(),
                seat_seconds(queue.next_r),
                queue.initial_seats.to_string(),
                queue.max_seats.to_string(),
                seat_seconds(queue.work),
            ]);
        }
    }
    align(&rows)
}

fn requests(flow: &FlowControl, call: &Call) -> String {
    let details = call.query.get(DETAILS).is_some();
    let mut head = strings(&[
        "PriorityLevelName",
        "FlowSchemaName",
        "QueueIndex",
        "RequestIndexInQueue",
        "FlowDistingsher",
        "ArriveTime",
        "InitialSeats",
        "FinalSeats",
        "AdditionalLatency",
        "StartTime",
    ]);
    if details {
        head.extend(strings(&[
            "UserName",
            "Verb",
            "APIPath",
            "Namespace",
            "Name",
            "APIVersion",
            "Resource",
            "SubResource",
        ]));
    }
    let mut rows = vec![head];
    let (now, wall) = (flow.now(), call.core.now());
    let at = |time: Nanos| {
        let ago =
            jiff::SignedDuration::from_nanos(i64::try_from(now.saturating_sub(time)).unwrap_or(i64::MAX));
        wall.checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
    };
    let table = flow.table.load();
    for (name, row) in &table.levels {
        let state = row.level.state.lock();
        for request in state.set.dump().into_iter().take(MAX_SHOWN) {
            let schema = state.flows.get(request.flow as usize).cloned().flatten().unwrap_or_default();
            let Some((info, user)) = request.what else { continue };
            let by = table.schemas.iter().find(|s| s.name == schema).and_then(|s| s.by);
            let number = |n: Option<u32>| n.map_or("-1".to_owned(), |n| n.to_string());
            let mut cells = vec![
                name.clone(),
                schema,
                number(request.queue),
                number(request.position),
                by.map(|by| by.of(info, user)).unwrap_or_default().to_owned(),
                at(request.arrived),
                request.cost.seats.to_string(),
                request.cost.final_seats.to_string(),
                duration(request.cost.extra_ns),
                request.started.map_or_else(|| "0001-01-01T00:00:00Z".into(), at),
            ];
            if details {
                let version = match (info.group.as_str(), info.version.as_str()) {
                    ("", version) => version.to_owned(),
                    (group, version) => format!("{group}/{version}"),
                };
                cells.extend([
                    user.name.clone(),
                    info.verb.to_owned(),
                    info.path.clone(),
                    info.namespace.clone(),
                    info.name.clone(),
                    version,
                    info.resource.clone(),
                    info.subresource.clone(),
                ]);
            }
            rows.push(cells);
        }
    }
    align(&rows)
}

fn strings(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

fn seat_seconds(work: super::queueset::Work) -> String {
    format!("{:.8}ss", work as f64 / 1e9)
}

fn duration(ns: u64) -> String {
    match ns {
        0 => "0s".into(),
        ns if ns < 1_000_000_000 => format!("{}ms", ns as f64 / 1e6),
        ns => format!("{}s", ns as f64 / 1e9),
    }
}

/// Cells end with a comma; columns are as wide as their widest cell, eight at least.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().map(|row| row[at].chars().count() + 2).max().unwrap_or(0).max(8))
        .collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at + 1 == columns {
                out.push_str(cell);
            } else {
                let _ = write!(out, "{:<width$}", format!("{cell},"), width = widths[at]);
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [strings(&["Name", "Count", "X"]), strings(&["long-name", "1", ""])];
        assert_eq!(align(&rows), "Name,      Count,  X\nlong-name, 1,      \n");
        assert_eq!(duration(5_000_000), "5ms");
        assert_eq!(seat_seconds(1_500_000_000), "1.50000000ss");
    }
}

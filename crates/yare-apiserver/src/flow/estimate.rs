//! What a request will cost, in seats, before it runs: upstream's estimates
//! (`k8s.io/apiserver/pkg/util/flowcontrol/request`).

use super::queueset::Cost;
use crate::{core::Call, path::Query};

/// Most seats of a list.
const MAX_LIST_SEATS: u32 = 100;
/// Most seats of a write.
const MAX_WRITE_SEATS: u32 = 10;
/// Bytes that are worked on at a time for one seat.
const BYTES_PER_SEAT: u64 = 100_000;
/// Lists are sent while they are read, so they never hold more at a time than this.
const STREAMED_BYTES: u64 = 1_000_000;
/// Watches that one seat serves.
const WATCHES_PER_SEAT: u32 = 10;
/// How long a seat serves them.
const EVENT_NS: u64 = 5_000_000;
/// Objects that are looked at to know how large they are.
const SAMPLED: usize = 8;

/// One seat.
pub const ONE: Cost = Cost { seats: 1, final_seats: 0, extra_ns: 0 };

/// What the request costs at a level where one may have `max_seats` (0: any number), and how many watches will
/// see its write.
pub fn cost(call: &Call, max_seats: u32) -> (Cost, Option<u32>) {
    let cap = |most: u32| if max_seats == 0 { most } else { most.min(max_seats) };
    match call.info.verb {
        "list" => (list(call, cap(MAX_LIST_SEATS)), None),
        "watch" if starts_with_state(&call.query) => (list(call, cap(MAX_LIST_SEATS)), None),
        "create" | "update" | "patch" | "delete" => {
            if call.info.resource == "serviceaccounts" && call.info.subresource == "token" {
                return (ONE, None);
            }
            let watches = call.core.flow.watches.interested(&call.info);
            (write(watches, cap(MAX_WRITE_SEATS)), Some(watches))
        }
        _ => (ONE, None),
    }
}

/// Whether a watch begins with everything that is there.
fn starts_with_state(query: &Query) -> bool {
    query.flag("sendInitialEvents") || matches!(query.get("resourceVersion"), None | Some("0"))
}

fn list(call: &Call, most: u32) -> Cost {
    let info = &call.info;
    let registry = call.core.registry.load();
    let Some(served) = registry.find(&info.group, &info.version, &info.resource) else { return ONE };
    let snapshot = call.core.store().snapshot(&served.stored.kind_key);
    let mut count = snapshot.len() as u64;
    if count == 0 {
        return ONE;
    }
    if let Some(limit) = call.query.get("limit").and_then(|l| l.parse::<u64>().ok()).filter(|l| *l > 0) {
        count = count.min(limit);
    }
    if !info.name.is_empty() {
        count = 1;
    }
    let sample = snapshot.range(std::ops::Bound::Unbounded, "").take(SAMPLED);
    let (bytes, looked) = sample.fold((0u64, 0u64), |(bytes, n), o| (bytes + o.bytes.len() as u64, n + 1));
    Cost { seats: list_seats(count, bytes / looked.max(1), most), ..ONE }
}

fn list_seats(count: u64, average_bytes: u64, most: u32) -> u32 {
    let bytes = count.saturating_mul(average_bytes).min(STREAMED_BYTES);
    u32::try_from(bytes.div_ceil(BYTES_PER_SEAT)).unwrap_or(most).clamp(1, most.max(1))
}

fn write(watches: u32, most: u32) -> Cost {
    if watches < WATCHES_PER_SEAT {
        return ONE;
    }
    let wanted = watches.div_ceil(WATCHES_PER_SEAT);
    // The same work by fewer seats takes longer.
    let final_seats = wanted.min(most.max(1));
    Cost { seats: 1, final_seats, extra_ns: EVENT_NS * u64::from(wanted) / u64::from(final_seats) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (count, bytes, most, want) in [
            (1, 500, 100, 1),
            (100, 1000, 100, 1),
            (101, 1000, 100, 2),
            (5000, 3000, 100, 10),
            (5000, 3000, 4, 4),
            (u64::MAX, u64::MAX, 100, 10),
            (10, 0, 0, 1),
        ] {
            assert_eq!(list_seats(count, bytes, most), want, "{count} {bytes} {most}");
        }
    }

    #[test]
    fn writes() {
        for (watches, most, final_seats, extra_ms) in [
            (0, 10, 0, 0),
            (9, 10, 0, 0),
            (10, 10, 1, 5),
            (11, 10, 2, 5),
            (1000, 10, 10, 50),
            (100, 2, 2, 25),
        ] {
            let cost = write(watches, most);
            assert_eq!((cost.final_seats, cost.extra_ns / 1_000_000), (final_seats, extra_ms), "{watches}");
            assert_eq!(cost.seats, 1);
        }
    }

    #[test]
    fn watches_that_begin_with_state() {
        for (query, want) in [
            ("", true),
            ("resourceVersion=0", true),
            ("resourceVersion=5", false),
            ("resourceVersion=5&sendInitialEvents=true", true),
        ] {
            assert_eq!(starts_with_state(&Query::parse(Some(query))), want, "{query}");
        }
    }
}

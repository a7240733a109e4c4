//! Events go some time after they were written last (`--event-ttl`), so that what happened long ago does not fill the
//! store.
//!
//! In: the store's revision from time to time, which is all that has to be remembered: what has an older revision
//! than the one of an hour ago was not written since. Out: deletions, which nobody is asked about. Of events that were
//! there before the server, their own times say how old they are.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use yare_kinds::view::View;
use yare_store::{CommitError, Expect, Op, Write};

use crate::{changes::Changes, core::Core};

const KIND: &str = "events";
/// How late an event goes at most, where the time is long.
const LATEST: Duration = Duration::from_secs(60);
/// And where it is short.
const SOONEST: Duration = Duration::from_millis(20);
/// Events that go at the same time.
const AT_ONCE: usize = 64;

/// An event of one revision.
type Written = (Box<str>, u64);

/// Removes what is too old until the server stops.
pub fn start(core: &Arc<Core>) {
    let ttl = core.config.event_ttl;
    if !ttl.is_zero() {
        tokio::spawn(run(core.clone(), ttl));
    }
}

async fn run(core: Arc<Core>, ttl: Duration) {
    let step = (ttl / 20).clamp(SOONEST, LATEST);
    let mut before = left_over(&core, ttl);
    let mut marks: VecDeque<(Instant, u64)> = VecDeque::new();
    loop {
        let mut changes = Changes::from_now(&core, [KIND]);
        if core.store().snapshot(KIND).is_empty() {
            marks.clear();
            // Nothing to look after until one comes.
            if changes.next().await.is_none() {
                return;
            }
        }
        drop(changes);
        marks.push_back((Instant::now(), core.store().revision()));
        tokio::select! {
            () = sleep(step) => {}
            () = core.stop.cancelled() => return,
        }
        let later = before.split_off(&core.now());
        remove(&core, std::mem::replace(&mut before, later).into_values().flatten().collect()).await;
        let mut until = None;
        while let Some((_, revision)) = marks.front().filter(|(at, _)| at.elapsed() >= ttl) {
            until = Some(*revision);
            marks.pop_front();
        }
        if let Some(until) = until {
            let snapshot = core.store().snapshot(KIND);
            let all = snapshot.range(Bound::Unbounded, "").filter(|event| event.revision <= until);
            remove(&core, all.map(|event| (event.key.clone(), event.revision)).collect()).await;
        }
    }
}

/// When the events that are there have to go.
fn left_over(core: &Core, ttl: Duration) -> BTreeMap<Timestamp, Vec<Written>> {
    let (now, mut out) = (core.now(), BTreeMap::<_, Vec<Written>>::new());
    for event in core.store().snapshot(KIND).range(Bound::Unbounded, "") {
        let written = serde_json::from_slice(&event.bytes).ok().and_then(|event| last_written(&event));
        let until = written.unwrap_or(now).min(now).checked_add(ttl).unwrap_or(Timestamp::MAX);
        out.entry(until).or_default().push((event.key.clone(), event.revision));
    }
    out
}

/// The latest time that an event speaks of.
fn last_written(event: &Value) -> Option<Timestamp> {
    let fields = event.items("metadata.managedFields").iter().map(|entry| entry.str_at("time"));
    let own = ["metadata.creationTimestamp", "lastTimestamp", "eventTime", "series.lastObservedTime"];
    own.iter().map(|path| event.str_at(path)).chain(fields).filter_map(|text| text.parse().ok()).max()
}

/// Removes events that are still what they were.
async fn remove(core: &Core, events: Vec<Written>) {
    let gone = stream::iter(events).map(|(key, revision)| {
        let expect = Expect::Revision(revision);
        core.store().commit(vec![Write { kind: KIND.into(), key: key.into(), expect, op: Op::Delete }])
    });
    gone.buffer_unordered(AT_ONCE)
        .for_each(|done| async move {
            match done {
                Ok(_) | Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {}
                Err(error) => tracing::warn!(%error, "an old event stays"),
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_latest_time_counts() {
        let at = |text: &str| Some(text.parse().unwrap());
        for (event, time) in [
            (json!({}), None),
            (json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}), at("2026-01-01T00:00:00Z")),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z",
                    "managedFields": [{"time": "2026-01-01T03:00:00Z"}]}, "lastTimestamp": "2026-01-01T02:00:00Z"}),
                at("2026-01-01T03:00:00Z"),
            ),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "eventTime": null,
                    "series": {"lastObservedTime": "2026-01-01T02:00:00.000001Z"}}),
                at("2026-01-01T02:00:00.000001Z"),
            ),
        ] {
            assert_eq!(last_written(&event), time, "{event}");
        }
    }
}

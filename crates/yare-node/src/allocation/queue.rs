//! Who of the pods that wait for room is served first.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::pod::mailbox::Mailbox;
use crate::pod::{qos, totals};
use crate::view::Pod;

/// A pod that waits to be resized.
pub(crate) struct Entry {
    pub(crate) has: Arc<Pod>,
    pub(crate) wants: Arc<Pod>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Since when it has been deferred, RFC 3339; none: it was not judged yet.
    pub(crate) since: Option<String>,
}

/// Those first that take nothing more; then by priority, by class, and who has waited longest.
pub(crate) fn sort(entries: &mut [Entry]) {
    entries.sort_by_cached_key(|e| key(&e.has, &e.wants, e.since.as_deref()));
}

type Key = (bool, Reverse<i32>, bool, bool, Option<String>);

fn key(has: &Pod, wants: &Pod, since: Option<&str>) -> Key {
    let (before, after) = (totals::requests(has), totals::requests(wants));
    let grows = ["cpu", "memory"].iter().any(|name| {
        let of = |set: &std::collections::BTreeMap<String, i128>| set.get(*name).copied().unwrap_or(0);
        of(&after) > of(&before)
    });
    let guaranteed = qos::class(wants) == "Guaranteed";
    let priority = Reverse(wants.spec.priority.unwrap_or(0));
    (grows, priority, !guaranteed, since.is_none(), since.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_come_first() {
        let pod = |cpu: &str, priority: i32, limit: &str| -> Pod {
            let mut resources = serde_json::json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
            if !limit.is_empty() {
                resources["limits"] = serde_json::json!({"cpu": limit, "memory": "1Mi"});
            }
            serde_json::from_value(serde_json::json!({"spec": {
                "priority": priority, "containers": [{"name": "a", "resources": resources}]}}))
            .unwrap()
        };
        // From what to what, priority, limit, since when.
        let rows = [
            ("shrinks", "2", "1", 0, "", None),
            ("important", "1", "2", 9, "", None),
            ("guaranteed", "1", "2", 0, "2", None),
            ("long ago", "1", "2", 0, "", Some("2026-01-01T00:00:00Z")),
            ("later", "1", "2", 0, "", Some("2026-01-01T00:00:01Z")),
            ("new", "1", "2", 0, "", None),
        ];
        let keys: Vec<Key> = rows
            .iter()
            .map(|(_, from, to, priority, limit, since)| {
                key(&pod(from, *priority, ""), &pod(to, *priority, limit), *since)
            })
            .collect();
        for (pair, names) in keys.windows(2).zip(rows.windows(2)) {
            assert!(pair[0] < pair[1], "{} before {}", names[0].0, names[1].0);
        }
    }
}

//! Ranges of user ids for pods in user namespaces: no two pods of a node share one.
//!
//! What is in use is read off the sandboxes that exist, so nothing is kept on disk and a restart forgets nothing.

use std::collections::{BTreeSet, HashMap};

/// Ids of one pod: as many as 16 bits hold, which is what images expect.
pub(crate) const IDS_PER_RANGE: u32 = 65_536;
/// The first ranges are for people and daemons of the node.
const FIRST: u32 = 2;
/// The last id is no id.
const LAST: u32 = u32::MAX / IDS_PER_RANGE - 1;

/// Who has which range, by number.
#[derive(Debug, Default)]
pub(crate) struct IdRanges {
    given: HashMap<String, u32>,
}

impl IdRanges {
    /// The first id of a pod's range: the one it has, or the lowest free. `sandboxes` are the pods and first
    /// ids of those that exist. None when all are taken.
    pub(crate) fn take<'a>(
        &mut self,
        uid: &str,
        sandboxes: impl Iterator<Item = (&'a str, u32)>,
    ) -> Option<u32> {
        let mut used: BTreeSet<u32> = self.given.values().copied().collect();
        for (owner, id) in sandboxes {
            let range = id / IDS_PER_RANGE;
            used.insert(range);
            // A pod that was there before a restart of the agent keeps what its sandbox has.
            if owner == uid {
                self.given.entry(uid.to_owned()).or_insert(range);
            }
        }
        let range = match self.given.get(uid) {
            Some(range) => *range,
            None => (FIRST..=LAST).find(|range| !used.contains(range))?,
        };
        self.given.insert(uid.to_owned(), range);
        Some(range * IDS_PER_RANGE)
    }

    /// A pod is gone.
    pub(crate) fn release(&mut self, uid: &str) {
        self.given.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_a_range() {
        let mut ranges = IdRanges::default();
        let none = || std::iter::empty::<(&str, u32)>();
        assert_eq!(ranges.take("a", none()), Some(2 * IDS_PER_RANGE));
        assert_eq!(ranges.take("b", none()), Some(3 * IDS_PER_RANGE));
        assert_eq!(ranges.take("a", none()), Some(2 * IDS_PER_RANGE), "a pod keeps its range");
        ranges.release("a");
        // Its sandbox is still there for a moment.
        let left = [("a", 2 * IDS_PER_RANGE)];
        assert_eq!(ranges.take("c", left.into_iter()), Some(4 * IDS_PER_RANGE));
        assert_eq!(ranges.take("d", none()), Some(2 * IDS_PER_RANGE));
    }

    #[test]
    fn a_restart_forgets_nothing_and_ranges_end() {
        let mut ranges = IdRanges::default();
        let sandboxes = [("a", 7 * IDS_PER_RANGE), ("b", 2 * IDS_PER_RANGE)];
        assert_eq!(ranges.take("c", sandboxes.into_iter()), Some(3 * IDS_PER_RANGE));
        assert_eq!(ranges.take("a", sandboxes.into_iter()), Some(7 * IDS_PER_RANGE));
        let all = (FIRST..=LAST).map(|range| ("x", range * IDS_PER_RANGE));
        assert_eq!(ranges.take("y", all), None);
    }
}

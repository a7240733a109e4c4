//! How many pods each replica set of a deployment should have: pure functions of counts.

use crate::views::IntOrString;

/// `spec.strategy` with its bounds resolved against the desired replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// All old pods go before any new one comes.
    Recreate,
    /// New pods replace old ones step by step.
    RollingUpdate {
        /// Pods there may be beyond the desired number.
        max_surge: i32,
        /// Pods that may be missing from the desired number.
        max_unavailable: i32,
    },
}

/// The counts of one replica set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// `spec.replicas`
    pub desired: i32,
    /// `status.availableReplicas`
    pub available: i32,
    /// The `max-replicas` annotation: the deployment's size with surge when this one was last scaled.
    pub max_replicas: Option<i32>,
}

impl Strategy {
    /// Resolves percentages: surge up, unavailable down; both zero would never make progress, so one pod
    /// may then be unavailable.
    pub fn rolling(surge: Option<&IntOrString>, unavailable: Option<&IntOrString>, desired: i32) -> Self {
        let resolve = |v: Option<&IntOrString>, up| v.and_then(|v| v.scaled(desired, up)).unwrap_or(0);
        let (max_surge, mut max_unavailable) = (resolve(surge, true), resolve(unavailable, false));
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self::RollingUpdate { max_surge, max_unavailable }
    }

    /// Pods there may be beyond the desired number.
    pub fn max_surge(self) -> i32 {
        match self {
            Self::Recreate => 0,
            Self::RollingUpdate { max_surge, .. } => max_surge,
        }
    }

    /// Pods that may be missing from `desired`.
    pub fn max_unavailable(self, desired: i32) -> i32 {
        match self {
            Self::RollingUpdate { max_unavailable, .. } if desired > 0 => max_unavailable.min(desired),
            _ => 0,
        }
    }
}

/// A sum of counts, which are not negative. People may scale replica sets as they like, hence no overflow.
pub fn sum(counts: impl IntoIterator<Item = i32>) -> i32 {
    counts.into_iter().fold(0, i32::saturating_add)
}

/// The size of the new replica set, which has `new` now while all together have `total`.
pub fn new_size(strategy: Strategy, desired: i32, total: i32, new: i32) -> i32 {
    if new >= desired {
        return desired;
    }
    match strategy {
        Strategy::Recreate => desired,
        Strategy::RollingUpdate { max_surge, .. } => {
            let room = desired.saturating_add(max_surge).saturating_sub(total);
            if room <= 0 { new } else { new + room.min(desired - new) }
        }
    }
}

/// The steps that shrink the old replica sets (oldest first) in a rolling update: index and new size. Pods
/// that are not available go first, since nobody misses them; then as many as `max_unavailable` allows.
pub fn shrink_old(strategy: Strategy, desired: i32, new: Counts, old: &[Counts]) -> Vec<(usize, i32)> {
    let min_available = desired - strategy.max_unavailable(desired);
    let total = sum(old.iter().map(|c| c.desired)).saturating_add(new.desired);
    let surplus = total.saturating_sub(min_available).saturating_sub(new.desired - new.available);
    let mut steps = Vec::new();
    if surplus <= 0 {
        return steps;
    }
    let mut sizes: Vec<i32> = old.iter().map(|c| c.desired).collect();
    let mut left = surplus;
    for (i, counts) in old.iter().enumerate() {
        let unhealthy = (counts.desired - counts.available).min(left);
        if unhealthy > 0 {
            sizes[i] -= unhealthy;
            left -= unhealthy;
            steps.push((i, sizes[i]));
        }
    }
    let available = sum(old.iter().map(|c| c.available)).saturating_add(new.available);
    let mut left = available - min_available;
    for (i, size) in sizes.iter_mut().enumerate() {
        let step = (*size).min(left);
        if step > 0 {
            *size -= step;
            left -= step;
            steps.push((i, *size));
        }
    }
    steps
}

/// Spreads a change of the deployment's size over its active replica sets in the middle of a rollout, in
/// proportion to their sizes. `sets` are largest first (among equals: the newer first when growing, the
/// older first when shrinking); rounding goes to the first. `current` is the deployment's `status.replicas`.
pub fn proportional(strategy: Strategy, desired: i32, current: i32, sets: &[Counts]) -> Vec<i32> {
    let max_replicas = desired.saturating_add(strategy.max_surge());
    let allowed = if desired > 0 { max_replicas } else { 0 };
    let change = allowed - sum(sets.iter().map(|c| c.desired));
    let mut sizes: Vec<i32> = sets.iter().map(|c| c.desired).collect();
    if change == 0 {
        return sizes;
    }
    let mut done = 0;
    for (size, counts) in sizes.iter_mut().zip(sets) {
        if counts.desired == 0 || done == change {
            continue;
        }
        let fraction = if desired == 0 {
            -counts.desired
        } else {
            match counts.max_replicas.filter(|m| *m != 0).unwrap_or(current) {
                0 => 0,
                before => {
                    let scaled = f64::from(counts.desired) * f64::from(max_replicas) / f64::from(before);
                    // Away from zero at .5, like upstream.
                    scaled.round() as i32 - counts.desired
                }
            }
        };
        let left = change - done;
        let step = if change > 0 { fraction.min(left) } else { fraction.max(left) };
        *size += step;
        done += step;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - done).max(0);
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rolling(max_surge: i32, max_unavailable: i32) -> Strategy {
        Strategy::RollingUpdate { max_surge, max_unavailable }
    }

    fn counts(desired: i32, available: i32) -> Counts {
        Counts { desired, available, max_replicas: None }
    }

    #[test]
    fn bounds_resolve() {
        let text = |s: &str| IntOrString::Text(s.into());
        for (surge, unavailable, desired, expected) in [
            (text("25%"), text("25%"), 10, rolling(3, 2)),
            (text("25%"), text("25%"), 1, rolling(1, 0)),
            (text("0%"), text("0%"), 10, rolling(0, 1)),
            (IntOrString::Int(2), IntOrString::Int(0), 3, rolling(2, 0)),
        ] {
            assert_eq!(Strategy::rolling(Some(&surge), Some(&unavailable), desired), expected);
        }
    }

    #[test]
    fn new_sets_grow_within_the_surge() {
        for (strategy, desired, total, new, expected) in [
            (rolling(0, 1), 10, 10, 0, 0),
            (rolling(2, 0), 10, 10, 0, 2),
            (rolling(2, 0), 10, 7, 0, 5),
            (rolling(20, 0), 10, 10, 2, 10),
            (rolling(1, 0), 10, 12, 3, 3),
            (rolling(1, 0), 2, 12, 3, 2),
            (Strategy::Recreate, 5, 0, 0, 5),
        ] {
            assert_eq!(
                new_size(strategy, desired, total, new),
                expected,
                "{strategy:?} {desired} {total} {new}"
            );
        }
    }

    #[test]
    fn old_sets_shrink_without_breaking_availability() {
        // (strategy, desired, new, old) → steps
        type Case = (Strategy, i32, Counts, Vec<Counts>, Vec<(usize, i32)>);
        let table: Vec<Case> = vec![
            // All are available and none may be missing: nothing yet.
            (rolling(1, 0), 10, counts(0, 0), vec![counts(10, 10)], vec![]),
            (rolling(0, 2), 10, counts(0, 0), vec![counts(10, 10)], vec![(0, 8)]),
            // A new pod that is not available frees nothing.
            (rolling(1, 0), 10, counts(1, 0), vec![counts(10, 10)], vec![]),
            (rolling(1, 0), 10, counts(1, 1), vec![counts(10, 10)], vec![(0, 9)]),
            // Broken old pods go at once.
            (rolling(0, 2), 10, counts(0, 0), vec![counts(10, 8)], vec![(0, 8)]),
            (rolling(1, 1), 3, counts(1, 1), vec![counts(2, 0), counts(1, 1)], vec![(0, 0)]),
            (rolling(2, 0), 2, counts(2, 2), vec![counts(1, 1), counts(1, 1)], vec![(0, 0), (1, 0)]),
        ];
        for (strategy, desired, new, old, expected) in table {
            assert_eq!(
                shrink_old(strategy, desired, new, &old),
                expected,
                "{strategy:?} {desired} {new:?} {old:?}"
            );
        }
    }

    #[test]
    fn a_whole_rollout_keeps_its_bounds_and_ends() {
        for (surge, unavailable) in [(0, 1), (1, 0), (1, 1), (3, 2), (10, 10)] {
            let (desired, strategy) = (10, rolling(surge, unavailable));
            let (mut new, mut old) = (counts(0, 0), counts(10, 10));
            for round in 0.. {
                assert!(round < 100, "{strategy:?} does not end: {new:?} {old:?}");
                let grown = new_size(strategy, desired, new.desired + old.desired, new.desired);
                if grown == new.desired {
                    for (_, size) in shrink_old(strategy, desired, new, &[old]) {
                        old.desired = size;
                    }
                }
                new.desired = grown;
                assert!(new.desired + old.desired <= desired + surge);
                assert!(new.available + old.desired.min(old.available) >= desired - unavailable);
                // All pods of both sets become as asked for.
                (new.available, old.available) = (new.desired, old.desired);
                if (new.desired, old.desired) == (10, 0) {
                    break;
                }
            }
        }
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_proportional() {
        let set = |desired, max| Counts { desired, available: desired, max_replicas: Some(max) };
        for (strategy, desired, sets, expected) in [
            (rolling(0, 1), 12, vec![set(6, 10), set(4, 10)], vec![7, 5]),
            (rolling(0, 1), 5, vec![set(6, 10), set(4, 10)], vec![3, 2]),
            (rolling(0, 1), 0, vec![set(6, 10), set(4, 10)], vec![0, 0]),
            (rolling(3, 2), 15, vec![set(8, 13), set(5, 13)], vec![11, 7]),
            (rolling(0, 1), 10, vec![set(6, 10), set(4, 10)], vec![6, 4]),
        ] {
            assert_eq!(
                proportional(strategy, desired, 10, &sets),
                expected,
                "{strategy:?} {desired} {sets:?}"
            );
        }
    }
}

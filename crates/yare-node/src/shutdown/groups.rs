//! Which pods stop together when the machine shuts down, and how long each group gets.

use yare_schema::features::Gates;

use crate::config::Settings;

/// Pods of this priority and more are critical.
const CRITICAL: i32 = 2_000_000_000;

/// How long pods of a priority get, and of all up to the next period's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) priority: i32,
    pub(crate) grace_s: i64,
}

/// The periods of a configuration, the lowest priority first; none: a shutdown is not waited with.
pub(crate) fn periods(settings: &Settings, gates: &Gates) -> Vec<Period> {
    if !gates.is_on("GracefulNodeShutdown") {
        return Vec::new();
    }
    let by_priority = &settings.shutdown_grace_period_by_pod_priority;
    let mut periods: Vec<Period> = match gates.is_on("GracefulNodeShutdownBasedOnPodPriority") {
        true => by_priority
            .iter()
            .map(|p| Period { priority: p.priority, grace_s: p.shutdown_grace_period_seconds })
            .collect(),
        false => Vec::new(),
    };
    if periods.is_empty() {
        let all = settings.shutdown_grace_period.get().as_secs();
        let critical = settings.shutdown_grace_period_critical_pods.get().as_secs();
        if all > 0 && critical <= all {
            let seconds = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
            periods = vec![
                Period { priority: 0, grace_s: seconds(all - critical) },
                Period { priority: CRITICAL, grace_s: seconds(critical) },
            ];
        }
    }
    periods.sort_by_key(|p| p.priority);
    periods
}

/// The period of a pod: the one of the highest priority that is not above its own, or the lowest of all.
pub(crate) fn of(periods: &[Period], priority: i32) -> usize {
    periods.partition_point(|p| p.priority <= priority).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn configured(yaml: &str) -> Vec<(i32, i64)> {
        let sources = Sources { inline: vec![yaml.to_owned()], ..Sources::default() };
        let configuration = sources.load().unwrap();
        let found = periods(configuration.settings(), configuration.gates());
        found.into_iter().map(|p| (p.priority, p.grace_s)).collect()
    }

    #[test]
    fn periods_of_a_configuration() {
        for (yaml, expect) in [
            ("{}", vec![]),
            ("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s", vec![(0, 20), (CRITICAL, 10)]),
            ("shutdownGracePeriod: 30s", vec![(0, 30), (CRITICAL, 0)]),
            (
                "shutdownGracePeriodByPodPriority: [{priority: 100, shutdownGracePeriodSeconds: 5}, {priority: -1, shutdownGracePeriodSeconds: 7}]",
                vec![(-1, 7), (100, 5)],
            ),
            (
                "featureGates: {GracefulNodeShutdown: false, GracefulNodeShutdownBasedOnPodPriority: false, WindowsGracefulNodeShutdown: false}",
                vec![],
            ),
        ] {
            assert_eq!(configured(yaml), expect, "{yaml}");
        }
    }

    #[test]
    fn a_pod_belongs_to_the_period_below_it() {
        let periods = [-5, 0, 100, CRITICAL].map(|priority| Period { priority, grace_s: 1 });
        for (priority, expect) in [
            (i32::MIN, 0),
            (-5, 0),
            (-1, 0),
            (0, 1),
            (99, 1),
            (100, 2),
            (CRITICAL - 1, 2),
            (CRITICAL, 3),
            (i32::MAX, 3),
        ] {
            assert_eq!(of(&periods, priority), expect, "{priority}");
        }
    }
}

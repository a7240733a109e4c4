//! A deployment's status from the states of its replica sets: pure functions.

use std::time::Duration;

use jiff::Timestamp;

use super::{DeploymentStatus, ReplicaSet, View, plan::sum};
use crate::views::{Condition, after, condition, whole_second};

/// Reasons of the `Progressing` condition.
pub const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
/// Creating a replica set failed.
pub const CREATE_ERROR: &str = "ReplicaSetCreateError";
/// A replica set was created for a new template.
pub const NEW_REPLICA_SET: &str = "NewReplicaSetCreated";
/// A replica set of an earlier revision fits the template.
pub const FOUND_REPLICA_SET: &str = "FoundNewReplicaSet";
/// The rollout is complete.
pub const AVAILABLE: &str = "NewReplicaSetAvailable";
/// The rollout did not progress in time.
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// No progress is expected.
pub const PAUSED: &str = "DeploymentPaused";
/// Progress is expected again.
pub const RESUMED: &str = "DeploymentResumed";

/// A `Progressing` condition.
pub fn progressing(status: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> Condition {
    Condition {
        last_update_time: Some(whole_second(now)),
        ..Condition::new("Progressing", status, reason, message, now)
    }
}

/// Sets a condition, unless the one there says the same; keeps the time of the last transition if the
/// status stays.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    if let Some(old) = condition(conditions, &new.kind) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time;
        }
    }
    remove(conditions, &new.kind);
    conditions.push(new);
}

fn remove(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|c| c.kind != kind);
}

/// Counts, and whether enough replicas are available.
pub fn calculate(
    view: &View,
    old: &[ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let all = || old.iter().chain(new);
    let sum = |f: fn(&ReplicaSet) -> i32| sum(all().map(f));
    let available = sum(|r| r.view.status.available_replicas);
    let wanted = sum(|r| r.replicas);
    let mut terminating = Some(0);
    for set in all() {
        let status = &set.view.status;
        // A set that nobody has looked at yet has no pods that could be terminating.
        let known = status.terminating_replicas.or((status.observed_generation == 0).then_some(0));
        terminating = terminating.and_then(|sum: i32| known.map(|n| sum.saturating_add(n)));
    }
    let mut conditions = view.status.conditions.clone();
    let enough = available >= view.replicas() - view.strategy().max_unavailable(view.replicas());
    let (status, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let mut condition = Condition::new("Available", status, reason, message, now);
    condition.last_update_time = condition.last_transition_time;
    set(&mut conditions, condition);
    DeploymentStatus {
        observed_generation: view.metadata.generation,
        replicas: sum(|r| r.view.status.replicas),
        updated_replicas: new.map_or(0, |r| r.view.status.replicas),
        ready_replicas: sum(|r| r.view.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (wanted - available).max(0),
        terminating_replicas: terminating,
        collision_count: view.status.collision_count,
        conditions,
    }
}

/// Whether nothing is left to do.
pub fn is_complete(view: &View, status: &DeploymentStatus) -> bool {
    let desired = view.replicas();
    status.updated_replicas == desired
        && status.replicas == desired
        && status.available_replicas == desired
        && status.observed_generation >= view.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    new.updated_replicas > old.updated_replicas
        || new.replicas - new.updated_replicas < old.replicas - old.updated_replicas
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

/// The status in the middle of a rollout: counts, and how far the rollout has come.
pub fn rollout(
    name: &str,
    view: &View,
    old: &[ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(view, old, new, now);
    let deadline = view.progress_deadline();
    if deadline.is_none() {
        remove(&mut status.conditions, "Progressing");
    }
    let current = condition(&view.status.conditions, "Progressing");
    let was_complete =
        status.replicas == status.updated_replicas && current.is_some_and(|c| c.reason == AVAILABLE);
    if let Some(deadline) = deadline
        && !was_complete
    {
        let what = match new {
            Some(set) => format!("ReplicaSet \"{}\"", set.cached.name()),
            None => format!("Deployment \"{name}\""),
        };
        if is_complete(view, &status) {
            let message = format!("{what} has successfully progressed.");
            set(&mut status.conditions, progressing("True", AVAILABLE, message, now));
        } else if has_progressed(&view.status, &status) {
            let message = format!("{what} is progressing.");
            let mut condition = progressing("True", REPLICA_SET_UPDATED, message, now);
            if let Some(current) = current.filter(|c| c.is_true()) {
                condition.last_transition_time = current.last_transition_time;
            }
            // Replaced even if the reason is the same: its time of update starts the deadline anew.
            remove(&mut status.conditions, "Progressing");
            status.conditions.push(condition);
        } else if has_timed_out(&status.conditions, deadline, now) {
            let message = format!("{what} has timed out progressing.");
            set(&mut status.conditions, progressing("False", TIMED_OUT, message, now));
        }
    }
    let failure =
        new.into_iter().chain(old).find_map(|r| condition(&r.view.status.conditions, "ReplicaFailure"));
    match failure {
        Some(failure) => {
            let failure = Condition { last_update_time: failure.last_transition_time, ..failure.clone() };
            set(&mut status.conditions, failure);
        }
        None => remove(&mut status.conditions, "ReplicaFailure"),
    }
    status
}

fn has_timed_out(conditions: &[Condition], deadline: Duration, now: Timestamp) -> bool {
    match condition(conditions, "Progressing") {
        None => false,
        Some(c) if c.reason == AVAILABLE => false,
        Some(c) if c.reason == TIMED_OUT => true,
        Some(c) => c.last_update_time.is_some_and(|t| after(t, deadline) < now),
    }
}

/// When to look again whether the deadline has passed, if nothing else happens.
pub fn next_check(view: &View, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = view.progress_deadline()?;
    let current = condition(&view.status.conditions, "Progressing")?;
    if is_complete(view, status) || current.reason == TIMED_OUT {
        return None;
    }
    let at = after(current.last_update_time?, deadline);
    Some(crate::views::since(at, now) + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use yare_client::Cached;

    use super::*;

    fn view(replicas: i32, status: Value) -> View {
        serde_json::from_value(json!({
            "metadata": {"generation": 2},
            "spec": {"replicas": replicas, "progressDeadlineSeconds": 60,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
            "status": status,
        }))
        .unwrap()
    }

    fn set_of(replicas: i32, ready: i32) -> ReplicaSet {
        let json = json!({"metadata": {"name": "web-1"}, "spec": {"replicas": replicas},
            "status": {"replicas": replicas, "readyReplicas": ready, "availableReplicas": ready, "observedGeneration": 1, "terminatingReplicas": 0}});
        ReplicaSet::new(Cached::new(json.to_string().into()).unwrap()).unwrap()
    }

    fn reason<'a>(status: &'a DeploymentStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
        let c = condition(&status.conditions, kind).unwrap();
        (&c.status, &c.reason, &c.message)
    }

    #[test]
    fn a_rollout_reports_progress_then_completion_then_stays_quiet() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let started = json!({"conditions": [{"type": "Progressing", "status": "True", "reason": NEW_REPLICA_SET,
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let first = rollout("web", &view(2, started), &[], Some(&set_of(2, 0)), now);
        assert_eq!(
            reason(&first, "Progressing"),
            ("True", REPLICA_SET_UPDATED, "ReplicaSet \"web-1\" is progressing.")
        );
        assert_eq!(reason(&first, "Available").1, "MinimumReplicasUnavailable");
        assert_eq!((first.replicas, first.unavailable_replicas), (2, 2));

        let second =
            rollout("web", &view(2, serde_json::to_value(&first).unwrap()), &[], Some(&set_of(2, 2)), now);
        assert_eq!(
            reason(&second, "Progressing"),
            ("True", AVAILABLE, "ReplicaSet \"web-1\" has successfully progressed.")
        );
        assert_eq!(
            reason(&second, "Available"),
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        );

        let third =
            rollout("web", &view(2, serde_json::to_value(&second).unwrap()), &[], Some(&set_of(2, 2)), now);
        assert_eq!(third, second);
    }

    #[test]
    fn a_stuck_rollout_times_out() {
        let started = json!({"replicas": 1, "updatedReplicas": 1, "observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "True", "reason": REPLICA_SET_UPDATED,
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let view = view(1, started);
        let before: Timestamp = "2026-01-01T00:00:59Z".parse().unwrap();
        let status = rollout("web", &view, &[], Some(&set_of(1, 0)), before);
        assert_eq!(reason(&status, "Progressing").1, REPLICA_SET_UPDATED);
        assert_eq!(next_check(&view, &status, before), Some(Duration::from_secs(2)));
        let later = "2026-01-01T00:01:01Z".parse().unwrap();
        let status = rollout("web", &view, &[], Some(&set_of(1, 0)), later);
        assert_eq!(
            reason(&status, "Progressing"),
            ("False", TIMED_OUT, "ReplicaSet \"web-1\" has timed out progressing.")
        );
    }
}

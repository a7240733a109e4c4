//! Conditions of a pod that is being resized: `PodResizePending` while its node has not agreed, `PodResizeInProgress`
//! while what was agreed upon is not in force.

use jiff::Timestamp;

use crate::clock;
use crate::view::{Pod, PodCondition};

/// The node has not agreed yet, or cannot.
pub(crate) const PENDING: &str = "PodResizePending";
/// The node has agreed, and not everything is in force.
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";
/// Both.
pub(crate) const KINDS: [&str; 2] = [PENDING, IN_PROGRESS];

/// Reason: there is no room now.
pub(crate) const DEFERRED: &str = "Deferred";
/// Reason: not on this node, whatever comes.
pub(crate) const INFEASIBLE: &str = "Infeasible";
/// Reason: it was tried.
pub(crate) const ERROR: &str = "Error";

/// The conditions of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) pending: Option<PodCondition>,
    pub(crate) in_progress: Option<PodCondition>,
}

impl Conditions {
    /// As an earlier life of the agent left them in the pod's status.
    pub(crate) fn found(pod: &Pod) -> Self {
        let of = |kind| pod.status.condition(kind).cloned();
        Conditions { pending: of(PENDING), in_progress: of(IN_PROGRESS) }
    }

    /// For the pod's status.
    pub(crate) fn list(&self) -> Vec<PodCondition> {
        self.pending.iter().chain(&self.in_progress).cloned().collect()
    }

    /// Whether the pod waits for room.
    pub(crate) fn is_deferred(&self) -> bool {
        self.pending.as_ref().is_some_and(|c| c.reason.as_deref() == Some(DEFERRED))
    }

    /// The node does not agree. Whether that, or why, is news.
    pub(crate) fn set_pending(
        &mut self,
        reason: &str,
        message: &str,
        generation: i64,
        now: Timestamp,
    ) -> bool {
        let before = self.pending.take();
        let news = before
            .as_ref()
            .is_none_or(|c| c.reason.as_deref() != Some(reason) || c.observed_generation != generation);
        self.pending = Some(updated(PENDING, before, reason, message, generation, now));
        news
    }

    /// What was agreed upon is not in force yet; with a reason, because of an error. The generation stays that of the
    /// resize until [`Conditions::clear_in_progress`], and an error stays until another. Whether this is news.
    pub(crate) fn set_in_progress(
        &mut self,
        reason: &str,
        message: &str,
        generation: i64,
        now: Timestamp,
    ) -> bool {
        let before = self.in_progress.take();
        let (mut reason, mut message, mut generation) = (reason, message, generation);
        if let Some(before) = &before {
            generation = before.observed_generation;
            if reason.is_empty() && message.is_empty() {
                reason = before.reason.as_deref().unwrap_or_default();
                message = before.message.as_deref().unwrap_or_default();
            }
        }
        let now = updated(IN_PROGRESS, before.clone(), reason, message, generation, now);
        let news = before.is_none_or(|b| (b.reason, b.message) != (now.reason.clone(), now.message.clone()));
        self.in_progress = Some(now);
        news
    }

    /// All is in force. The generation of the resize, if there was one.
    pub(crate) fn clear_in_progress(&mut self) -> Option<i64> {
        self.in_progress.take().map(|c| c.observed_generation)
    }
}

fn updated(
    kind: &str,
    before: Option<PodCondition>,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) -> PodCondition {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let made = PodCondition {
        kind: kind.to_owned(),
        status: "True".to_owned(),
        observed_generation: generation,
        last_probe_time: Some(clock::rfc3339(now)),
        last_transition_time: Some(clock::rfc3339(now)),
        reason: text(reason),
        message: text(message),
    };
    match before {
        // Nothing new: not even the time, which would be a write for nothing.
        Some(b)
            if (&b.reason, &b.message, b.observed_generation)
                == (&made.reason, &made.message, generation) =>
        {
            b
        }
        Some(b) if b.reason == made.reason => {
            PodCondition { last_transition_time: b.last_transition_time, ..made }
        }
        _ => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn pending_is_news_when_the_reason_or_the_generation_changes() {
        let mut conditions = Conditions::default();
        for (reason, message, generation, second, news, since) in [
            (DEFERRED, "full", 2, 1, true, 1),
            (DEFERRED, "full", 2, 2, false, 1),
            (DEFERRED, "fuller", 2, 3, false, 1),
            (DEFERRED, "fuller", 3, 4, true, 1),
            (INFEASIBLE, "never", 3, 5, true, 5),
        ] {
            assert_eq!(conditions.set_pending(reason, message, generation, at(second)), news, "{second}");
            let condition = conditions.pending.as_ref().unwrap();
            assert_eq!(condition.last_transition_time, Some(clock::rfc3339(at(since))), "{second}");
            assert_eq!(
                (condition.message.as_deref(), condition.observed_generation),
                (Some(message), generation)
            );
            assert_eq!(conditions.is_deferred(), reason == DEFERRED);
        }
    }

    #[test]
    fn an_error_stays_until_another_and_the_generation_until_the_end() {
        let mut conditions = Conditions::default();
        assert!(conditions.set_in_progress("", "", 2, at(1)));
        assert!(conditions.set_in_progress(ERROR, "too low", 3, at(2)));
        assert!(!conditions.set_in_progress(ERROR, "too low", 3, at(3)));
        assert!(!conditions.set_in_progress("", "", 3, at(4)));
        let condition = conditions.in_progress.clone().unwrap();
        assert_eq!((condition.reason.as_deref(), condition.observed_generation), (Some(ERROR), 2));
        assert_eq!(conditions.list().len(), 1);
        assert_eq!((conditions.clear_in_progress(), conditions.clear_in_progress()), (Some(2), None));
    }
}

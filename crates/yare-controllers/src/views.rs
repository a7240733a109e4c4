//! Small views of objects that several controllers read, and what they conclude from them.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
pub use yare_client::nullable;

/// `metadata`, as far as cached objects do not have it at hand.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Counts changes of the desired state.
    pub generation: i64,
    /// When it was created.
    pub creation_timestamp: Option<Timestamp>,
    /// When it is to be gone.
    pub deletion_timestamp: Option<Timestamp>,
    /// Annotations.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// Who must agree before it goes.
    #[serde(deserialize_with = "nullable")]
    pub finalizers: Vec<String>,
}

/// A condition of any kind's status.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The generation it was computed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When it was last looked at (Jobs, pods).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Timestamp>,
    /// When it was last reported (nodes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<Timestamp>,
    /// When anything of it changed (Deployments).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Timestamp>,
    /// When `status` changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// One word for machines.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// One sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Condition {
    /// A condition that changed at `now`.
    pub fn new(kind: &str, status: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> Self {
        Self {
            kind: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: Some(whole_second(now)),
            ..Self::default()
        }
    }

    /// Whether it is `True`.
    pub fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// API times have whole seconds.
pub fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// `later - earlier`, zero if it is negative.
pub fn since(later: Timestamp, earlier: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// `time + delay`, clamped to what times can be.
pub fn after(time: Timestamp, delay: Duration) -> Timestamp {
    time.saturating_add(delay).unwrap_or(Timestamp::MAX)
}

/// The condition of a type.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

/// A number or a percentage.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i32),
    /// `25%`
    Text(String),
}

impl IntOrString {
    /// The number, or the percentage of `total`, rounded up or down. `None` if it is neither.
    pub fn scaled(&self, total: i32, round_up: bool) -> Option<i32> {
        match self {
            Self::Int(n) => Some(*n),
            Self::Text(text) => {
                let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
                let product = percent * i64::from(total);
                let scaled = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
                i32::try_from(scaled).ok()
            }
        }
    }
}

/// What controllers read of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodView {
    /// `metadata`
    pub metadata: Meta,
    /// `status`
    pub status: PodStatus,
}

/// What controllers read of a pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`
    pub phase: String,
    /// Why it failed.
    pub reason: String,
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
    /// Containers.
    #[serde(deserialize_with = "nullable")]
    pub container_statuses: Vec<ContainerStatus>,
    /// Init containers.
    #[serde(deserialize_with = "nullable")]
    pub init_container_statuses: Vec<ContainerStatus>,
}

/// What controllers read of a container's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Name of the container.
    pub name: String,
    /// How often it was started again.
    pub restart_count: i32,
    /// What it does now.
    pub state: ContainerState,
}

/// Only the terminated state matters to controllers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Set when it has ended.
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// When.
    pub finished_at: Option<Timestamp>,
}

impl PodView {
    /// Neither finished nor on its way out.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && self.metadata.deletion_timestamp.is_none()
    }

    /// On its way out, but not finished.
    pub fn is_terminating(&self) -> bool {
        !self.is_finished() && self.metadata.deletion_timestamp.is_some()
    }

    /// Has run to its end.
    pub fn is_finished(&self) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
    }

    /// Whether its `Ready` condition is true.
    pub fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(Condition::is_true)
    }

    /// When it became ready.
    pub fn ready_since(&self) -> Option<Timestamp> {
        condition(&self.status.conditions, "Ready").filter(|c| c.is_true())?.last_transition_time
    }

    /// Ready for at least `min_ready_s` seconds.
    pub fn is_available(&self, min_ready_s: i32, now: Timestamp) -> bool {
        self.is_ready() && self.available_in(min_ready_s, now).is_some_and(|d| d.is_zero())
    }

    /// How long until a ready pod counts as available.
    pub fn available_in(&self, min_ready_s: i32, now: Timestamp) -> Option<Duration> {
        if min_ready_s <= 0 {
            return self.is_ready().then_some(Duration::ZERO);
        }
        let at = after(self.ready_since()?, Duration::from_secs(u64::from(min_ready_s.unsigned_abs())));
        Some(since(at, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let text = |s: &str| IntOrString::Text(s.into());
        for (value, total, up, expected) in [
            (text("25%"), 3, true, Some(1)),
            (text("25%"), 3, false, Some(0)),
            (text("100%"), 7, false, Some(7)),
            (text("0%"), 7, true, Some(0)),
            (IntOrString::Int(4), 2, true, Some(4)),
            (text("x"), 2, true, None),
        ] {
            assert_eq!(value.scaled(total, up), expected, "{value:?} of {total}");
        }
    }
}

//! Pod Security Standards (KEP-2579): which pods a level of a policy version lets in. Pure: a pod, a level and
//! a version go in, [`Violation`]s come out. Admission asks here; so can whatever else wants to know.
//!
//! [`checks::TABLE`] has one row per check, with the policy versions in which it changed; [`policy`] reads
//! levels and versions from a namespace's labels.

use serde_json::Value;

pub mod checks;
mod policy;
mod rules;

pub use policy::{LABELS, LevelVersion, Policy, Version, parse_level, parse_version};

/// How much a pod may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Anything.
    #[default]
    Privileged,
    /// Nothing that is known to lead out of its container.
    Baseline,
    /// What hardened workloads need.
    Restricted,
}

impl Level {
    /// As it stands in a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A pod, or the template of one.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    /// Its `metadata`; only annotations are looked at.
    pub metadata: &'a Value,
    /// Its `spec`.
    pub spec: &'a Value,
}

/// What one check has against a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// In a few words: `host namespaces`.
    pub reason: String,
    /// Which values of which containers; may be empty.
    pub detail: String,
}

/// Everything that a policy has against a pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Violations(pub Vec<Violation>);

impl Violations {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All reasons, without details: pods that break the same rules have the same.
    pub fn reasons(&self) -> String {
        self.0.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// All reasons with their details.
    pub fn details(&self) -> String {
        let one = |v: &Violation| match v.detail.as_str() {
            "" => v.reason.clone(),
            detail => format!("{} ({detail})", v.reason),
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Runs the checks that `level` has in its version.
pub fn evaluate(level: LevelVersion, pod: Pod<'_>) -> Violations {
    if level.level == Level::Privileged {
        return Violations::default();
    }
    let minor = level.version.minor().min(checks::newest());
    let active = |wanted: Level| {
        checks::TABLE
            .iter()
            .filter(move |c| c.level == wanted)
            .filter_map(move |c| Some((c.id, c.versions.iter().rev().find(|v| v.since <= minor)?)))
    };
    let strict = level.level == Level::Restricted;
    let overridden: Vec<&str> = if strict {
        active(Level::Restricted).flat_map(|(_, v)| v.overrides.iter().copied()).collect()
    } else {
        Vec::new()
    };
    let baseline = active(Level::Baseline).filter(|(id, _)| !overridden.contains(id));
    let restricted = active(Level::Restricted).filter(|_| strict);
    Violations(baseline.chain(restricted).filter_map(|(_, v)| (v.run)(pod)).collect())
}

#[cfg(test)]
mod tests;

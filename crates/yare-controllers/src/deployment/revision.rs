//! Annotations that a deployment and its replica sets share: revisions, sizes, whatever users put there.

use std::collections::BTreeMap;

/// Number of the template's version, on both.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a replica set that became current again.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The deployment's size when the replica set was last scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// `spec.rollbackTo` of `extensions/v1beta1`, which lives on as an annotation.
pub const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const HISTORY_MAX_BYTES: usize = 2000;

/// Annotations of an object.
pub type Annotations = BTreeMap<String, String>;

/// Whether an annotation belongs to its object alone.
pub fn is_private(name: &str) -> bool {
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO].contains(&name)
}

/// The revision in annotations; `None` if it is no number.
pub fn revision(annotations: &Annotations) -> Option<i64> {
    annotations.get(REVISION).map_or(Some(0), |r| r.parse().ok())
}

/// Records the deployment's size; whether anything changed.
pub fn set_sizes(annotations: &mut Annotations, desired: i32, max: i32) -> bool {
    let mut changed = false;
    for (name, value) in [(DESIRED_REPLICAS, desired), (MAX_REPLICAS, max)] {
        let value = value.to_string();
        if annotations.get(name) != Some(&value) {
            annotations.insert(name.into(), value);
            changed = true;
        }
    }
    changed
}

/// Makes a replica set's annotations those of the deployment's current template: user annotations are
/// copied, the revision becomes `revision` if that is newer, and the one it had goes into the history.
/// Whether anything changed.
pub fn make_current(deployment: &Annotations, set: &mut Annotations, revision: i64) -> bool {
    let mut changed = false;
    for (name, value) in deployment {
        if !is_private(name) && set.get(name) != Some(value) {
            set.insert(name.clone(), value.clone());
            changed = true;
        }
    }
    let old = set.get(REVISION).cloned();
    let old_number = match old.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            // Not ours to repair.
            Err(_) => return false,
        },
    };
    if old_number >= revision {
        return changed;
    }
    set.insert(REVISION.into(), revision.to_string());
    if let Some(old) = old {
        let history = set.get(REVISION_HISTORY).cloned().unwrap_or_default();
        let mut numbers: Vec<&str> = history.split(',').filter(|n| !n.is_empty()).collect();
        let mut bytes = if numbers.is_empty() { old.len() } else { history.len() + old.len() + 1 };
        while bytes > HISTORY_MAX_BYTES && !numbers.is_empty() {
            bytes -= numbers.remove(0).len() + 1;
        }
        numbers.push(&old);
        set.insert(REVISION_HISTORY.into(), numbers.join(","));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn revisions_and_history() {
        let deployment = map(&[("note", "x"), (LAST_APPLIED, "{}"), (REVISION, "9")]);
        let mut set = map(&[(REVISION, "2"), (REVISION_HISTORY, "1")]);
        assert!(make_current(&deployment, &mut set, 4));
        assert_eq!(set, map(&[("note", "x"), (REVISION, "4"), (REVISION_HISTORY, "1,2")]));
        assert!(!make_current(&deployment, &mut set, 3));
        let mut fresh = Annotations::new();
        make_current(&deployment, &mut fresh, 1);
        assert_eq!(fresh, map(&[("note", "x"), (REVISION, "1")]));
    }

    #[test]
    fn history_is_bounded() {
        let long: Vec<String> = (1000..1500).map(|n| n.to_string()).collect();
        let mut set = map(&[(REVISION, "1500"), (REVISION_HISTORY, &long.join(","))]);
        make_current(&Annotations::new(), &mut set, 1501);
        assert!(set[REVISION_HISTORY].len() <= HISTORY_MAX_BYTES && set[REVISION_HISTORY].ends_with(",1500"));
    }
}

//! Conditions in the status of an object: at most one of each type. What kinds add to the common fields differs, so they
//! are JSON here.

use serde_json::Value;

use crate::view::{View, ViewMut};

/// The condition of this type.
pub fn find<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| condition.str_at("type") == kind)
}

/// Whether there is a condition of this type, and it holds.
pub fn is_true(conditions: &[Value], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.str_at("status") == "True")
}

/// Puts a condition in the place of the one of its type. Its `lastTransitionTime` is `now`, or what it was where the
/// status stays. Says whether that changed anything.
pub fn put(conditions: &mut Vec<Value>, mut condition: Value, now: &str) -> bool {
    let Some(there) = conditions.iter_mut().find(|c| c.at("type") == condition.at("type")) else {
        condition.set("lastTransitionTime", now);
        conditions.push(condition);
        return true;
    };
    let since = there.str_opt("lastTransitionTime").filter(|_| there.at("status") == condition.at("status"));
    condition.set("lastTransitionTime", since.unwrap_or(now));
    if *there == condition {
        return false;
    }
    *there = condition;
    true
}

/// The same in `status.conditions` of an object.
pub fn set(object: &mut Value, condition: Value, now: &str) -> bool {
    let mut conditions = object.items("status.conditions").to_vec();
    let changed = put(&mut conditions, condition, now);
    if changed {
        object.set("status.conditions", conditions);
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_time_moves_with_the_status() {
        let mut object = json!({"status": {"conditions": [{"type": "Other", "status": "True"}]}});
        for (now, status, reason, changed, since) in [
            ("a", "True", "Passed", true, "a"),
            ("b", "True", "Passed", false, "a"),
            ("c", "True", "Local", true, "a"),
            ("d", "False", "Local", true, "d"),
        ] {
            let condition = json!({"type": "Available", "status": status, "reason": reason});
            assert_eq!(set(&mut object, condition, now), changed, "{now}");
            let there = find(object.items("status.conditions"), "Available").unwrap();
            assert_eq!(
                (there.str_at("reason"), there.str_at("lastTransitionTime")),
                (reason, since),
                "{now}"
            );
            assert_eq!(is_true(object.items("status.conditions"), "Available"), status == "True");
        }
        // One that does not say since when begins now.
        assert!(set(&mut object, json!({"type": "Other", "status": "True"}), "e"));
        let conditions = object.items("status.conditions");
        assert_eq!(conditions.len(), 2);
        assert_eq!(find(conditions, "Other").unwrap()["lastTransitionTime"], "e");
        assert!(!is_true(conditions, "Nothing"));
    }
}

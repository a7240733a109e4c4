//! Merging tolerations, as the plugins that add some do it.

use serde_json::Value;
use yare_kinds::view::{View, same};

/// Both lists in one; what another toleration tolerates anyway is left out.
pub fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let covered = merged.iter().any(|m| covers(m, toleration))
            // Of equal ones the first stays.
            || all[i + 1..].iter().any(|later| !same(toleration, later) && covers(later, toleration));
        if !covered {
            merged.push((*toleration).clone());
        }
    }
    merged
}

/// Whether every toleration of `tolerations` is covered by one of `allowed`.
pub fn all_within(tolerations: &[Value], allowed: &[Value]) -> bool {
    tolerations.iter().all(|t| allowed.iter().any(|a| covers(a, t)))
}

/// Whether `wide` tolerates all that `narrow` does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    if same(wide, narrow) {
        return true;
    }
    let (key, effect, operator) = (wide.str_at("key"), wide.str_at("effect"), wide.str_at("operator"));
    // An empty key that only has to exist is every key, an empty effect every effect.
    if narrow.str_at("key") != key && !(key.is_empty() && operator == "Exists") {
        return false;
    }
    if narrow.str_at("effect") != effect && !effect.is_empty() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(most) = wide.int_opt("tolerationSeconds")
        && narrow.int_opt("tolerationSeconds").is_none_or(|s| s > most)
    {
        return false;
    }
    match operator {
        "" | "Equal" => {
            matches!(narrow.str_at("operator"), "" | "Equal")
                && narrow.str_at("value") == wide.str_at("value")
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_wider_one_stays() {
        let exact = json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        let exists = json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"});
        let all = json!({"operator": "Exists"});
        let short = json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let other = json!({"key": "o", "operator": "Exists"});
        for (first, second, expect) in [
            (vec![&exact], vec![&exact], vec![&exact]),
            (vec![&exact], vec![&exists], vec![&exists]),
            (vec![&exists], vec![&exact, &other], vec![&exists, &other]),
            (vec![&exact, &short], vec![&all], vec![&all]),
            (vec![&short], vec![&exists], vec![&short, &exists]),
        ] {
            let list = |v: &[&Value]| v.iter().map(|t| (*t).clone()).collect::<Vec<_>>();
            assert_eq!(merge(&list(&first), &list(&second)), list(&expect));
        }
        assert!(all_within(&[exact.clone(), short.clone()], &[all]));
        assert!(!all_within(&[exact, short], &[exists]));
    }
}

//! `metadata.ownerReferences` that stand in an object twice: the second one is left out, and the client is told.

use serde_json::Value;
use yare_kinds::view::{View, ViewMut};

use crate::core::Call;

/// When an object is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// As the client sent it.
    Sent,
    /// As admission made it, or the patch that there is of it.
    Admitted,
}

/// Leaves each reference in the object once.
pub fn deduplicate(call: &Call, object: &mut Value, seen: Seen) {
    if let Some(twice) = deduplicated(object) {
        let when = if seen == Seen::Admitted { " after mutating admission happens" } else { "" };
        call.warn(format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        ));
    }
}

/// The UIDs of those that were left out.
fn deduplicated(object: &mut Value) -> Option<Vec<String>> {
    const OWNERS: &str = "metadata.ownerReferences";
    let mut once: Vec<Value> = Vec::new();
    let mut twice = Vec::new();
    for owner in object.items(OWNERS) {
        if once.contains(owner) {
            twice.push(owner.str_at("uid").to_owned());
        } else {
            once.push(owner.clone());
        }
    }
    if twice.is_empty() {
        return None;
    }
    object.set(OWNERS, once);
    Some(twice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_twice_goes() {
        let (a, b) = (json!({"uid": "a", "name": "x"}), json!({"uid": "a", "name": "y"}));
        let cases = [
            (json!([a, b]), json!([a, b]), None),
            (json!([a, b, a, a]), json!([a, b]), Some(vec!["a".to_owned(), "a".to_owned()])),
            (json!([]), json!([]), None),
        ];
        for (given, left, twice) in cases {
            let mut object = json!({"metadata": {"ownerReferences": given}});
            assert_eq!(deduplicated(&mut object), twice);
            assert_eq!(object["metadata"]["ownerReferences"], left);
        }
    }
}

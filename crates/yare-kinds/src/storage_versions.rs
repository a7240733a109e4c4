//! What is said of a `StorageVersion` as a whole: the version that all servers write, and the condition that says
//! whether there is one.

use serde_json::{Value, json};

use crate::{
    conditions,
    view::{View, ViewMut},
};

const CONDITION: &str = "AllEncodingVersionsEqual";

/// Sets `commonEncodingVersion` of a StorageVersion and its condition after its servers changed. `now`: as RFC 3339
/// with seconds.
pub fn set_common(version: &mut Value, now: &str) {
    let before = version.str_opt("status.commonEncodingVersion").map(str::to_owned);
    let servers = version.items("status.storageVersions");
    let first = servers.first().map(|server| server.str_at("encodingVersion"));
    let common = first
        .filter(|first| servers.iter().all(|server| server.str_at("encodingVersion") == *first))
        .map(str::to_owned);
    let (status, reason, message) = match &common {
        Some(_) => ("True", "CommonEncodingVersionSet", "Common encoding version set"),
        None => ("False", "CommonEncodingVersionUnset", "Common encoding version unset"),
    };
    // From one version to another, all agreed at different times.
    let moved = before.is_some() && common.is_some() && before != common;
    let mut condition = json!({"type": CONDITION, "status": status, "reason": reason, "message": message});
    let generation = version.int_at("metadata.generation");
    if generation > 0 {
        condition.set("observedGeneration", generation);
    }
    if moved {
        for known in
            version.items_mut("status.conditions").iter_mut().filter(|c| c.str_at("type") == CONDITION)
        {
            known.remove("lastTransitionTime");
        }
    }
    conditions::set(version, condition, now);
    match common {
        Some(common) => version.set("status.commonEncodingVersion", common),
        None => {
            version.remove("status.commonEncodingVersion");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_agree_or_do_not() {
        let mut version = json!({"metadata": {"name": "apps.deployments"}});
        for (now, servers, common, status, since) in [
            ("t1", json!([{"encodingVersion": "apps/v1"}]), Some("apps/v1"), "True", "t1"),
            (
                "t2",
                json!([{"encodingVersion": "apps/v1"}, {"encodingVersion": "apps/v1"}]),
                Some("apps/v1"),
                "True",
                "t1",
            ),
            (
                "t3",
                json!([{"encodingVersion": "apps/v1"}, {"encodingVersion": "apps/v2"}]),
                None,
                "False",
                "t3",
            ),
            ("t4", json!([]), None, "False", "t3"),
            ("t5", json!([{"encodingVersion": "apps/v2"}]), Some("apps/v2"), "True", "t5"),
            // All at once.
            ("t6", json!([{"encodingVersion": "apps/v3"}]), Some("apps/v3"), "True", "t6"),
        ] {
            version.set("status.storageVersions", servers);
            set_common(&mut version, now);
            assert_eq!(version.str_opt("status.commonEncodingVersion"), common, "{now}");
            let conditions = version.items("status.conditions");
            assert_eq!(conditions.len(), 1);
            assert_eq!(
                (conditions[0].str_at("status"), conditions[0].str_at("lastTransitionTime")),
                (status, since),
                "{now}"
            );
        }
    }
}

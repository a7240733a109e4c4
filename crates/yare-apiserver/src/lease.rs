//! What the server's own Leases have in common, whoever holds them: how their times are written, and when they end.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use yare_kinds::view::View as _;

/// As `metav1.MicroTime` is written.
pub fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Whether a Lease says that its holder is gone. One that says nothing is nobody's.
pub fn is_expired(lease: &Value, now: Timestamp) -> bool {
    let renewed = lease.str_at("spec.renewTime").parse::<Timestamp>().ok();
    match (renewed, lease.int_opt("spec.leaseDurationSeconds")) {
        (Some(renewed), Some(duration_s)) => {
            renewed.checked_add(SignedDuration::from_secs(duration_s)).is_ok_and(|until| until < now)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expiry() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let lease =
            |at: &str, duration: Value| json!({"spec": {"renewTime": at, "leaseDurationSeconds": duration}});
        for (lease, expired) in [
            (lease("2026-01-01T00:00:00.000000Z", json!(3600)), false),
            (lease("2025-12-31T23:59:59.999999Z", json!(3600)), true),
            (lease("2026-01-01T00:59:00.000000Z", json!(3600)), false),
            (lease("2026-01-01T00:59:00.000000Z", Value::Null), true),
            (json!({"spec": {"leaseDurationSeconds": 3600}}), true),
            (json!({}), true),
        ] {
            assert_eq!(is_expired(&lease, now), expired, "{lease}");
        }
    }
}

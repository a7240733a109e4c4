//! Sizes in a pod's status: of containers what is in force, of the pod as a whole what its cgroup holds.
//!
//! In: the pod as it is allocated, what is in force. Out: `status.resources` and the like, as upstream words amounts that
//! were rounded on their way into a cgroup.

use std::collections::BTreeMap;

use yare_runtime::Resources;
use yare_schema::quantity::{Format, Quantity};

use super::totals;
use crate::allocation::Sizes;
use crate::view::{Container, Pod, ResourceRequirements};

/// CPU shares at and below which a request says nothing.
const MIN_SHARES_MILLI: i64 = 2;
/// CPU limits, thousandths, at and below which the kernel's minimum holds.
const MIN_LIMIT_MILLI: i64 = 10;

/// A container's `resources`: as they are allocated, CPU and memory as they are in force where it runs.
pub(crate) fn of_container(
    container: &Container,
    in_force: Option<&ResourceRequirements>,
) -> ResourceRequirements {
    let mut out = container.resources.clone();
    let Some(in_force) = in_force else { return out };
    for (mine, actual) in [(&mut out.requests, &in_force.requests), (&mut out.limits, &in_force.limits)] {
        if mine.is_empty() {
            continue;
        }
        for name in ["cpu", "memory"] {
            if let Some(amount) = actual.get(name) {
                mine.insert(name.to_owned(), amount.clone());
            }
        }
    }
    out
}

/// An amount in the largest unit that says it exactly; what none says within 64 bits is rounded up to a whole one.
fn text(nanos: i128, name: &str) -> String {
    const UNITS: [(i128, i32); 4] = [(1_000_000_000, 0), (1_000_000, -3), (1_000, -6), (1, -9)];
    let exact = UNITS.into_iter().find_map(|(unit, scale)| {
        (nanos % unit == 0).then(|| i64::try_from(nanos / unit).ok())?.map(|value| (value, scale))
    });
    let (value, scale) =
        exact.unwrap_or_else(|| (i64::try_from(nanos / UNITS[0].0 + 1).unwrap_or(i64::MAX), 0));
    let format = if name == "cpu" || scale < 0 { Format::DecimalSi } else { Format::BinarySi };
    Quantity::from_scaled(value, scale, format).to_string()
}

fn milli(milli: i64) -> String {
    Quantity::from_scaled(milli, -3, Format::DecimalSi).to_string()
}

fn bytes(bytes: i64) -> String {
    Quantity::from_scaled(bytes, 0, Format::BinarySi).to_string()
}

fn amounts(set: BTreeMap<String, i128>) -> BTreeMap<String, String> {
    set.into_iter().map(|(name, nanos)| (name.clone(), text(nanos, &name))).collect()
}

/// A pod's `allocatedResources`: what it asks for as a whole.
pub(crate) fn requests(pod: &Pod) -> BTreeMap<String, String> {
    amounts(totals::requests(pod))
}

/// A pod's `resources`. `limits`: those of its cgroup, for a pod that runs.
pub(crate) fn of_pod(
    pod: &Pod,
    limits: Option<&Resources>,
    in_force: Option<&Sizes>,
) -> ResourceRequirements {
    let mut out = pod.spec.resources.clone().unwrap_or_default();
    let Some(limits) = limits else {
        out.requests = requests(pod);
        out.limits = amounts(totals::limits(pod));
        return out;
    };
    let spec_milli = |set: &BTreeMap<String, String>| set.get("cpu").map_or(0, |t| crate::quantity::milli(t));
    let asked = limits.cpu_shares.map_or(0, |shares| {
        // The kernel's shares, rounded up as they were rounded down.
        i64::try_from((shares * 1000).div_ceil(1024)).unwrap_or(i64::MAX)
    });
    if asked > 0 && (asked > MIN_SHARES_MILLI || spec_milli(&out.requests) > MIN_SHARES_MILLI) {
        out.requests.insert("cpu".to_owned(), milli(asked));
    }
    let actual = in_force.and_then(|sizes| sizes.pod.as_ref()?.requests.get("memory").cloned());
    match actual.filter(|_| out.requests.contains_key("memory")) {
        Some(actual) => drop(out.requests.insert("memory".to_owned(), actual)),
        None => {
            if let Some(sum) = requests(pod).remove("memory") {
                out.requests.entry("memory".to_owned()).or_insert(sum);
            }
        }
    }
    let quota = limits.cpu_quota_us.filter(|quota| *quota > 0).zip(limits.cpu_period_us.filter(|p| *p > 0));
    if let Some((quota, period)) = quota {
        let limit = quota.saturating_mul(1000) / i64::try_from(period).unwrap_or(i64::MAX);
        if limit > MIN_LIMIT_MILLI || spec_milli(&out.limits) > MIN_LIMIT_MILLI {
            out.limits.insert("cpu".to_owned(), milli(limit));
        }
    }
    if let Some(limit) = limits.memory_limit_bytes.filter(|limit| *limit > 0) {
        out.limits.insert("memory".to_owned(), bytes(limit));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    fn set(value: serde_json::Value) -> ResourceRequirements {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn containers_that_run_show_what_is_in_force() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "2", "memory": "2Gi", "ephemeral-storage": "1Gi"}}}]}));
        let in_force =
            set(serde_json::json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "9"}}));
        let container = &pod.spec.containers[0];
        assert_eq!(of_container(container, None), container.resources);
        assert_eq!(
            of_container(container, Some(&in_force)),
            set(serde_json::json!({"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}}))
        );
    }

    #[test]
    fn pods_show_their_cgroup() {
        let both = serde_json::json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"cpu": "100m"}}}]});
        let cgroup = Resources {
            cpu_shares: Some(204),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            memory_limit_bytes: Some(128 << 20),
            ..Resources::default()
        };
        let least = Resources { cpu_shares: Some(2), ..Resources::default() };
        let none = serde_json::json!({"containers": [{"name": "a"}]});
        for (spec, limits, want) in [
            (
                &both,
                None,
                serde_json::json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "1"}}),
            ),
            (
                &both,
                Some(&cgroup),
                serde_json::json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}),
            ),
            (&none, None, serde_json::json!({})),
            (&none, Some(&least), serde_json::json!({})),
        ] {
            assert_eq!(of_pod(&pod(spec.clone()), limits, None), set(want), "{spec}");
        }
        assert_eq!(requests(&pod(both))["cpu"], "200m");
    }

    #[test]
    fn what_a_pod_asks_for_is_not_rounded() {
        for (asked, want) in [
            ("10m", "10m"),
            ("1500u", "1500u"),
            ("0.5", "500m"),
            ("64Mi", "64Mi"),
            // A billionth of it would not fit into 64 bits.
            ("20000000000000000000n", "19531250Ki"),
            ("20000000000000000001n", "20000000001"),
        ] {
            let spec = serde_json::json!({"resources": {"requests": {"memory": asked}}, "containers": []});
            assert_eq!(requests(&pod(spec))["memory"], want, "{asked}");
        }
        let spec = serde_json::json!({"resources": {"requests": {"cpu": "1500u"}}, "containers": []});
        assert_eq!(requests(&pod(spec))["cpu"], "1500u");
    }
}

//! How much of a device's capacities a request takes (KEP-5075).

use yare_schema::quantity::{Format, Quantity};

use crate::devices::types::{Amount, Amounts, Capacity, DeviceSpec, RequestPolicy, ValidRange};

/// What a request takes of a capacity: what it asks for, rounded up to what may be asked for.
fn taken(asked: Option<Quantity>, capacity: &Capacity) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        return policy.and_then(|p| p.default).unwrap_or(capacity.value.0);
    };
    let Some(policy) = policy else { return asked };
    match &policy.valid_range {
        Some(ValidRange { min: Some(min), step, .. }) => {
            if asked < *min {
                return *min;
            }
            let Some(step) = step.map(Quantity::value).filter(|step| *step > 0) else { return asked };
            let above = asked.value().saturating_sub(min.value());
            let steps = above / step + i64::from(above % step != 0);
            Quantity::new(min.value().saturating_add(step.saturating_mul(steps)), Format::BinarySi)
        }
        _ => policy.valid_values.iter().map(|v| v.0).find(|v| asked <= *v).unwrap_or(asked),
    }
}

/// Whether so much may not be asked for.
fn violates(amount: Quantity, policy: &RequestPolicy) -> bool {
    if policy.default == Some(amount) {
        return false;
    }
    if let Some(range) = &policy.valid_range {
        let min = range.min.map_or(0, Quantity::value);
        let step = range.step.map(Quantity::value).filter(|step| *step > 0);
        return range.max.is_some_and(|max| amount > max)
            || step.is_some_and(|step| amount.value().saturating_sub(min) % step != 0);
    }
    !policy.valid_values.is_empty() && !policy.valid_values.iter().any(|v| v.0 == amount)
}

fn asked(request: Option<&Amounts>, name: &str) -> Option<Quantity> {
    request.and_then(|r| r.get(name)).map(|amount| amount.0)
}

/// Whether a device has room for the request beside what is taken of it.
pub fn fits(device: &DeviceSpec, request: Option<&Amounts>, used: impl Fn(&str) -> Quantity) -> bool {
    if request.is_some_and(|r| r.keys().any(|name| !device.capacity.contains_key(name))) {
        return false;
    }
    device.capacity.iter().all(|(name, capacity)| {
        let amount = taken(asked(request, name), capacity);
        !capacity.request_policy.as_ref().is_some_and(|policy| violates(amount, policy))
            && used(name) + amount <= capacity.value.0
    })
}

/// What the request takes of a device that is shared.
pub fn consumed(device: &DeviceSpec, request: Option<&Amounts>) -> Amounts {
    let of = |name: &str, capacity: &Capacity| Amount(taken(asked(request, name), capacity));
    device.capacity.iter().map(|(name, capacity)| (name.clone(), of(name, capacity))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The capacity `m`, what is asked of it, what is used, what it comes to (`None`: it does not fit).
    fn check(capacity: Value, request: Value, used: &str, expected: Option<&str>) {
        let device: DeviceSpec = serde_json::from_value(json!({"capacity": {"m": capacity}})).unwrap();
        let asked: Option<Amounts> = serde_json::from_value(request.clone()).unwrap();
        let used = Quantity::parse(used).unwrap();
        let got = fits(&device, asked.as_ref(), |_| used)
            .then(|| consumed(&device, asked.as_ref())["m"].0.to_string());
        assert_eq!(got.as_deref(), expected, "{capacity} {request}");
    }

    #[test]
    fn amounts() {
        let range = json!({"value": "10Gi", "requestPolicy": {
            "default": "1Gi", "validRange": {"min": "1Gi", "max": "4Gi", "step": "1Gi"}}});
        let values = json!({"value": "8", "requestPolicy": {"default": "1", "validValues": ["1", "2", "4"]}});
        let cases = [
            (json!({"value": "10Gi"}), json!(null), "0", Some("10Gi")),
            (json!({"value": "10Gi"}), json!(null), "1", None),
            (json!({"value": "10Gi"}), json!({"m": "3Gi"}), "7Gi", Some("3Gi")),
            (json!({"value": "10Gi"}), json!({"m": "3Gi"}), "8Gi", None),
            (json!({"value": "10Gi"}), json!({"other": "1"}), "0", None),
            (range.clone(), json!(null), "0", Some("1Gi")),
            (range.clone(), json!({"m": "1Mi"}), "0", Some("1Gi")),
            (range.clone(), json!({"m": "1025Mi"}), "0", Some("2Gi")),
            (range.clone(), json!({"m": "3Gi"}), "0", Some("3Gi")),
            (range.clone(), json!({"m": "5Gi"}), "0", None),
            (range, json!({"m": "4Gi"}), "7Gi", None),
            (values.clone(), json!(null), "0", Some("1")),
            (values.clone(), json!({"m": "3"}), "4", Some("4")),
            (values.clone(), json!({"m": "3"}), "5", None),
            (values, json!({"m": "5"}), "0", None),
        ];
        for (capacity, request, used, expected) in cases {
            check(capacity, request, used, expected);
        }
    }
}

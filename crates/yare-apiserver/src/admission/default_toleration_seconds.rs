//! DefaultTolerationSeconds: pods stay a while (five minutes) on nodes that are not ready or not reachable.

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

/// Adds the tolerations that are missing.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let settings = attributes.settings();
    let mut tolerations = pod.items("spec.tolerations").to_vec();
    for (taint, seconds) in [
        ("node.kubernetes.io/not-ready", settings.not_ready_toleration_s),
        ("node.kubernetes.io/unreachable", settings.unreachable_toleration_s),
    ] {
        let tolerated = tolerations.iter().any(|t| {
            let (key, effect) = (t.str_at("key"), t.str_at("effect"));
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
            }));
        }
    }
    pod.set("spec.tolerations", tolerations);
    Ok(())
}

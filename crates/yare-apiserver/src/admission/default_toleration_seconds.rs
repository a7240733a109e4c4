//! DefaultTolerationSeconds: pods stay five minutes on nodes that are not ready or not reachable.

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Adds the tolerations that are missing.
pub fn mutate(_attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    let mut tolerations = pod.items("spec.tolerations").to_vec();
    for taint in TAINTS {
        let tolerated = tolerations.iter().any(|t| {
            let (key, effect) = (t.str_at("key"), t.str_at("effect"));
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
    pod.set("spec.tolerations", tolerations);
    Ok(())
}

//! Texts of events about resizes: a sentence, and the sizes as JSON for whoever reads events by program.

use serde::Serialize;

use crate::view::{Container, Pod, ResourceRequirements};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Size<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Size<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct Size<'a> {
    name: &'a str,
    resources: &'a ResourceRequirements,
}

fn sizes(containers: &[Container]) -> Vec<Size<'_>> {
    containers.iter().map(|c| Size { name: &c.name, resources: &c.resources }).collect()
}

/// `sentence: {"containers":[…],"generation":2}`, with an error where there is one.
pub(crate) fn message(sentence: &str, pod: &Pod, generation: i64, error: &str) -> String {
    let summary = Summary {
        init_containers: sizes(&pod.spec.init_containers),
        containers: sizes(&pod.spec.containers),
        generation,
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(json) => format!("{sentence}: {json}"),
        Err(_) => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_json() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi", "cpu": "1"}, "limits": {"cpu": "2"}}}]}}))
        .unwrap();
        assert_eq!(
            message("Pod resize error", &pod, 3, "no \"room\""),
            r#"Pod resize error: {"initContainers":[{"name":"i","resources":{}}],"containers":[{"name":"c","resources":{"limits":{"cpu":"2"},"requests":{"cpu":"1","memory":"1Mi"}}}],"generation":3,"error":"no \"room\""}"#
        );
        assert!(message("Pod resize completed", &pod, 3, "").ends_with("\"generation\":3}"));
    }
}

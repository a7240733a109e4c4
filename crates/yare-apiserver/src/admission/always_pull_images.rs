//! AlwaysPullImages: nobody uses an image of a node's store that its registry would not give him.

use serde_json::Value;
use yare_kinds::view::{View, ViewMut};
use yare_schema::field::{FieldError, Path};

use super::{Attributes, Operation};
use crate::status::{ApiError, ApiResult};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const ALWAYS: &str = "Always";

fn images(pod: &Value) -> Vec<&str> {
    let spec = pod.at("spec");
    CONTAINERS.iter().flat_map(|list| spec.items(list)).map(|c| c.str_at("image")).collect()
}

/// An update that brings no image.
fn is_settled(attributes: &Attributes<'_>, pod: &Value, old: Option<&Value>) -> bool {
    attributes.operation == Operation::Update
        && old.is_some_and(|old| {
            let had = images(old);
            images(pod).iter().all(|image| had.contains(image))
        })
}

/// Has every image pulled.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    if is_settled(attributes, pod, old) {
        return Ok(());
    }
    for list in CONTAINERS {
        for container in pod.items_mut(&format!("spec.{list}")) {
            container.set("imagePullPolicy", ALWAYS);
        }
    }
    for volume in pod.items_mut("spec.volumes") {
        if volume.has("image") {
            volume.set("image.pullPolicy", ALWAYS);
        }
    }
    Ok(())
}

/// Refuses what a webhook has changed back.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let Some(pod) = object.filter(|pod| !is_settled(attributes, pod, old)) else { return Ok(()) };
    let mut wrong: Vec<ApiError> = Vec::new();
    let mut check = |path: &Path<'_>, policy: &str| {
        if policy != ALWAYS {
            wrong.push(attributes.forbidden_object(pod, FieldError::not_supported(path, policy, &[ALWAYS])));
        }
    };
    let spec = Path::new("spec");
    for list in CONTAINERS {
        let path = spec.child(list);
        for (i, container) in pod.at("spec").items(list).iter().enumerate() {
            let path = path.index(i);
            check(&path.child("imagePullPolicy"), container.str_at("imagePullPolicy"));
        }
    }
    let path = spec.child("volumes");
    for (i, volume) in pod.items("spec.volumes").iter().enumerate().filter(|(_, v)| v.has("image")) {
        let path = path.index(i);
        let path = path.child("image");
        check(&path.child("pullPolicy"), volume.str_at("image.pullPolicy"));
    }
    let all: Vec<String> = wrong.iter().map(|e| e.message.clone()).collect();
    match wrong.into_iter().next() {
        None => Ok(()),
        Some(one) if all.len() == 1 => Err(one),
        Some(mut one) => {
            one.message = format!("[{}]", all.join(", "));
            Err(one)
        }
    }
}

//! ServiceAccount: every pod runs as a service account that exists, with a token to reach the API.

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::Attributes;
use crate::status::ApiResult;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Validity of projected tokens: an hour, and a little so that a year-long extension can be told apart.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";
const CONTAINERS: [&str; 2] = ["spec.initContainers", "spec.containers"];

/// Gives a new pod its service account, pull secrets and token volume.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    if pod.at("metadata.annotations").get(MIRROR).is_some() {
        // A mirror of a static pod, whose kubelet has no service account for it.
        if pod.is_set("spec.serviceAccountName") {
            return Err(attributes.forbidden("a mirror pod may not reference service accounts"));
        }
        return Ok(());
    }
    if !pod.is_set("spec.serviceAccountName") {
        let name =
            if pod.is_set("spec.serviceAccount") { pod.str_at("spec.serviceAccount") } else { "default" };
        pod.set("spec.serviceAccountName", name.to_owned());
    }
    let name = pod.str_at("spec.serviceAccountName").to_owned();
    pod.set("spec.serviceAccount", name.clone());
    let namespace = attributes.namespace;
    let core = &attributes.call.core;
    let Some(account) = core.read("serviceaccounts", &format!("{namespace}/{name}")) else {
        return Err(attributes.forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        )));
    };
    if !pod.is_set("spec.imagePullSecrets") && account.is_set("imagePullSecrets") {
        pod.copy_from(
            &json!({ "spec": { "imagePullSecrets": account["imagePullSecrets"] } }),
            "spec.imagePullSecrets",
        );
    }
    let automount = pod
        .bool_opt("spec.automountServiceAccountToken")
        .or_else(|| account.bool_opt("automountServiceAccountToken"))
        .unwrap_or(true);
    if automount {
        mount_token(pod, &core.random_suffix(5));
    }
    Ok(())
}

fn mount_token(pod: &mut Value, suffix: &str) {
    let existing = pod
        .items("spec.volumes")
        .iter()
        .map(|v| v.str_at("name"))
        .find(|n| n.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut mounted = false;
    for path in CONTAINERS {
        for container in pod.items_mut(path) {
            if container.items("volumeMounts").iter().any(|m| m.str_at("mountPath") == MOUNT_PATH) {
                continue;
            }
            let mut mounts = container.items("volumeMounts").to_vec();
            mounts.push(json!({ "name": volume, "readOnly": true, "mountPath": MOUNT_PATH }));
            container.set("volumeMounts", mounts);
            mounted = true;
        }
    }
    if mounted && existing.is_none() {
        let mut volumes = pod.items("spec.volumes").to_vec();
        volumes.push(json!({ "name": volume, "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{
                "path": "namespace",
                "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
            }] } },
        ] } }));
        pod.set("spec.volumes", volumes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_once_and_leaves_own_mounts_alone() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
        ]}});
        mount_token(&mut pod, "abcde");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        let once = pod.clone();
        mount_token(&mut pod, "fghij");
        assert_eq!(pod, once);
    }
}

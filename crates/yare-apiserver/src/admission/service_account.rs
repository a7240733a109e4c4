//! ServiceAccount: every pod runs as a service account that exists, with a token to reach the API.

use std::sync::Arc;

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};
use yare_store::Object;

use super::{Attributes, Operation, references};
use crate::{
    span,
    status::{ApiError, ApiResult},
};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Validity of projected tokens: an hour, and a little so that a year-long extension can be told apart.
const TOKEN_SECONDS: i64 = 3607;
/// Annotation of an account whose pods use no secrets but those it lists.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
const MIRROR: &str = "kubernetes.io/config.mirror";
const CONTAINERS: [&str; 2] = ["spec.initContainers", "spec.containers"];

/// Gives a new pod its service account, pull secrets and token volume.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    if attributes.operation != Operation::Create {
        return Ok(());
    }
    // A mirror of a static pod, whose kubelet has no service account for it, stays as it is.
    if pod.at("metadata.annotations").get(MIRROR).is_none() {
        if !pod.is_set("spec.serviceAccountName") {
            let name =
                if pod.is_set("spec.serviceAccount") { pod.str_at("spec.serviceAccount") } else { "default" };
            pod.set("spec.serviceAccountName", name.to_owned());
        }
        let name = pod.str_at("spec.serviceAccountName").to_owned();
        pod.set("spec.serviceAccount", name);
        let account = account_of(attributes, pod)?;
        let automount = pod
            .bool_opt("spec.automountServiceAccountToken")
            .or_else(|| account.member("automountServiceAccountToken").as_bool())
            .unwrap_or(true);
        if automount {
            mount_token(pod, &attributes.call.core.random_suffix(5));
        }
        let secrets = account.member("imagePullSecrets");
        if !pod.is_set("spec.imagePullSecrets") && !secrets.items("").is_empty() {
            pod.set("spec.imagePullSecrets", secrets);
        }
        return account.check(attributes, pod, false);
    }
    validate(attributes, Some(pod), old)
}

/// A service account at rest, of which every pod asks for little.
struct Account(Arc<Object>);

impl Account {
    /// One member of the account; null where it has none.
    fn member(&self, name: &str) -> Value {
        let found = span::member(&self.0.bytes, name).map(|at| &self.0.bytes[at]);
        found.and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default()
    }

    /// Refuses secrets that it does not list, where its annotation says that only those may be used.
    fn check(&self, attributes: &Attributes<'_>, pod: &Value, ephemeral: bool) -> ApiResult<()> {
        let bytes = &self.0.bytes;
        let annotated = span::member(bytes, "metadata").is_some_and(|at| {
            let metadata = &bytes[at];
            span::member(metadata, "annotations").is_some()
        });
        if !annotated {
            return Ok(());
        }
        let account: Value = serde_json::from_slice(bytes).map_err(ApiError::internal)?;
        let enforced = account.at("metadata.annotations").get(ENFORCE).and_then(Value::as_str);
        // As Go reads booleans.
        if !matches!(enforced, Some("1" | "t" | "T" | "true" | "TRUE" | "True")) {
            return Ok(());
        }
        match unlisted_secret(pod, &account, ephemeral) {
            Some(why) => Err(attributes.forbidden_object(pod, why)),
            None => Ok(()),
        }
    }
}

fn account_of(attributes: &Attributes<'_>, pod: &Value) -> ApiResult<Account> {
    let (namespace, name) = (attributes.namespace, pod.str_at("spec.serviceAccountName"));
    if name.is_empty() {
        let pod_name = pod.str_at("metadata.name");
        return Err(attributes
            .forbidden_object(pod, format!("no service account specified for pod {namespace}/{pod_name}")));
    }
    let account = attributes.call.core.store().get("serviceaccounts", &format!("{namespace}/{name}"));
    account.map(Account).ok_or_else(|| {
        attributes.forbidden_object(
            pod,
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
        )
    })
}

/// Refuses pods without an account, mirror pods with one, and secrets that an account does not list where its
/// annotation says that only those may be used.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(pod) = object else { return Ok(()) };
    let ephemeral = attributes.subresource == "ephemeralcontainers";
    if !ephemeral && attributes.operation != Operation::Create {
        return Ok(());
    }
    if !ephemeral && pod.at("metadata.annotations").get(MIRROR).is_some() {
        return match forbidden_to_mirrors(pod) {
            Some(why) => Err(attributes.forbidden_object(pod, why)),
            None => Ok(()),
        };
    }
    account_of(attributes, pod)?.check(attributes, pod, ephemeral)
}

fn forbidden_to_mirrors(pod: &Value) -> Option<&'static str> {
    if pod.is_set("spec.serviceAccountName") {
        return Some("a mirror pod may not reference service accounts");
    }
    if references::secrets(pod) {
        return Some("a mirror pod may not reference secrets");
    }
    let tokens = pod.items("spec.volumes").iter().flat_map(|v| v.items("projected.sources"));
    if tokens.into_iter().any(|s| s.has("serviceAccountToken")) {
        return Some("a mirror pod may not use ServiceAccountToken volume projections");
    }
    None
}

/// The first secret of the pod (or, `ephemeral`, of its ephemeral containers) that the account does not list.
fn unlisted_secret(pod: &Value, account: &Value, ephemeral: bool) -> Option<String> {
    let name = account.str_at("metadata.name");
    let names = |list: &str| -> Vec<&str> { account.items(list).iter().map(|s| s.str_at("name")).collect() };
    let listed = names("secrets");
    if !ephemeral {
        for volume in pod.items("spec.volumes").iter().filter(|v| v.has("secret")) {
            let secret = volume.str_at("secret.secretName");
            if !listed.contains(&secret) {
                return Some(format!(
                    "volume with secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret"
                ));
            }
        }
    }
    let lists: &[(&str, &str)] = if ephemeral {
        &[("spec.ephemeralContainers", "ephemeral container")]
    } else {
        &[("spec.initContainers", "init container"), ("spec.containers", "container")]
    };
    for (list, what) in lists {
        for container in pod.items(list) {
            let container_name = container.str_at("name");
            for env in container.items("env").iter().filter(|e| e.has("valueFrom.secretKeyRef")) {
                let secret = env.str_at("valueFrom.secretKeyRef.name");
                if !listed.contains(&secret) {
                    return Some(format!(
                        "{what} {container_name} with envVar {} referencing secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret",
                        env.str_at("name")
                    ));
                }
            }
            for env in container.items("envFrom").iter().filter(|e| e.has("secretRef")) {
                let secret = env.str_at("secretRef.name");
                if !listed.contains(&secret) {
                    return Some(format!(
                        "{what} {container_name} with envFrom referencing secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret"
                    ));
                }
            }
        }
    }
    if ephemeral {
        return None;
    }
    let pull = names("imagePullSecrets");
    for (i, secret) in pod.items("spec.imagePullSecrets").iter().enumerate() {
        let secret = secret.str_at("name");
        if !pull.contains(&secret) {
            return Some(format!(
                "imagePullSecrets[{i}].name=\"{secret}\" is not allowed because service account {name} does not reference that imagePullSecret"
            ));
        }
    }
    None
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

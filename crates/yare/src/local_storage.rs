//! The StorageClass `local-path`: what a new cluster has, so that a claim just works.
//!
//! It is made once. From then on it belongs to whoever runs the cluster: one that was changed, replaced or deleted
//! stays so, over restarts and new versions. A ConfigMap in `kube-system` remembers that it was made. With
//! `--disable local-storage` it goes, and whoever takes that back gets a new one.

use std::time::Duration;

use serde_json::{Value, json};
use yare_client::{CONFIG_MAPS, ObjectKey, STORAGE_CLASSES};
use yare_controllers::api::{Api, ApiError, Deletion, Patch};
use yare_schema::local_path::{CLASS, DRIVER};

/// The name under which it is disabled.
pub const COMPONENT: &str = "local-storage";
/// Its controller.
pub const CONTROLLER: &str = "local-path-provisioner-controller";
/// Remembers what was made.
const MEMORY: &str = "yare-addons";
const LABEL: &str = "yare.io/addon";
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// Waits between attempts, while admission webhooks or a full disk say no.
const RETRY: Duration = Duration::from_secs(30);

/// The permissions of the controller.
pub fn bootstrap_objects() -> Vec<Value> {
    let name = "system:controller:local-path-provisioner";
    let meta = json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}});
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta,
            "rules": [
                rule(&[""], &["persistentvolumes"], &["get", "list", "watch", "create", "update", "delete"]),
                rule(&[""], &["persistentvolumeclaims"], &["get", "list", "watch", "update"]),
                rule(&[""], &["persistentvolumeclaims/status"], &["update"]),
                rule(&[""], &["nodes"], &["get", "list", "watch"]),
                rule(&["storage.k8s.io"], &["storageclasses"], &["get", "list", "watch"]),
                rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": "local-path-provisioner", "namespace": "kube-system"}],
        }),
    ]
}

/// Makes the class, or takes it away, where that has not been done; tries until it is.
pub async fn keep(api: Api, disabled: bool) {
    while let Err(error) = settle(&api, disabled).await {
        tracing::warn!(%error, "StorageClass {CLASS}: will retry");
        tokio::time::sleep(RETRY).await;
    }
}

async fn settle(api: &Api, disabled: bool) -> Result<(), ApiError> {
    let memory = ObjectKey::new("kube-system", MEMORY);
    let known = api.get(&CONFIG_MAPS, &memory).await?;
    let made = known.as_ref().is_some_and(|map| value(map)["data"].get(COMPONENT).is_some());
    if made != disabled {
        return Ok(());
    }
    let key = ObjectKey::cluster(CLASS);
    if disabled {
        // One that a user put in its place is the user's.
        let found = api.get(&STORAGE_CLASSES, &key).await?;
        if let Some(ours) = found.filter(|class| class.label(LABEL) == Some(COMPONENT)) {
            api.delete(&STORAGE_CLASSES, &key, Deletion::of(&ours)).await?;
        }
    } else {
        let classes = api.list(&STORAGE_CLASSES, "").await?;
        let taken = classes.iter().any(|c| value(c)["metadata"]["annotations"][DEFAULT] == "true");
        match api.create(&STORAGE_CLASSES, "", &class(!taken)).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
    }
    let entry = if disabled { Value::Null } else { "made".into() };
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MEMORY}, "data": {COMPONENT: entry}});
    match known {
        Some(_) => api.patch(&CONFIG_MAPS, &memory, "", Patch::Merge, &map).await?,
        None => api.create(&CONFIG_MAPS, "kube-system", &map).await?,
    };
    Ok(())
}

fn value(object: &yare_client::Cached) -> Value {
    serde_json::from_slice(object.bytes()).unwrap_or_default()
}

/// The class. Where another is the default already, this one is not.
fn class(default: bool) -> Value {
    let mut out = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "labels": {LABEL: COMPONENT}},
        "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": true,
    });
    if default {
        out["metadata"]["annotations"][DEFAULT] = "true".into();
    }
    out
}

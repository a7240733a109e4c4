//! Which API objects a pod refers to.

use serde_json::Value;
use yare_kinds::view::View;

/// Lists of containers.
const CONTAINERS: [&str; 3] = ["spec.containers", "spec.initContainers", "spec.ephemeralContainers"];

/// Where volume types name secrets.
const VOLUME_SECRETS: [&str; 10] = [
    "azureFile.secretName",
    "cephfs.secretRef.name",
    "cinder.secretRef.name",
    "flexVolume.secretRef.name",
    "rbd.secretRef.name",
    "secret.secretName",
    "scaleIO.secretRef.name",
    "iscsi.secretRef.name",
    "storageos.secretRef.name",
    "csi.nodePublishSecretRef.name",
];

/// Volume types that need nothing of the API.
const LOCAL_VOLUMES: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "cephfs",
    "cinder",
    "downwardAPI",
    "emptyDir",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Volume types that need something, and what.
const API_VOLUMES: [(&str, &str); 7] = [
    ("configMap", "configmaps (via configmap volumes)"),
    ("secret", "secrets (via secret volumes)"),
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("azureFile", "secrets (via azureFile volumes)"),
];

const API_SOURCES: [(&str, &str); 5] = [
    ("configMap", "configmaps (via projected volumes)"),
    ("secret", "secrets (via projected volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

/// Whether containers take their environment from an object of this kind.
fn environment(pod: &Value, key: &str, from: &str) -> bool {
    CONTAINERS.iter().flat_map(|list| pod.items(list)).any(|container| {
        container.items("env").iter().any(|e| e.at("valueFrom").is_set(key))
            || container.items("envFrom").iter().any(|e| e.is_set(from))
    })
}

/// Whether the pod names any secret.
pub fn secrets(pod: &Value) -> bool {
    let by_volume = |volume: &Value| {
        VOLUME_SECRETS.iter().any(|path| volume.is_set(path))
            || volume.items("projected.sources").iter().any(|s| s.is_set("secret"))
    };
    pod.is_set("spec.imagePullSecrets")
        || environment(pod, "secretKeyRef", "secretRef")
        || pod.items("spec.volumes").iter().any(by_volume)
}

fn config_maps(pod: &Value) -> bool {
    environment(pod, "configMapKeyRef", "configMapRef")
        || pod.items("spec.volumes").iter().any(|volume| {
            volume.has("configMap") || volume.items("projected.sources").iter().any(|s| s.has("configMap"))
        })
}

/// The resource of the first API object that the pod refers to. The error names a volume of unknown type.
pub fn api_objects(pod: &Value) -> Result<Option<&'static str>, String> {
    if pod.is_set("spec.serviceAccountName") {
        return Ok(Some("serviceaccounts"));
    }
    if secrets(pod) {
        return Ok(Some("secrets"));
    }
    if config_maps(pod) {
        return Ok(Some("configmaps"));
    }
    if pod.is_set("spec.resourceClaims") {
        return Ok(Some("resourceclaims"));
    }
    let named = |value: &Value, table: &[(&str, &'static str)]| {
        table.iter().find(|(field, _)| value.has(field)).map(|(_, what)| *what)
    };
    for volume in pod.items("spec.volumes") {
        if LOCAL_VOLUMES.iter().any(|field| volume.has(field)) {
            continue;
        }
        if let Some(what) = named(volume, &API_VOLUMES) {
            return Ok(Some(what));
        }
        let name = volume.str_at("name");
        if !volume.has("projected") {
            return Err(format!("unknown volume type for volume  {name:?}"));
        }
        for source in volume.items("projected.sources") {
            if let Some(what) = named(source, &API_SOURCES) {
                return Ok(Some(what));
            }
            if !source.has("downwardAPI") {
                return Err(format!("unknown source for projected volume {name:?}"));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn found() {
        let volume = |v: Value| json!({"spec": {"volumes": [v]}});
        for (pod, expect) in [
            (json!({"spec": {"containers": [{"name": "a"}]}}), Ok(None)),
            (json!({"spec": {"serviceAccountName": "a"}}), Ok(Some("serviceaccounts"))),
            (json!({"spec": {"imagePullSecrets": [{"name": "s"}]}}), Ok(Some("secrets"))),
            (
                json!({"spec": {"initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}}),
                Ok(Some("secrets")),
            ),
            (
                json!({"spec": {"containers": [{"envFrom": [{"configMapRef": {"name": "c"}}]}]}}),
                Ok(Some("configmaps")),
            ),
            (volume(json!({"name": "v", "hostPath": {"path": "/"}})), Ok(None)),
            (volume(json!({"name": "v", "emptyDir": {}})), Ok(None)),
            (
                volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})),
                Ok(Some("persistentvolumeclaims")),
            ),
            (
                volume(
                    json!({"name": "v", "projected": {"sources": [{"downwardAPI": {}}, {"serviceAccountToken": {"path": "t"}}]}}),
                ),
                Ok(Some("serviceaccounts (via projected volumes)")),
            ),
            (
                volume(json!({"name": "v", "new": {}})),
                Err("unknown volume type for volume  \"v\"".to_owned()),
            ),
        ] {
            assert_eq!(api_objects(&pod), expect, "{pod}");
        }
    }
}

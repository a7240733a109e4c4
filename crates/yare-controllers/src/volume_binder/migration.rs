//! Plugins that Kubernetes once had in its own tree and that CSI drivers stand in for: claims and volumes of
//! theirs say which driver, so that its sidecars take them on.

use serde_json::Value;

use crate::volume_views::{Claim, PROVISIONER, PROVISIONER_BETA, Volume};
use yare_schema::local_path::PROVISIONED_BY;

/// Says which driver stands in.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// Keeps a volume until its plugin of the tree has deleted what it stands for.
pub const IN_TREE_FINALIZER: &str = "kubernetes.io/pv-controller";

/// Plugins, and the drivers in their place.
const DRIVERS: &[(&str, &str)] = &[
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/azure-file", "file.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

/// The driver that stands in for a plugin.
pub fn driver_of(plugin: &str) -> Option<&'static str> {
    DRIVERS.iter().find(|(name, _)| *name == plugin).map(|(_, driver)| *driver)
}

/// What [`MIGRATED_TO`] should be, if it is something else; `Some(None)`: it should not be there.
fn change(plugin: Option<&String>, now: Option<&String>) -> Option<Option<&'static str>> {
    let should = driver_of(plugin?);
    (should != now.map(String::as_str)).then_some(should)
}

/// For a claim.
pub fn of_claim(claim: &Claim) -> Option<Option<&'static str>> {
    let by = |name: &str| claim.metadata.annotations.get(name);
    let plugin = by(PROVISIONER).or_else(|| by(PROVISIONER_BETA));
    // Where the driver itself was asked, nothing migrates.
    if plugin.is_some_and(|p| DRIVERS.iter().any(|(_, driver)| driver == p)) {
        return None;
    }
    change(plugin, by(MIGRATED_TO))
}

/// For a volume.
pub fn of_volume(volume: &Volume) -> Option<Option<&'static str>> {
    let by = |name: &str| volume.metadata.annotations.get(name);
    change(by(PROVISIONED_BY), by(MIGRATED_TO))
}

/// Writes it.
pub fn write(body: &mut Value, driver: Option<&str>) {
    match driver {
        Some(driver) => body["metadata"]["annotations"][MIGRATED_TO] = driver.into(),
        None => {
            if let Some(annotations) = body["metadata"]["annotations"].as_object_mut() {
                annotations.remove(MIGRATED_TO);
            }
        }
    }
}

/// The finalizers of a volume as they should be, if they are something else.
pub fn finalizers(volume: &Volume) -> Option<Vec<String>> {
    let by = volume.metadata.annotations.get(PROVISIONED_BY)?;
    let migrated = driver_of(by).is_some();
    if !migrated && !by.starts_with("kubernetes.io/") {
        return None;
    }
    let mut out = volume.metadata.finalizers.clone();
    let has = out.iter().any(|f| f == IN_TREE_FINALIZER);
    let should = match &*volume.spec.persistent_volume_reclaim_policy {
        _ if migrated => false,
        // A finalizer cannot be added to what is on its way out.
        "Delete" => has || volume.metadata.deletion_timestamp.is_none(),
        "Retain" | "Recycle" => false,
        _ => has,
    };
    match (has, should) {
        (false, true) => out.push(IN_TREE_FINALIZER.to_owned()),
        (true, false) => out.retain(|f| f != IN_TREE_FINALIZER),
        _ => return None,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_and_finalizers() {
        for (by, policy, finalizers_now, annotation, expected) in [
            ("kubernetes.io/aws-ebs", "Delete", json!([]), Some(Some("ebs.csi.aws.com")), None),
            (
                "kubernetes.io/aws-ebs",
                "Delete",
                json!([IN_TREE_FINALIZER]),
                Some(Some("ebs.csi.aws.com")),
                Some(json!([])),
            ),
            ("kubernetes.io/host-path", "Delete", json!(["x"]), None, Some(json!(["x", IN_TREE_FINALIZER]))),
            ("kubernetes.io/host-path", "Retain", json!(["x"]), None, None),
            ("kubernetes.io/host-path", "Retain", json!([IN_TREE_FINALIZER]), None, Some(json!([]))),
            ("csi.example.com", "Delete", json!([IN_TREE_FINALIZER]), None, None),
        ] {
            let volume: Volume = serde_json::from_value(json!({
                "metadata": {"annotations": {PROVISIONED_BY: by}, "finalizers": finalizers_now},
                "spec": {"persistentVolumeReclaimPolicy": policy},
            }))
            .unwrap();
            assert_eq!(of_volume(&volume), annotation, "{by}");
            assert_eq!(finalizers(&volume).map(|f| json!(f)), expected, "{by} {policy}");
        }
        let claim = |annotations: Value| -> Claim {
            serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap()
        };
        for (annotations, expected) in [
            (json!({}), None),
            (json!({PROVISIONER: "kubernetes.io/gce-pd"}), Some(Some("pd.csi.storage.gke.io"))),
            (json!({PROVISIONER: "pd.csi.storage.gke.io", MIGRATED_TO: "pd.csi.storage.gke.io"}), None),
            (json!({PROVISIONER: "csi.example.com", MIGRATED_TO: "x"}), Some(None)),
        ] {
            assert_eq!(of_claim(&claim(annotations.clone())), expected, "{annotations}");
        }
    }
}

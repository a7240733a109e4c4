//! Rows of volumes and `storage.k8s.io`.

use serde_json::Value;

use super::{
    AGE, NAME, Printer, boolean, cells,
    format::{self, age},
    integer, name,
    network::{annotation, or_default},
    text,
};
use crate::view::View;

/// `PersistentVolume`
pub const PERSISTENT_VOLUME: Printer = Printer {
    columns: &[
        NAME,
        text("Capacity", "Size of the volume."),
        text("Access Modes", "How the volume can be mounted."),
        text("Reclaim Policy", "What becomes of the volume when its claim goes."),
        text("Status", "Whether the volume is bound."),
        text("Claim", "The claim the volume is bound to."),
        text("StorageClass", "StorageClass of the pv"),
        text("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
        text("Reason", "Why the volume is in its status."),
        AGE,
        text("VolumeMode", "File system or block device.").wide(),
    ],
    row: |o, now_s| {
        let claim = o.at("spec.claimRef");
        let claim = if claim.is_null() {
            String::new()
        } else {
            format!("{}/{}", claim.str_at("namespace"), claim.str_at("name"))
        };
        cells![
            name(o),
            format::quantity(o.at("spec.capacity.storage")),
            access_modes(o.at("spec.accessModes")),
            o.str_at("spec.persistentVolumeReclaimPolicy"),
            phase(o),
            claim,
            class(o),
            o.str_opt("spec.volumeAttributesClassName").unwrap_or("<unset>"),
            o.str_at("status.reason"),
            age(o, now_s),
            o.str_opt("spec.volumeMode").unwrap_or("<unset>"),
        ]
    },
};

/// `PersistentVolumeClaim`
pub const PERSISTENT_VOLUME_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "Whether the claim is bound."),
        text("Volume", "The volume the claim is bound to."),
        text("Capacity", "Size of the volume."),
        text("Access Modes", "How the volume can be mounted."),
        text("StorageClass", "StorageClass of the pvc"),
        text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
        AGE,
        text("VolumeMode", "File system or block device.").wide(),
    ],
    row: |o, now_s| {
        let bound = o.is_set("spec.volumeName");
        let (capacity, modes) = if bound {
            (format::quantity(o.at("status.capacity.storage")), access_modes(o.at("status.accessModes")))
        } else {
            (String::new(), String::new())
        };
        cells![
            name(o),
            phase(o),
            o.str_at("spec.volumeName"),
            capacity,
            modes,
            class(o),
            o.str_opt("spec.volumeAttributesClassName").unwrap_or("<unset>"),
            age(o, now_s),
            o.str_opt("spec.volumeMode").unwrap_or("<unset>"),
        ]
    },
};

fn phase(o: &Value) -> &str {
    if o.has("metadata.deletionTimestamp") { "Terminating" } else { o.str_at("status.phase") }
}

/// The storage class; the annotation is older than the field and still wins.
fn class(o: &Value) -> &str {
    match annotation(o, "volume.beta.kubernetes.io/storage-class") {
        "" => o.str_at("spec.storageClassName"),
        class => class,
    }
}

fn access_modes(modes: &Value) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let modes = modes.strings("");
    let short: Vec<&str> = SHORT.iter().filter(|(long, _)| modes.contains(long)).map(|(_, s)| *s).collect();
    short.join(",")
}

/// `CSIDriver`
pub const CSI_DRIVER: Printer = Printer {
    columns: &[
        NAME,
        boolean("AttachRequired", "Whether volumes are attached before they are mounted."),
        boolean("PodInfoOnMount", "Whether the driver is told about the pod."),
        boolean("StorageCapacity", "Whether the driver publishes its capacity."),
        text("TokenRequests", "Audiences of the tokens the driver gets."),
        boolean("RequiresRepublish", "Whether volumes are published again and again."),
        text("Modes", "Lifecycles the driver supports."),
        AGE,
    ],
    row: |o, now_s| {
        let tokens = if o.has("spec.tokenRequests") {
            o.items("spec.tokenRequests").iter().map(|t| t.str_at("audience")).collect::<Vec<_>>().join(",")
        } else {
            "<unset>".to_owned()
        };
        let modes = o.strings("spec.volumeLifecycleModes").join(",");
        cells![
            name(o),
            o.bool_opt("spec.attachRequired").unwrap_or(true),
            o.bool_at("spec.podInfoOnMount"),
            o.bool_at("spec.storageCapacity"),
            tokens,
            o.bool_at("spec.requiresRepublish"),
            if modes.is_empty() { "<none>".to_owned() } else { modes },
            age(o, now_s),
        ]
    },
};

/// `CSINode`
pub const CSI_NODE: Printer = Printer {
    columns: &[
        NAME,
        integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"),
        AGE,
    ],
    row: |o, now_s| cells![name(o), o.items("spec.drivers").len(), age(o, now_s)],
};

/// `CSIStorageCapacity`
pub const CSI_STORAGE_CAPACITY: Printer = Printer {
    columns: &[
        NAME,
        text("StorageClassName", "Class the capacity is for."),
        text("Capacity", "Space that is left."),
    ],
    row: |o, _| {
        cells![
            name(o),
            o.str_at("storageClassName"),
            format::plain(o.at("capacity")).unwrap_or_else(|| "<unset>".to_owned()),
        ]
    },
};

/// `StorageClass`
pub const STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        text("Provisioner", "Who makes volumes of the class."),
        text("ReclaimPolicy", "What becomes of a volume when its claim goes."),
        text("VolumeBindingMode", "When volumes are made and bound."),
        text("AllowVolumeExpansion", "Whether volumes can grow."),
        AGE,
    ],
    row: |o, now_s| {
        let default = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ]
        .iter()
        .any(|key| annotation(o, key) == "true");
        cells![
            or_default(name(o), default),
            o.str_at("provisioner"),
            o.str_opt("reclaimPolicy").unwrap_or("Delete"),
            o.str_opt("volumeBindingMode").unwrap_or("Immediate"),
            o.bool_at("allowVolumeExpansion"),
            age(o, now_s),
        ]
    },
};

/// `VolumeAttachment`
pub const VOLUME_ATTACHMENT: Printer = Printer {
    columns: &[
        NAME,
        text("Attacher", "Driver that attaches.").format("name"),
        text("PV", "The volume."),
        text("Node", "The node."),
        boolean("Attached", "Whether it is attached."),
        AGE,
    ],
    row: |o, now_s| {
        cells![
            name(o),
            o.str_at("spec.attacher"),
            o.str_at("spec.source.persistentVolumeName"),
            o.str_at("spec.nodeName"),
            o.bool_at("status.attached"),
            age(o, now_s),
        ]
    },
};

/// `VolumeAttributesClass`
pub const VOLUME_ATTRIBUTES_CLASS: Printer = Printer {
    columns: &[NAME, text("DriverName", "Driver the attributes are for."), AGE],
    row: |o, now_s| cells![name(o), o.str_at("driverName"), age(o, now_s)],
};

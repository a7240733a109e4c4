//! Claims, volumes and classes as the controllers of storage read them, and what they conclude from them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use yare_client::{Cached, ObjectKey};
use yare_schema::quantity::Quantity;

use crate::{
    selector::LabelSelector,
    views::{Meta, nullable},
};

/// Says that a claim is bound for good.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Says that a controller bound it, not a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The node that a claim's first consumer will run on.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who is to make a claim's volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same, as it was called before.
pub const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";

/// A PersistentVolumeClaim.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Claim {
    /// `metadata`
    pub metadata: Meta,
    /// What is asked for.
    pub spec: ClaimSpec,
    /// What there is.
    pub status: ClaimStatus,
}

/// `PersistentVolumeClaimSpec`
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSpec {
    /// The volume; empty for none yet.
    pub volume_name: String,
    /// How it is to be reachable.
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    /// The size.
    pub resources: Resources,
    /// The class.
    pub storage_class_name: Option<String>,
    /// `Filesystem` or `Block`
    pub volume_mode: Option<String>,
    /// Which volumes may be bound to it.
    pub selector: Option<LabelSelector>,
    /// What its content comes from.
    pub data_source: Option<Source>,
    /// The same, of more kinds.
    pub data_source_ref: Option<Source>,
    /// The attributes that it asks for.
    pub volume_attributes_class_name: Option<String>,
}

/// `TypedObjectReference`
#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Group of the kind; core where there is none.
    pub api_group: Option<String>,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace, where it is another.
    pub namespace: Option<String>,
}

/// `VolumeResourceRequirements`
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Resources {
    /// Quantities by resource.
    #[serde(deserialize_with = "nullable")]
    pub requests: BTreeMap<String, Value>,
}

/// `PersistentVolumeClaimStatus`
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimStatus {
    /// `Pending`, `Bound`, `Lost`
    pub phase: String,
    /// How it is reachable.
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    /// Its size.
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, Value>,
    /// The attributes that it has.
    pub current_volume_attributes_class_name: Option<String>,
}

/// A PersistentVolume.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Volume {
    /// `metadata`
    pub metadata: Meta,
    /// What it is.
    pub spec: VolumeSpec,
    /// Whose it is.
    pub status: VolumeStatus,
}

/// `PersistentVolumeSpec`
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// The size.
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<String, Value>,
    /// How it can be reached.
    #[serde(deserialize_with = "nullable")]
    pub access_modes: Vec<String>,
    /// Whose it is.
    pub claim_ref: Option<ClaimRef>,
    /// `Delete`, `Retain`, `Recycle`
    pub persistent_volume_reclaim_policy: String,
    /// The class.
    pub storage_class_name: String,
    /// `Filesystem` or `Block`
    pub volume_mode: Option<String>,
    /// The attributes that it has.
    pub volume_attributes_class_name: Option<String>,
    /// A directory or disk of one node.
    pub local: Option<Directory>,
    /// A path on any node.
    pub host_path: Option<Directory>,
    /// An export of a server.
    pub nfs: Option<Value>,
    /// A volume of a CSI driver.
    pub csi: Option<Csi>,
}

/// The claim that a volume is bound to.
#[derive(Deserialize, Default, Clone, PartialEq, Eq, Debug)]
#[serde(default)]
pub struct ClaimRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty where any claim of the name is meant.
    pub uid: String,
}

/// `HostPathVolumeSource`, `LocalVolumeSource`
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Directory {
    /// The path.
    pub path: String,
}

/// `CSIPersistentVolumeSource`
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Csi {
    /// The driver.
    pub driver: String,
    /// The driver's name for the volume.
    pub volume_handle: String,
}

/// `PersistentVolumeStatus`
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct VolumeStatus {
    /// `Pending`, `Available`, `Bound`, `Released`, `Failed`
    pub phase: String,
}

/// A StorageClass.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Class {
    /// `metadata`
    pub metadata: Meta,
    /// Who makes its volumes.
    pub provisioner: String,
    /// `Immediate` or `WaitForFirstConsumer`
    pub volume_binding_mode: String,
    /// What becomes of a volume after its claim.
    pub reclaim_policy: Option<String>,
    /// What the provisioner is told.
    #[serde(deserialize_with = "nullable")]
    pub parameters: BTreeMap<String, String>,
    /// How its volumes are mounted.
    #[serde(deserialize_with = "nullable")]
    pub mount_options: Vec<String>,
}

/// The amount of storage in a list of resources.
pub fn storage(list: &BTreeMap<String, Value>) -> Option<Quantity> {
    list.get("storage").and_then(|v| Quantity::from_value(v).ok())
}

fn mode(mode: &Option<String>) -> &str {
    mode.as_deref().filter(|m| !m.is_empty()).unwrap_or("Filesystem")
}

impl Claim {
    /// Its class; empty for none.
    pub fn class(&self) -> &str {
        let annotated = self.metadata.annotations.get(CLASS_BETA).map(String::as_str);
        annotated.or(self.spec.storage_class_name.as_deref()).unwrap_or_default()
    }

    /// Whether it says which class it wants, be it none.
    pub fn has_class(&self) -> bool {
        self.metadata.annotations.contains_key(CLASS_BETA) || self.spec.storage_class_name.is_some()
    }

    /// Whether it has an annotation.
    pub fn has(&self, annotation: &str) -> bool {
        self.metadata.annotations.contains_key(annotation)
    }

    /// Whether it has a finalizer.
    pub fn held_by(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().any(|f| f == finalizer)
    }

    /// The size asked for.
    pub fn request(&self) -> Option<Quantity> {
        storage(&self.spec.resources.requests)
    }

    /// What its content is to come from.
    pub fn source(&self) -> Option<&Source> {
        self.spec.data_source_ref.as_ref().or(self.spec.data_source.as_ref())
    }
}

impl ClaimRef {
    /// The key of the claim.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }
}

impl Volume {
    /// Its class; empty for none.
    pub fn class(&self) -> &str {
        self.metadata.annotations.get(CLASS_BETA).unwrap_or(&self.spec.storage_class_name)
    }

    /// Whether it has an annotation.
    pub fn has(&self, annotation: &str) -> bool {
        self.metadata.annotations.contains_key(annotation)
    }

    /// Its size.
    pub fn size(&self) -> Option<Quantity> {
        storage(&self.spec.capacity)
    }

    /// Whether it names the claim.
    pub fn is_for(&self, claim: &Cached) -> bool {
        self.spec.claim_ref.as_ref().is_some_and(|r| {
            r.name == claim.name()
                && r.namespace == claim.namespace()
                && (r.uid.is_empty() || r.uid == claim.uid())
        })
    }

    /// Whether it is bound to exactly this claim.
    pub fn belongs_to(&self, claim: &Cached) -> bool {
        self.spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.uid())
    }

    /// Whether the modes (file system or device) differ.
    pub fn mode_differs(&self, claim: &Claim) -> bool {
        mode(&self.spec.volume_mode) != mode(&claim.spec.volume_mode)
    }

    /// Why a claim that names it cannot have it.
    pub fn unfit_for(&self, claim: &Claim) -> Option<String> {
        let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
        let wanted = claim.request();
        let small = wanted.is_some_and(|w| self.size().is_none_or(|have| have < w));
        let allows = |mode: &String| self.spec.access_modes.contains(mode);
        let (spec, wanted) = (&self.spec, &claim.spec);
        let why = if self.metadata.deletion_timestamp.is_some() {
            "the volume is marked for deletion"
        } else if small {
            "requested PV is too small"
        } else if self.class() != claim.class() {
            "storageClassName does not match"
        } else if attributes(&spec.volume_attributes_class_name)
            != attributes(&wanted.volume_attributes_class_name)
        {
            "volumeAttributesClassName does not match"
        } else if self.mode_differs(claim) {
            "incompatible volumeMode"
        } else if !wanted.access_modes.iter().all(allows) {
            "incompatible accessMode"
        } else {
            return None;
        };
        Some(why.to_owned())
    }
}

//! Volumes of pods, and how containers mount them.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{
    containers::check_pull_policy,
    env::{check_field_ref, check_resource_ref},
};
use crate::{
    check::{Check, Errors, check_signer_name, quantity},
    meta::{TOTAL_ANNOTATION_SIZE_LIMIT_B, validate_annotations, validate_label_selector, validate_labels},
    names, shown,
    strategy::core::claim,
    view::View,
};

mod sources;

pub use sources::{SourceOf, check_network_source, check_secret_reference};

/// Every kind of volume, in the order in which upstream looks for them: the first is the volume's kind, any
/// other is an error.
const KINDS: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

const DOWNWARD_FIELDS: &[&str] =
    &["metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid"];

/// What a projected volume can hold, in the order in which upstream looks for it.
const PROJECTIONS: &[&str] =
    &["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];

const CERTIFICATE_FILES: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];

const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

/// Errors in `volumes`; gives those that are right, for the mounts to refer to. `pod_name` is empty for templates.
pub fn check_volumes<'a>(
    errs: &mut Errors,
    path: &Path<'_>,
    volumes: &'a [Value],
    pod_name: &str,
    is_pod: bool,
) -> HashMap<&'a str, &'a Value> {
    let mut good = HashMap::new();
    let made_here: HashSet<String> = volumes
        .iter()
        .filter(|v| !pod_name.is_empty() && v.has("ephemeral"))
        .map(|v| format!("{pod_name}-{}", v.str_at("name")))
        .collect();
    for (i, volume) in volumes.iter().enumerate() {
        let p = path.index(i);
        let before = errs.len();
        let name = volume.str_at("name");
        check_source(errs, &p, volume, pod_name, is_pod);
        errs.name(&p.child("name"), name, names::dns1123_label);
        if good.contains_key(name) {
            errs.duplicate(&p.child("name"), name);
        }
        if errs.len() == before {
            good.insert(name, volume);
        }
        let claim = volume.str_at("persistentVolumeClaim.claimName");
        if made_here.contains(claim) {
            errs.invalid(
                &p.child("persistentVolumeClaim").child("claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    good
}

fn check_source(errs: &mut Errors, path: &Path<'_>, volume: &Value, pod_name: &str, is_pod: bool) {
    let mut first = true;
    for kind in KINDS.iter().filter(|k| volume.has(k)) {
        let p = path.child(kind);
        if !first {
            errs.forbidden(&path.child(as_second(kind)), "may not specify more than 1 volume type");
            continue;
        }
        first = false;
        let source = volume.at(kind);
        match *kind {
            "emptyDir" => {
                if quantity(source.at("sizeLimit")).signum() < 0 {
                    errs.forbidden(
                        &p.child("sizeLimit"),
                        "SizeLimit field must be a valid resource quantity",
                    );
                }
            }
            "gitRepo" => {
                errs.non_empty(&p.child("repository"), source.str_at("repository"));
                check_descending_path(errs, &p.child("directory"), source.str_at("directory"));
            }
            "secret" => {
                errs.non_empty(&p.child("secretName"), source.str_at("secretName"));
                check_files(errs, &p, source);
            }
            "configMap" => {
                errs.non_empty(&p.child("name"), source.str_at("name"));
                check_files(errs, &p, source);
            }
            "persistentVolumeClaim" => errs.non_empty(&p.child("claimName"), source.str_at("claimName")),
            "downwardAPI" => {
                check_mode(errs, &p.child("defaultMode"), source.int_opt("defaultMode"));
                for item in source.items("items") {
                    check_downward_file(errs, &p, item);
                }
            }
            "projected" => check_projected(errs, &p, source),
            "csi" => {
                check_driver_name(errs, &p.child("driver"), source.str_at("driver"));
                if source.has("nodePublishSecretRef") {
                    match source.str_at("nodePublishSecretRef.name") {
                        "" => errs.required(&p.child("nodePublishSecretRef").child("name"), ""),
                        name => errs.each(&p.child("name"), name, names::dns1123_subdomain(name)),
                    }
                }
            }
            "ephemeral" => check_ephemeral(errs, path, volume, pod_name),
            "image" => {
                if is_pod {
                    errs.non_empty(&p.child("reference"), source.str_at("reference"));
                }
                check_pull_policy(errs, &p.child("pullPolicy"), source.str_at("pullPolicy"));
            }
            _ => check_network_source(
                errs,
                path,
                kind,
                source,
                SourceOf::Pod { volume: volume.str_at("name") },
            ),
        }
    }
    if first {
        errs.required(path, "must specify a volume type");
    }
}

/// The field at which upstream reports a second kind of volume: two of them it spells otherwise there.
pub fn as_second(kind: &str) -> &str {
    match kind {
        "cephfs" => "cephFS",
        "downwardAPI" => "downwarAPI",
        other => other,
    }
}

fn check_ephemeral(errs: &mut Errors, path: &Path<'_>, volume: &Value, pod_name: &str) {
    let p = path.child("ephemeral");
    let p = p.child("volumeClaimTemplate");
    let template = volume.at("ephemeral.volumeClaimTemplate");
    if template.is_null() {
        errs.required(&p, "");
    } else {
        check_template_meta(errs, &p.child("metadata"), template.at("metadata"));
        claim::check_spec(errs, &p.child("spec"), template.at("spec"));
    }
    let name = volume.str_at("name");
    if !pod_name.is_empty() && !name.is_empty() {
        let claim = format!("{pod_name}-{name}");
        for message in names::dns1123_subdomain(&claim) {
            errs.invalid(&path.child("name"), name, format!("PVC name {claim:?}: {message}"));
        }
    }
}

/// Errors in the metadata of a template: only labels and annotations may be there.
pub fn check_template_meta(errs: &mut Errors, path: &Path<'_>, metadata: &Value) {
    errs.extend(validate_annotations(metadata.at("annotations"), &path.child("annotations")));
    errs.extend(validate_labels(metadata.at("labels"), &path.child("labels")));
    const OTHERS: [&str; 13] = [
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ];
    for field in OTHERS.iter().filter(|field| metadata.is_set(field)) {
        // Upstream makes the name of a field from its own.
        let shown = if *field == "uid" { "uID" } else { field };
        errs.forbidden(&path.child(shown), "cannot be set");
    }
}

fn check_files(errs: &mut Errors, path: &Path<'_>, source: &Value) {
    check_mode(errs, &path.child("defaultMode"), source.int_opt("defaultMode"));
    let list = path.child("items");
    for (i, item) in source.items("items").iter().enumerate() {
        check_item(errs, &list.index(i), item);
    }
}

fn check_item(errs: &mut Errors, path: &Path<'_>, item: &Value) {
    errs.non_empty(&path.child("key"), item.str_at("key"));
    errs.non_empty(&path.child("path"), item.str_at("path"));
    check_file_path(errs, &path.child("path"), item.str_at("path"));
    check_mode(errs, &path.child("mode"), item.int_opt("mode"));
}

fn check_downward_file(errs: &mut Errors, path: &Path<'_>, item: &Value) {
    errs.non_empty(&path.child("path"), item.str_at("path"));
    check_file_path(errs, &path.child("path"), item.str_at("path"));
    if item.has("fieldRef") {
        check_field_ref(errs, &path.child("fieldRef"), item.at("fieldRef"), DOWNWARD_FIELDS);
        if item.has("resourceFieldRef") {
            errs.invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if item.has("resourceFieldRef") {
        check_resource_ref(errs, &path.child("resourceFieldRef"), item.at("resourceFieldRef"), true);
    } else {
        errs.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    check_mode(errs, &path.child("mode"), item.int_opt("mode"));
}

fn check_mode(errs: &mut Errors, path: &Path<'_>, mode: Option<i64>) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        errs.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// Paths of the files that a projected volume holds, each of which may stand once.
#[derive(Default)]
struct Taken<'a>(Vec<&'a str>);

impl<'a> Taken<'a> {
    fn take(&mut self, errs: &mut Errors, path: &Path<'_>, file: &'a str, shown: &str) {
        if self.0.contains(&file) {
            errs.invalid(path, shown, "conflicting duplicate paths");
        }
        self.0.push(file);
    }
}

fn check_projected(errs: &mut Errors, path: &Path<'_>, projected: &Value) {
    check_mode(errs, &path.child("defaultMode"), projected.int_opt("defaultMode"));
    let mut taken = Taken::default();
    let list = path.child("sources");
    for (i, source) in projected.items("sources").iter().enumerate() {
        let source_path = list.index(i);
        let mut count = 0;
        for kind in PROJECTIONS.iter().filter(|kind| source.has(kind)) {
            count += 1;
            let (p, value) = (source_path.child(kind), source.at(kind));
            match *kind {
                "secret" | "configMap" => {
                    let name = value.str_at("name");
                    errs.non_empty(&p.child("name"), name);
                    let list = p.child("items");
                    for (j, item) in value.items("items").iter().enumerate() {
                        check_item(errs, &list.index(j), item);
                        let file = item.str_at("path");
                        if !file.is_empty() {
                            taken.take(errs, path, file, name);
                        }
                    }
                }
                "downwardAPI" => {
                    for item in value.items("items") {
                        check_downward_file(errs, &p, item);
                        let file = item.str_at("path");
                        if !file.is_empty() {
                            taken.take(errs, path, file, file);
                        }
                    }
                }
                "serviceAccountToken" => check_token(errs, path, &p, value),
                "clusterTrustBundle" => {
                    check_trust_bundle(errs, &p, value);
                    let file = value.str_at("path");
                    taken.take(errs, path, file, file);
                }
                _ => {
                    check_certificate(errs, &p, value);
                    for field in CERTIFICATE_FILES {
                        let file = value.str_at(field);
                        if !file.is_empty() {
                            check_file_path(errs, &p.child(field), file);
                            taken.take(errs, path, file, file);
                        }
                    }
                    if CERTIFICATE_FILES.iter().all(|field| value.str_at(field).is_empty()) {
                        errs.required(
                            &p,
                            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
                        );
                    }
                }
            }
        }
        if count > 1 {
            errs.forbidden(&source_path, "may not specify more than 1 volume type per source");
        }
    }
}

fn check_token(errs: &mut Errors, volume_path: &Path<'_>, path: &Path<'_>, token: &Value) {
    let expiration_s = token.int_at("expirationSeconds");
    let p = path.child("expirationSeconds");
    if expiration_s < 600 {
        errs.invalid(&p, expiration_s, "may not specify a duration less than 10 minutes");
    }
    if expiration_s > 1 << 32 {
        errs.invalid(&p, expiration_s, "may not specify a duration larger than 2^32 seconds");
    }
    // Whether the path may lead out of the volume depends on what the object had: `switched` judges that.
    if token.str_at("path").is_empty() {
        errs.required(&volume_path.child("path"), "");
    }
}

fn check_trust_bundle(errs: &mut Errors, path: &Path<'_>, bundle: &Value) {
    match (bundle.str_opt("name"), bundle.str_opt("signerName")) {
        (Some(_), Some(_)) => {
            let detail = "only one of name and signerName may be used";
            let shown = shown::show(bundle, shown::TRUST_BUNDLE);
            errs.push(FieldError::invalid(path, Value::Null, detail).showing(shown));
        }
        (Some(name), None) => {
            let p = path.child("name");
            if name.is_empty() {
                errs.required(&p, "must be a valid object name");
            }
            // A bundle of a signer is called SIGNER:NAME with ':' for each '/' of the signer.
            let (signer, own) =
                name.rsplit_once(':').map_or((None, name), |(signer, own)| (Some(signer), own));
            let p = &p;
            if signer == Some("") {
                let detail = "not a valid clustertrustbundlename: ClusterTrustBundle without signer name must not have \":\" in its name";
                errs.invalid(p, name, detail);
            }
            for message in names::dns1123_subdomain(own).into_iter().filter(|_| signer != Some("")) {
                errs.invalid(p, name, format!("not a valid clustertrustbundlename: {message}"));
            }
            if bundle.has("labelSelector") {
                errs.invalid(
                    &path.child("labelSelector"),
                    bundle.at("labelSelector").clone(),
                    "labelSelector must be unset if name is specified",
                );
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errs.required(&path.child("signerName"), "must be a valid signer name");
            }
            check_signer_name(errs, &path.child("signerName"), signer);
            errs.extend(validate_label_selector(bundle.at("labelSelector"), &path.child("labelSelector")));
        }
        (None, None) => errs.required(path, "either name or signerName must be specified"),
    }
    errs.non_empty(&path.child("path"), bundle.str_at("path"));
    check_file_path(errs, &path.child("path"), bundle.str_at("path"));
}

fn check_certificate(errs: &mut Errors, path: &Path<'_>, certificate: &Value) {
    let signer = certificate.str_at("signerName");
    check_signer_name(errs, &path.child("signerName"), signer);
    let annotations = path.child("userAnnotations");
    for (key, _) in certificate.entries("userAnnotations") {
        let key = key.to_lowercase();
        let messages = names::qualified_name(&key);
        if key.is_empty() {
            errs.required(&annotations, "");
        } else if messages.is_empty() && !key.contains('/') {
            errs.invalid(&annotations, key, "must be a domain-prefixed key (such as \"acme.io/foo\")");
        } else {
            errs.each(&annotations, key, messages);
        }
    }
    if total_size(certificate.at("userAnnotations")) > TOTAL_ANNOTATION_SIZE_LIMIT_B {
        errs.push(FieldError::too_long(&annotations, TOTAL_ANNOTATION_SIZE_LIMIT_B));
    }
    errs.one_listed(&path.child("keyType"), certificate.str_at("keyType"), KEY_TYPES);
    if let Some(seconds) = certificate.int_opt("maxExpirationSeconds") {
        let p = path.child("maxExpirationSeconds");
        if seconds < 3600 {
            errs.invalid(&p, seconds, "if provided, maxExpirationSeconds must be >= 3600");
        }
        let host = signer.split('/').next().unwrap_or_default();
        let own = host == "kubernetes.io" || host.ends_with(".kubernetes.io");
        let max = if own { 86_400 } else { 91 * 86_400 };
        if seconds > max {
            errs.invalid(&p, seconds, format!("if provided, maxExpirationSeconds must be <= {max}"));
        }
    }
}

/// Keys and values of a map together, in bytes.
fn total_size(map: &Value) -> usize {
    map.entries("").map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum()
}

/// Errors in the name of a CSI driver.
pub fn check_driver_name(errs: &mut Errors, path: &Path<'_>, driver: &str) {
    if driver.is_empty() {
        return errs.required(path, "");
    }
    if driver.len() > 63 {
        errs.push(yare_schema::field::FieldError::too_long(path, 63));
    }
    errs.each(path, driver, names::dns1123_subdomain(&driver.to_lowercase()));
}

/// A path without `..`.
pub fn check_no_backsteps(errs: &mut Errors, path: &Path<'_>, file: &str) {
    if file.split('/').any(|part| part == "..") {
        errs.invalid(path, file, "must not contain '..'");
    }
}

/// A relative path without `..`.
pub fn check_descending_path(errs: &mut Errors, path: &Path<'_>, file: &str) {
    if file.starts_with('/') {
        errs.invalid(path, file, "must be a relative path");
    }
    check_no_backsteps(errs, path, file);
}

/// A relative path in a volume whose own files start with `..`.
pub fn check_file_path(errs: &mut Errors, path: &Path<'_>, file: &str) {
    check_descending_path(errs, path, file);
    if file.starts_with("..") && !file.starts_with("../") {
        errs.invalid(path, file, "must not start with '..'");
    }
}

/// Errors in a container's `volumeMounts`.
pub fn check_mounts(errs: &mut Errors, path: &Path<'_>, container: &Value, volumes: &HashMap<&str, &Value>) {
    let devices = fields(container.items("volumeDevices"), ["name", "devicePath"]);
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, mount) in container.items("volumeMounts").iter().enumerate() {
        let p = path.index(i);
        let (name, mount_path) = (mount.str_at("name"), mount.str_at("mountPath"));
        let (name_path, mount_path_path) = (p.child("name"), p.child("mountPath"));
        errs.non_empty(&name_path, name);
        if !volumes.contains_key(name) {
            errs.not_found(&name_path, name);
        }
        errs.non_empty(&mount_path_path, mount_path);
        if seen.contains(&mount_path) {
            errs.invalid(&mount_path_path, mount_path, "must be unique");
        }
        seen.insert(mount_path);
        if devices[0].contains(name) {
            errs.invalid(&name_path, name, "must not already exist in volumeDevices");
        }
        if devices[1].contains(mount_path) {
            errs.invalid(&mount_path_path, mount_path, "must not already exist as a path in volumeDevices");
        }
        let (sub, sub_expr) = (mount.str_at("subPath"), mount.str_at("subPathExpr"));
        if !sub.is_empty() {
            check_descending_path(errs, &path.child("subPath"), sub);
        }
        if !sub_expr.is_empty() {
            if !sub.is_empty() {
                errs.invalid(
                    &p.child("subPathExpr"),
                    sub_expr,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            check_descending_path(errs, &path.child("subPathExpr"), sub_expr);
        }
        check_propagation(errs, path, mount, container.bool_at("securityContext.privileged"));
    }
}

fn check_propagation(errs: &mut Errors, path: &Path<'_>, mount: &Value, privileged: bool) {
    let propagation = mount.str_opt("mountPropagation");
    if let Some(propagation) = propagation {
        let p = path.child("mountPropagation");
        errs.one_of(&p, propagation, &["Bidirectional", "HostToContainer", "None"]);
        if propagation == "Bidirectional" && !privileged {
            errs.forbidden(&p, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    let p = path.child("recursiveReadOnly");
    match mount.str_opt("recursiveReadOnly") {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.bool_at("readOnly") {
                errs.forbidden(&p, "may only be specified when readOnly is true");
            }
            if propagation.is_some_and(|m| m != "None") {
                errs.forbidden(&p, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errs.one_of(&p, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// The values that the items of a list have in each of two fields.
fn fields<'a>(items: &'a [Value], names: [&str; 2]) -> [HashSet<&'a str>; 2] {
    names.map(|name| items.iter().map(|item| item.str_at(name)).collect())
}

/// Errors in a container's `volumeDevices`.
pub fn check_devices(errs: &mut Errors, path: &Path<'_>, container: &Value, volumes: &HashMap<&str, &Value>) {
    let mounts = fields(container.items("volumeMounts"), ["name", "mountPath"]);
    let (mut names, mut paths): (HashSet<&str>, HashSet<&str>) = (HashSet::new(), HashSet::new());
    for (i, device) in container.items("volumeDevices").iter().enumerate() {
        let p = path.index(i);
        let (name, device_path) = (device.str_at("name"), device.str_at("devicePath"));
        let (name_path, device_path_path) = (p.child("name"), p.child("devicePath"));
        errs.non_empty(&name_path, name);
        if names.contains(&name) {
            errs.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            None => errs.not_found(&name_path, name),
            Some(volume) if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") => errs.invalid(
                &name_path,
                name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
        }
        errs.non_empty(&device_path_path, device_path);
        if paths.contains(&device_path) {
            errs.invalid(&device_path_path, device_path, "must be unique");
        }
        if device_path.split('/').any(|part| part == "..") {
            errs.invalid(&device_path_path, device_path, "can not contain backsteps ('..')");
        } else {
            paths.insert(device_path);
        }
        if mounts[0].contains(name) {
            errs.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if mounts[1].contains(device_path) {
            errs.invalid(&device_path_path, device_path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}

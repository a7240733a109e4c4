//! Kinds of storage that pods and PersistentVolumes share: host paths, network file systems, cloud disks.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;
use yare_schema::field::Path;

use super::{check_driver_name, check_no_backsteps};
use crate::{
    check::{Check, Errors},
    meta::invalid_each,
    names,
    view::View,
};

/// Whose storage it is; PersistentVolumes name the namespaces of their secrets.
#[derive(Clone, Copy)]
pub enum SourceOf<'a> {
    /// Of a volume of a pod.
    Pod {
        /// Name of the volume.
        volume: &'a str,
    },
    /// Of a PersistentVolume.
    PersistentVolume {
        /// Name of the PersistentVolume.
        name: &'a str,
    },
}

/// What each kind of storage cannot do without.
const REQUIRED: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cephfs", &["monitors"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("rbd", &["monitors", "image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &["volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];

const HOST_PATH_TYPES: &[&str] =
    &["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

/// Errors in the storage `source` of this `kind`, which stands at the field of that name under `path`.
pub fn check_network_source(
    errs: &mut Errors,
    path: &Path<'_>,
    kind: &str,
    source: &Value,
    of: SourceOf<'_>,
) {
    // Upstream reports this kind under the name it has in its own types.
    let p = path.child(if kind == "gcePersistentDisk" { "persistentDisk" } else { kind });
    let required = REQUIRED.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, fields)| fields);
    for field in required.iter().filter(|f| !source.is_set(f)) {
        errs.required(&p.child(field), "");
    }
    match kind {
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let partition = source.int_at("partition");
            if !(0..=255).contains(&partition) {
                errs.invalid(&p.child("partition"), partition, names::range_message(1, 255));
            }
        }
        "hostPath" if source.is_set("path") => {
            check_no_backsteps(errs, &p.child("path"), source.str_at("path"));
            if let Some(kind) = source.str_opt("type") {
                errs.one_of(&p.child("type"), kind, HOST_PATH_TYPES);
            }
        }
        "local" => check_no_backsteps(errs, &p.child("path"), source.str_at("path")),
        "nfs" => {
            let file = source.str_at("path");
            if !file.starts_with('/') {
                errs.invalid(&p.child("path"), file, "must be an absolute path");
            }
        }
        "iscsi" => check_iscsi(errs, path, source, of),
        "fc" => check_fc(errs, &p, source),
        "flocker" => check_flocker(errs, &p, source),
        "quobyte" => check_quobyte(errs, &p, source),
        "flexVolume" => {
            let options = p.child("options");
            for (key, _) in source.entries("options") {
                let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
                    errs.invalid(&options.key(key), key, "kubernetes.io and k8s.io namespaces are reserved");
                }
            }
        }
        "azureDisk" => check_azure_disk(errs, &p, source),
        "azureFile" if source.str_opt("secretNamespace") == Some("") => {
            errs.required(&p.child("secretNamespace"), "");
        }
        "glusterfs" => {
            if let Some(namespace) = source.str_opt("endpointsNamespace") {
                let p = p.child("endpointsNamespace");
                if namespace.is_empty() {
                    errs.invalid(
                        &p,
                        namespace,
                        "if the endpointnamespace is set, it must be a valid namespace name",
                    );
                } else {
                    errs.each(&p, namespace, names::dns1123_label(namespace));
                }
            }
        }
        "cinder" => check_secret_fields(errs, &p, source, of),
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"].iter().filter(|f| source.is_set(f)) {
                let value = source.str_at(field);
                errs.each(&p.child(field), value, names::dns1123_label(value));
            }
            check_secret_fields(errs, &p, source, of);
        }
        "csi" => {
            check_driver_name(errs, &p.child("driver"), source.str_at("driver"));
            errs.non_empty(&p.child("volumeHandle"), source.str_at("volumeHandle"));
            for field in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                if source.has(field) {
                    check_secret_reference(errs, &p.child(field), source.at(field));
                }
            }
        }
        _ => {}
    }
}

/// Errors in a `SecretReference`.
pub fn check_secret_reference(errs: &mut Errors, path: &Path<'_>, reference: &Value) {
    errs.name(&path.child("name"), reference.str_at("name"), names::dns1123_subdomain);
    errs.name(&path.child("namespace"), reference.str_at("namespace"), names::dns1123_label);
}

fn check_secret_fields(errs: &mut Errors, path: &Path<'_>, source: &Value, of: SourceOf<'_>) {
    if !source.has("secretRef") {
        return;
    }
    let p = path.child("secretRef");
    errs.non_empty(&p.child("name"), source.str_at("secretRef.name"));
    if matches!(of, SourceOf::PersistentVolume { .. }) {
        errs.non_empty(&p.child("namespace"), source.str_at("secretRef.namespace"));
    }
}

fn check_iscsi(errs: &mut Errors, path: &Path<'_>, source: &Value, of: SourceOf<'_>) {
    const TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
    let p = path.child("iscsi");
    let (portal, iqn) = (source.str_at("targetPortal"), source.str_at("iqn"));
    let initiator = source.str_opt("initiatorName");
    let too_long = |name: &str| initiator.is_some() && name.len() + 1 + portal.len() > 64;
    errs.non_empty(&p.child("targetPortal"), portal);
    // Of a PersistentVolume upstream says less of a name that starts with none of the three.
    let (of_pod, unknown) = match of {
        SourceOf::Pod { .. } => (true, "must be valid format starting with iqn, eui, or naa"),
        SourceOf::PersistentVolume { name } => {
            if too_long(name) {
                errs.invalid(&p.child("targetportal"), portal, TOO_LONG);
            }
            (false, "must be valid format")
        }
    };
    if iqn.is_empty() {
        errs.required(&p.child("iqn"), "");
    } else {
        check_iscsi_name(errs, &p.child("iqn"), iqn, unknown);
    }
    errs.in_range(&p.child("lun"), source.int_at("lun"), 0, 255);
    let chap = source.bool_at("chapAuthDiscovery") || source.bool_at("chapAuthSession");
    if chap && !source.has("secretRef") {
        errs.required(&p.child("secretRef"), "");
    }
    if !of_pod && source.has("secretRef") {
        errs.non_empty(&p.child("secretRef").child("name"), source.str_at("secretRef.name"));
    }
    if let Some(initiator) = initiator {
        check_iscsi_name(errs, &p.child("initiatorname"), initiator, unknown);
    }
    if let SourceOf::Pod { volume } = of
        && too_long(volume)
    {
        errs.invalid(&path.child("name"), volume, TOO_LONG);
    }
}

fn check_iscsi_name(errs: &mut Errors, path: &Path<'_>, name: &str, unknown: &str) {
    static IQN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$").expect("the pattern is a constant")
    });
    // One separator of any kind, then the identifier.
    let identifier = |s: &str, length: usize| {
        let id = s.get(1..).unwrap_or_default();
        id.len() == length && id.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let good = if name.starts_with("iqn") {
        IQN.is_match(name)
    } else if let Some(id) = name.strip_prefix("eui") {
        identifier(id, 16)
    } else if let Some(id) = name.strip_prefix("naa") {
        identifier(id, 32)
    } else {
        return errs.invalid(path, name, unknown);
    };
    if !good {
        errs.invalid(path, name, "must be valid format");
    }
}

fn check_fc(errs: &mut Errors, path: &Path<'_>, source: &Value) {
    let (targets, ids) = (source.is_set("targetWWNs"), source.is_set("wwids"));
    let p = path.child("targetWWNs");
    if !targets && !ids {
        errs.required(&p, "must specify either targetWWNs or wwids, but not both");
    }
    if targets && ids {
        errs.invalid(
            &p,
            source.at("targetWWNs").clone(),
            "targetWWNs and wwids can not be specified simultaneously",
        );
    }
    if targets {
        match source.int_opt("lun") {
            None => errs.required(&path.child("lun"), "lun is required if targetWWNs is specified"),
            Some(lun) => errs.in_range(&path.child("lun"), lun, 0, 255),
        }
    }
}

fn check_flocker(errs: &mut Errors, path: &Path<'_>, source: &Value) {
    let (name, uuid) = (source.str_at("datasetName"), source.str_at("datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errs.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errs.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errs.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

fn check_quobyte(errs: &mut Errors, path: &Path<'_>, source: &Value) {
    const REGISTRY: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.str_at("registry");
    if registry.is_empty() {
        errs.required(&path.child("registry"), REGISTRY);
    } else if source.str_at("tenant").len() >= 65 {
        errs.required(&path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        let bad = registry.split(',').filter(|pair| !is_host_port(pair));
        let messages = bad.map(|_| REGISTRY.to_owned()).collect();
        errs.extend(invalid_each(&path.child("registry"), registry, messages));
    }
    errs.non_empty(&path.child("volume"), source.str_at("volume"));
}

/// Whether Go's `net.SplitHostPort` takes `pair`: one colon, but for those in brackets.
fn is_host_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else { return false };
    let host = match host.strip_prefix('[') {
        Some(rest) => match rest.strip_suffix(']') {
            Some(inner) => return !inner.contains(['[', ']']) && !port.contains(['[', ']']),
            None => return false,
        },
        None => host,
    };
    !host.contains([':', '[', ']']) && !port.contains(['[', ']'])
}

fn check_azure_disk(errs: &mut Errors, path: &Path<'_>, source: &Value) {
    if let Some(mode) = source.str_opt("cachingMode") {
        errs.one_of(&path.child("cachingMode"), mode, &["None", "ReadOnly", "ReadWrite"]);
    }
    let Some(kind) = source.str_opt("kind") else { return };
    errs.one_of(&path.child("kind"), kind, &["Shared", "Dedicated", "Managed"]);
    let uri = source.str_at("diskURI");
    let (start, form) = if kind == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    if !uri.starts_with(start) {
        errs.one_of(&path.child("diskURI"), uri, &[form]);
    }
}

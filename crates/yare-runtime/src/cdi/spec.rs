//! CDI spec files: which devices of which kind there are, and what a container needs for each.
//!
//! In: JSON or YAML as the Container Device Interface specification 1.1 has it. Out: a [`CdiSpec`] whose names and
//! edits are checked.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Versions of the specification.
const VERSIONS: &[&str] = &["0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A spec file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct CdiSpec {
    pub cdi_version: String,
    /// `vendor.com/class`.
    pub kind: String,
    pub annotations: BTreeMap<String, String>,
    pub devices: Vec<CdiDevice>,
    /// For every container that gets any of the devices.
    pub container_edits: Edits,
}

/// A device.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct CdiDevice {
    pub name: String,
    pub annotations: BTreeMap<String, String>,
    pub container_edits: Edits,
}

/// What changes in a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    pub device_nodes: Vec<EditNode>,
    pub net_devices: Vec<serde_json::Value>,
    pub mounts: Vec<EditMount>,
    pub hooks: Vec<EditHook>,
    pub intel_rdt: Option<serde_json::Value>,
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct EditNode {
    pub path: String,
    /// Empty: the same as in the container.
    pub host_path: String,
    /// `c`, `u`, `b` or `p`; empty: as on the host.
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct EditMount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// A hook.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct EditHook {
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

impl CdiSpec {
    /// Reads a spec file; which syntax it has, its name tells.
    pub(crate) fn parse(bytes: &[u8], yaml: bool) -> Result<Self, String> {
        let json;
        let bytes = if yaml {
            json = yare_schema::decode::yaml_to_json(bytes).map_err(|e| e.to_string())?.0;
            json.as_slice()
        } else {
            bytes
        };
        let spec: CdiSpec =
            serde_json::from_slice(bytes).map_err(|e| format!("failed to unmarshal CDI Spec {e}"))?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("invalid CDI version {:?}", self.cdi_version));
        }
        let Some((vendor, class)) = self.kind.split_once('/') else {
            return Err(format!("invalid kind {:?}: it is not vendor/class", self.kind));
        };
        check_name("vendor", vendor, "_-.")?;
        check_name("class", class, "_-.")?;
        self.container_edits.check()?;
        let mut names = std::collections::BTreeSet::new();
        for device in &self.devices {
            check_device_name(&device.name)?;
            if !names.insert(&device.name) {
                return Err(format!("invalid spec, multiple device {:?}", device.name));
            }
            device.container_edits.check().map_err(|e| format!("invalid device {:?}: {e}", device.name))?;
        }
        if self.devices.is_empty() {
            return Err("invalid spec, no devices".to_owned());
        }
        Ok(())
    }
}

fn check_name(what: &str, name: &str, extra: &str) -> Result<(), String> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let ends = name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if starts && ends && name.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c)) {
        Ok(())
    } else {
        Err(format!("invalid {what} {name:?}"))
    }
}

fn check_device_name(name: &str) -> Result<(), String> {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let good = name.starts_with(edge)
        && name.ends_with(edge)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c));
    if good { Ok(()) } else { Err(format!("invalid device name {name:?}")) }
}

/// Splits `vendor.com/class=name` into kind and name.
pub(crate) fn qualified(name: &str) -> Option<(&str, &str)> {
    let (kind, device) = name.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let good = check_name("vendor", vendor, "_-.").is_ok()
        && check_name("class", class, "_-.").is_ok()
        && check_device_name(device).is_ok();
    good.then_some((kind, device))
}

/// Hooks by their names in the specification.
pub(crate) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl Edits {
    fn check(&self) -> Result<(), String> {
        for env in &self.env {
            if env.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                return Err(format!("invalid environment variable {env:?}"));
            }
        }
        for node in &self.device_nodes {
            if node.path.is_empty() {
                return Err("invalid (empty) device path".to_owned());
            }
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return Err(format!("device {:?}: invalid type {:?}", node.path, node.kind));
            }
            if !node.permissions.chars().all(|c| "rwm".contains(c)) {
                return Err(format!("device {:?}: invalid permissions {:?}", node.path, node.permissions));
            }
            check_inside(&node.path)?;
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() || mount.container_path.is_empty() {
                return Err("invalid mount, empty host or container path".to_owned());
            }
            check_inside(&mount.container_path)?;
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("invalid hook name {:?}", hook.hook_name));
            }
            if !hook.path.starts_with('/') {
                return Err(format!("invalid hook, path {:?} is not absolute", hook.path));
            }
            if hook.env.iter().any(|e| !e.contains('=')) {
                return Err(format!("invalid hook {:?}: an environment variable without a value", hook.path));
            }
            if hook.timeout.is_some_and(|t| t <= 0) {
                return Err(format!("invalid hook {:?}: timeout must be positive", hook.path));
            }
        }
        Ok(())
    }
}

fn check_inside(path: &str) -> Result<(), String> {
    let path = std::path::Path::new(path);
    let up = path.components().any(|c| matches!(c, std::path::Component::ParentDir));
    if path.is_absolute() && !up && path != std::path::Path::new("/") {
        Ok(())
    } else {
        Err(format!("invalid path {:?} in a container", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_edits_are_checked() {
        let spec = |kind: &str, device: &str, edits: &str| {
            format!(
                r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "devices": [{{"name": "{device}", "containerEdits": {{{edits}}}}}]}}"#
            )
        };
        for (kind, device, edits, want) in [
            ("vendor.com/gpu", "0", "", ""),
            ("vendor.com/gpu", "gpu0:part.1", r#""env": ["A=b"]"#, ""),
            ("vendor.com", "0", "", "not vendor/class"),
            ("1vendor/gpu", "0", "", "invalid vendor"),
            ("vendor/g pu", "0", "", "invalid class"),
            ("vendor/gpu", "-0", "", "invalid device name"),
            ("vendor/gpu", "0", r#""env": ["A"]"#, "environment variable"),
            ("vendor/gpu", "0", r#""deviceNodes": [{"path": "dev/x"}]"#, "in a container"),
            ("vendor/gpu", "0", r#""deviceNodes": [{"path": "/dev/../x"}]"#, "in a container"),
            ("vendor/gpu", "0", r#""deviceNodes": [{"path": "/dev/x", "type": "x"}]"#, "invalid type"),
            ("vendor/gpu", "0", r#""deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]"#, "permissions"),
            ("vendor/gpu", "0", r#""mounts": [{"hostPath": "/a"}]"#, "empty host or container path"),
            ("vendor/gpu", "0", r#""hooks": [{"hookName": "never", "path": "/a"}]"#, "invalid hook name"),
            ("vendor/gpu", "0", r#""hooks": [{"hookName": "poststop", "path": "a"}]"#, "not absolute"),
            ("vendor/gpu", "0", r#""what": 1"#, "unknown field"),
        ] {
            let text = spec(kind, device, edits);
            match CdiSpec::parse(text.as_bytes(), false) {
                Ok(_) => assert_eq!(want, "", "{text}"),
                Err(error) => assert!(!want.is_empty() && error.contains(want), "{text}: {error}"),
            }
        }
        assert!(CdiSpec::parse(b"{}", false).unwrap_err().contains("invalid CDI version"));
        assert!(CdiSpec::parse(b"{", false).is_err());
    }

    #[test]
    fn yaml_reads_like_json() {
        let text = "cdiVersion: 0.6.0\nkind: vendor.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/gpu0\n      fileMode: 438\n";
        let spec = CdiSpec::parse(text.as_bytes(), true).unwrap();
        assert_eq!(spec.devices[0].container_edits.device_nodes[0].file_mode, Some(0o666));
    }

    #[test]
    fn names_are_qualified() {
        for (name, want) in [
            ("vendor.com/gpu=0", Some(("vendor.com/gpu", "0"))),
            ("vendor.com/gpu", None),
            ("gpu=0", None),
            ("vendor.com/gpu=", None),
        ] {
            assert_eq!(qualified(name), want);
        }
    }
}

//! The Container Device Interface: devices by name, `vendor.com/class=name`, from spec files of the machine.
//!
//! In: directories of spec files, the later ones stronger; the names a container asks for. Out: nodes, mounts,
//! environment, groups and hooks in the container's specification. Files are read when a container asks for devices
//! by name, and only then: vendors write and remove them at any time.

mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::MountPropagation;
use crate::proto::{Hook, Spec, SpecMount, SpecNode};
use crate::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use spec::{CdiDevice, CdiSpec, EditHook, EditMount, EditNode, Edits, qualified};

/// Where spec files are by default, the stronger ones last.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Spec files that are larger are not read, and not more of them.
const FILE_MAX_BYTES: u64 = 4 << 20;
const FILES_MAX: usize = 1024;

/// A device that was found: its spec file's edits, and its own.
#[derive(Clone)]
struct Found {
    spec: Arc<CdiSpec>,
    /// Which spec file, so that its edits are made once.
    file: usize,
    device: CdiDevice,
}

/// The devices of a machine.
#[derive(Default)]
pub(crate) struct Registry {
    devices: BTreeMap<String, Found>,
    /// Names that two files of one directory claim; neither has them.
    conflicts: BTreeSet<String>,
    /// Files that cannot be used, and why.
    errors: Vec<String>,
}

impl Registry {
    /// Reads the spec files of some directories. What cannot be read is left out.
    pub(crate) fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Registry::default();
        let mut files = 0;
        for directory in directories {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
            paths.sort();
            let mut here: BTreeMap<String, Found> = BTreeMap::new();
            let mut twice = BTreeSet::new();
            for path in paths {
                let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned();
                if !matches!(extension.as_str(), "json" | "yaml") || files >= FILES_MAX {
                    continue;
                }
                files += 1;
                let spec = match read_file(&path, extension == "yaml") {
                    Ok(spec) => Arc::new(spec),
                    Err(error) => {
                        registry.errors.push(format!("{}: {error}", path.display()));
                        continue;
                    }
                };
                for device in &spec.devices {
                    let name = format!("{}={}", spec.kind, device.name);
                    let found = Found { spec: spec.clone(), file: files, device: device.clone() };
                    if here.insert(name.clone(), found).is_some() {
                        twice.insert(name);
                    }
                }
            }
            for (name, found) in here {
                if twice.contains(&name) {
                    registry.devices.remove(&name);
                    registry.conflicts.insert(name);
                } else {
                    registry.conflicts.remove(&name);
                    registry.devices.insert(name, found);
                }
            }
        }
        registry
    }

    /// Makes a container's specification what its devices need.
    pub(crate) fn inject(&self, names: &[String], spec: &mut Spec) -> Result<(), String> {
        let mut found = Vec::new();
        let mut unresolved = Vec::new();
        for name in names {
            match qualified(name).and_then(|_| self.devices.get(name)) {
                Some(device) => found.push(device),
                None => unresolved.push(name.as_str()),
            }
        }
        if !unresolved.is_empty() {
            let mut text = format!("unresolvable CDI devices {}", unresolved.join(", "));
            if let Some(name) = unresolved.iter().find(|n| self.conflicts.contains(**n)) {
                text.push_str(&format!(" (conflicting device {name:?})"));
            }
            if !self.errors.is_empty() {
                text.push_str(&format!(" (spec files that cannot be used: {})", self.errors.join("; ")));
            }
            return Err(text);
        }
        let mut files = BTreeSet::new();
        for device in found {
            if files.insert(device.file) {
                apply(&device.spec.container_edits, spec)?;
            }
            apply(&device.device.container_edits, spec)?;
        }
        // A mount below another one comes after it.
        spec.mounts.sort_by_key(|m| m.target.components().count());
        Ok(())
    }
}

fn read_file(path: &Path, yaml: bool) -> Result<CdiSpec, String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > FILE_MAX_BYTES {
        return Err(format!("{length} bytes are too many"));
    }
    CdiSpec::parse(&std::fs::read(path).map_err(|e| e.to_string())?, yaml)
}

fn apply(edits: &Edits, spec: &mut Spec) -> Result<(), String> {
    if edits.intel_rdt.is_some() {
        return Err("intelRdt edits are not supported".to_owned());
    }
    if !edits.net_devices.is_empty() {
        return Err("netDevices edits are not supported".to_owned());
    }
    for variable in &edits.env {
        let name = variable.split('=').next().unwrap_or_default();
        spec.env.retain(|have| have.split('=').next() != Some(name));
        spec.env.push(variable.clone());
    }
    for node in &edits.device_nodes {
        let node = device(node, spec)?;
        spec.devices.retain(|d| d.container_path != node.path);
        spec.nodes.retain(|n| n.path != node.path);
        spec.nodes.push(node);
    }
    for edit in &edits.mounts {
        let made = mount(edit)?;
        spec.mounts.retain(|m| m.target != made.target);
        spec.mounts.push(made);
    }
    for edit in &edits.hooks {
        let list = match edit.hook_name.as_str() {
            // The older name of the same moment; such hooks come first.
            "prestart" => &mut spec.hooks.prestart,
            "createRuntime" => &mut spec.hooks.create_runtime,
            "createContainer" => &mut spec.hooks.create_container,
            "startContainer" => &mut spec.hooks.start_container,
            "poststart" => &mut spec.hooks.poststart,
            _ => &mut spec.hooks.poststop,
        };
        list.push(hook(edit));
    }
    for gid in &edits.additional_gids {
        if *gid != 0 && !spec.user.supplemental_groups.contains(gid) {
            spec.user.supplemental_groups.push(*gid);
        }
    }
    Ok(())
}

/// A device node, with what is missing as it is on the host.
fn device(edit: &EditNode, spec: &Spec) -> Result<SpecNode, String> {
    let host = if edit.host_path.is_empty() { &edit.path } else { &edit.host_path };
    let mut kind = if edit.kind == "u" { 'c' } else { edit.kind.chars().next().unwrap_or(' ') };
    let (mut major, mut minor) = (edit.major, edit.minor);
    if kind == ' ' || (kind != 'p' && major == 0) {
        let meta =
            std::fs::metadata(host).map_err(|e| format!("failed to stat CDI host device {host:?}: {e}"))?;
        let file = meta.file_type();
        let is = match () {
            () if file.is_block_device() => 'b',
            () if file.is_char_device() => 'c',
            () if file.is_fifo() => 'p',
            () => return Err(format!("CDI host device {host:?} is not a device")),
        };
        if kind != ' ' && kind != is {
            return Err(format!("CDI device ({:?}, {host:?}), host type mismatch ({kind}, {is})", edit.path));
        }
        kind = is;
        if kind != 'p' && major == 0 && minor == 0 {
            major = nix::sys::stat::major(meta.rdev()).cast_signed();
            minor = nix::sys::stat::minor(meta.rdev()).cast_signed();
        }
    }
    let number =
        |n: i64| u32::try_from(n).map_err(|_| format!("CDI device {:?}: {n} is no device number", edit.path));
    // As the specification's own library: a node belongs to the user the container runs as, when that is said.
    let owner = spec.user.user.split(':').next().and_then(|u| u.parse::<u32>().ok()).filter(|uid| *uid > 0);
    Ok(SpecNode {
        path: edit.path.clone().into(),
        host: host.clone().into(),
        kind,
        major: number(major)?,
        minor: number(minor)?,
        mode: edit.file_mode.map_or(0o666, |m| m & 0o7777),
        uid: edit.uid.or(owner).unwrap_or(0),
        gid: edit.gid.or(spec.user.gid.filter(|_| owner.is_some())).unwrap_or(0),
        access: if edit.permissions.is_empty() { "rwm".to_owned() } else { edit.permissions.clone() },
    })
}

fn mount(edit: &EditMount) -> Result<SpecMount, String> {
    if !matches!(edit.kind.as_str(), "" | "none" | "bind") {
        return Err(format!("CDI mount {:?}: type {:?} is not supported", edit.container_path, edit.kind));
    }
    let mut made = SpecMount {
        source: edit.host_path.clone().into(),
        target: edit.container_path.clone().into(),
        readonly: false,
        recursive_readonly: false,
        propagation: MountPropagation::Private,
        create_source: false,
        layers: Vec::new(),
        attributes: 0,
    };
    if !made.source.is_absolute() {
        return Err(format!(
            "CDI mount {:?}: host path {:?} is not absolute",
            edit.container_path, edit.host_path
        ));
    }
    for option in &edit.options {
        match option.as_str() {
            "ro" => made.readonly = true,
            "rro" => (made.readonly, made.recursive_readonly) = (true, true),
            "rw" => made.readonly = false,
            "nosuid" => made.attributes |= MOUNT_ATTR_NOSUID,
            "nodev" => made.attributes |= MOUNT_ATTR_NODEV,
            "noexec" => made.attributes |= MOUNT_ATTR_NOEXEC,
            "slave" | "rslave" => made.propagation = MountPropagation::HostToContainer,
            "shared" | "rshared" => made.propagation = MountPropagation::Bidirectional,
            "" | "bind" | "rbind" | "private" | "rprivate" | "suid" | "dev" | "exec" | "relatime"
            | "defaults" => {}
            other => {
                return Err(format!(
                    "CDI mount {:?}: option {other:?} is not supported",
                    edit.container_path
                ));
            }
        }
    }
    // Links on the host are followed here, once, as for every mount.
    if let Ok(real) = std::fs::canonicalize(&made.source) {
        made.source = real;
    }
    Ok(made)
}

fn hook(edit: &EditHook) -> Hook {
    Hook {
        path: edit.path.clone().into(),
        args: edit.args.clone(),
        env: edit.env.clone(),
        timeout_s: edit.timeout.and_then(|t| u64::try_from(t).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(files: &[(&str, &str)]) -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let registry = Registry::read(&[dir.path().join("etc"), dir.path().join("run")]);
        (dir, registry)
    }

    fn spec(kind: &str, name: &str, edits: &str) -> String {
        format!(
            r#"{{"cdiVersion": "1.0.0", "kind": "{kind}", "containerEdits": {{"env": ["ALL={kind}"]}},
                "devices": [{{"name": "{name}", "containerEdits": {{{edits}}}}}]}}"#
        )
    }

    #[test]
    fn stronger_directories_win_and_conflicts_are_told() {
        let one = spec("v/c", "a", r#""env": ["A=etc"]"#);
        let two = spec("v/c", "a", r#""env": ["A=run"]"#);
        let (_dir, weak) = registry(&[("etc/a.json", &one), ("run/b.json", &two)]);
        let mut container = Spec { env: vec!["A=own".into(), "B=own".into()], ..Spec::default() };
        weak.inject(&["v/c=a".into()], &mut container).unwrap();
        assert_eq!(container.env, ["B=own", "ALL=v/c", "A=run"]);
        let (_dir, both) =
            registry(&[("run/a.json", &one), ("run/b.json", &two), ("run/c.txt", "x"), ("etc/d.json", "{")]);
        let error = both.inject(&["v/c=a".into(), "v/c=z".into()], &mut container).unwrap_err();
        assert!(
            error.starts_with("unresolvable CDI devices v/c=a, v/c=z (conflicting device \"v/c=a\")"),
            "{error}"
        );
        assert!(error.contains("d.json"), "{error}");
    }

    #[test]
    fn edits_become_parts_of_the_specification() {
        let edits = r#""deviceNodes": [{"path": "/dev/zero0", "hostPath": "/dev/zero", "permissions": "r"},
                {"path": "/dev/made", "type": "c", "major": 9, "minor": 7, "fileMode": 384, "uid": 5}],
            "mounts": [{"hostPath": "/usr/lib", "containerPath": "/opt/lib", "options": ["ro", "nosuid", "rbind"]}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "x"], "timeout": 5}],
            "additionalGids": [44, 0]"#;
        let (_dir, registry) = registry(&[("etc/a.json", &spec("v/c", "a", edits))]);
        let mut container = Spec::default();
        container.user.user = "7".to_owned();
        registry.inject(&["v/c=a".into()], &mut container).unwrap();
        let rows: Vec<_> = container
            .nodes
            .iter()
            .map(|n| (n.path.to_str().unwrap(), n.kind, n.major, n.minor, n.mode, n.uid, n.access.as_str()))
            .collect();
        assert_eq!(
            rows,
            [("/dev/zero0", 'c', 1, 5, 0o666, 7, "r"), ("/dev/made", 'c', 9, 7, 0o600, 5, "rwm")]
        );
        let mount = &container.mounts[0];
        assert!(mount.readonly && !mount.create_source);
        assert_eq!(mount.attributes, MOUNT_ATTR_NOSUID);
        assert_eq!(container.hooks.create_container[0].args, ["hook", "x"]);
        assert_eq!(container.user.supplemental_groups, [44]);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (edits, want) in [
            (r#""intelRdt": {}"#, "intelRdt"),
            (r#""netDevices": [{}]"#, "netDevices"),
            (r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "tmpfs"}]"#, "type \"tmpfs\""),
            (
                r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["odd"]}]"#,
                "option \"odd\"",
            ),
            (r#""deviceNodes": [{"path": "/nonexistent/device"}]"#, "failed to stat CDI host device"),
            (r#""deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]"#, "is not a device"),
            (
                r#""deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "type": "b"}]"#,
                "host type mismatch",
            ),
        ] {
            let (_dir, registry) = registry(&[("etc/a.json", &spec("v/c", "a", edits))]);
            let error = registry.inject(&["v/c=a".into()], &mut Spec::default()).unwrap_err();
            assert!(error.contains(want), "{edits}: {error}");
        }
    }
}

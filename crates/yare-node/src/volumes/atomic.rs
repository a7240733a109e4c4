//! Files that change all at once: content is written to a new directory, and one rename makes it visible.
//!
//! `<volume>/<name>` links to `..data/<name>`, `..data` links to `..<time>`; a reader sees either the old or
//! the new set of files. Layout and names are upstream's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    /// Owner other than root.
    pub(super) uid: Option<u32>,
}

/// Files by relative path.
pub(super) type Payload = BTreeMap<String, File>;

/// Makes `payload` the content of `dir`; does nothing when it is already. `gid`: the pod's fsGroup.
pub(super) fn write(dir: &Path, payload: &Payload, gid: Option<u32>, now: Timestamp) -> Result<(), String> {
    let at = |what: &str, path: &Path, error: std::io::Error| format!("{what} {}: {error}", path.display());
    for path in payload.keys() {
        check(path)?;
    }
    let data = dir.join(DATA);
    let old = std::fs::read_link(&data).ok();
    if old.is_some() && same(&data, payload, gid) {
        return Ok(());
    }
    let name = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let fresh = dir.join(&name);
    make_dir(&fresh, gid).map_err(|e| at("make", &fresh, e))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        let mut parent = fresh.clone();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.is_dir() {
                make_dir(&parent, gid).map_err(|e| at("make", &parent, e))?;
            }
        }
        write_file(&target, file, gid).map_err(|e| at("write", &target, e))?;
    }
    let temporary = dir.join(DATA_TMP);
    let _ = std::fs::remove_file(&temporary);
    symlink(&name, &temporary).map_err(|e| at("link", &temporary, e))?;
    std::fs::rename(&temporary, &data).map_err(|e| at("rename", &temporary, e))?;
    visible_links(dir, payload).map_err(|e| at("link names in", dir, e))?;
    if let Some(old) = old {
        let old = dir.join(old);
        std::fs::remove_dir_all(&old).map_err(|e| at("remove", &old, e))?;
    }
    Ok(())
}

fn check(path: &str) -> Result<(), String> {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let plain = !parts.is_empty() && parts.iter().all(|p| matches!(p, Component::Normal(_)));
    if !plain || path.starts_with("..") || path.len() > 4096 {
        return Err(format!("invalid path in volume: {path:?} must be relative and may not contain '..'"));
    }
    Ok(())
}

/// A file's mode once a group must be able to read it.
fn effective_mode(file: &File, gid: Option<u32>) -> u32 {
    if gid.is_some() { file.mode | 0o440 } else { file.mode }
}

fn make_dir(path: &Path, gid: Option<u32>) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    let mode = if gid.is_some() { 0o2775 } else { 0o755 };
    if gid.is_some() {
        std::os::unix::fs::chown(path, None, gid)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn write_file(path: &Path, file: &File, gid: Option<u32>) -> std::io::Result<()> {
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    out.write_all(&file.bytes)?;
    if file.uid.is_some() || gid.is_some() {
        std::os::unix::fs::chown(path, file.uid, gid)?;
    }
    // After the owner: changing it clears set-id bits; and past the umask.
    out.set_permissions(std::fs::Permissions::from_mode(effective_mode(file, gid)))
}

fn same(data: &Path, payload: &Payload, gid: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    list(data, "", &mut found);
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            let target = data.join(path);
            found.contains(path)
                && std::fs::metadata(&target)
                    .is_ok_and(|m| m.permissions().mode() & 0o7777 == effective_mode(file, gid))
                && std::fs::read(&target).is_ok_and(|bytes| bytes == file.bytes)
        })
}

fn list(dir: &Path, prefix: &str, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            list(&entry.path(), &path, into);
        } else {
            into.insert(path);
        }
    }
}

/// Links for the first component of every path; links of what is gone are removed.
fn visible_links(dir: &Path, payload: &Payload) -> std::io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(format!("{DATA}/{name}"), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| !n.starts_with("..") && !wanted.contains(n)) else {
            continue;
        };
        if entry.file_type()?.is_symlink() {
            std::fs::remove_file(dir.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(p, c)| ((*p).to_owned(), File { bytes: c.as_bytes().to_vec(), mode: 0o644, uid: None }))
            .collect()
    }

    #[test]
    fn replaces_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        let at = |s| Timestamp::from_second(s).unwrap();
        write(d, &payload(&[("a", "1"), ("sub/b", "2")]), None, at(1)).unwrap();
        assert_eq!(std::fs::read_to_string(d.join("sub/b")).unwrap(), "2");
        let first = std::fs::read_link(d.join("..data")).unwrap();
        write(d, &payload(&[("a", "1"), ("sub/b", "2")]), None, at(2)).unwrap();
        assert_eq!(std::fs::read_link(d.join("..data")).unwrap(), first, "unchanged content is left alone");
        write(d, &payload(&[("a", "3")]), None, at(3)).unwrap();
        assert_eq!(std::fs::read_to_string(d.join("a")).unwrap(), "3");
        assert!(!d.join("sub").exists() && !d.join(first).exists());
        for bad in ["../x", "/x", "..x", "a/../b", ""] {
            assert!(write(d, &payload(&[(bad, "")]), None, at(4)).is_err(), "{bad}");
        }
    }
}

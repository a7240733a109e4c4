//! `hostPath`: a path of the node itself, after a check of its type.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use async_trait::async_trait;

use super::{Failure, Mounted, Source, VolumeKind, Work};
use crate::view::HostPath;

pub(super) struct HostPathVolume;

#[async_trait]
impl VolumeKind for HostPathVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/host-path"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.host_path().is_some()
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let source = work.source.host_path().ok_or("no hostPath source")?;
        prepare(source)?;
        let path = std::path::PathBuf::from(&source.path);
        if work.source.is_block() {
            return Err(Failure::at(
                "MapVolume.FindMapperPluginBySpec failed",
                "a hostPath cannot be a device",
            ));
        }
        Ok(Mounted { path, ..Mounted::default() })
    }
}

/// Checks the path's type, and makes what may be made.
pub(super) fn prepare(source: &HostPath) -> Result<(), String> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || source.path.split('/').any(|p| p == "..") {
        return Err(format!("hostPath {:?} must be absolute and may not contain '..'", source.path));
    }
    let found = std::fs::metadata(path).ok().map(|m| m.file_type());
    let make = |outcome: std::io::Result<()>| outcome.map_err(|e| format!("make {}: {e}", path.display()));
    let check = |good: Option<bool>, what: &str| match good {
        Some(true) => Ok(()),
        _ => Err(format!("hostPath type check failed: {} is not {what}", path.display())),
    };
    match source.kind.as_deref().unwrap_or_default() {
        // Whatever is there; a directory where nothing is, as the runtimes do it.
        "" if found.is_none() => make(std::fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            use std::os::unix::fs::DirBuilderExt;
            make(std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path))
        }
        "DirectoryOrCreate" | "Directory" => check(found.map(|t| t.is_dir()), "a directory"),
        "FileOrCreate" if found.is_none() => make(std::fs::File::create(path).map(drop)),
        "FileOrCreate" | "File" => check(found.map(|t| t.is_file()), "a file"),
        "Socket" => check(found.map(|t| t.is_socket()), "a socket file"),
        "CharDevice" => check(found.map(|t| t.is_char_device()), "a character device"),
        "BlockDevice" => check(found.map(|t| t.is_block_device()), "a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (name, kind, good) in [
            ("f", "File", true),
            ("f", "Directory", false),
            ("", "Directory", true),
            ("new/dir", "DirectoryOrCreate", true),
            ("new/dir", "Directory", true),
            ("newfile", "FileOrCreate", true),
            ("newfile", "File", true),
            ("absent", "Directory", false),
            ("f", "Socket", false),
            ("f", "", true),
            ("f", "Nonsense", false),
        ] {
            let source = HostPath { path: path(name), kind: Some(kind.to_owned()) };
            assert_eq!(prepare(&source).is_ok(), good, "{name} {kind}");
        }
        assert!(prepare(&HostPath { path: "relative".into(), kind: None }).is_err());
    }
}

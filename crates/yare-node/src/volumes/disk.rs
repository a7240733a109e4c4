//! A disk with a file system on it: made if the disk is empty, checked, mounted, enlarged; by the machine's own tools.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::volumes::nfs::mount;

/// The kind of file system where none is asked for.
const DEFAULT: &str = "ext4";
/// `blkid`: nothing is known of the disk.
const BLKID_NOTHING: i32 = 2;
/// `fsck`: errors are left that it could not mend.
const FSCK_ERRORS_LEFT: i32 = 4;

struct Said {
    code: Option<i32>,
    text: String,
}

async fn run(program: &str, args: &[&str]) -> Result<Said, String> {
    let output = Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| format!("exec: {program:?}: {e}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(Said { code: output.status.code(), text })
}

/// What is on a disk: a kind of file system, nothing (empty), or something that must not be overwritten.
async fn format_of(disk: &str) -> Result<String, String> {
    let said = run("blkid", &["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", disk]).await?;
    match said.code {
        Some(0) => {}
        Some(BLKID_NOTHING) => return Ok(String::new()),
        _ => return Err(said.text),
    }
    Ok(parse_format(&said.text))
}

fn parse_format(text: &str) -> String {
    let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    match (value("TYPE"), value("PTTYPE")) {
        (_, Some(table)) if !table.is_empty() => "unknown data, probably partitions".to_owned(),
        (Some(kind), _) => kind.to_owned(),
        (None, _) => String::new(),
    }
}

/// Makes a file system if the disk is empty and may be written, and mounts it.
pub(super) async fn format_and_mount(
    disk: &Path,
    target: &Path,
    kind: &str,
    options: &[String],
) -> Result<(), String> {
    let name = disk.display().to_string();
    let read_only = options.iter().any(|o| o == "ro");
    let kind = if kind.is_empty() { DEFAULT } else { kind };
    let found =
        format_of(&name).await.map_err(|e| format!("failed to get disk format of disk {name}: {e}"))?;
    if found.is_empty() {
        if read_only {
            return Err(format!(
                "cannot mount unformatted disk {name} as we are manipulating it in read-only mode"
            ));
        }
        let args: &[&str] = match kind {
            "ext3" | "ext4" => &["-F", "-m0", &name],
            "xfs" => &["-f", &name],
            _ => &[&name],
        };
        let failed = |why: &str, text: &str| {
            format!(
                "format of disk {name:?} failed: type:({kind:?}) target:({:?}) errcode:({why}) output:({text}) ",
                target.display().to_string()
            )
        };
        let said = run(&format!("mkfs.{kind}"), args).await.map_err(|e| failed(&e, ""))?;
        if said.code != Some(0) {
            return Err(failed(&format!("exit status {}", said.code.unwrap_or(-1)), &said.text));
        }
    } else if !read_only && matches!(found.as_str(), "ext2" | "ext3" | "ext4") {
        match run("fsck", &["-a", &name]).await {
            Ok(said) if said.code == Some(FSCK_ERRORS_LEFT) => {
                return Err(format!(
                    "'fsck' found errors on device {name} but could not correct them: {}.",
                    said.text
                ));
            }
            Ok(said) => tracing::debug!(disk = name, said = said.text, "a disk was checked"),
            Err(error) => tracing::warn!(disk = name, error, "a disk is not checked"),
        }
    }
    let mut options = options.to_vec();
    options.push("defaults".to_owned());
    mount(&name, target, kind, &options).await
}

/// Makes a mounted file system as large as its disk.
pub(super) async fn grow(disk: &Path, target: &Path) -> Result<(), String> {
    let name = disk.display().to_string();
    let target = target.display().to_string();
    let format = format_of(&name)
        .await
        .map_err(|e| format!("ResizeFS.Resize - error checking format for device {name}: {e}"))?;
    let (program, args): (_, &[&str]) = match format.as_str() {
        "ext3" | "ext4" => ("resize2fs", &[&name]),
        "xfs" => ("xfs_growfs", &["-d", &target]),
        "btrfs" => ("btrfs", &["filesystem", "resize", "max", &target]),
        _ => {
            return Err(format!(
                "ResizeFS.Resize - resize of format {format} is not supported for device {name} mounted at {target}"
            ));
        }
    };
    let said = run(program, args).await?;
    match said.code {
        Some(0) => Ok(()),
        code => Err(format!(
            "resize of device {name} failed: exit status {}. {program} output: {}",
            code.unwrap_or(-1),
            said.text
        )),
    }
}

/// The device-mapper device that has a disk as one of its paths.
pub(super) fn multipath(sys: &Path, disk: &Path) -> Option<PathBuf> {
    let real = disk.canonicalize().ok()?;
    let name = real.file_name()?;
    if name.as_encoded_bytes().starts_with(b"dm-") {
        return Some(real);
    }
    std::fs::read_dir(sys.join("block")).ok()?.flatten().find_map(|entry| {
        let mapped = entry.file_name();
        (mapped.as_encoded_bytes().starts_with(b"dm-") && entry.path().join("slaves").join(name).exists())
            .then(|| Path::new("/dev").join(mapped))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (text, want) in [
            ("DEVNAME=/dev/sda\nTYPE=ext4\n", "ext4"),
            ("DEVNAME=/dev/sda\nPTTYPE=dos\n", "unknown data, probably partitions"),
            ("DEVNAME=/dev/sda\n", ""),
        ] {
            assert_eq!(parse_format(text), want);
        }
    }
}

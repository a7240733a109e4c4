//! Loop devices, by the machine's `losetup`.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::mounts::{bind, is_mount_point, remove_file, unmount};

/// Keeps a device open at a second place for as long as a pod has it, whoever comes and goes meanwhile.
pub(super) async fn hold(device: &Path, kept: &Path) -> Result<(), String> {
    let found = std::fs::metadata(device).map_err(|e| format!("stat {}: {e}", device.display()))?;
    if !found.file_type().is_block_device() {
        return Err(format!("{} is not a block device", device.display()));
    }
    if !is_mount_point(kept)? {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(kept)
            .map_err(|e| format!("make {}: {e}", kept.display()))?;
        bind(device, kept)?;
    }
    let attached = attach(kept).await;
    attached
        .map(drop)
        .map_err(|e| format!("blkUtil.AttachFileDevice failed. globalMapPath:{}: {e}", kept.display()))
}

/// Undoes [`hold`].
pub(super) async fn let_go(kept: &Path) -> Result<(), String> {
    detach(kept).await?;
    unmount(kept)?;
    remove_file(kept)
}

/// The loop device that a file is attached to. Read from the kernel, so that nothing has to be remembered.
fn of(file: &Path) -> Result<Option<PathBuf>, String> {
    let wanted = file.canonicalize().map_err(|e| format!("resolve {}: {e}", file.display()))?;
    let wanted = wanted.display().to_string();
    for entry in std::fs::read_dir("/sys/block").map_err(|e| format!("read /sys/block: {e}"))?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else { continue };
        // Not attached: there is no such file.
        let Ok(backing) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if backing.trim_end_matches('\n') == wanted {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

/// Attaches a file, unless it is attached already.
async fn attach(file: &Path) -> Result<PathBuf, String> {
    if let Some(device) = of(file)? {
        return Ok(device);
    }
    let said = losetup(&["--find".as_ref(), "--show".as_ref(), file.as_os_str()]).await?;
    Ok(said.trim().into())
}

/// Detaches a file, if it is attached.
async fn detach(file: &Path) -> Result<(), String> {
    if !file.exists() {
        return Ok(());
    }
    match of(file)? {
        Some(device) => losetup(&["-d".as_ref(), device.as_os_str()]).await.map(drop),
        None => Ok(()),
    }
}

async fn losetup(args: &[&std::ffi::OsStr]) -> Result<String, String> {
    let output = Command::new("losetup")
        .args(args)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| format!("losetup: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("losetup failed: {}: {}", output.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

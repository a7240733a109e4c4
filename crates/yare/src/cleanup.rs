//! `yare cleanup`: ends all pods of this node and takes away what they left in the kernel.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use nix::mount::{MntFlags, umount2};
use yare_net::proxy;
use yare_runtime::{Engine, EngineConfig, Runtime as _};

use crate::{cli::CleanupArgs, cri, kubelet_arg::Arguments, progress::say};

/// Ends pods, unmounts their volumes, removes service rules. State under the data directory stays, so the
/// next `yare server` starts the same pods again.
pub async fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let (sandboxes, failed) = match &args.cri.container_runtime_endpoint {
        None => embedded(args).await?,
        Some(endpoint) => cri::cleanup(&args.cri, endpoint, &args.data.data_dir, &args.run_dir).await?,
    };
    // Those of other nodes on this machine stay.
    let cgroups = [&yare_node::CGROUPS[..], &yare_runtime::CGROUPS].concat();
    yare_runtime::remove_empty_cgroups(&cgroups, Duration::from_millis(200)).await;
    let root_dir = Arguments::parse(&args.cri.kubelet_arg)?.root_dir(&args.data.data_dir);
    detach_below(&root_dir)?;
    let volumes = unmount_below(&root_dir)?;
    proxy::remove_rules()?;
    if !failed.is_empty() {
        anyhow::bail!("{} of {sandboxes} pods could not be ended; {}", failed.len(), failed.join("; "));
    }
    say(&format!("ended {sandboxes} pods, unmounted {volumes} volumes, removed service rules"));
    Ok(())
}

/// Ends the pods of the embedded runtime: how many there were, and what could not be ended.
async fn embedded(args: &CleanupArgs) -> anyhow::Result<(usize, Vec<String>)> {
    let engine = Engine::open(EngineConfig::new(&args.data.data_dir, &args.run_dir))
        .await
        .context("container runtime")?;
    let sandboxes = engine.sandboxes().await?;
    // One that cannot be ended keeps none of the others.
    let mut failed = Vec::new();
    for sandbox in &sandboxes {
        if let Err(e) = engine.remove_sandbox(&sandbox.id).await {
            failed.push(format!("sandbox {}: {e}", sandbox.id));
        }
    }
    // Its process may still be on its way into a cgroup, which would come back after it was removed.
    engine.close().await;
    Ok((sandboxes.len(), failed))
}

/// Detaches loop devices that keep devices of pods open.
fn detach_below(directory: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        // Only what is attached has such a file.
        let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if !Path::new(file.trim_end()).starts_with(directory) {
            continue;
        }
        let device = Path::new("/dev").join(entry.file_name());
        let output = std::process::Command::new("losetup").arg("-d").arg(&device).output();
        let output = output.with_context(|| format!("losetup -d {}", device.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("losetup -d {}: {}", device.display(), said.trim());
        }
    }
    Ok(())
}

/// Unmounts everything below `directory`, the innermost first.
fn unmount_below(directory: &Path) -> anyhow::Result<usize> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let below: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| Path::new(path).starts_with(directory))
        .collect();
    for path in below.iter().rev() {
        umount2(path.as_str(), MntFlags::MNT_DETACH).with_context(|| format!("unmount {path}"))?;
    }
    Ok(below.len())
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
}

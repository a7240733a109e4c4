//! `nfs`: an export of an NFS server, mounted for each pod by the machine's `mount`, which brings what NFS needs.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::process::Command;

use super::mounts::{is_mount_point, remove_dir, unmount};
use super::stats::{Measured, VolumeStats, file_system};
use super::{Failure, Found, Mounted, Source, VolumeKind, Work, ownership};
use crate::kubelet::Kubelet;

pub(super) struct NfsVolume;

#[async_trait]
impl VolumeKind for NfsVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/nfs"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.nfs().is_some()
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        if work.source.is_block() {
            return Err(Failure::at("MapVolume.FindMapperPluginBySpec failed", "NFS has no devices"));
        }
        let nfs = work.source.nfs().ok_or("no nfs source")?;
        let read_only = nfs.read_only || work.source.read_only();
        let dir = work.context.dirs.volume(self.plugin(), work.source.name());
        let mounted = Mounted { path: dir.clone(), read_only, ..Mounted::default() };
        if is_mount_point(&dir)? {
            return Ok(mounted);
        }
        ownership::make_directory(&dir, 0o755)?;
        // An address of IPv6 is told from the path by its brackets.
        let server = match nfs.server.parse::<std::net::Ipv6Addr>() {
            Ok(_) => format!("[{}]", nfs.server),
            Err(_) => nfs.server.clone(),
        };
        let mut options = work.source.mount_options().to_vec();
        if read_only {
            options.push("ro".to_owned());
        }
        if let Err(error) = mount(&format!("{server}:{}", nfs.path), &dir, "nfs", &options).await {
            let _ = unmount(&dir);
            let _ = remove_dir(&dir);
            return Err(error.into());
        }
        Ok(mounted)
    }

    async fn tear_down(&self, _: &Arc<Kubelet>, found: &Found) -> Result<(), String> {
        // The server may be gone: nothing here looks into the mount.
        while is_mount_point(&found.path)? {
            unmount(&found.path)?;
        }
        remove_dir(&found.path)
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        file_system(&measured.path).await
    }
}

/// Mounts by the machine's `mount`, which calls helpers such as `mount.nfs`. The error says what was run.
pub(super) async fn mount(source: &str, target: &Path, kind: &str, options: &[String]) -> Result<(), String> {
    let mut command = Command::new("mount");
    command.args(["-t", kind]);
    let mut said = format!("-t {kind}");
    if !options.is_empty() {
        let options = options.join(",");
        said = format!("{said} -o {options}");
        command.args(["-o", &options]);
    }
    said = format!("{said} {source} {}", target.display());
    let output = command
        .arg(source)
        .arg(target)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| {
            format!("mount failed: {e}\nMounting command: mount\nMounting arguments: {said}\nOutput: ")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!(
        "mount failed: {}\nMounting command: mount\nMounting arguments: {said}\nOutput: {}",
        output.status.to_string().replace("exit status: ", "exit status "),
        String::from_utf8_lossy(&text)
    ))
}

//! `iscsi`: a disk of an iSCSI target. The node logs in once and mounts the disk once; each pod gets the mount a
//! second time, or the device.
//!
//! Below `plugins/kubernetes.io/iscsi` (for devices in `volumeDevices` there) and `iface-<interface>`, the
//! directory `<portal>-<target>-lun-<lun>` is where the disk is mounted, or has the devices of the pods that use
//! it; the file of that name with `.json` behind it is the record.

mod session;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use super::mounts::{bind, is_mount_point, mounted_from, remove_dir, remove_file, unmount};
use super::source::reason;
use super::stats::{Measured, VolumeStats, file_system};
use super::tear_down::found;
use super::{
    Failure, Found, Mounted, Restored, Source, Staged, Turn, VolumeKind, Work, disk, loop_device, ownership,
};
use crate::kubelet::Kubelet;
use crate::view::{Iscsi, Secret};
use session::{Chap, Disk, Machine, portal};

const PLUGIN: &str = "kubernetes.io/iscsi";

pub(super) struct IscsiVolume;

/// What has to be known to give a disk back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    disk: Disk,
    /// The disk's device.
    device: PathBuf,
}

impl Record {
    fn path(dir: &Path) -> PathBuf {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        dir.with_file_name(format!("{name}.json"))
    }

    fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = Self::path(dir);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| format!("iscsi: decode {} err: {e}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("iscsi: open {} err {error}", path.display())),
        }
    }

    fn write(&self, dir: &Path) -> Result<(), String> {
        let path = Self::path(dir);
        let text = serde_json::to_vec(self).map_err(|e| format!("iscsi: encode err: {e}"))?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| format!("iscsi: create {} err {e}", path.display()))
    }
}

fn disk_of(source: &Iscsi, volume: &str) -> Disk {
    let mut portals = vec![portal(&source.target_portal)];
    for other in source.portals.iter().map(|p| portal(p)) {
        if !portals.contains(&other) {
            portals.push(other);
        }
    }
    let base = match source.iscsi_interface.as_str() {
        "" => "default",
        name => name,
    };
    let initiator = source.initiator_name.clone().unwrap_or_default();
    let iface = if initiator.is_empty() { base.to_owned() } else { format!("{}:{volume}", portals[0]) };
    Disk {
        portals,
        iqn: source.iqn.clone(),
        lun: source.lun,
        iface,
        base: base.to_owned(),
        initiator,
        volume: volume.to_owned(),
    }
}

fn shared_name(disk: &Disk) -> String {
    format!("{PLUGIN}/{}:{}:{}", disk.portals.first().map_or("", String::as_str), disk.iqn, disk.lun)
}

/// The plugin's directory: for file systems, or for devices.
fn place(data_dir: &Path, block: bool) -> PathBuf {
    let root = data_dir.join("plugins/kubernetes.io/iscsi");
    if block { root.join("volumeDevices") } else { root }
}

fn directory(data_dir: &Path, disk: &Disk, block: bool) -> PathBuf {
    let portal = disk.portals.first().map_or("", String::as_str);
    place(data_dir, block)
        .join(format!("iface-{}", disk.iface))
        .join(format!("{portal}-{}-lun-{}", disk.iqn, disk.lun))
}

/// The directories of all disks.
fn all(data_dir: &Path) -> Vec<(PathBuf, bool)> {
    let children = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
    };
    let mut found = Vec::new();
    for block in [false, true] {
        for iface in children(&place(data_dir, block)) {
            if iface.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"iface-")) {
                found.extend(children(&iface).into_iter().filter(|p| p.is_dir()).map(|p| (p, block)));
            }
        }
    }
    found
}

/// The names and passwords with which node and target prove who they are.
async fn chap(work: &Work<'_>, source: &Iscsi) -> Result<Chap, String> {
    if !source.chap_auth_discovery && !source.chap_auth_session {
        return Ok(Chap::default());
    }
    let Some(reference) = &source.secret_ref else { return Err("no secret is set".to_owned()) };
    let own = &work.context.pod.metadata.namespace;
    let namespace = match work.source.bound {
        Some(_) if !reference.namespace.is_empty() => &reference.namespace,
        _ => own,
    };
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{}", reference.name);
    let secret: Secret = work
        .context
        .kubelet
        .api
        .get(&path)
        .await
        .map_err(|e| format!("couldn't get secret {namespace}/{} err: {}", reference.name, reason(&e)))?;
    let decode = |v: String| STANDARD.decode(v).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let secret: BTreeMap<String, String> =
        secret.data.into_iter().filter_map(|(key, value)| Some((key, decode(value)?))).collect();
    Ok(Chap { discovery: source.chap_auth_discovery, session: source.chap_auth_session, secret })
}

#[async_trait]
impl VolumeKind for IscsiVolume {
    fn plugin(&self) -> &'static str {
        PLUGIN
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.iscsi().is_some()
    }

    fn shared_name(&self, source: &Source<'_>) -> Option<String> {
        source.iscsi().map(|iscsi| shared_name(&disk_of(iscsi, source.name())))
    }

    async fn stage(&self, work: &mut Work<'_>, turn: &mut Turn) -> Result<(), Failure> {
        let block = work.source.is_block();
        let iscsi = work.source.iscsi().cloned().ok_or("no iscsi source")?;
        let fail = |text: String| {
            let step =
                if block { "MapVolume.WaitForAttach failed" } else { "MountVolume.WaitForAttach failed" };
            Failure::at(step, text)
        };
        let disk = disk_of(&iscsi, work.source.name());
        let dir = directory(&work.context.kubelet.data_dir, &disk, block);
        let chap = chap(work, &iscsi).await.map_err(fail)?;
        ownership::make_directory(&dir, 0o750).map_err(fail)?;
        // First the record: from now on there may be a session.
        let before = Record::read(&dir).map_err(fail)?;
        let mut record = before.clone().unwrap_or_default();
        record.disk = disk.clone();
        record.write(&dir).map_err(fail)?;
        turn.staged = Some(Staged { plugin: PLUGIN, dir: dir.clone(), block });
        match Machine::default().attach(&disk, &chap).await {
            Ok(device) => record.device = device,
            Err(error) => {
                if before.is_none() && !is_mount_point(&dir).unwrap_or(true) && remove_dir(&dir).is_ok() {
                    let _ = remove_file(&Record::path(&dir));
                    turn.staged = None;
                }
                return Err(fail(error));
            }
        }
        record.write(&dir).map_err(fail)?;
        if block || is_mount_point(&dir)? {
            return Ok(());
        }
        let mut options = work.source.mount_options().to_vec();
        if iscsi.read_only || work.source.read_only() {
            options.push("ro".to_owned());
        }
        disk::format_and_mount(&record.device, &dir, &iscsi.fs_type, &options)
            .await
            .map_err(|e| Failure::at("MountVolume.MountDevice failed", e))
    }

    async fn unstage(&self, kubelet: &Arc<Kubelet>, staged: &Staged) -> Result<(), String> {
        let dir = &staged.dir;
        while is_mount_point(dir)? {
            unmount(dir)?;
        }
        if let Some(record) = Record::read(dir)? {
            let target = |other: &Disk| other.iqn == record.disk.iqn && other.portals == record.disk.portals;
            let users = all(&kubelet.data_dir)
                .iter()
                .filter_map(|(dir, _)| Record::read(dir).ok().flatten())
                .filter(|other| target(&other.disk))
                .count();
            Machine::default().detach(&record.disk, users > 1).await?;
        }
        remove_dir(dir)?;
        remove_file(&Record::path(dir))
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let iscsi = work.source.iscsi().cloned().ok_or("no iscsi source")?;
        let disk = disk_of(&iscsi, work.source.name());
        let block = work.source.is_block();
        let global = directory(&work.context.kubelet.data_dir, &disk, block);
        let read_only = iscsi.read_only || work.source.read_only();
        if block {
            return map(work, &global, read_only)
                .await
                .map_err(|e| Failure::at("MapVolume.MapBlockVolume failed", e));
        }
        let dir = work.context.dirs.volume(PLUGIN, work.source.name());
        if !is_mount_point(&dir)? {
            ownership::make_directory(&dir, 0o750)?;
            if let Err(error) = bind(&global, &dir) {
                let _ = remove_dir(&dir);
                return Err(error.into());
            }
            if read_only {
                let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                nix::mount::mount(None::<&str>, &dir, None::<&str>, again, None::<&str>)
                    .map_err(|e| format!("mount {} read-only: {e}", dir.display()))?;
            } else {
                ownership::apply_for(work.context.pod, &dir).await?;
            }
        }
        Ok(Mounted { path: dir, read_only, ..Mounted::default() })
    }

    async fn tear_down(&self, _: &Arc<Kubelet>, found: &Found) -> Result<(), String> {
        if found.block {
            if let Ok(kept) = std::fs::read_link(&found.path) {
                loop_device::let_go(&kept).await?;
            }
            return remove_file(&found.path);
        }
        while is_mount_point(&found.path)? {
            unmount(&found.path)?;
        }
        remove_dir(&found.path)
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        file_system(&measured.path).await
    }

    fn restore(&self, data_dir: &Path) -> Vec<Restored> {
        let mut restored = Vec::new();
        let pods: Vec<Found> = std::fs::read_dir(data_dir.join("pods"))
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|pod| found(&pod.path(), PLUGIN))
            .collect();
        for (dir, block) in all(data_dir) {
            let Ok(Some(record)) = Record::read(&dir) else { continue };
            let name = shared_name(&record.disk);
            // Users are told by what they have mounted, or by what they link to.
            for pod in pods.iter().filter(|p| p.block == block) {
                let uses = if block {
                    std::fs::read_link(&pod.path).is_ok_and(|to| to.starts_with(&dir))
                } else {
                    mounted_from(&pod.path).is_some_and(|m| Some(m) == mounted_from(&dir))
                };
                if uses {
                    restored.push(Restored {
                        name: name.clone(),
                        staged: None,
                        user: Some(pod.uid.clone()),
                        attachable: false,
                    });
                }
            }
            let staged = Some(Staged { plugin: PLUGIN, dir, block });
            restored.push(Restored { name, staged, user: None, attachable: false });
        }
        restored
    }
}

/// Gives a pod the device: a place of its own for it, kept open by a loop device, and a link to that.
async fn map(work: &Work<'_>, global: &Path, read_only: bool) -> Result<Mounted, String> {
    let record = Record::read(global)?.ok_or("the disk is not attached")?;
    let kept = global.join(&work.context.pod.metadata.uid);
    let links = work.context.dirs.root.join("volumeDevices").join(PLUGIN.replace('/', "~"));
    let link = links.join(work.source.name());
    ownership::make_directory(&links, 0o750)?;
    if std::fs::read_link(&link).is_ok_and(|to| to != kept) {
        remove_file(&link)?;
    }
    if !link.is_symlink() {
        symlink(&kept, &link).map_err(|e| format!("link {}: {e}", link.display()))?;
    }
    loop_device::hold(&record.device, &kept).await?;
    Ok(Mounted { device: Some(kept), read_only, ..Mounted::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_by_portal_target_and_number() {
        let source: Iscsi = serde_json::from_value(serde_json::json!({
            "targetPortal": "10.0.0.1", "portals": ["10.0.0.2:3261", "10.0.0.1:3260"], "iqn": "iqn.x", "lun": 3,
        }))
        .unwrap();
        let disk = disk_of(&source, "pv");
        assert_eq!(disk.portals, ["10.0.0.1:3260", "10.0.0.2:3261"]);
        assert_eq!(shared_name(&disk), "kubernetes.io/iscsi/10.0.0.1:3260:iqn.x:3");
        let dir = directory(Path::new("/k"), &disk, false);
        assert_eq!(dir, Path::new("/k/plugins/kubernetes.io/iscsi/iface-default/10.0.0.1:3260-iqn.x-lun-3"));
        let named = Iscsi { initiator_name: Some("iqn.me".into()), ..source };
        assert_eq!(disk_of(&named, "pv").iface, "10.0.0.1:3260:pv");
    }

    #[test]
    fn records_are_found_again() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk {
            portals: vec!["p:1".into()],
            iqn: "i".into(),
            lun: 1,
            iface: "default".into(),
            ..Disk::default()
        };
        let record = Record { disk: disk.clone(), device: "/dev/sdz".into() };
        for block in [false, true] {
            let dir = directory(root.path(), &disk, block);
            ownership::make_directory(&dir, 0o750).unwrap();
            record.write(&dir).unwrap();
            assert_eq!(Record::read(&dir).unwrap(), Some(record.clone()));
        }
        let pod = root.path().join("pods/u/volumeDevices/kubernetes.io~iscsi");
        ownership::make_directory(&pod, 0o750).unwrap();
        symlink(directory(root.path(), &disk, true).join("u"), pod.join("pv")).unwrap();
        let restored = IscsiVolume.restore(root.path());
        assert_eq!(restored.len(), 3);
        assert!(restored.iter().all(|r| r.name == "kubernetes.io/iscsi/p:1:i:1"));
        assert_eq!(restored.iter().filter_map(|r| r.user.as_deref()).collect::<Vec<_>>(), ["u"]);
    }
}

//! The driver's volumes on this machine: a directory or an image file each, and what is mounted of them where.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;

#[derive(Clone, Debug)]
struct Volume {
    bytes: i64,
    block: bool,
    /// The loop device of a staged block volume.
    device: Option<PathBuf>,
}

/// See the module.
pub(super) struct Backing {
    root: PathBuf,
    volumes: Mutex<BTreeMap<String, Volume>>,
    mounts: Mutex<Vec<PathBuf>>,
}

fn not_found(id: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("volume {id} does not exist"))
}

impl Backing {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), volumes: Mutex::default(), mounts: Mutex::default() }
    }

    /// The files of a volume.
    pub(super) fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    fn image(&self, id: &str) -> PathBuf {
        self.root.join(format!("{id}.img"))
    }

    /// Makes a volume, or finds the one that was made under this name.
    pub(super) fn create(
        &self,
        name: &str,
        bytes: i64,
        block: bool,
        source: Option<&str>,
    ) -> io::Result<String> {
        let id = format!("vol-{name}");
        let mut volumes = self.volumes.lock();
        if let Some(found) = volumes.get(&id) {
            return match found.bytes >= bytes && found.block == block {
                true => Ok(id),
                false => Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is another")),
            };
        }
        if let Some(source) = source {
            let found = volumes.get(source).ok_or_else(|| not_found(source))?;
            if found.block {
                fs::copy(self.image(source), self.image(&id))?;
            } else {
                run(Command::new("cp").arg("-a").arg(self.directory(source)).arg(self.directory(&id)))?;
            }
        } else if !block {
            fs::create_dir(self.directory(&id))?;
        }
        if block {
            let image = File::options().create(true).truncate(false).write(true).open(self.image(&id))?;
            image.set_len(u64::try_from(bytes).unwrap_or(0).max(1 << 20))?;
        }
        volumes.insert(id.clone(), Volume { bytes, block, device: None });
        Ok(id)
    }

    /// Makes the volume that a pod brings, under the id it gives it.
    pub(super) fn adopt(&self, id: &str) -> io::Result<()> {
        fs::create_dir_all(self.directory(id))?;
        let volume = Volume { bytes: 1 << 20, block: false, device: None };
        self.volumes.lock().insert(id.to_owned(), volume);
        Ok(())
    }

    /// Size in bytes, and whether it is a block volume.
    pub(super) fn find(&self, id: &str) -> io::Result<(i64, bool)> {
        self.volumes.lock().get(id).map(|v| (v.bytes, v.block)).ok_or_else(|| not_found(id))
    }

    pub(super) fn delete(&self, id: &str) -> io::Result<()> {
        let Some(volume) = self.volumes.lock().remove(id) else { return Ok(()) };
        if volume.block { fs::remove_file(self.image(id)) } else { fs::remove_dir_all(self.directory(id)) }
    }

    /// Makes a volume larger; a device that is in use grows with it.
    pub(super) fn resize(&self, id: &str, bytes: i64) -> io::Result<()> {
        let mut volumes = self.volumes.lock();
        let volume = volumes.get_mut(id).ok_or_else(|| not_found(id))?;
        volume.bytes = volume.bytes.max(bytes);
        if volume.block {
            let image = File::options().write(true).open(self.image(id))?;
            image.set_len(u64::try_from(volume.bytes).unwrap_or(0).max(1 << 20))?;
            if let Some(device) = &volume.device {
                run(Command::new("losetup").arg("-c").arg(device))?;
            }
        }
        Ok(())
    }

    /// The loop device of a block volume, a new one if it has none.
    fn device(&self, id: &str) -> io::Result<PathBuf> {
        let mut volumes = self.volumes.lock();
        let volume = volumes.get_mut(id).ok_or_else(|| not_found(id))?;
        if let Some(device) = &volume.device {
            return Ok(device.clone());
        }
        let said = run(Command::new("losetup").args(["--find", "--show"]).arg(self.image(id)))?;
        Ok(volume.device.insert(said.trim().into()).clone())
    }

    /// `NodeStageVolume`: the files at `staging`; of a block volume the device, and a link to it.
    pub(super) fn stage(&self, id: &str, staging: &Path, block: bool) -> io::Result<()> {
        if block {
            let device = self.device(id)?;
            let link = staging.join("device");
            let _ = fs::remove_file(&link);
            return symlink(device, link);
        }
        self.find(id)?;
        self.bind(&self.directory(id), staging, false)
    }

    pub(super) fn unstage(&self, id: &str, staging: &Path) -> io::Result<()> {
        let _ = fs::remove_file(staging.join("device"));
        self.detach(id)?;
        self.unbind(staging)
    }

    fn detach(&self, id: &str) -> io::Result<()> {
        let device = self.volumes.lock().get_mut(id).and_then(|v| v.device.take());
        match device {
            Some(device) => run(Command::new("losetup").arg("-d").arg(device)).map(drop),
            None => Ok(()),
        }
    }

    /// `NodePublishVolume`: the files or the device at `target`, from where they are staged, or else from here.
    pub(super) fn publish(
        &self,
        id: &str,
        staging: Option<&Path>,
        target: &Path,
        block: bool,
        readonly: bool,
    ) -> io::Result<()> {
        if block {
            let device = self.device(id)?;
            if !target.exists() {
                File::create(target)?;
            }
            return self.bind(&device, target, false);
        }
        self.find(id)?;
        fs::create_dir_all(target)?;
        let own = self.directory(id);
        self.bind(staging.unwrap_or(&own), target, readonly)
    }

    pub(super) fn unpublish(&self, target: &Path) -> io::Result<()> {
        self.unbind(target)?;
        match fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => fs::remove_dir(target),
            Ok(_) => fs::remove_file(target),
            Err(_) => Ok(()),
        }
    }

    fn bind(&self, source: &Path, target: &Path, readonly: bool) -> io::Result<()> {
        if self.mounts.lock().iter().any(|m| m == target) && is_mounted(target) {
            return Ok(());
        }
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        self.mounts.lock().push(target.to_owned());
        if readonly {
            let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, target, None::<&str>, again, None::<&str>)?;
        }
        Ok(())
    }

    fn unbind(&self, target: &Path) -> io::Result<()> {
        while is_mounted(target) {
            umount2(target, MntFlags::empty())?;
        }
        self.mounts.lock().retain(|m| m != target);
        Ok(())
    }

    /// Mounts of this driver that are still there.
    pub(super) fn mounted(&self) -> Vec<PathBuf> {
        self.mounts.lock().iter().filter(|m| is_mounted(m)).cloned().collect()
    }

    /// Undoes everything.
    pub(super) fn release(&self) {
        for target in std::mem::take(&mut *self.mounts.lock()).iter().rev() {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
        let ids: Vec<String> = self.volumes.lock().keys().cloned().collect();
        for id in ids {
            let _ = self.detach(&id);
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|l| l.split(' ').nth(4)).any(|at| Path::new(at) == path)
}

fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{:?}: {}: {said}", command.get_program(), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

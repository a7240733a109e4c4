//! Built-in images: the running program as an image, without copying it.
//!
//! The program is bound into each container, read-only; its loader and libraries, a few megabytes, are copied
//! into the image's one layer, so that a container starts with one mount only, and an upgrade of the host's C
//! library cannot break a running container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{ImageBind, ImageStore, NewImage, Reference, RunConfig, digest_of, elf};
use crate::error::{IoContext, Result, RuntimeError};

impl ImageStore {
    /// Makes `name` an image whose root filesystem has `binary` at `/yare` and runs `/yare <last part of the
    /// name>`. Cheap to repeat at every start. It is never collected as garbage.
    pub fn add_builtin(&self, name: &str, binary: &Path) -> Result<()> {
        let reference = Reference::parse(name)?;
        let command = reference.repository.rsplit('/').next().unwrap_or("hello").to_owned();
        let libraries =
            elf::dependencies(binary).ctx(|| format!("built-in image {name}: {}", binary.display()))?;
        // The layer is named by what is in it; a changed library makes a new one.
        let mut content = String::from("yare built-in 1\n");
        for file in &libraries {
            let meta = fs::metadata(file).ctx(|| format!("{}", file.display()))?;
            content.push_str(&format!(
                "{} {} {}\n",
                file.display(),
                meta.size(),
                meta.mtime_nsec() + meta.mtime()
            ));
        }
        let layer: String =
            digest_of(content.as_bytes()).trim_start_matches("sha256:").chars().take(24).collect();
        let mut held = self.hold();
        held.add(&layer);
        if !self.layer_dir(&layer).is_dir() {
            self.make_layer(&layer, &libraries)?;
        }
        let config = RunConfig {
            entrypoint: vec!["/yare".into(), command],
            working_dir: "/".into(),
            env: vec!["PATH=/".into()],
            ..RunConfig::default()
        };
        let id = digest_of(format!("{content}{name} {}", binary.display()).as_bytes());
        if self.get(name).is_some_and(|i| i.id == id) {
            return Ok(());
        }
        self.record(NewImage {
            id: id.clone(),
            tags: vec![reference.clone()],
            digests: vec![reference.with_digest(&id)],
            config,
            layers: vec![layer],
            binds: vec![ImageBind { host: binary.to_path_buf(), target: PathBuf::from("/yare") }],
            pinned: true,
        })?;
        Ok(())
    }

    fn make_layer(&self, layer: &str, libraries: &[PathBuf]) -> Result<()> {
        let staging = self.ingest_dir().join(format!("{layer}-{}", std::process::id()));
        let io = |p: &Path, e: std::io::Error| RuntimeError::io(p.display().to_string(), e);
        for dir in ["proc", "sys", "dev", "etc", "tmp", "run", "var"] {
            let path = staging.join(dir);
            fs::create_dir_all(&path).map_err(|e| io(&path, e))?;
        }
        let tmp = staging.join("tmp");
        let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        fs::set_permissions(&tmp, sticky).map_err(|e| io(&tmp, e))?;
        for (file, text) in [
            ("etc/passwd", "root:x:0:0:root:/:/yare\nnobody:x:65534:65534:nobody:/:/yare\n"),
            ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
            ("yare", ""),
        ] {
            let path = staging.join(file);
            fs::write(&path, text).map_err(|e| io(&path, e))?;
        }
        let mut bytes = 0;
        for library in libraries {
            let target = staging.join(library.strip_prefix("/").unwrap_or(library));
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(|e| io(parent, e))?;
            }
            bytes += fs::copy(library, &target).map_err(|e| io(library, e))?;
        }
        let size = self.layer_root().join(format!("{layer}.size"));
        fs::write(&size, format!("{bytes} {}\n", libraries.len() + 10)).map_err(|e| io(&size, e))?;
        let target = self.layer_dir(layer);
        match fs::rename(&staging, &target) {
            Err(e) if !target.is_dir() => Err(io(&target, e)),
            _ => Ok(()),
        }
    }
}

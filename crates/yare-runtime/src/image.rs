//! Images on disk: what there is, under which names, made of which layers.
//!
//! Below the store's directory:
//!
//! | path | holds |
//! |---|---|
//! | `index/<config digest>.json` | one record per image: names, configuration, layers |
//! | `layers/<chain id>/` | one unpacked layer, usable as an overlay's lower directory |
//! | `blobs/sha256/<digest>` | manifests and configurations, as they came |
//! | `ingest/` | what is being made; emptied at start |
//!
//! A layer is unpacked once per chain of layers below it, whatever images share it, and becomes visible by a
//! rename, so that a crash leaves nothing half-made in use.

mod archive;
mod builtin;
mod elf;
mod http;
mod manifest;
mod reference;
mod registry;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::{FsUsage, ImageId, ImageStatus};
use crate::error::{IoContext, Result, RuntimeError};
use crate::proto::{read_json, write_json};
pub use reference::Reference;

/// The parts of an OCI image configuration that matter for running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    pub user: String,
    #[serde(deserialize_with = "null_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    #[serde(deserialize_with = "null_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
}

/// `null` and absent both mean empty.
fn null_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An OCI image configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    pub architecture: String,
    pub os: String,
    #[serde(deserialize_with = "null_default")]
    pub config: RunConfig,
    pub rootfs: RootFs,
}

/// The layers of a configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<String>,
}

/// A file of the host that is part of an image (built-in images).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageBind {
    pub host: PathBuf,
    pub target: PathBuf,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub id: ImageId,
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
    pub config: RunConfig,
    /// Layer directories below `layers/`, uppermost first.
    pub layers: Vec<String>,
    pub size_bytes: u64,
    pub binds: Vec<ImageBind>,
    pub pinned: bool,
}

impl Image {
    /// What `imageID` says in a container's status.
    pub(crate) fn image_ref(&self) -> String {
        self.digests.first().cloned().unwrap_or_else(|| self.id.clone())
    }

    /// What `image` says in a container's status, when the pod named it so: a name that the image has, in full.
    pub(crate) fn name(&self, asked: &str) -> String {
        let asked = Reference::parse(asked).map(|r| r.to_string()).unwrap_or_default();
        let names = || self.tags.iter().chain(&self.digests);
        names().find(|n| **n == asked).or_else(|| names().next()).unwrap_or(&self.id).clone()
    }

    fn status(&self) -> ImageStatus {
        let user = self.config.user.split(':').next().unwrap_or_default();
        let uid = user.parse().ok();
        ImageStatus {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size_bytes: self.size_bytes,
            uid,
            username: if uid.is_some() { String::new() } else { user.to_owned() },
            entrypoint: self.config.entrypoint.clone(),
            cmd: self.config.cmd.clone(),
            env: self.config.env.clone(),
            workdir: PathBuf::from(&self.config.working_dir),
            stop_signal: self.config.stop_signal.clone(),
            volumes: self.config.volumes.keys().cloned().collect(),
            labels: self.config.labels.clone(),
            pinned: self.pinned,
            built_in: !self.binds.is_empty(),
        }
    }

    /// Whether the image answers to a name: id (also shortened), tag or digest reference.
    fn is(&self, asked: &str, normalized: Option<&Reference>) -> bool {
        if asked == self.id {
            return true;
        }
        if let Some(r) = normalized
            && (self.tags.contains(&r.to_string()) || self.digests.contains(&r.to_string()))
        {
            return true;
        }
        let hex = asked.strip_prefix("sha256:").unwrap_or(asked);
        hex.len() >= 12
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
            && self.id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(hex))
    }
}

/// A new image whose layers are in place, to be recorded.
pub(crate) struct NewImage {
    pub id: ImageId,
    pub tags: Vec<Reference>,
    pub digests: Vec<String>,
    pub config: RunConfig,
    pub layers: Vec<String>,
    pub binds: Vec<ImageBind>,
    pub pinned: bool,
}

/// The image store.
pub struct ImageStore {
    dir: PathBuf,
    images: RwLock<BTreeMap<ImageId, Arc<Image>>>,
    /// Layers that something unfinished needs: not garbage although no image has them yet.
    held: Mutex<BTreeMap<String, usize>>,
    /// One pull at a time per reference: the next one finds its layers there.
    pulling: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Keeps layers from being collected until their image is recorded.
pub(crate) struct Held<'a> {
    store: &'a ImageStore,
    layers: Vec<String>,
}

impl Held<'_> {
    pub(crate) fn add(&mut self, layer: &str) {
        *self.store.held.lock().entry(layer.to_owned()).or_insert(0) += 1;
        self.layers.push(layer.to_owned());
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.store.held.lock();
        for layer in &self.layers {
            if let Some(count) = held.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    held.remove(layer);
                }
            }
        }
    }
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    named(Sha256::new_with_prefix(bytes))
}

/// `sha256:…` of what was hashed.
pub(crate) fn named(hash: Sha256) -> String {
    format!("sha256:{}", hex(&hash.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a string cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Directory names of a stack of layers, lowest first, by the OCI's chain ids. Shortened: overlayfs takes all of
/// them in one page of options.
pub(crate) fn chain_names(diff_ids: &[String]) -> Vec<String> {
    let mut names = Vec::with_capacity(diff_ids.len());
    let mut chain = String::new();
    for diff in diff_ids {
        chain = if chain.is_empty() { diff.clone() } else { digest_of(format!("{chain} {diff}").as_bytes()) };
        names.push(chain.trim_start_matches("sha256:").chars().take(24).collect());
    }
    names
}

impl ImageStore {
    /// Opens (or makes) a store.
    pub fn open(dir: &Path) -> Result<Self> {
        for sub in ["index", "layers", "blobs/sha256", "ingest"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).ctx(|| format!("create {}", path.display()))?;
        }
        let store = Self {
            dir: dir.to_path_buf(),
            images: RwLock::default(),
            held: Mutex::default(),
            pulling: Mutex::default(),
        };
        let ingest = dir.join("ingest");
        for entry in fs::read_dir(&ingest).ctx(|| format!("read {}", ingest.display()))?.flatten() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
        let index = dir.join("index");
        let mut images = BTreeMap::new();
        for entry in fs::read_dir(&index).ctx(|| format!("read {}", index.display()))?.flatten() {
            match read_json::<Image>(&entry.path()) {
                // A layer may be missing after a power loss: such an image has to be pulled again.
                Ok(image) if image.layers.iter().all(|l| store.layer_dir(l).is_dir()) => {
                    images.insert(image.id.clone(), Arc::new(image));
                }
                _ => {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        *store.images.write() = images;
        store.collect_garbage();
        Ok(store)
    }

    pub(crate) fn layer_root(&self) -> PathBuf {
        self.dir.join("layers")
    }

    pub(crate) fn layer_dir(&self, name: &str) -> PathBuf {
        self.dir.join("layers").join(name)
    }

    pub(crate) fn ingest_dir(&self) -> PathBuf {
        self.dir.join("ingest")
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.dir.join("index").join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    pub(crate) fn hold(&self) -> Held<'_> {
        Held { store: self, layers: Vec::new() }
    }

    /// The image of a reference, digest reference or id.
    pub(crate) fn get(&self, asked: &str) -> Option<Arc<Image>> {
        let normalized = Reference::parse(asked).ok();
        let images = self.images.read();
        images.get(asked).or_else(|| images.values().find(|i| i.is(asked, normalized.as_ref()))).cloned()
    }

    /// What is known of one image.
    pub fn status(&self, asked: &str) -> Option<ImageStatus> {
        self.get(asked).map(|i| i.status())
    }

    /// All images.
    pub fn list(&self) -> Vec<ImageStatus> {
        self.images.read().values().map(|i| i.status()).collect()
    }

    /// Keeps a manifest or configuration.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = digest_of(bytes);
        let path = self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        if !path.exists() {
            let temporary = self.dir.join("ingest").join(digest.trim_start_matches("sha256:"));
            fs::write(&temporary, bytes).ctx(|| format!("write {}", temporary.display()))?;
            fs::rename(&temporary, &path).ctx(|| format!("write {}", path.display()))?;
        }
        Ok(digest)
    }

    /// Records an image whose layers are in place. Its tags move away from other images.
    pub(crate) fn record(&self, new: NewImage) -> Result<ImageId> {
        let mut images = self.images.write();
        let tags: BTreeSet<String> = new.tags.iter().map(ToString::to_string).collect();
        let mut changed = Vec::new();
        for image in images.values().filter(|i| i.id != new.id && !i.tags.is_disjoint(&tags)) {
            let mut image = Image::clone(image);
            image.tags = &image.tags - &tags;
            changed.push(image);
        }
        let size_bytes = new.layers.iter().map(|l| read_size(&self.layer_dir(l))).sum::<u64>();
        let mut image = Image {
            id: new.id.clone(),
            tags,
            digests: new.digests.into_iter().collect(),
            config: new.config,
            layers: new.layers,
            size_bytes,
            binds: new.binds,
            pinned: new.pinned,
        };
        if let Some(old) = images.get(&new.id) {
            image.tags.extend(old.tags.iter().cloned());
            image.digests.extend(old.digests.iter().cloned());
            image.pinned |= old.pinned;
        }
        changed.push(image);
        for image in changed {
            let path = self.record_path(&image.id);
            write_json(&path, &image).ctx(|| format!("write {}", path.display()))?;
            images.insert(image.id.clone(), Arc::new(image));
        }
        Ok(new.id)
    }

    /// Adds a name to an image.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        let name = Reference::parse(name)?;
        let image = self.get(image).ok_or(RuntimeError::NotFound { kind: "image", id: image.into() })?;
        let image = Image::clone(&image);
        self.record(NewImage {
            id: image.id,
            tags: vec![name],
            digests: Vec::new(),
            config: image.config,
            layers: image.layers,
            binds: image.binds,
            pinned: image.pinned,
        })
        .map(drop)
    }

    /// Removes a name, and with the last one the image; or the image by id. `user` answers which container uses
    /// an image.
    pub(crate) fn remove(&self, asked: &str, user: impl Fn(&str) -> Option<String>) -> Result<()> {
        let Some(image) = self.get(asked) else { return Ok(()) };
        let normalized = Reference::parse(asked).ok().map(|r| r.to_string()).unwrap_or_default();
        let by_name = image.tags.contains(&normalized);
        let path = self.record_path(&image.id);
        if by_name && image.tags.len() > 1 {
            let mut image = Image::clone(&image);
            image.tags.remove(&normalized);
            write_json(&path, &image).ctx(|| format!("write {}", path.display()))?;
            self.images.write().insert(image.id.clone(), Arc::new(image));
            return Ok(());
        }
        if let Some(container) = user(&image.id) {
            return Err(RuntimeError::ImageInUse { image: asked.to_owned(), container });
        }
        fs::remove_file(&path).ctx(|| format!("remove {}", path.display()))?;
        self.images.write().remove(&image.id);
        self.collect_garbage();
        Ok(())
    }

    /// Removes layers and blobs that no image has.
    pub(crate) fn collect_garbage(&self) {
        let images = self.images.read();
        let layers: BTreeSet<&str> =
            images.values().flat_map(|i| i.layers.iter().map(String::as_str)).collect();
        let held = self.held.lock();
        for entry in fs::read_dir(self.layer_root()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.trim_end_matches(".size");
            if !layers.contains(name) && !held.contains_key(name) {
                let trash = self.ingest_dir().join(format!("trash-{name}"));
                // Gone at once, deleted afterwards: a crash in between leaves it where start-up empties.
                if fs::rename(self.layer_dir(name), &trash).is_ok() {
                    let _ = fs::remove_dir_all(&trash);
                }
                let _ = fs::remove_file(self.layer_root().join(format!("{name}.size")));
            }
        }
        if held.is_empty() {
            let blobs = self.dir.join("blobs/sha256");
            let mut wanted: BTreeSet<String> = BTreeSet::new();
            for image in images.values() {
                wanted.insert(image.id.trim_start_matches("sha256:").to_owned());
                wanted.extend(
                    image.digests.iter().filter_map(|d| d.split("sha256:").nth(1)).map(str::to_owned),
                );
            }
            for entry in fs::read_dir(&blobs).into_iter().flatten().flatten() {
                if !wanted.contains(&*entry.file_name().to_string_lossy()) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }

    /// Space used by images, and of the filesystem they are on.
    pub fn usage(&self) -> Result<FsUsage> {
        let stat = nix::sys::statvfs::statvfs(&self.dir).ctx(|| format!("statvfs {}", self.dir.display()))?;
        let mut seen = BTreeSet::new();
        let mut used = 0;
        let mut inodes_used = 0;
        for image in self.images.read().values() {
            for layer in image.layers.iter().filter(|l| seen.insert((*l).clone())) {
                let (bytes, inodes) = read_sizes(&self.layer_dir(layer));
                used += bytes;
                inodes_used += inodes;
            }
        }
        let block = stat.fragment_size();
        Ok(FsUsage {
            mountpoint: self.dir.clone(),
            used_bytes: used,
            inodes_used,
            capacity_bytes: stat.blocks() * block,
            available_bytes: stat.blocks_available() * block,
            inodes: stat.files(),
            inodes_free: stat.files_available(),
            timestamp_ns: crate::sys::now_ns(),
        })
    }
}

/// A layer's size is counted once, when it is unpacked: `<layer>.size` beside it says bytes and inodes.
fn read_sizes(layer: &Path) -> (u64, u64) {
    let text = fs::read_to_string(layer.with_extension("size")).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn read_size(layer: &Path) -> u64 {
    read_sizes(layer).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_depend_on_what_is_below() {
        let ids = |l: &[&str]| l.iter().map(|s| format!("sha256:{s}")).collect::<Vec<_>>();
        let a = chain_names(&ids(&["aa", "bb"]));
        let b = chain_names(&ids(&["cc", "bb"]));
        assert_eq!(a[0], "aa");
        assert_ne!(a[1], b[1]);
        assert_eq!(a[1].len(), 24);
    }

    #[test]
    fn nulls_in_configurations_are_empty() {
        let c: ImageConfig = serde_json::from_str(
            r#"{"os":"linux","config":{"Env":null,"Entrypoint":null,"Cmd":["a"]},"rootfs":{"diff_ids":[]}}"#,
        )
        .unwrap();
        assert!(c.config.env.is_empty() && c.config.cmd == ["a"]);
        let c: ImageConfig = serde_json::from_str(r#"{"config":null}"#).unwrap();
        assert_eq!(c.config, RunConfig::default());
    }

    #[test]
    fn images_are_called_what_they_were_asked_for_by() {
        let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let image = |tags: &[&str], digests: &[&str]| Image {
            id: "sha256:1".into(),
            tags: of(tags),
            digests: of(digests),
            config: RunConfig::default(),
            layers: Vec::new(),
            size_bytes: 0,
            binds: Vec::new(),
            pinned: false,
        };
        let digest = format!("a.example/x@sha256:{}", "0".repeat(64));
        let tags = ["a.example/x:1", "docker.io/library/x:latest"];
        for (tags, digests, asked, want) in [
            (&tags[..], &[digest.as_str()][..], "x", "docker.io/library/x:latest"),
            (&tags, &[&digest], "a.example/x:1", "a.example/x:1"),
            (&tags, &[&digest], &digest, &digest),
            // Asked for by its id, or by a name that it has lost since.
            (&tags, &[&digest], "sha256:1", "a.example/x:1"),
            (&tags, &[], "", "a.example/x:1"),
            (&[], &[&digest], "x", &digest),
            (&[], &[], "x", "sha256:1"),
        ] {
            assert_eq!(image(tags, digests).name(asked), want, "{asked} {tags:?} {digests:?}");
        }
    }
}

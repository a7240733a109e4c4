//! Images from files: OCI layouts (a directory or a tar) and docker archives, compressed or not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::Deserialize;

use super::manifest::{Descriptor, Document, MAX_DOCUMENT, Plan, check_digest, choose, parse};
use super::registry::Progress;
use super::unpack::{Hashing, decompress};
use super::{ImageStore, Reference};
use crate::api::{ImageId, ProgressFn};
use crate::error::{IoContext, Result, RuntimeError};

/// Where an archive's members are.
enum Source {
    Directory(PathBuf),
    Tar { file: Arc<File>, members: BTreeMap<String, Member> },
}

enum Member {
    Data {
        offset: u64,
        size: u64,
    },
    /// Old docker archives link equal layers to each other.
    Link(String),
}

/// One entry of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A part of a file, read without moving anybody else's position.
struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..room], self.at)?;
        if n == 0 && room > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is truncated"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// A layer's stream whose bytes count as progress.
struct Counted {
    inner: Box<dyn Read + Send>,
    progress: Arc<Progress>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.bytes.fetch_add(n as u64, Ordering::Relaxed);
        self.progress.tell();
        Ok(n)
    }
}

fn normal(name: &str) -> String {
    let parts: Vec<_> = Path::new(name)
        .components()
        .filter_map(|c| match c {
            Component::Normal(n) => Some(n.to_string_lossy()),
            _ => None,
        })
        .collect();
    parts.join("/")
}

impl Source {
    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing"));
        match self {
            Self::Directory(dir) => {
                let file = File::open(dir.join(normal(name))).map_err(|_| missing())?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Tar { file, members } => {
                let mut name = normal(name);
                for _ in 0..8 {
                    match members.get(&name) {
                        Some(Member::Data { offset, size }) => {
                            let part = Part { file: Arc::clone(file), at: *offset, end: offset + size };
                            return Ok((Box::new(part), *size));
                        }
                        Some(Member::Link(to)) => name.clone_from(to),
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).is_file(),
            Self::Tar { members, .. } => members.contains_key(name),
        }
    }

    /// A small member, whole.
    fn document(&self, image: &str, name: &str) -> Result<Vec<u8>> {
        let corrupt = |message: String| RuntimeError::CorruptImage { reference: image.to_owned(), message };
        let (reader, size) = self.open(name).map_err(|e| corrupt(e.to_string()))?;
        if size > MAX_DOCUMENT {
            return Err(corrupt(format!("{name} has {size} bytes, more than {MAX_DOCUMENT}")));
        }
        let mut bytes = Vec::new();
        reader.take(MAX_DOCUMENT).read_to_end(&mut bytes).map_err(|e| corrupt(format!("{name}: {e}")))?;
        Ok(bytes)
    }

    fn blob(&self, image: &str, what: &str, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.document(image, &blob_name(digest))?;
        check_digest(image, what, &bytes, digest)?;
        Ok(bytes)
    }
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn index_tar(file: File) -> io::Result<Source> {
    let mut members = BTreeMap::new();
    let mut reader = &file;
    reader.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(reader);
    let length = file.metadata()?.len();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = normal(&entry.path()?.to_string_lossy());
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            if let Some(link) = entry.link_name()? {
                let base = if kind.is_symlink() {
                    Path::new(&name).parent().unwrap_or(Path::new(""))
                } else {
                    Path::new("")
                };
                let mut target = PathBuf::new();
                for c in base.join(link).components() {
                    match c {
                        Component::ParentDir => drop(target.pop()),
                        Component::Normal(n) => target.push(n),
                        _ => {}
                    }
                }
                members.insert(name, Member::Link(target.to_string_lossy().into_owned()));
            }
        } else if kind.is_file() {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.saturating_add(size) > length {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is truncated"));
            }
            members.insert(name, Member::Data { offset, size });
        }
    }
    Ok(Source::Tar { file: Arc::new(file), members })
}

impl ImageStore {
    /// Imports every image of an OCI layout or docker archive. `name` names the image (there must then be one);
    /// otherwise the archive's own names count. Answers the images' ids.
    pub fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<ImageId>> {
        self.import_told(path, name, None)
    }

    /// The same; how far each image has come is told on the way.
    pub fn import_told(
        &self,
        path: &Path,
        name: Option<&str>,
        call: Option<ProgressFn>,
    ) -> Result<Vec<ImageId>> {
        let shown = path.display().to_string();
        let name = name.map(Reference::parse).transpose()?;
        let source = if path.is_dir() {
            Source::Directory(path.to_path_buf())
        } else {
            let file = File::open(path).ctx(|| format!("open {shown}"))?;
            self.open_tar(file).map_err(|e| RuntimeError::CorruptImage {
                reference: shown.clone(),
                message: format!("it is not a readable tar archive: {e}"),
            })?
        };
        if source.has("index.json") {
            self.import_layout(&shown, &source, name, call.as_ref())
        } else if source.has("manifest.json") {
            self.import_docker(&shown, &source, name, call.as_ref())
        } else {
            Err(RuntimeError::CorruptImage {
                reference: shown,
                message: "it is neither an OCI layout (index.json) nor a docker archive (manifest.json)"
                    .into(),
            })
        }
    }

    /// Members are found by their position, so a compressed archive is unpacked to a file first.
    fn open_tar(&self, file: File) -> io::Result<Source> {
        let mut magic = [0; 4];
        let n = file.read_at(&mut magic, 0)?;
        let compressed = matches!(&magic[..n], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]);
        if !compressed {
            return index_tar(file);
        }
        let mut plain = tempfile_in(&self.ingest_dir())?;
        io::copy(&mut decompress(file)?, &mut plain)?;
        index_tar(plain)
    }

    fn import_layout(
        &self,
        shown: &str,
        source: &Source,
        name: Option<Reference>,
        call: Option<&ProgressFn>,
    ) -> Result<Vec<ImageId>> {
        let index: Document = parse(shown, "index.json", &source.document(shown, "index.json")?)?;
        // Several manifests with platforms and no names are one image for several machines.
        let named = |d: &Descriptor| annotation_name(d).is_some();
        let wanted: Vec<&Descriptor> = if index.manifests.iter().any(named) || index.manifests.len() == 1 {
            index.manifests.iter().collect()
        } else {
            choose(&index.manifests).into_iter().collect()
        };
        if wanted.is_empty() || (name.is_some() && wanted.len() > 1) {
            return Err(RuntimeError::CorruptImage {
                reference: shown.to_owned(),
                message: format!("{} images in it fit", wanted.len()),
            });
        }
        let mut ids = Vec::new();
        for descriptor in wanted {
            let own = annotation_name(descriptor).and_then(|n| Reference::parse(&n).ok());
            ids.push(self.import_manifest(shown, source, descriptor, name.clone().or(own), call)?);
        }
        Ok(ids)
    }

    fn import_manifest(
        &self,
        shown: &str,
        source: &Source,
        descriptor: &Descriptor,
        name: Option<Reference>,
        call: Option<&ProgressFn>,
    ) -> Result<ImageId> {
        let bytes = source.blob(shown, "manifest", &descriptor.digest)?;
        let document: Document = parse(shown, "manifest", &bytes)?;
        if document.config.is_none() && !document.manifests.is_empty() {
            let inner = choose(&document.manifests).ok_or_else(|| RuntimeError::CorruptImage {
                reference: shown.to_owned(),
                message: format!("no image for linux/{} in it", yare_schema::release::architecture()),
            })?;
            if inner.digest == descriptor.digest {
                return Err(RuntimeError::CorruptImage {
                    reference: shown.to_owned(),
                    message: "it contains itself".into(),
                });
            }
            return self.import_manifest(shown, source, inner, name, call);
        }
        let config = document.config.unwrap_or_default();
        let plan =
            Plan::new(shown, source.blob(shown, "configuration", &config.digest)?, document.layers.len())?;
        let _held = plan.hold(self);
        let layers: Vec<_> =
            document.layers.iter().map(|l| (blob_name(&l.digest), Some(l.digest.as_str()))).collect();
        self.import_layers(shown, source, &plan, &layers, call)?;
        let digests = name.iter().map(|n| n.with_digest(&descriptor.digest)).collect();
        if !bytes.is_empty() {
            self.put_blob(&bytes)?;
        }
        plan.record(self, name.into_iter().collect(), digests)
    }

    fn import_docker(
        &self,
        shown: &str,
        source: &Source,
        name: Option<Reference>,
        call: Option<&ProgressFn>,
    ) -> Result<Vec<ImageId>> {
        let images: Vec<DockerImage> =
            parse(shown, "manifest.json", &source.document(shown, "manifest.json")?)?;
        if images.is_empty() || (name.is_some() && images.len() > 1) {
            return Err(RuntimeError::CorruptImage {
                reference: shown.to_owned(),
                message: format!("there are {} images in it", images.len()),
            });
        }
        let mut ids = Vec::new();
        for image in images {
            let plan = Plan::new(shown, source.document(shown, &image.config)?, image.layers.len())?;
            let _held = plan.hold(self);
            let layers: Vec<_> = image.layers.iter().map(|name| (name.clone(), None)).collect();
            self.import_layers(shown, source, &plan, &layers, call)?;
            let tags = match &name {
                Some(name) => vec![name.clone()],
                None => image
                    .repo_tags
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|t| Reference::parse(t).ok())
                    .collect(),
            };
            ids.push(plan.record(self, tags, Vec::new())?);
        }
        Ok(ids)
    }

    /// Unpacks the layers that are missing, as many at a time as there are processors, and puts them into their places
    /// in order. Each has its name in the archive and, where that says one, its digest there.
    fn import_layers(
        &self,
        shown: &str,
        source: &Source,
        plan: &Plan,
        layers: &[(String, Option<&str>)],
        call: Option<&ProgressFn>,
    ) -> Result<()> {
        let missing = |i: usize| !self.layer_dir(&plan.chain[i]).is_dir();
        let size = |i: usize| source.open(&layers[i].0).map_or(0, |(_, size)| size);
        let progress = Arc::new(Progress {
            call: call.cloned(),
            layers: u32::try_from(layers.len()).unwrap_or(u32::MAX),
            total: (0..layers.len()).filter(|i| missing(*i)).map(size).sum(),
            done: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
        });
        let open = |i: usize| {
            let (name, digest) = &layers[i];
            let inner = open_layer(shown, source, name, digest.map(str::to_owned))?;
            Ok(Box::new(Counted { inner, progress: Arc::clone(&progress) }) as Box<dyn Read + Send>)
        };
        let diff_id = |i: usize| plan.config.rootfs.diff_ids[i].as_str();
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<usize> = (0..layers.len()).collect();
        for some in all.chunks(at_once) {
            let prepare = |i: usize| match missing(i) {
                true => self.prepare_layer(shown, &plan.chain[i], diff_id(i), open(i)?).map(Some),
                false => Ok(None),
            };
            let prepared: Vec<Result<_>> = std::thread::scope(|scope| {
                let threads: Vec<_> = some.iter().map(|i| scope.spawn(move || prepare(*i))).collect();
                let failed = |_| {
                    Err(RuntimeError::CorruptImage {
                        reference: shown.to_owned(),
                        message: "unpacking a layer failed badly".into(),
                    })
                };
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
            });
            for (i, prepared) in some.iter().zip(prepared) {
                self.settle_layer(shown, &plan.chain[..=*i], diff_id(*i), prepared?, || open(*i))?;
                progress.done.fetch_add(1, Ordering::Relaxed);
                progress.tell();
            }
        }
        Ok(())
    }
}

/// A layer's stream. Its uncompressed digest is checked by whoever unpacks it; the compressed one here.
fn open_layer(
    shown: &str,
    source: &Source,
    name: &str,
    digest: Option<String>,
) -> Result<Box<dyn Read + Send>> {
    let corrupt = |message: String| RuntimeError::CorruptImage { reference: shown.to_owned(), message };
    if let Some(digest) = digest {
        let (reader, _) = source.open(name).map_err(|e| corrupt(e.to_string()))?;
        let found = Hashing::new(reader).finish().map_err(|e| corrupt(format!("{name}: {e}")))?;
        if found != digest {
            return Err(corrupt(format!("layer {digest} has the digest {found}")));
        }
    }
    source.open(name).map(|(reader, _)| reader).map_err(|e| corrupt(e.to_string()))
}

fn annotation_name(d: &Descriptor) -> Option<String> {
    let get = |key: &str| d.annotations.get(key).cloned();
    // The full name where a tool gives one; the specification's own annotation is often only a tag.
    get("io.containerd.image.name")
        .or_else(|| get("org.opencontainers.image.ref.name").filter(|n| n.contains('/') || n.contains(':')))
}

/// A file without a name, gone when closed.
pub(super) fn tempfile_in(dir: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)
}

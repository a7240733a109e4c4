//! What is remembered, on disk: one file for each thing, named by a digest and in upstream's form.

use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Upstream's names begin so; a file that is being written ends differently.
const PREFIX: &str = "sha256-";
const UNFINISHED: &str = ".tmp";
/// A larger record is not one of ours.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// A kind of file.
pub(super) trait Kept: for<'de> Deserialize<'de> {
    const KIND: &str;
}

pub(super) fn file_name(key: &str) -> String {
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().fold(PREFIX.to_owned(), |mut name, b| {
        name.push_str(&format!("{b:02x}"));
        name
    })
}

pub(super) fn store<T: Serialize>(dir: &Path, key: &str, value: &T) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(file_name(key));
    let unfinished = dir.join(format!("{}{UNFINISHED}", file_name(key)));
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::other)?;
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        std::io::Write::write_all(&mut file, &bytes)?;
        std::fs::rename(&unfinished, &path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
}

/// None: there is no such file.
fn read<T: Kept>(path: &Path) -> std::io::Result<Option<T>> {
    use std::io::{Error, ErrorKind, Read as _};
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let bad = |why: String| Error::new(ErrorKind::InvalidData, format!("{}: {why}", path.display()));
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err(bad("it is too large".to_owned()));
    }
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if value["kind"] != T::KIND {
        return Err(bad(format!("it is no {}", T::KIND)));
    }
    serde_json::from_value(value).map(Some).map_err(|e| bad(e.to_string()))
}

pub(super) fn load<T: Kept>(dir: &Path, key: &str) -> std::io::Result<Option<T>> {
    read(&dir.join(file_name(key)))
}

pub(super) fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(PREFIX) && !name.ends_with(UNFINISHED)
    })
}

/// All that can be read.
pub(super) fn entries<T: Kept>(dir: &Path) -> Vec<(PathBuf, T)> {
    files(dir).filter_map(|path| read(&path).ok().flatten().map(|value| (path, value))).collect()
}

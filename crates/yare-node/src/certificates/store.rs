//! Certificates on disk, where upstream's tools look for them: `<name>-current.pem` is a link to
//! `<name>-<time>.pem`, which holds the chain and its key and which only its owner reads.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use yare_auth::pki::{KeyPairPem, Leaf, write_private};

use super::Kind;
use crate::error::{Context, Error, Result};

/// Files of earlier certificates that stay beside the current one, for who wonders what happened.
const EARLIER_MAX: usize = 1;
/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate with its key.
#[derive(Clone)]
pub struct Held {
    /// Chain and key.
    pub pair: KeyPairPem,
    /// What its first certificate says.
    pub leaf: Leaf,
}

impl Held {
    /// Reads a chain and its key.
    pub fn new(pair: KeyPairPem) -> Result<Self> {
        let leaf = Leaf::read(&pair.certificate).map_err(|e| Error::Request(e.to_string()))?;
        // A chain and a key that do not belong together must not take the place of those that do.
        yare_auth::tls::Serving::new(&pair).map_err(|e| Error::Request(e.to_string()))?;
        Ok(Self { pair, leaf })
    }
}

/// Where the certificates of one kind are.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    kind: Kind,
}

impl Store {
    /// Below `directory`, which is made when something is kept.
    pub fn new(directory: impl Into<PathBuf>, kind: Kind) -> Self {
        Self { directory: directory.into(), kind }
    }

    /// Which certificates these are.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The link to the current one.
    pub fn current_path(&self) -> PathBuf {
        self.path("current")
    }

    fn path(&self, qualifier: &str) -> PathBuf {
        self.directory.join(format!("{}-{qualifier}.pem", self.kind.file()))
    }

    /// The current certificate, if there is one.
    pub fn current(&self) -> Result<Option<Held>> {
        let path = self.current_path();
        let reason = |reason: String| Error::Path { path: path.clone(), reason };
        match fs::metadata(&path) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => return Err(reason("the file is too large".into())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(reason(error.to_string())),
        }
        let text = fs::read_to_string(&path).map_err(|e| reason(e.to_string()))?;
        Held::new(KeyPairPem { certificate: text.clone(), key: text })
            .map(Some)
            .map_err(|e| reason(e.to_string()))
    }

    /// Keeps a certificate and makes it the current one. A crash leaves either the old one or the new one.
    pub fn keep(&self, held: &Held, now: Timestamp) -> Result<()> {
        make_private(&self.directory)?;
        let path = self.path(&now.strftime("%Y-%m-%d-%H-%M-%S").to_string());
        let text = format!("{}{}", held.pair.certificate, held.pair.key);
        write_private(&path, &text).map_err(|e| Error::Request(e.to_string()))?;
        let (updated, current) = (self.path("updated"), self.current_path());
        match fs::remove_file(&updated) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context(|| format!("remove {}", updated.display()));
            }
            _ => {}
        }
        // Relative, so that the directory may be moved.
        let target = path.file_name().unwrap_or_default();
        symlink(target, &updated).context(|| format!("link {}", updated.display()))?;
        fs::rename(&updated, &current).context(|| format!("rename {}", updated.display()))?;
        self.forget_earlier(&path);
        Ok(())
    }

    /// Removes all but the newest of the earlier ones; their names sort by time.
    fn forget_earlier(&self, kept: &Path) {
        let prefix = format!("{}-2", self.kind.file());
        let mut earlier: Vec<PathBuf> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path != kept)
            .filter(|path| {
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                name.starts_with(&prefix) && name.ends_with(".pem")
            })
            .collect();
        earlier.sort();
        let gone = earlier.len().saturating_sub(EARLIER_MAX);
        for path in earlier.drain(..gone) {
            // One that stays costs a few kilobytes.
            let _ = fs::remove_file(path);
        }
    }

    /// The key for which a certificate is being asked. It is kept until there is one, so that an agent that was
    /// restarted meanwhile asks the same again and finds what it asked for before.
    pub(super) fn pending_key(&self) -> Result<String> {
        let path = self.pending_path();
        match fs::read_to_string(&path) {
            Ok(key) if yare_auth::pki::ask::is_private_key(&key) => return Ok(key),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::Path { path, reason: error.to_string() });
            }
            _ => {}
        }
        make_private(&self.directory)?;
        let key = yare_auth::pki::ask::private_key().map_err(|e| Error::Request(e.to_string()))?;
        write_private(&path, &key).map_err(|e| Error::Request(e.to_string()))?;
        Ok(key)
    }

    /// The key is in a certificate's file now, or of no use any more.
    pub(super) fn forget_pending_key(&self) {
        // A later request would only use it again.
        let _ = fs::remove_file(self.pending_path());
    }

    fn pending_path(&self) -> PathBuf {
        self.directory.join(format!("{}.key.tmp", self.kind.file()))
    }
}

fn make_private(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .context(|| format!("make {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use yare_auth::pki::{Subject, ask};

    use super::*;

    fn held(name: &str) -> Held {
        let subject = Subject { common_name: name, ..Subject::default() };
        Held::new(ask::self_signed(&subject).unwrap()).unwrap()
    }

    #[test]
    fn the_current_one_and_one_before_it_stay() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("pki"), Kind::Client);
        assert!(store.current().unwrap().is_none());
        for (second, name) in [(0, "a"), (1, "b"), (2, "c"), (2, "d")] {
            store.keep(&held(name), Timestamp::from_second(1_700_000_000 + second).unwrap()).unwrap();
            assert_eq!(store.current().unwrap().unwrap().leaf.common_name, name);
        }
        let mut names: Vec<String> = fs::read_dir(directory.path().join("pki"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "kubelet-client-2023-11-14-22-13-21.pem",
                "kubelet-client-2023-11-14-22-13-22.pem",
                "kubelet-client-current.pem"
            ]
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.current_path()), 0o600);
        assert_eq!(mode(&directory.path().join("pki")), 0o700);
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), Kind::Serving);
        fs::write(store.current_path(), "x").unwrap();
        assert!(store.current().is_err());
        let (a, b) = (held("a").pair, held("b").pair);
        assert!(Held::new(KeyPairPem { certificate: a.certificate, key: b.key }).is_err());
    }

    #[test]
    fn a_pending_key_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), Kind::Client);
        let key = store.pending_key().unwrap();
        assert_eq!(store.pending_key().unwrap(), key);
        fs::write(store.pending_path(), "torn").unwrap();
        let other = store.pending_key().unwrap();
        assert_ne!(other, key);
        store.forget_pending_key();
        assert_ne!(store.pending_key().unwrap(), other);
    }
}

//! The certificates that the server shows, from files that are read again when they change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use yare_auth::{
    pki::KeyPairPem,
    tls::{NamedPair, Serving},
};

use crate::{core::Core, files::follow};

/// Files with a certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate, with those between it and its authority behind it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Pair {
    /// What is in them.
    pub fn read(&self) -> Result<KeyPairPem, String> {
        let text =
            |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
        Ok(KeyPairPem { certificate: text(&self.certificate)?, key: text(&self.key)? })
    }

    fn files(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }
}

/// Where a certificate comes from.
pub enum Source {
    /// It is the cluster's own.
    Own(KeyPairPem),
    /// It is in the operator's files.
    Files(Pair),
}

impl Source {
    /// What is there now.
    ///
    /// # Errors
    /// Which file cannot be read, and why.
    pub fn read(&self) -> Result<KeyPairPem, String> {
        match self {
            Self::Own(pair) => Ok(pair.clone()),
            Self::Files(pair) => pair.read(),
        }
    }

    /// The files that it may change with.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = match self {
            Self::Own(_) => None,
            Self::Files(pair) => Some(pair),
        };
        pair.into_iter().flat_map(Pair::files)
    }
}

/// What the server shows, and where that comes from.
pub struct Certificates {
    usual: Source,
    named: Vec<(Pair, Vec<String>)>,
    serving: Arc<Serving>,
}

impl Certificates {
    /// Reads the files. `named`: what is shown to who asks for one of these names; no names: those in the certificate.
    pub fn open(usual: Source, named: Vec<(Pair, Vec<String>)>) -> Result<Self, String> {
        let (pair, others) = read(&usual, &named)?;
        let serving = Serving::with_names(&pair, &others).map_err(|e| e.to_string())?;
        Ok(Self { usual, named, serving })
    }

    /// What TLS asks.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.clone()
    }

    fn files(&self) -> BTreeSet<&Path> {
        self.named.iter().flat_map(|(pair, _)| pair.files()).chain(self.usual.files()).collect()
    }

    fn read_again(&self) -> Result<(), String> {
        let (pair, others) = read(&self.usual, &self.named)?;
        self.serving.replace_all(&pair, &others).map_err(|e| e.to_string())
    }
}

fn read(usual: &Source, named: &[(Pair, Vec<String>)]) -> Result<(KeyPairPem, Vec<NamedPair>), String> {
    let pair = usual.read()?;
    let others = named.iter().map(|(pair, names)| Ok(NamedPair { pair: pair.read()?, names: names.clone() }));
    Ok((pair, others.collect::<Result<_, String>>()?))
}

/// Follows the files until the server stops. Of a pair that does not fit (one file is new, the other not yet) the last
/// good one is shown.
pub fn start(core: &Arc<Core>) {
    let Some(certificates) = &core.config.certificates else { return };
    for path in certificates.files() {
        follow(core, path, |core, _| {
            Box::pin(
                async move { core.config.certificates.as_ref().map_or(Ok(()), Certificates::read_again) },
            )
        });
    }
}

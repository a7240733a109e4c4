//! The certificate in `tlsCertFile` and `tlsPrivateKeyFile`, read again when the files change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use yare_auth::pki::KeyPairPem;
use yare_auth::tls::Serving;

use crate::config::Settings;
use crate::error::{Error, Result};

/// A file's time and length.
type Stamp = Option<(SystemTime, u64)>;

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    serving: Arc<Serving>,
    stamps: Mutex<[Stamp; 2]>,
}

/// What the configuration's files say, if it names any.
pub(super) fn files(settings: &Settings) -> Result<Option<Arc<dyn ResolvesServerCert>>> {
    let (certificate, key) = (&settings.tls_cert_file, &settings.tls_private_key_file);
    if certificate.is_empty() && key.is_empty() {
        return Ok(None);
    }
    if certificate.is_empty() || key.is_empty() {
        return Err(Error::Request("tlsCertFile and tlsPrivateKeyFile must be given together".to_owned()));
    }
    let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
    let stamps = [stamp(&certificate), stamp(&key)];
    let serving = Serving::new(&read(&certificate, &key)?)
        .map_err(|e| Error::Path { path: certificate.clone(), reason: e.to_string() })?;
    Ok(Some(Arc::new(Files { certificate, key, serving, stamps: Mutex::new(stamps) })))
}

fn stamp(path: &PathBuf) -> Stamp {
    std::fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok()
}

fn read(certificate: &PathBuf, key: &PathBuf) -> Result<KeyPairPem> {
    let text = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|e| Error::Path { path: path.clone(), reason: e.to_string() })
    };
    Ok(KeyPairPem { certificate: text(certificate)?, key: text(key)? })
}

impl ResolvesServerCert for Files {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = [stamp(&self.certificate), stamp(&self.key)];
        let mut stamps = self.stamps.lock();
        if *stamps != now {
            // Of a pair that does not fit (one file is new, the other not yet) the last good one is shown.
            let read = read(&self.certificate, &self.key).map_err(|e| e.to_string());
            match read.and_then(|pair| self.serving.replace(&pair).map_err(|e| e.to_string())) {
                Ok(()) => *stamps = now,
                Err(error) => tracing::warn!(error, "the kubelet's serving certificate"),
            }
        }
        drop(stamps);
        self.serving.resolve(hello)
    }
}

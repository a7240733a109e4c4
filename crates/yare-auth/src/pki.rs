//! The cluster's keys and certificates, on disk under `<data-dir>/tls`.
//!
//! One certificate authority signs serving and client certificates, another signs the front proxy's, and one
//! key signs service-account tokens. All are made at the first start (ECDSA P-256: under a millisecond each)
//! and read at every later one. Private keys are readable by their owner only.

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};

pub mod ask;
mod certify;
mod leaf;
mod request;
#[cfg(test)]
mod tests;

pub use certify::Usages;
pub use leaf::{Leaf, file_pin, is_signed_by, key_pins};
pub use request::{CertificateRequest, Name, RequestError};

/// How long an authority is valid.
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a certificate that the server makes for itself or its components is valid.
pub const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// A certificate is made anew at start when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate is malformed or cannot be made.
    #[error("{what}: {source}")]
    Certificate {
        /// The file or the purpose.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
    /// An authority that cannot sign.
    #[error("{0}")]
    Refused(String),
}

/// A certificate chain and its private key, both PEM.
#[derive(Clone)]
pub struct KeyPairPem {
    /// Certificate, leaf first.
    pub certificate: String,
    /// PKCS #8 key.
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// `clientAuth`
    Client,
    /// `serverAuth`
    Server,
}

/// Who a certificate names.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// The user.
    pub common_name: &'a str,
    /// The groups.
    pub organizations: &'a [&'a str],
    /// DNS names and addresses of a server.
    pub alternative_names: &'a [String],
}

/// All of a cluster's keys.
pub struct Pki {
    directory: PathBuf,
    /// Signs serving and client certificates.
    pub cluster: Arc<Authority>,
    /// Signs the client certificate with which the API server's aggregator proves itself.
    pub front_proxy: Authority,
    /// Signs service-account tokens; PKCS #8 PEM, ECDSA P-256.
    pub service_account_key: String,
}

impl Pki {
    /// Reads the keys under `directory`, making what is absent.
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        fs::create_dir_all(directory).map_err(io_at(directory))?;
        restrict(directory)?;
        let cluster = Arc::new(Authority::open(directory, "ca", "yare-ca")?);
        let front_proxy = Authority::open(directory, "front-proxy-ca", "yare-front-proxy-ca")?;
        let path = directory.join("service-account.key");
        let service_account_key = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pem = new_key("service-account key")?.serialize_pem();
                write_private(&path, &pem)?;
                pem
            }
            Err(e) => return Err(io_at(&path)(e)),
        };
        Ok(Self { directory: directory.to_owned(), cluster, front_proxy, service_account_key })
    }

    /// A certificate of the cluster's authority kept under `name`: the one on disk while it names the same
    /// subject and stays valid for three months, a new one otherwise.
    pub fn keep(&self, name: &str, usage: Usage, subject: &Subject<'_>) -> Result<KeyPairPem, PkiError> {
        self.keep_by(&self.cluster, name, usage, subject)
    }

    /// The same of the front proxy's authority: what the API server shows to the servers behind it.
    pub fn keep_front_proxy(&self, name: &str, subject: &Subject<'_>) -> Result<KeyPairPem, PkiError> {
        self.keep_by(&self.front_proxy, name, Usage::Client, subject)
    }

    fn keep_by(
        &self,
        authority: &Authority,
        name: &str,
        usage: Usage,
        subject: &Subject<'_>,
    ) -> Result<KeyPairPem, PkiError> {
        let cert_path = self.directory.join(format!("{name}.crt"));
        let key_path = self.directory.join(format!("{name}.key"));
        if let (Ok(certificate), Ok(key)) = (fs::read_to_string(&cert_path), fs::read_to_string(&key_path))
            && still_good(&certificate, subject)
            && authority.signed(&certificate)
        {
            return Ok(KeyPairPem { certificate, key });
        }
        let pair = authority.issue(usage, subject, LEAF_VALIDITY)?;
        write_private(&key_path, &pair.key)?;
        write_private(&cert_path, &pair.certificate)?;
        Ok(pair)
    }
}

impl Authority {
    fn open(directory: &Path, file: &str, common_name: &str) -> Result<Self, PkiError> {
        let cert_path = directory.join(format!("{file}.crt"));
        let key_path = directory.join(format!("{file}.key"));
        let bad = |source| PkiError::Certificate { what: cert_path.display().to_string(), source };
        match (fs::read_to_string(&cert_path), fs::read_to_string(&key_path)) {
            (Ok(certificate), Ok(key)) => {
                let key = KeyPair::from_pem(&key).map_err(bad)?;
                let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(bad)?;
                Ok(Self { certificate, issuer })
            }
            (Err(c), Err(k))
                if c.kind() == io::ErrorKind::NotFound && k.kind() == io::ErrorKind::NotFound =>
            {
                let key = new_key(common_name)?;
                let mut params = CertificateParams::default();
                params.distinguished_name = DistinguishedName::new();
                params.distinguished_name.push(DnType::CommonName, common_name);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![
                    KeyUsagePurpose::KeyCertSign,
                    KeyUsagePurpose::CrlSign,
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyEncipherment,
                ];
                set_validity(&mut params, CA_VALIDITY);
                let certificate = params.self_signed(&key).map_err(bad)?.pem();
                write_private(&key_path, &key.serialize_pem())?;
                write_private(&cert_path, &certificate)?;
                Ok(Self { certificate, issuer: Issuer::new(params, key) })
            }
            // One half without the other: making a new authority would silently cut off every client.
            (Err(e), _) => Err(io_at(&cert_path)(e)),
            (_, Err(e)) => Err(io_at(&key_path)(e)),
        }
    }

    /// Issues a certificate with a new key.
    pub fn issue(
        &self,
        usage: Usage,
        subject: &Subject<'_>,
        validity: Duration,
    ) -> Result<KeyPairPem, PkiError> {
        let bad = |source| PkiError::Certificate { what: subject.common_name.to_owned(), source };
        let key = new_key(subject.common_name)?;
        let mut params = ask::params(subject)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        let certificate = params.signed_by(&key, &self.issuer).map_err(bad)?.pem();
        Ok(KeyPairPem { certificate, key: key.serialize_pem() })
    }

    /// The authority of a certificate and its key, both PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let bad = |source| PkiError::Certificate { what: "certificate authority".into(), source };
        let key = KeyPair::from_pem(key).map_err(bad)?;
        let belongs = der(certificate).is_some_and(|der| {
            let own = x509_parser::parse_x509_certificate(&der);
            own.is_ok_and(|(_, own)| own.public_key().raw == key.subject_public_key_info())
        });
        if !belongs {
            return Err(PkiError::Refused("the authority's certificate is of another key".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(bad)?;
        Ok(Self { certificate: certificate.to_owned(), issuer })
    }

    /// Until when it is valid, Unix seconds; certificates of its making end with it.
    pub fn not_after_s(&self) -> Option<i64> {
        not_after_s(&der(&self.certificate)?)
    }

    /// Whether this authority signed the PEM `certificate`.
    fn signed(&self, certificate: &str) -> bool {
        let (Some(leaf), Some(authority)) = (der(certificate), der(&self.certificate)) else { return false };
        let Ok((_, leaf)) = x509_parser::parse_x509_certificate(&leaf) else { return false };
        let Ok((_, authority)) = x509_parser::parse_x509_certificate(&authority) else { return false };
        leaf.issuer() == authority.subject() && key_identifiers_match(&leaf, &authority)
    }
}

/// Whether the leaf names the authority's key: an authority that was replaced keeps its name.
fn key_identifiers_match(
    leaf: &x509_parser::certificate::X509Certificate<'_>,
    authority: &x509_parser::certificate::X509Certificate<'_>,
) -> bool {
    use x509_parser::extensions::ParsedExtension;
    let wanted = leaf.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
        _ => None,
    });
    let had = authority.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    wanted.is_some() && wanted == had
}

/// The first certificate of a PEM file as DER.
pub fn der(pem: &str) -> Option<Vec<u8>> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok().map(|(_, pem)| pem.contents)
}

/// A block of a PEM file.
fn pem(label: &str, der: &[u8]) -> String {
    let mut out = format!("-----BEGIN {label}-----\n");
    let text = STANDARD.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = next;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// Until when a certificate (DER) is valid, Unix seconds.
pub fn not_after_s(der: &[u8]) -> Option<i64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// For how long a certificate (DER) is valid from its first moment to its last, seconds.
pub fn lifetime_s(der: &[u8]) -> Option<i64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = certificate.validity();
    Some(validity.not_after.timestamp() - validity.not_before.timestamp())
}

fn still_good(pem: &str, subject: &Subject<'_>) -> bool {
    let Some(der) = der(pem) else { return false };
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let fresh = cert.validity().not_after.timestamp() > (now + RENEW_BEFORE).as_secs() as i64;
    let name = cert.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
    let groups: Vec<&str> = cert.subject().iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let mut has: Vec<String> = cert
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|san| san.value.general_names.iter().filter_map(general_name).collect())
        .unwrap_or_default();
    let mut wants = subject.alternative_names.to_vec();
    has.sort_unstable();
    wants.sort_unstable();
    fresh && name == Some(subject.common_name) && groups == subject.organizations && has == wants
}

fn general_name(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|ip| ip.to_string()),
        _ => None,
    }
}

/// An address as certificates write it.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn new_key(what: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| PkiError::Certificate { what: what.to_owned(), source })
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now();
    // Five minutes back, for clients whose clocks run behind.
    params.not_before = (now - Duration::from_secs(300)).into();
    params.not_after = (now + validity).into();
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> PkiError + '_ {
    move |source| PkiError::Io { path: path.to_owned(), source }
}

fn restrict(directory: &Path) -> Result<(), PkiError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(io_at(directory))
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_at(path))
}

//! What a certificate says of its holder and of its time: as much as is needed to know when to ask for another.

use std::net::IpAddr;

use jiff::Timestamp;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::Pem, prelude::FromDer};

use super::{PkiError, der};

/// The first certificate of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The user.
    pub common_name: String,
    /// Its groups.
    pub organizations: Vec<String>,
    /// DNS names of a server.
    pub dns_names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When it begins to be good.
    pub not_before: Timestamp,
    /// Its last moment.
    pub not_after: Timestamp,
}

impl Leaf {
    /// Reads the first certificate of a PEM file.
    pub fn read(pem: &str) -> Result<Self, PkiError> {
        let refused = |why: &str| PkiError::Refused(format!("certificate: {why}"));
        let der = der(pem).ok_or_else(|| refused("no PEM"))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| refused("malformed"))?;
        let time = |t: x509_parser::time::ASN1Time| {
            Timestamp::from_second(t.timestamp()).map_err(|_| refused("its time is out of range"))
        };
        let subject = certificate.subject();
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(str::to_owned)
        };
        let mut out = Self {
            common_name: subject.iter_common_name().next().and_then(text).unwrap_or_default(),
            organizations: subject.iter_organization().filter_map(text).collect(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        };
        let names = certificate.subject_alternative_name().map_err(|_| refused("its names are malformed"))?;
        for name in names.iter().flat_map(|n| &n.value.general_names) {
            match name {
                GeneralName::DNSName(name) => out.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => out.addresses.extend(super::address(bytes)),
                _ => {}
            }
        }
        Ok(out)
    }

    /// Whether its time has come and is not over.
    pub fn is_good_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// The key of an authority's certificate as kubeadm pins it: `sha256:` and the hash of its `SubjectPublicKeyInfo`
/// in hexadecimal; one for each certificate in `pem`.
pub fn key_pins(pem: &str) -> Vec<String> {
    let mut pins = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()).flatten() {
        let Ok(certificate) = block.parse_x509() else { continue };
        let hash = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
        pins.push(format!("sha256:{}", hex(hash.as_ref())));
    }
    pins
}

/// Whether one of the authorities signed a certificate of `chain` (both PEM).
pub fn is_signed_by(chain: &str, authority: &str) -> bool {
    let read = |pem: &str| Pem::iter_from_buffer(pem.as_bytes()).flatten().collect::<Vec<_>>();
    let (chain, authorities) = (read(chain), read(authority));
    let signers: Vec<_> = authorities.iter().filter_map(|block| block.parse_x509().ok()).collect();
    chain.iter().filter_map(|block| block.parse_x509().ok()).any(|certificate| {
        signers.iter().any(|signer| certificate.verify_signature(Some(signer.public_key())).is_ok())
    })
}

/// The hash of a whole file of authorities, as it stands in front of a token: SHA-256 in hexadecimal.
pub fn file_pin(pem: &str) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, pem.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

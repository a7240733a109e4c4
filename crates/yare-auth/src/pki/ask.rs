//! The asking side: a key of one's own, and what is sent to an authority for a certificate of it.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use super::{KeyPairPem, LEAF_VALIDITY, PkiError, SanType, Subject, new_key, set_validity};

/// A new private key, PKCS #8 PEM, ECDSA P-256.
pub fn private_key() -> Result<String, PkiError> {
    new_key("private key").map(|key| key.serialize_pem())
}

/// Whether `pem` is a private key that [`request`] can use.
pub fn is_private_key(pem: &str) -> bool {
    KeyPair::from_pem(pem).is_ok()
}

/// The public half of a private key, a `SubjectPublicKeyInfo` in DER.
pub fn public_key(key: &str) -> Result<Vec<u8>, PkiError> {
    use rcgen::PublicKeyData as _;
    KeyPair::from_pem(key)
        .map(|key| key.subject_public_key_info())
        .map_err(|source| PkiError::Certificate { what: "private key".to_owned(), source })
}

/// A request (PKCS #10, PEM) for a certificate of `subject`, signed with its `key`.
pub fn request(key: &str, subject: &Subject<'_>) -> Result<String, PkiError> {
    let bad = |source| PkiError::Certificate { what: format!("request for {}", subject.common_name), source };
    let key = KeyPair::from_pem(key).map_err(bad)?;
    let request = params(subject)?.serialize_request(&key).map_err(bad)?;
    request.pem().map_err(bad)
}

/// A certificate that nobody vouches for, good for a year.
pub fn self_signed(subject: &Subject<'_>) -> Result<KeyPairPem, PkiError> {
    let bad = |source| PkiError::Certificate { what: subject.common_name.to_owned(), source };
    let key = new_key(subject.common_name)?;
    let mut params = params(subject)?;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    set_validity(&mut params, LEAF_VALIDITY);
    let certificate = params.self_signed(&key).map_err(bad)?.pem();
    Ok(KeyPairPem { certificate, key: key.serialize_pem() })
}

pub(super) fn params(subject: &Subject<'_>) -> Result<CertificateParams, PkiError> {
    let bad = |source| PkiError::Certificate { what: subject.common_name.to_owned(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for organization in subject.organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    params.distinguished_name.push(DnType::CommonName, subject.common_name);
    params.subject_alt_names = subject
        .alternative_names
        .iter()
        .map(|name| match name.parse::<std::net::IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => name.as_str().try_into().map(SanType::DnsName),
        })
        .collect::<Result<_, _>>()
        .map_err(bad)?;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{CertificateRequest, Leaf, file_pin, key_pins};

    #[test]
    fn a_request_says_what_was_asked() {
        let key = private_key().unwrap();
        assert!(is_private_key(&key) && !is_private_key("x"));
        let names = ["node-1".to_owned(), "10.0.0.1".to_owned()];
        let subject = Subject {
            common_name: "system:node:node-1",
            organizations: &["system:nodes"],
            alternative_names: &names,
        };
        let pem = request(&key, &subject).unwrap();
        let read = CertificateRequest::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(read.subject.common_name(), "system:node:node-1");
        assert_eq!(read.subject.organizations(), ["system:nodes"]);
        assert_eq!(read.dns_names, ["node-1"]);
        assert_eq!(read.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(read.key, public_key(&key).unwrap());
    }

    #[test]
    fn a_certificate_is_read_again() {
        let names = ["node-1".to_owned(), "::1".to_owned()];
        let subject = Subject { common_name: "node-1", alternative_names: &names, ..Subject::default() };
        let pair = self_signed(&subject).unwrap();
        let leaf = Leaf::read(&pair.certificate).unwrap();
        assert_eq!((leaf.common_name.as_str(), leaf.dns_names.as_slice()), ("node-1", &names[..1]));
        assert_eq!(leaf.addresses, ["::1".parse::<std::net::IpAddr>().unwrap()]);
        assert!(leaf.is_good_at(jiff::Timestamp::now()));
        assert!(!leaf.is_good_at(leaf.not_after) && !leaf.is_good_at(jiff::Timestamp::UNIX_EPOCH));
        assert!(Leaf::read("").is_err() && Leaf::read(&pair.key).is_err());
        let two = format!("{}{}", pair.certificate, self_signed(&subject).unwrap().certificate);
        let pins = key_pins(&two);
        assert_eq!((pins.len(), pins[0].len()), (2, 71));
        assert_ne!(pins[0], pins[1]);
        // Computed with another program.
        assert_eq!(file_pin("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}

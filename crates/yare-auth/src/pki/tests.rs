//! Keys on disk, and certificates for requests.

use jiff::Timestamp;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::*;
use crate::User;

/// Made by OpenSSL for `C=DE, O=dev, O=ops & more, UID=ignored, 1.3.6.1.4.1.57683.2=also-ignored, CN=first,
/// CN=jané`, with alternative names of every kind and the wish to be an authority.
const REQUEST: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIIByjCCAXACAQAwgYYxCzAJBgNVBAYTAkRFMQwwCgYDVQQKDANkZXYxEzARBgNV
BAoMCm9wcyAmIG1vcmUxFzAVBgoJkiaJk/IsZAEBDAdpZ25vcmVkMRswGQYJKwYB
BAGDwlMCDAxhbHNvLWlnbm9yZWQxDjAMBgNVBAMMBWZpcnN0MQ4wDAYDVQQDDAVq
YW7DqTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKcfPKobfGf714l6iK7g3yFV
hfJUwB/Agt1DWUXLGg1BC0UzRklT4PSNzcqixhji+OKdEPErF3O2sauYfBIPvLig
gYYwgYMGCSqGSIb3DQEJDjF2MHQwDwYDVR0TAQH/BAUwAwEB/zALBgNVHQ8EBAMC
AgQwVAYDVR0RBE0wS4IJYS5leGFtcGxlgQ1hQGV4YW1wbGUub3JnhwQKAAABhxD9
AAAAAAAAAAAAAAAAAAABhgxzcGlmZmU6Ly94L3mgCQYCKgOgAwwBejAKBggqhkjO
PQQDAgNIADBFAiEA0gFoSqwDuwafo9mPGHHTHF3bNPKflh6ianF+apdxKEoCIHnC
PUnOOA+UQDXsnIOlzGcP6GwREiMfM8kLl4ePqi3f
-----END CERTIFICATE REQUEST-----
";

#[test]
fn keys_are_made_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(dir.path()).unwrap();
    let subject = Subject {
        common_name: "kube-apiserver",
        alternative_names: &["127.0.0.1".into(), "kubernetes".into()],
        ..Subject::default()
    };
    let served = first.keep("apiserver", Usage::Server, &subject).unwrap();
    let again = Pki::open(dir.path()).unwrap();
    assert_eq!(first.cluster.certificate, again.cluster.certificate);
    assert_eq!(first.service_account_key, again.service_account_key);
    assert_eq!(again.keep("apiserver", Usage::Server, &subject).unwrap().certificate, served.certificate);
    let more = ["127.0.0.1".into(), "kubernetes".into(), "example.org".into()];
    let wider = Subject { alternative_names: &more, ..subject };
    assert_ne!(again.keep("apiserver", Usage::Server, &wider).unwrap().certificate, served.certificate);
}

#[test]
fn half_an_authority_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    drop(Pki::open(dir.path()).unwrap());
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    let error = Pki::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("ca.key"), "{error}");
}

#[test]
fn a_client_certificate_names_user_and_groups() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let subject =
        Subject { common_name: "system:node:n1", organizations: &["system:nodes"], ..Subject::default() };
    let pair = pki.cluster.issue(Usage::Client, &subject, LEAF_VALIDITY).unwrap();
    let user = User::from_certificate(&der(&pair.certificate).unwrap()).unwrap().unwrap();
    assert_eq!(user.name, "system:node:n1");
    assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
    assert_eq!(user.node_name(), Some("n1"));
}

#[test]
fn private_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    Pki::open(dir.path()).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Some(names) = certificate.subject_alternative_name().unwrap() else { return Vec::new() };
    names.value.general_names.iter().map(|n| general_name(n).unwrap_or_else(|| n.to_string())).collect()
}

#[test]
fn requests_are_read_as_signers_read_them() {
    let request = CertificateRequest::from_pem(REQUEST.as_bytes()).unwrap();
    assert_eq!(request.subject.common_name(), "jané");
    assert_eq!(request.subject.organizations(), ["dev", "ops & more"]);
    assert_eq!(request.dns_names, ["a.example"]);
    assert_eq!(request.emails, ["a@example.org"]);
    assert_eq!(request.uris, ["spiffe://x/y"]);
    assert_eq!(request.addresses, ["10.0.0.1", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap()));

    let broken = REQUEST.replace("REQUEST-", "REQUESTS-");
    assert_eq!(CertificateRequest::from_pem(broken.as_bytes()), Err(RequestError::Pem));
    assert_eq!(CertificateRequest::from_pem(b"nonsense"), Err(RequestError::Pem));
    // Somebody else's name under the same signature.
    let mut der = der(REQUEST).unwrap();
    let at = der.windows(5).position(|w| w == b"first").unwrap();
    der[at] = b'F';
    let forged = CertificateRequest::from_pem(pem("CERTIFICATE REQUEST", &der).as_bytes());
    assert!(matches!(forged, Err(RequestError::Signature(_))), "{forged:?}");
    for cut in [1, der.len() / 2, der.len() - 1] {
        assert!(CertificateRequest::from_pem(pem("CERTIFICATE REQUEST", &der[..cut]).as_bytes()).is_err());
    }
}

#[test]
fn a_certificate_has_what_the_signer_grants_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let request = CertificateRequest::from_pem(REQUEST.as_bytes()).unwrap();
    let usages = Usages::parse(&["client auth", "digital signature", "decipher only", "any"]).unwrap();
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    let (from, to) = (time("2026-01-01T00:00:00Z"), time("2050-01-01T00:00:01Z"));
    let text = pki.cluster.certify(&request, &usages, from, to).unwrap();
    let bytes = der(&text).unwrap();
    let (rest, certificate) = X509Certificate::from_der(&bytes).unwrap();
    assert!(rest.is_empty());
    let authority = der(&pki.cluster.certificate).unwrap();
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    certificate.verify_signature(Some(authority.public_key())).unwrap();
    assert!(key_identifiers_match(&certificate, &authority));
    assert_eq!(certificate.issuer(), authority.subject());
    assert_eq!(certificate.version(), x509_parser::x509::X509Version::V3);
    assert_eq!(certificate.subject().to_string(), "C=DE, O=dev + O=ops & more, CN=jané");
    assert_eq!(certificate.validity().not_before.timestamp(), from.as_second());
    assert_eq!(certificate.validity().not_after.timestamp(), to.as_second());
    assert_eq!(
        names(&certificate),
        ["a.example", "RFC822Name(a@example.org)", "10.0.0.1", "fd00::1", "URI(spiffe://x/y)"]
    );
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.decipher_only());
    assert!(!usage.value.key_cert_sign() && !usage.value.key_encipherment());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.any && extended.client_auth && !extended.server_auth);
    // Its own user, not the one of the UID attribute.
    let user = User::from_certificate(&bytes).unwrap().unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("jané", ""));
    assert_eq!(user.groups, ["dev", "ops & more", "system:authenticated"]);
    let again = der(&pki.cluster.certify(&request, &usages, from, to).unwrap()).unwrap();
    assert_ne!(X509Certificate::from_der(&again).unwrap().1.serial, certificate.serial);
}

#[test]
fn authorities_of_every_kind_of_key_sign() {
    let request = CertificateRequest::from_pem(REQUEST.as_bytes()).unwrap();
    let usages = Usages::parse(&["server auth"]).unwrap();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap().pem();
        let authority = Authority::from_pem(&own, &key.serialize_pem()).unwrap();
        let bytes = der(&authority.certify(&request, &usages, now, now).unwrap()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&bytes).unwrap();
        let own = der(&own).unwrap();
        let (_, own) = X509Certificate::from_der(&own).unwrap();
        certificate.verify_signature(Some(own.public_key())).unwrap();
        assert_eq!(certificate.key_usage().unwrap(), None);
    }
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let error = Authority::from_pem(&pki.cluster.certificate, &other.serialize_pem()).err().unwrap();
    assert!(error.to_string().contains("another key"), "{error}");
}

#[test]
fn usages() {
    assert_eq!(
        Usages::parse(&["s/mime", "nonsense", "client auth", "x"]),
        Err(r#"unrecognized usage values: ["nonsense" "x"]"#.to_owned())
    );
    // Two names of one usage, and any order, come to the same.
    assert_eq!(
        Usages::parse(&["s/mime", "signing", "client auth"]),
        Usages::parse(&["client auth", "email protection", "digital signature"])
    );
}

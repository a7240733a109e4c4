//! Certificates that webpki refuses and Go's library, with it every program of Kubernetes, takes: those of authorities
//! that stand for themselves (what tools make that sign their own certificates is such a one by default), those from
//! before version 3, and those that are themselves among what is trusted. What webpki refuses is looked at again here.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, TrustAnchor, UnixTime},
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::ExtendedKeyUsage,
    oid_registry as oids,
    prelude::FromDer,
    time::ASN1Time,
    x509::{SubjectPublicKeyInfo, X509Version},
};

/// Certificates between one and its authority.
const MAX_BETWEEN: usize = 6;

/// What a certificate is shown for, where it says what it may be shown for.
pub(super) type Purpose = for<'a, 'b> fn(&'a ExtendedKeyUsage<'b>) -> bool;

pub(super) const SERVER: Purpose = |usage| usage.server_auth;
pub(super) const CLIENT: Purpose = |usage| usage.client_auth;

/// Whether a certificate is one that webpki would not judge, and one of `roots` stands behind it.
pub(super) fn is_vouched_for(
    roots: &RootCertStore,
    shown: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now: UnixTime,
    purpose: Purpose,
) -> bool {
    let Ok(now) =
        i64::try_from(now.as_secs()).map_err(drop).and_then(|s| ASN1Time::from_timestamp(s).map_err(drop))
    else {
        return false;
    };
    let is_good = |certificate: &X509Certificate<'_>| {
        certificate.validity().is_valid_at(now) && is_plain(certificate) && may(certificate, purpose)
    };
    let Some(shown) = X509Certificate::from_der(shown.as_ref()).ok().map(|(_, c)| c).filter(|c| is_good(c))
    else {
        return false;
    };
    if roots.roots.iter().any(|anchor| is_of(anchor, &shown)) {
        return true;
    }
    // Of any other webpki has said all there is to say.
    if !shown.is_ca() && shown.version() == X509Version::V3 {
        return false;
    }
    let between: Vec<X509Certificate<'_>> = between
        .iter()
        .take(MAX_BETWEEN)
        .filter_map(|der| X509Certificate::from_der(der.as_ref()).ok().map(|(_, c)| c))
        .filter(|c| c.is_ca() && is_good(c) && signs_others(c))
        .collect();
    let mut at = &shown;
    for _ in 0..=MAX_BETWEEN {
        if roots.roots.iter().any(|anchor| has_signed(anchor, at)) {
            return true;
        }
        let issuer = between.iter().find(|issuer| {
            issuer.subject().as_raw() == at.issuer().as_raw()
                && at.verify_signature(Some(issuer.public_key())).is_ok()
        });
        match issuer {
            Some(issuer) => at = issuer,
            None => return false,
        }
    }
    false
}

/// Whether there is nothing in the certificate that would have to be understood to believe it, and is not looked at here.
fn is_plain(certificate: &X509Certificate<'_>) -> bool {
    let known = [
        oids::OID_X509_EXT_BASIC_CONSTRAINTS,
        oids::OID_X509_EXT_KEY_USAGE,
        oids::OID_X509_EXT_EXTENDED_KEY_USAGE,
        oids::OID_X509_EXT_SUBJECT_ALT_NAME,
    ];
    // Constraints of names bind, whether they say so or not.
    let constrained = oids::OID_X509_EXT_NAME_CONSTRAINTS;
    certificate.extensions().iter().all(|e| e.oid != constrained && (!e.critical || known.contains(&e.oid)))
}

fn may(certificate: &X509Certificate<'_>, purpose: Purpose) -> bool {
    match certificate.extended_key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.any || purpose(usage.value)),
        Err(_) => false,
    }
}

fn signs_others(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// Whether the certificate is the anchor: of its name and its key.
fn is_of(anchor: &TrustAnchor<'_>, certificate: &X509Certificate<'_>) -> bool {
    sequence(&anchor.subject) == certificate.subject().as_raw()
        && sequence(&anchor.subject_public_key_info) == certificate.public_key().raw
}

fn has_signed(anchor: &TrustAnchor<'_>, certificate: &X509Certificate<'_>) -> bool {
    if anchor.name_constraints.is_some() || sequence(&anchor.subject) != certificate.issuer().as_raw() {
        return false;
    }
    let key = sequence(&anchor.subject_public_key_info);
    SubjectPublicKeyInfo::from_der(&key)
        .is_ok_and(|(_, key)| certificate.verify_signature(Some(&key)).is_ok())
}

/// The content of a DER sequence with its head, which anchors are kept without.
fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![0x30];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    use rustls::pki_types::ServerName;
    use std::{sync::Arc, time::Duration};

    use super::{super::servers::believing, *};

    /// A certificate that may sign others for this name, signed by itself or by `issuer`.
    fn authority(
        name: &str,
        usage: &[ExtendedKeyUsagePurpose],
        issuer: Option<&Issuer<'_, KeyPair>>,
    ) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = usage.to_vec();
        let certificate = match issuer {
            Some(issuer) => params.signed_by(&key, issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        (certificate.der().clone(), Issuer::new(params, key))
    }

    fn verdict(
        trusted: &CertificateDer<'static>,
        shown: &CertificateDer<'static>,
        between: &[CertificateDer<'static>],
        name: &'static str,
        now: UnixTime,
    ) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let verifier = believing(Arc::new(roots)).unwrap();
        let name = ServerName::try_from(name).unwrap();
        verifier.verify_server_cert(shown, between, &name, &[], now).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn authorities_stand_for_themselves() {
        let now = UnixTime::now();
        let (own, issuer) = authority("a.example", &[], None);
        let (below, middle) = authority("b.example", &[], Some(&issuer));
        let (last, _) = authority("c.example", &[], Some(&middle));
        let (client, _) = authority("d.example", &[ExtendedKeyUsagePurpose::ClientAuth], Some(&issuer));
        let (stranger, _) = authority("a.example", &[], None);
        let later = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
        for (what, shown, between, name, at, believed) in [
            ("itself", &own, &[][..], "a.example", now, true),
            ("another name", &own, &[], "x.example", now, false),
            ("below it", &below, &[], "b.example", now, true),
            ("two below it", &last, std::slice::from_ref(&below), "c.example", now, true),
            ("none between", &last, &[], "c.example", now, false),
            ("a client", &client, &[], "d.example", now, false),
            ("another of the name", &stranger, &[], "a.example", now, false),
            ("another between", &last, std::slice::from_ref(&stranger), "c.example", now, false),
            ("long ago", &own, &[], "a.example", later, false),
        ] {
            let verdict = verdict(&own, shown, between, name, at);
            assert_eq!(verdict.is_ok(), believed, "{what}: {verdict:?}");
        }
        // A certificate that signs nobody is believed where it is trusted itself, whoever signed it.
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["e.example".to_owned()]).unwrap();
        let pinned = params.signed_by(&key, &issuer).unwrap().der().clone();
        assert_eq!(verdict(&pinned, &pinned, &[], "e.example", now), Ok(()));
        assert!(verdict(&stranger, &pinned, &[], "e.example", now).is_err());
        let mut roots = RootCertStore::empty();
        roots.add(own.clone()).unwrap();
        assert!(is_vouched_for(&roots, &client, &[], now, CLIENT));
        assert!(!is_vouched_for(&roots, &client, &[], now, SERVER));
    }
}

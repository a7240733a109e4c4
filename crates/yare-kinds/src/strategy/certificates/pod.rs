//! `PodCertificateRequest`: a kubelet asks for a certificate in a pod's name; a signer answers in `status`
//! (KEP-4317).

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use ring::signature;
use serde_json::Value;
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest, extensions::GeneralName,
    pem::Pem, prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo,
};
use yare_schema::field::{FieldError, Path};

use super::mail::is_address;
use crate::{
    check::{Check, Errors, check_signer_name},
    conditions, meta, names,
    strategy::{
        Context, Strategy,
        rules::{check_length, plain_invalid},
    },
    view::{View, ViewMut, same},
};

pub struct PodCertificateRequest;

const DEFAULT_EXPIRATION_S: i64 = 24 * 60 * 60;
const MIN_EXPIRATION_S: i64 = 60 * 60;
const MAX_EXPIRATION_S: i64 = 91 * 24 * 60 * 60;
/// The longest life of what signers of Kubernetes' own sign.
const MAX_KUBERNETES_EXPIRATION_S: i64 = 24 * 60 * 60;
const MAX_REQUEST_BYTES: usize = 10 * 1024;
const MAX_CHAIN_BYTES: usize = 100 * 1024;
const MAX_UID: usize = 128;
/// How far refreshing stays from both ends of a certificate's life.
const REFRESH_MARGIN_S: i64 = 10 * 60;
/// How far a signer's clock may be off.
const CLOCK_SKEW_S: i64 = 5 * 60;
/// Conditions that end a request.
const ENDS: &[&str] = &["Issued", "Denied", "Failed"];

impl Strategy for PodCertificateRequest {
    fn default(&self, request: &mut Value) {
        request.default_absent("spec.maxExpirationSeconds", DEFAULT_EXPIRATION_S);
    }

    fn validate(&self, request: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), request.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        check_status(new, old, ctx)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let signer = spec.str_at("signerName");
    check_signer_name(errs, &path.child("signerName"), signer);
    let annotations = spec.at("unverifiedUserAnnotations");
    if !annotations.is_null() {
        check_user_annotations(errs, &path.child("unverifiedUserAnnotations"), annotations);
    }
    for (name, uid) in
        [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")]
    {
        let value = spec.str_at(name);
        errs.each(&path.child(name), value, names::dns1123_subdomain(value));
        let (p, value) = (path.child(uid), spec.str_at(uid));
        if value.is_empty() {
            errs.invalid(&p, value, "must not be empty");
        }
        check_length(errs, &p, value, MAX_UID);
    }
    let p = path.child("maxExpirationSeconds");
    let Some(expiration_s) = spec.int_opt("maxExpirationSeconds") else {
        return errs.required(&p, "must be set");
    };
    let host = signer.split('/').next().unwrap_or_default();
    let own = host == "kubernetes.io" || host.ends_with(".kubernetes.io");
    let most = if own { MAX_KUBERNETES_EXPIRATION_S } else { MAX_EXPIRATION_S };
    if !(MIN_EXPIRATION_S..=most).contains(&expiration_s) {
        errs.invalid(&p, expiration_s, format!("must be in the range [{MIN_EXPIRATION_S}, {most}]"));
    }
    let (request, key, proof) =
        (spec.str_at("stubPKCS10Request"), spec.str_at("pkixPublicKey"), spec.str_at("proofOfPossession"));
    match (request.is_empty(), key.is_empty(), proof.is_empty()) {
        (false, true, true) => check_request(errs, &path.child("stubPKCS10Request"), request),
        (true, false, false) => check_proof(errs, path, key, proof, spec.str_at("podUID")),
        _ => plain_invalid(
            errs,
            path,
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        ),
    }
}

/// Annotations under domains, as far as their names and size go.
fn check_user_annotations(errs: &mut Errors, path: &Path<'_>, annotations: &Value) {
    for (key, _) in annotations.entries("") {
        let lower = key.to_lowercase();
        match lower.split_once('/') {
            Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
                errs.each(path, lower.as_str(), names::qualified_name(&lower));
            }
            _ => {
                errs.invalid(path, lower.as_str(), "must be a domain-prefixed key (such as \"acme.io/foo\")")
            }
        }
    }
    let size: usize =
        annotations.entries("").map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > meta::TOTAL_ANNOTATION_SIZE_LIMIT_B {
        errs.push(FieldError::too_long(path, meta::TOTAL_ANNOTATION_SIZE_LIMIT_B));
    }
}

/// Bytes that JSON has as base64, if there are not too many.
fn decode(errs: &mut Errors, path: &Path<'_>, text: &str) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    if bytes.len() > MAX_REQUEST_BYTES {
        errs.push(FieldError::too_long(path, MAX_REQUEST_BYTES));
        return None;
    }
    Some(bytes)
}

/// Kinds of keys that are taken.
enum KeyCheck {
    Good,
    Curve(String),
    Modulus(usize),
    Unknown,
}

fn check_key(key: &SubjectPublicKeyInfo<'_>) -> KeyCheck {
    const P256: &str = "1.2.840.10045.3.1.7";
    const P384: &str = "1.3.132.0.34";
    const P521: &str = "1.3.132.0.35";
    const ED25519: &str = "1.3.101.112";
    if key.algorithm.algorithm.to_id_string() == ED25519 {
        return KeyCheck::Good;
    }
    match key.parsed() {
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
            let curve = curve.map(|oid| oid.to_id_string()).unwrap_or_default();
            if [P256, P384, P521].contains(&curve.as_str()) { KeyCheck::Good } else { KeyCheck::Curve(curve) }
        }
        Ok(PublicKey::RSA(rsa)) => match rsa.key_size() {
            3072 | 4096 => KeyCheck::Good,
            bits => KeyCheck::Modulus(bits),
        },
        _ => KeyCheck::Unknown,
    }
}

fn check_request(errs: &mut Errors, path: &Path<'_>, text: &str) {
    let Some(bytes) = decode(errs, path, text) else { return };
    let request = match X509CertificationRequest::from_der(&bytes) {
        Ok((&[], request)) => request,
        _ => return plain_invalid(errs, path, "must be a valid PKCS#10 CSR"),
    };
    match check_key(&request.certification_request_info.subject_pki) {
        KeyCheck::Good => {}
        KeyCheck::Curve(curve) => {
            let detail = "elliptic public keys must use curve P256, P384, or P521";
            return errs.invalid(path, format!("curve {curve}"), detail);
        }
        KeyCheck::Modulus(bits) => {
            let detail = "RSA keys must have modulus size 3072 or 4096";
            return errs.invalid(path, format!("{bits}-bit modulus"), detail);
        }
        KeyCheck::Unknown => {
            return plain_invalid(
                errs,
                path,
                "unknown public key type; supported types are Ed25519, ECDSA, and RSA",
            );
        }
    }
    if !is_signed(&request) {
        plain_invalid(errs, path, "invalid signature");
    }
}

/// Whether a request's key has signed it.
fn is_signed(request: &X509CertificationRequest<'_>) -> bool {
    const ECDSA_SHA512: &str = "1.2.840.10045.4.3.4";
    if request.signature_algorithm.algorithm.to_id_string() != ECDSA_SHA512 {
        return request.verify_signature().is_ok();
    }
    // A curve that the usual library does not know.
    use p521::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
    let info = &request.certification_request_info;
    let signature = yasna::parse_der(&request.signature_value.data, |reader| {
        reader.read_sequence(|reader| {
            let mut both = [0; 132];
            for half in both.chunks_mut(66) {
                let (number, _) = reader.next().read_bigint_bytes()?;
                let number = &number[number.iter().take_while(|b| **b == 0).count()..];
                let Some(at) = half.len().checked_sub(number.len()) else {
                    return Err(yasna::ASN1Error::new(yasna::ASN1ErrorKind::Invalid));
                };
                half[at..].copy_from_slice(number);
            }
            Ok(both)
        })
    });
    let Ok(signature) = signature else { return false };
    let key = VerifyingKey::from_sec1_bytes(&info.subject_pki.subject_public_key.data);
    match (key, Signature::from_slice(&signature)) {
        (Ok(key), Ok(signature)) => key.verify(info.raw, &signature).is_ok(),
        _ => false,
    }
}

/// The older form of a request: a key, and the pod's UID signed with it.
fn check_proof(errs: &mut Errors, path: &Path<'_>, key: &str, proof: &str, signed: &str) {
    let (key_path, proof_path) = (path.child("pkixPublicKey"), path.child("proofOfPossession"));
    let Some(bytes) = decode(errs, &key_path, key) else { return };
    let Some(proof) = decode(errs, &proof_path, proof) else { return };
    let info = match SubjectPublicKeyInfo::from_der(&bytes) {
        Ok((&[], info)) => info,
        _ => return errs.invalid(&key_path, key, "must be a valid PKIX-serialized public key"),
    };
    match check_key(&info) {
        KeyCheck::Good => {}
        KeyCheck::Curve(curve) => {
            let detail = "elliptic public keys must use curve P256 or P384";
            return errs.invalid(&key_path, format!("curve {curve}"), detail);
        }
        KeyCheck::Modulus(bits) => {
            let detail = "RSA keys must have modulus size 3072 or 4096";
            return errs.invalid(&key_path, format!("{bits}-bit modulus"), detail);
        }
        KeyCheck::Unknown => {
            let detail = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";
            return errs.invalid(&key_path, key, detail);
        }
    }
    if !has_signed(&info, signed.as_bytes(), &proof) {
        plain_invalid(errs, &proof_path, "could not verify proof-of-possession signature");
    }
}

/// Whether a key's owner has signed the text: Ed25519, or the SHA-256 of it with ECDSA or RSA-PSS.
fn has_signed(info: &SubjectPublicKeyInfo<'_>, text: &[u8], proof: &[u8]) -> bool {
    let bits = &info.subject_public_key.data;
    let algorithm: &dyn signature::VerificationAlgorithm = match info.parsed() {
        Ok(PublicKey::RSA(_)) => &signature::RSA_PSS_2048_8192_SHA256,
        Ok(PublicKey::EC(point)) if point.key_size() <= 256 => &signature::ECDSA_P256_SHA256_ASN1,
        Ok(PublicKey::EC(_)) => &signature::ECDSA_P384_SHA256_ASN1,
        _ => &signature::ED25519,
    };
    signature::UnparsedPublicKey::new(algorithm, bits).verify(text, proof).is_ok()
}

fn is(request: &Value, kind: &str) -> bool {
    conditions::is_true(request.items("status.conditions"), kind)
}

fn check_status(new: &Value, old: &Value, ctx: &Context<'_>) -> Errors {
    let mut errs = Errors::new();
    let path = Path::new("status");
    let list = path.child("conditions");
    let conditions = new.items("status.conditions");
    let mut ends = 0;
    for (i, condition) in conditions.iter().enumerate() {
        // Upstream writes the place as a field, not as an index.
        let place = format!("[{i}]");
        let at = list.child(&place);
        let (kind, status) = (condition.str_at("type"), condition.str_at("status"));
        if !ENDS.contains(&kind) {
            errs.one_listed(&at.child("type"), kind, ENDS);
            continue;
        }
        ends += 1;
        if ends > 1 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errs.invalid(&at.child("type"), kind, detail);
        }
        errs.one_of(&at.child("status"), status, &["True"]);
    }
    errs.extend(meta::validate_conditions(conditions, &list));
    if !errs.is_empty() {
        return errs;
    }
    let unchanged = same(new.at("status"), old.at("status"));
    if ENDS.iter().any(|end| is(old, end)) {
        if !unchanged {
            let detail = "immutable after PodCertificateRequest is issued, denied, or failed";
            plain_invalid(&mut errs, &path, detail);
        }
        return errs;
    }
    if is(new, "Denied") || is(new, "Failed") {
        let only = serde_json::json!({ "conditions": conditions });
        if !same(new.at("status"), &only) {
            plain_invalid(
                &mut errs,
                &path,
                "non-condition status fields must be empty when denying or failing the PodCertificateRequest",
            );
        }
        return errs;
    }
    if is(new, "Issued") {
        check_issued(&mut errs, &path, new, old, ctx);
        return errs;
    }
    if !unchanged {
        let detail = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
        plain_invalid(&mut errs, &path, detail);
    }
    errs
}

/// The public key that a request is about.
fn requested_key(spec: &Value) -> Option<Vec<u8>> {
    let request = STANDARD.decode(spec.str_at("stubPKCS10Request")).ok()?;
    if request.is_empty() {
        return STANDARD.decode(spec.str_at("pkixPublicKey")).ok();
    }
    let (_, request) = X509CertificationRequest::from_der(&request).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

fn check_issued(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value, ctx: &Context<'_>) {
    let (p, chain) = (path.child("certificateChain"), new.str_at("status.certificateChain"));
    if chain.len() > MAX_CHAIN_BYTES {
        return errs.push(FieldError::too_long(&p, MAX_CHAIN_BYTES));
    }
    let blocks: Vec<Pem> = Pem::iter_from_buffer(chain.as_bytes()).map_while(Result::ok).collect();
    let Some(leaf) = blocks.first() else {
        return errs.invalid(&p, chain, "issued certificate chain must contain at least one certificate");
    };
    if leaf.label != "CERTIFICATE" {
        let detail = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
        return errs.invalid(&p, chain, detail);
    }
    let Ok((_, leaf)) = X509Certificate::from_der(&leaf.contents) else {
        return errs.invalid(&p, chain, "leaf certificate does not parse as valid X.509");
    };
    check_names(errs, &p, &leaf);
    if requested_key(old.at("spec")).is_none_or(|key| key != leaf.public_key().raw) {
        return errs.invalid(&p, chain, "leaf certificate was not issued to the requested public key");
    }
    check_times(errs, path, new, &leaf, ctx);
    if !errs.is_empty() {
        return;
    }
    for block in &blocks[1..] {
        if block.label != "CERTIFICATE" {
            let detail = "issued certificate chain must consist entirely of CERTFICATE PEM blocks";
            return errs.invalid(&p, chain, detail);
        }
        if X509Certificate::from_der(&block.contents).is_err() {
            return errs.invalid(&p, chain, "intermediate certificate does not parse as valid X.509");
        }
    }
}

fn check_names(errs: &mut Errors, path: &Path<'_>, leaf: &X509Certificate<'_>) {
    let alternative = leaf.subject_alternative_name().ok().flatten();
    let names = || alternative.iter().flat_map(|e| &e.value.general_names);
    for name in names() {
        let GeneralName::DNSName(name) = name else { continue };
        if name.is_empty() {
            errs.invalid(path, *name, "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            errs.invalid(path, *name, "leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            errs.invalid(path, *name, "leaf certificate's DNSName should not start or end with '.'");
        }
    }
    for name in names() {
        if let GeneralName::RFC822Name(address) = name
            && !is_address(address)
        {
            errs.invalid(path, *address, "leaf certificate should not contain invalid EmailAddress");
        }
    }
}

fn check_times(
    errs: &mut Errors,
    path: &Path<'_>,
    new: &Value,
    leaf: &X509Certificate<'_>,
    ctx: &Context<'_>,
) {
    let before = errs.len();
    let mut time = |field: &str, detail: &str| {
        let text = new.at("status").str_at(field);
        let found = text.parse::<Timestamp>().ok().map(Timestamp::as_second);
        if found.is_none() {
            errs.required(&path.child(field), detail);
        }
        found.map(|at| (at, text.to_owned()))
    };
    const CONSISTENT: &str = "must be present and consistent with the issued certificate";
    let not_before = time("notBefore", CONSISTENT);
    let not_after = time("notAfter", CONSISTENT);
    let refresh =
        time("beginRefreshAt", "must be present and in the range [notbefore+10min, notafter-10min]");
    let (Some((from, from_text)), Some((to, to_text)), Some((refresh, refresh_text))) =
        (not_before, not_after, refresh)
    else {
        return;
    };
    if errs.len() > before {
        return;
    }
    let validity = leaf.validity();
    if from != validity.not_before.timestamp() {
        let detail = "must be set to the NotBefore time encoded in the leaf certificate";
        return errs.invalid(&path.child("notBefore"), from_text, detail);
    }
    let now = ctx.now.parse::<Timestamp>().map_or(from, Timestamp::as_second);
    if (from - now).abs() >= CLOCK_SKEW_S {
        let detail = "must be set to within 5 minutes of kube-apiserver's current time";
        return errs.invalid(&path.child("notBefore"), from_text, detail);
    }
    if to != validity.not_after.timestamp() {
        let detail = "must be set to the NotAfter time encoded in the leaf certificate";
        return errs.invalid(&path.child("notAfter"), to_text, detail);
    }
    let (chain, life_s) = (path.child("certificateChain"), to - from);
    let most = new.int_at("spec.maxExpirationSeconds");
    if life_s < MIN_EXPIRATION_S {
        return errs.invalid(&chain, life_s, "leaf certificate lifetime must be >= 1 hour");
    }
    if life_s > most {
        let detail = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return errs.invalid(&chain, life_s, detail);
    }
    let p = path.child("beginRefreshAt");
    if refresh < from + REFRESH_MARGIN_S {
        return errs.invalid(&p, refresh_text, "must be at least 10 minutes after status.notBefore");
    }
    if refresh > to - REFRESH_MARGIN_S {
        errs.invalid(&p, refresh_text, "must be at least 10 minutes before status.notAfter");
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};
    use serde_json::json;
    use yare_schema::features;

    use super::*;

    fn issued(key: &KeyPair, emails: &[&str]) -> Value {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.not_before = date_time_ymd(2026, 1, 2);
        params.not_after = date_time_ymd(2026, 1, 3);
        params.subject_alt_names =
            emails.iter().map(|e| SanType::Rfc822Name((*e).try_into().expect("ASCII"))).collect();
        json!({
            "conditions": [{"type": "Issued", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-02T00:00:00Z"}],
            "certificateChain": params.self_signed(key).expect("signs").pem(),
            "notBefore": "2026-01-02T00:00:00Z", "notAfter": "2026-01-03T00:00:00Z",
            "beginRefreshAt": "2026-01-02T12:00:00Z",
        })
    }

    #[test]
    fn what_is_issued_is_fresh_and_well_named() {
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("signs");
        let request = STANDARD.encode(request.der());
        let old = json!({"metadata": {"name": "a", "namespace": "ns"},
            "spec": {"stubPKCS10Request": request, "maxExpirationSeconds": 86400}});
        let errs = |now: &str, emails: &[&str]| -> Vec<String> {
            let ctx = Context { now, namespace: "ns", user: "u", gates: &features::DEFAULT };
            let mut new = old.clone();
            new.set("status", issued(&key, emails));
            let errs = PodCertificateRequest.validate_status_update(&new, &old, &ctx);
            errs.iter().map(|e| e.detail.clone()).collect()
        };
        let skewed = "must be set to within 5 minutes of kube-apiserver's current time";
        assert_eq!(errs("2026-01-02T00:04:59Z", &["a@b.c"]), [""; 0]);
        assert_eq!(errs("2026-01-01T23:55:01Z", &[]), [""; 0]);
        assert_eq!(errs("2026-01-02T00:05:00Z", &[]), [skewed]);
        assert_eq!(errs("2026-01-01T23:55:00Z", &[]), [skewed]);
        assert_eq!(
            errs("2026-01-02T00:00:00Z", &["a@b", "nobody"]),
            ["leaf certificate should not contain invalid EmailAddress"]
        );
    }
}

//! Certificates and requests for them, as base64 of PEM in JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    pem::{Pem, parse_x509_pem},
    prelude::FromDer,
};

fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|e| e.to_string())
}

/// Hands the PKCS#10 request in `text` on.
fn with_request<T>(
    text: &str,
    read: impl FnOnce(&X509CertificationRequest<'_>) -> Result<T, String>,
) -> Result<T, String> {
    const NO_REQUEST: &str = "PEM block type must be CERTIFICATE REQUEST";
    let bytes = decode(text)?;
    let (_, block) = parse_x509_pem(&bytes).map_err(|_| NO_REQUEST.to_owned())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(NO_REQUEST.to_owned());
    }
    let (rest, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|e| format!("x509: malformed certificate request: {e}"))?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".to_owned());
    }
    read(&request)
}

/// Whether `text` holds a PKCS#10 request that its own key has signed.
pub fn check_request(text: &str) -> Result<(), String> {
    with_request(text, |request| request.verify_signature().map_err(|e| format!("x509: {e}")))
}

/// Whom a certificate is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestSubject {
    /// The user.
    pub common_name: String,
    /// Its groups.
    pub organizations: Vec<String>,
}

/// The subject of the PKCS#10 request in `text` (base64 of PEM, as `spec.request` has it).
pub fn request_subject(text: &str) -> Result<RequestSubject, String> {
    with_request(text, |request| {
        let subject = &request.certification_request_info.subject;
        let text = |attribute: Option<&str>| attribute.unwrap_or_default().to_owned();
        Ok(RequestSubject {
            common_name: text(subject.iter_common_name().next().and_then(|n| n.as_str().ok())),
            organizations: subject.iter_organization().map(|o| text(o.as_str().ok())).collect(),
        })
    })
}

/// Whether `text` holds a certificate that can be trusted, among whatever else.
pub fn check_ca_bundle(text: &str) -> Result<(), String> {
    const NO_PEM: &str = "unable to load root certificates: unable to parse bytes as PEM block";
    let bytes = decode(text)?;
    let mut why = NO_PEM.to_owned();
    for block in Pem::iter_from_buffer(&bytes).map_while(Result::ok).filter(|b| b.label == "CERTIFICATE") {
        match X509Certificate::from_der(&block.contents) {
            Ok(_) => return Ok(()),
            Err(e) => why = format!("unable to load root certificates: x509: malformed certificate: {e}"),
        }
    }
    Err(why)
}

/// Whether `text` holds certificates and nothing else.
pub fn check_certificates(text: &str) -> Result<(), String> {
    let bytes = decode(text)?;
    if bytes.is_empty() {
        return Ok(());
    }
    let mut count = 0;
    for block in Pem::iter_from_buffer(&bytes) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        X509Certificate::from_der(&block.contents)
            .map_err(|e| format!("x509: malformed certificate: {e}"))?;
        count += 1;
    }
    if count == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

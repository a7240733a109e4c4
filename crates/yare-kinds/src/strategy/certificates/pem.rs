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

/// Whether `text` holds a PKCS#10 request that its own key has signed.
pub fn check_request(text: &str) -> Result<(), String> {
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
    request.verify_signature().map_err(|e| format!("x509: {e}"))
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

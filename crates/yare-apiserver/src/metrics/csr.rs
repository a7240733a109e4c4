//! Whether who asks for a certificate of a certain duration gets it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use yare_auth::pki;
use yare_kinds::view::View;

use super::seldom::{CSR_DURATIONS, CSR_HONORED};
use crate::core::Call;

/// Signers date certificates back: so much, and a twentieth of the duration, is not held against them.
const SLACK_S: i64 = 300;

/// A CertificateSigningRequest changed.
pub fn changed(call: &Call, new: &Value, old: &Value) {
    let issued = new.str_at("status.certificate");
    let Some(wanted_s) = old.int_opt("spec.expirationSeconds") else { return };
    if issued.is_empty() || !old.str_at("status.certificate").is_empty() {
        return;
    }
    let signer = old.str_at("spec.signerName");
    let signer = if signer.starts_with("kubernetes.io/") { signer } else { "other" };
    let counts = &call.core.metrics.seldom;
    counts.count(&CSR_DURATIONS, &[signer]);
    if lifetime_s(issued).is_some_and(|got_s| is_honored(wanted_s, got_s)) {
        counts.count(&CSR_HONORED, &[signer]);
    }
}

/// Of the first certificate of a chain.
fn lifetime_s(issued: &str) -> Option<i64> {
    let pem = String::from_utf8(STANDARD.decode(issued).ok()?).ok()?;
    pki::lifetime_s(&pki::der(&pem)?)
}

fn is_honored(wanted_s: i64, got_s: i64) -> bool {
    (wanted_s - got_s).abs() < SLACK_S + wanted_s / 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_enough() {
        for (wanted_s, got_s, honored) in [
            (3600, 3600, true),
            (3600, 3600 + 300 + 179, true),
            (3600, 3600 + 300 + 180, false),
            (3600, 3600 - 480, false),
            (31_536_000, 31_536_000 - 1_500_000, true),
            (600, 31_536_000, false),
        ] {
            assert_eq!(is_honored(wanted_s, got_s), honored, "{wanted_s} {got_s}");
        }
        assert_eq!(lifetime_s("no base64"), None);
    }
}

//! `ClusterTrustBundle`: trust anchors under a name that its signer owns (KEP-3257).

use serde_json::Value;
use x509_parser::{certificate::X509Certificate, pem::Pem, prelude::FromDer};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors, check_signer_name},
    names,
    strategy::{Context, Strategy, rules::check_length},
    view::View,
};

pub struct ClusterTrustBundle;

const MAX_BYTES: usize = 1024 * 1024;
/// Bundles are long, so no message shows one.
const OMITTED: &str = "<value omitted>";

impl Strategy for ClusterTrustBundle {
    fn validate(&self, bundle: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check(bundle, true)
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        // What is not changed is not read: how certificates are read may become stricter.
        let mut errs = check(new, new.str_at("spec.trustBundle") != old.str_at("spec.trustBundle"));
        errs.immutable(&Path::new("spec.signerName"), new.at("spec.signerName"), old.at("spec.signerName"));
        errs
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name_of(&self, name: &str, bundle: &Value) -> Vec<String> {
        name_of(name, bundle.str_at("spec.signerName"))
    }
}

fn check(bundle: &Value, read: bool) -> Errors {
    let mut errs = Errors::new();
    let signer = bundle.str_at("spec.signerName");
    let path = Path::new("spec");
    if !signer.is_empty() {
        check_signer_name(&mut errs, &path.child("signerName"), signer);
    }
    if read {
        check_anchors(&mut errs, &path.child("trustBundle"), bundle.str_at("spec.trustBundle"));
    }
    errs
}

/// What is wrong with the name of a bundle.
fn name_of(name: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".into()];
        }
        return names::dns1123_subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::dns1123_subdomain(rest),
        None => {
            vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")]
        }
    }
}

fn check_anchors(errs: &mut Errors, path: &Path<'_>, text: &str) {
    check_length(errs, path, text, MAX_BYTES);
    if text.len() > MAX_BYTES {
        return;
    }
    let before = errs.len();
    let mut anchors: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
    for (i, block) in Pem::iter_from_buffer(text.as_bytes()).map_while(Result::ok).enumerate() {
        match anchor(&block) {
            Ok(()) => match anchors.iter_mut().find(|(bytes, _)| *bytes == block.contents) {
                Some((_, places)) => places.push(i),
                None => anchors.push((block.contents, vec![i])),
            },
            Err(why) => errs.invalid(path, OMITTED, format!("entry {i} {why}")),
        }
    }
    if errs.len() > before {
        return;
    }
    if anchors.is_empty() {
        errs.invalid(path, OMITTED, "at least one trust anchor must be provided");
    }
    for (_, places) in anchors.iter().filter(|(_, places)| places.len() > 1) {
        let places: Vec<String> = places.iter().map(usize::to_string).collect();
        errs.invalid(path, OMITTED, format!("duplicate trust anchor (indices [{}])", places.join(" ")));
    }
}

/// Whether a block is the certificate of an authority.
fn anchor(block: &Pem) -> Result<(), String> {
    if block.label != "CERTIFICATE" {
        return Err(format!("has bad block type: {}", block.label));
    }
    let Ok((rest, certificate)) = X509Certificate::from_der(&block.contents) else {
        return Err("does not parse as X.509".into());
    };
    if !rest.is_empty() {
        return Err("does not parse as X.509".into());
    }
    let is_ca = certificate.basic_constraints().ok().flatten().is_some_and(|c| c.value.ca);
    if is_ca { Ok(()) } else { Err("does not have the CA bit set".into()) }
}

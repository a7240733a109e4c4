//! Certificates of ClusterTrustBundles, for `projected` volumes (KEP-3257).

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use yare_client::{CLUSTER_TRUST_BUNDLES, ObjectKey};
use yare_schema::selector::LabelSelector;

use super::VolumeContext;
use crate::view::TrustBundleProjection;

/// How long the list of bundles may take to come.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Bundle {
    spec: BundleSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BundleSpec {
    signer_name: String,
    trust_bundle: String,
}

/// The certificates that a projection means, each once, in PEM.
pub(super) async fn certificates(
    context: &VolumeContext<'_>,
    source: &TrustBundleProjection,
) -> Result<Vec<u8>, String> {
    let kubelet = context.kubelet;
    let bundles =
        kubelet.objects.follow(CLUSTER_TRUST_BUNDLES, None, &context.pod.metadata.uid, context.mailbox);
    if tokio::time::timeout(SYNC_TIMEOUT, bundles.synced()).await.is_err() {
        return Err("ClusterTrustBundle informer has not yet synced".to_owned());
    }
    let optional = source.optional == Some(true);
    let view = |cached: &yare_client::Cached| cached.view::<Bundle>().map_err(|e| e.to_string());
    let found: Vec<Bundle> = if let Some(name) = &source.name {
        match bundles.get(&ObjectKey::cluster(name)) {
            Some(cached) => vec![view(&cached)?],
            None if optional => Vec::new(),
            None => {
                return Err(format!(
                    "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"
                ));
            }
        }
    } else if let Some(signer) = &source.signer_name {
        // No selector selects nothing, an empty one everything.
        let selector = match &source.label_selector {
            Some(selector) => LabelSelector::from_object(selector)
                .map_err(|e| format!("while parsing label selector: {e}"))?,
            None => LabelSelector::nothing(),
        };
        let mut found = Vec::new();
        for cached in bundles.list() {
            let bundle = view(&cached)?;
            if bundle.spec.signer_name == *signer && selector.matches(cached.labels()) {
                found.push(bundle);
            }
        }
        if found.is_empty() && !optional {
            return Err(
                "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned()
            );
        }
        found
    } else {
        return Err("ClusterTrustBundle projection requires either name or signerName to be set".to_owned());
    };
    Ok(merge(found.iter().map(|b| b.spec.trust_bundle.as_str())))
}

/// The certificates of several bundles, each once. Their order means nothing, and stays the same.
fn merge<'a>(bundles: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let all: BTreeSet<Vec<u8>> = bundles.flat_map(blocks).collect();
    all.iter().flat_map(|der| pem("CERTIFICATE", der).into_bytes()).collect()
}

/// The contents of the blocks of a PEM text, whatever surrounds them.
pub(super) fn blocks(text: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut inside: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("-----BEGIN ") {
            inside = Some(String::new());
        } else if line.starts_with("-----END ") {
            found.extend(inside.take().and_then(|body| STANDARD.decode(body).ok()));
        } else if let Some(body) = &mut inside
            && !line.contains(':')
        {
            body.push_str(line);
        }
    }
    found
}

/// One block of PEM.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_merged() {
        let (a, b) = (pem("CERTIFICATE", &[1; 100]), pem("CERTIFICATE", &[2; 5]));
        let first = format!("about a\n{a}\nabout b\n{b}");
        let merged = String::from_utf8(merge([first.as_str(), a.as_str()].into_iter())).unwrap();
        assert_eq!(merged, format!("{a}{b}"));
        assert!(merged.lines().all(|line| line.len() <= 64));
        assert_eq!(merge(std::iter::once("nothing here")), b"");
        assert_eq!(merge(std::iter::once("-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----")), b"");
    }
}

//! An issuer of tokens: where it is, whom its tokens are for, and whom it is believed to be.

use std::collections::HashSet;

use serde::Deserialize;
use yare_schema::field::Path;

use super::super::Errors;

/// Who issues tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Issuer {
    /// The `iss` claim, and where its documents are unless `discovery_url` says otherwise.
    pub url: String,
    /// Where its configuration document is.
    #[serde(rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    /// Certificates (PEM) by which its server is trusted; empty: the system's.
    pub certificate_authority: String,
    /// A token must be for one of these.
    pub audiences: Vec<String>,
    /// `MatchAny`
    pub audience_match_policy: String,
    /// The way to its server, by the names of EgressSelectorConfiguration: `controlplane` or `cluster`; empty:
    /// directly.
    pub egress_selector_type: String,
}

impl Issuer {
    pub(super) fn check(&self, errs: &mut Errors, path: &Path<'_>, disallowed: &[String]) {
        let url = path.child("url");
        if self.url.is_empty() {
            errs.required(&url, "");
        } else {
            check_url(errs, &url, &self.url, disallowed);
        }
        if let Some(discovery) = self.discovery_url.as_deref().filter(|u| !u.is_empty()) {
            let path = path.child("discoveryURL");
            if !self.url.is_empty() && self.url.trim_end_matches('/') == discovery.trim_end_matches('/') {
                errs.invalid(&path, discovery, "discoveryURL must be different from URL");
            }
            check_url(errs, &path, discovery, &[]);
        }
        self.check_audiences(errs, path);
        if !self.certificate_authority.is_empty()
            && let Err(why) = crate::tls::check_authority(&self.certificate_authority)
        {
            errs.invalid(&path.child("certificateAuthority"), "<omitted>", why);
        }
        match self.egress_selector_type.as_str() {
            "" | "controlplane" | "cluster" => {}
            other => {
                let detail = "egress selector must be either controlplane or cluster";
                errs.invalid(&path.child("egressSelectorType"), other, detail);
            }
        }
    }

    fn check_audiences(&self, errs: &mut Errors, issuer: &Path<'_>) {
        let path = issuer.child("audiences");
        if self.audiences.is_empty() {
            errs.required(&path, &format!("at least one {path} is required"));
            return;
        }
        let mut seen = HashSet::new();
        for (i, audience) in self.audiences.iter().enumerate() {
            if audience.is_empty() {
                errs.required(&path.index(i), "");
            }
            if !seen.insert(audience) {
                errs.duplicate(&path.index(i), audience.as_str());
            }
        }
        let (policy, path) = (self.audience_match_policy.as_str(), issuer.child("audienceMatchPolicy"));
        if self.audiences.len() > 1 && policy != "MatchAny" {
            errs.invalid(&path, policy, "audienceMatchPolicy must be MatchAny for multiple audiences");
        }
        if self.audiences.len() == 1 && !policy.is_empty() && policy != "MatchAny" {
            errs.invalid(&path, policy, "audienceMatchPolicy must be empty or MatchAny for single audience");
        }
    }
}

/// What an issuer's URL may be: `https`, a host, a path, nothing else.
fn check_url(errs: &mut Errors, path: &Path<'_>, url: &str, disallowed: &[String]) {
    if disallowed.iter().any(|d| d == url) {
        let mut all = disallowed.to_vec();
        all.sort();
        let detail = format!("URL must not overlap with disallowed issuers: [{}]", all.join(" "));
        errs.invalid(path, url, detail);
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    let authority = rest.split('/').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("https") {
        errs.invalid(path, url, "URL scheme must be https");
    }
    if authority.contains('@') {
        errs.invalid(path, url, "URL must not contain a username or password");
    }
    if !query.is_empty() {
        errs.invalid(path, url, "URL must not contain a query");
    }
    if !fragment.is_empty() {
        errs.invalid(path, url, "URL must not contain a fragment");
    }
}

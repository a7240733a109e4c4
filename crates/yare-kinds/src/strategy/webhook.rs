//! How the API server reaches a webhook: of admission, of conversion.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::Path;

use crate::{
    check::{Check, Errors},
    names,
    view::{View, ViewMut},
};

const FORM: &str = "; desired format: https://host[/path]";
/// The versions of reviews that the server speaks.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const DEFAULT_PORT: i64 = 443;

/// Defaults of a client configuration.
pub fn default_client_config(config: &mut Value) {
    if config.has("service") {
        config.default_absent("service.port", DEFAULT_PORT);
    }
}

/// Errors in where a webhook is.
pub fn check_client_config(errs: &mut Errors, path: &Path<'_>, config: &Value) {
    match (config.str_opt("url"), config.has("service")) {
        (Some(url), false) => check_url(errs, &path.child("url"), url),
        (None, true) => check_service(errs, &path.child("service"), config.at("service")),
        _ => errs.required(path, "exactly one of url or service is required"),
    }
}

/// Whether a review has a version that the server speaks.
pub fn knows_a_review(versions: &[&str]) -> bool {
    versions.iter().any(|v| REVIEWS.contains(v))
}

/// Errors in the versions of a review (`AdmissionReview`, `ConversionReview`) that a webhook understands.
pub fn check_review_versions(errs: &mut Errors, path: &Path<'_>, versions: &[&str], required: &str) {
    check_kept_review_versions(errs, path, versions, required);
    if !versions.is_empty() && !knows_a_review(versions) {
        errs.invalid(path, versions.to_vec(), format!("must include at least one of {}", REVIEWS.join(", ")));
    }
}

/// [`check_review_versions`] where there was none before that the server speaks.
pub fn check_kept_review_versions(errs: &mut Errors, path: &Path<'_>, versions: &[&str], required: &str) {
    if versions.is_empty() {
        return errs.required(path, required);
    }
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        if !seen.insert(*version) {
            errs.invalid(&path.index(i), *version, "duplicate version");
        } else {
            errs.each(&path.index(i), *version, names::dns1035_label(version));
        }
    }
}

/// The parts of `scheme://[user@]host[/path][?query][#fragment]` that have rules.
struct Url<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    query: &'a str,
    fragment: &'a str,
}

fn parse_url(url: &str) -> Result<Url<'_>, String> {
    if url.bytes().any(|b| b.is_ascii_control()) {
        return Err(format!("parse {url:?}: net/url: invalid control character in URL"));
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let is_scheme = |s: &str| {
        s.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
        Some(("", _)) => return Err(format!("parse {url:?}: missing protocol scheme")),
        Some((first, _)) if !first.contains('/') => {
            return Err(format!("parse {url:?}: first path segment in URL cannot contain colon"));
        }
        _ => ("", rest),
    };
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or_default());
    let (user, host) =
        authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if let Some(bad) = host.chars().find(|c| *c == ' ' || "<>\"".contains(*c)) {
        return Err(format!("parse {url:?}: invalid character {:?} in host name", bad.to_string()));
    }
    Ok(Url { scheme, user, host, query, fragment })
}

fn check_url(errs: &mut Errors, path: &Path<'_>, text: &str) {
    let url = match parse_url(text) {
        Ok(url) => url,
        Err(e) => return errs.required(path, format!("url must be a valid URL: {e}{FORM}")),
    };
    if !url.scheme.eq_ignore_ascii_case("https") {
        let scheme = url.scheme.to_lowercase();
        errs.invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if url.host.is_empty() {
        errs.invalid(path, "", format!("host must be specified{FORM}"));
    }
    if let Some(user) = url.user {
        errs.invalid(path, user, "user information is not permitted in the URL");
    }
    if !url.fragment.is_empty() {
        errs.invalid(path, url.fragment, "fragments are not permitted in the URL");
    }
    if !url.query.is_empty() {
        errs.invalid(path, url.query, "query parameters are not permitted in the URL");
    }
}

fn check_service(errs: &mut Errors, path: &Path<'_>, service: &Value) {
    for field in ["name", "namespace"] {
        errs.non_empty(&path.child(field), service.str_at(field));
    }
    let port = service.int_at("port");
    let messages = names::port_number(port);
    if !messages.is_empty() {
        errs.invalid(&path.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
    }
    let (path, text) = (path.child("path"), service.str_at("path"));
    if matches!(text, "" | "/") {
        return;
    }
    if text == "//" {
        return errs.invalid(&path, text, "segment[0] may not be empty");
    }
    if !text.starts_with('/') {
        errs.invalid(&path, text, "must start with a '/'");
    }
    let mut rest = text.chars();
    rest.next();
    let rest = rest.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errs.invalid(&path, text, format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            errs.invalid(&path, text, format!("segment[{i}]: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn client_configs() {
        for (config, expected) in [
            (json!({"url": "https://a.b/c"}), &[][..]),
            (json!({}), &["c: Required value: exactly one of url or service is required"]),
            (
                json!({"url": "http://u@h?q#f"}),
                &[
                    "c.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                    "c.url: Invalid value: \"u\": user information is not permitted in the URL",
                    "c.url: Invalid value: \"f\": fragments are not permitted in the URL",
                    "c.url: Invalid value: \"q\": query parameters are not permitted in the URL",
                ],
            ),
            (
                json!({"url": "https://"}),
                &["c.url: Invalid value: \"\": host must be specified; desired format: https://host[/path]"],
            ),
            (
                json!({"service": {"name": "s", "namespace": "n", "port": 443, "path": "/a//b"}}),
                &["c.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"],
            ),
            (
                json!({"service": {"name": "", "namespace": "n", "port": 0}}),
                &[
                    "c.service.name: Required value",
                    "c.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
                ],
            ),
        ] {
            let mut errs = Errors::new();
            check_client_config(&mut errs, &Path::new("c"), &config);
            assert_eq!(errs.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{config}");
        }
    }
}

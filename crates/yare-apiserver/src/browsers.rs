//! What browsers are told: which pages of other origins may ask this server (CORS), and to come by TLS alone (HSTS).
//!
//! `k8s.io/apiserver/pkg/server/filters/{cors,hsts}.go`.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use yare_regexp::Regex;

use crate::body::{Body, Reply};

/// Upstream's words on what an expression should be.
const HELP: &str = "List of allowed origins for CORS, comma separated. An allowed origin can be a regular expression to support subdomain matching. If this list is empty CORS will not be enabled. Please ensure each expression matches the entire hostname by anchoring to the start with '^' or including the '//' prefix, and by anchoring to the end with '$' or including the ':' port separator suffix. Examples of valid expressions are '//example\\.com(:|$)' and '^https://example\\.com(:|$)'";

/// What pages of allowed origins may do.
const CORS: [(HeaderName, HeaderValue); 4] = [
    (
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE, PATCH"),
    ),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since",
        ),
    ),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Date")),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")),
];

/// Which origins, and what of TLS. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Browsers {
    origins: Vec<Regex>,
    transport: Option<HeaderValue>,
}

impl Browsers {
    /// From regular expressions of origins and directives of `Strict-Transport-Security`.
    pub fn new(origins: &[String], directives: &[String]) -> Result<Self, String> {
        let mut errors = Vec::new();
        for directive in directives {
            if directive.trim().is_empty() {
                errors.push("empty value in strict-transport-security-directives".to_owned());
            } else if !is_directive(directive) {
                errors.push("--strict-transport-security-directives invalid, allowed values: max-age=expireTime, includeSubDomains, preload. see https://tools.ietf.org/html/rfc6797#section-6.1 for more information".to_owned());
            }
        }
        let mut expressions = Vec::new();
        for origin in origins {
            match expression(origin) {
                Ok(expression) => expressions.push(expression),
                Err(error) => errors.push(error),
            }
        }
        let transport = HeaderValue::try_from(directives.join("; "));
        if let Err(error) = &transport {
            errors.push(format!("--strict-transport-security-directives: {error}"));
        }
        match errors.as_slice() {
            [] => Ok(Self { origins: expressions, transport: transport.ok().filter(|v| !v.is_empty()) }),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    /// The origin of the page that asks, where it may.
    pub fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok().filter(|text| !text.is_empty())?;
        self.origins.iter().any(|allowed| allowed.is_match(text)).then(|| origin.clone())
    }

    /// Adds what the browser should know to an answer; `origin` from [`Browsers::origin`].
    pub fn tell(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        if let Some(transport) = &self.transport {
            headers.entry(header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| transport.clone());
        }
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.extend(CORS);
        }
    }
}

/// The answer to a browser that only asks whether it might ask.
pub fn preflight() -> Reply {
    let mut reply = Reply::new(Body::default());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

fn is_directive(text: &str) -> bool {
    let age = || text.split_once('=').is_some_and(|(name, age)| name == "max-age" && !age.contains('='));
    matches!(text, "includeSubDomains" | "preload") || age()
}

/// It must be bound to the host at both ends, or `example.com` would let `example.com.evil` in (CVE-2022-1996).
fn expression(text: &str) -> Result<Regex, String> {
    if text.is_empty() {
        return Err(format!("empty value in --cors-allowed-origins, help: {HELP}"));
    }
    let bad =
        |why: &str| format!("--cors-allowed-origins has an invalid regular expression: {why}, help: {HELP}");
    let expression = yare_regexp::compile(text).map_err(|why| bad(&why))?;
    let has = |marks: [&str; 2]| marks.iter().any(|mark| text.contains(mark));
    if has(["^", "//"]) && has(["$", ":"]) {
        Ok(expression)
    } else {
        Err(bad("regular expression does not pin to start/end of host in the origin header"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn browsers(origins: &[&str], directives: &[&str]) -> Result<Browsers, String> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Browsers::new(&owned(origins), &owned(directives))
    }

    #[test]
    fn what_is_refused() {
        for (origins, directives, part) in [
            (&[""][..], &[][..], "empty value in --cors-allowed-origins, help: List of allowed origins"),
            (&["example.com"], &[], "expression: regular expression does not pin to start/end of host"),
            (&["//example.com"], &[], "does not pin"),
            (&["//(:"], &[], "--cors-allowed-origins has an invalid regular expression: "),
            (&[], &[" "], "empty value in strict-transport-security-directives"),
            (&[], &["max-age"], "--strict-transport-security-directives invalid, allowed values: max-age="),
            (&[], &["max-age=1=2"], "invalid"),
            (&[], &["preload=1", ""], "[--strict-transport-security-directives invalid"),
            (&[], &["max-age=1\n"], "--strict-transport-security-directives: "),
        ] {
            let error = browsers(origins, directives).unwrap_err();
            assert!(error.contains(part), "{origins:?} {directives:?}: {error}");
        }
    }

    #[test]
    fn who_is_told_what() {
        let browsers = browsers(&["//example\\.com(:|$)"], &["max-age=10", "preload"]).unwrap();
        for (origin, allowed) in [
            ("https://example.com", true),
            ("http://example.com:8080", true),
            ("https://example.com.evil.test", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ORIGIN, origin.parse().unwrap())]);
            assert_eq!(browsers.origin(&headers).is_some(), allowed, "{origin}");
        }
        assert_eq!(browsers.origin(&HeaderMap::new()), None);
        let mut told = HeaderMap::new();
        browsers.tell(None, &mut told);
        assert_eq!(told.len(), 1);
        assert_eq!(told[header::STRICT_TRANSPORT_SECURITY], "max-age=10; preload");
        let mut told = HeaderMap::new();
        Browsers::default().tell(None, &mut told);
        assert!(told.is_empty());
    }
}

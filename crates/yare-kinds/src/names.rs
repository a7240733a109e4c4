//! The rules of names: DNS labels, qualified names, label values, ports, environment variables.
//!
//! Every function gives the list of what is wrong, in upstream's words (`k8s.io/apimachinery/pkg/util/validation`),
//! and an empty list for a good name.

use yare_schema::content::{self, is_dns1123_subdomain, too_long};
pub use yare_schema::content::{
    DNS1123_LABEL_MAX_BYTES as LABEL_MAX, DNS1123_SUBDOMAIN_MAX_BYTES as SUBDOMAIN_MAX, dns1035_label,
    dns1123_label, dns1123_subdomain, label_value,
};

const SUBDOMAIN_FMT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// Upstream's wording of a mismatch with a regular expression.
pub fn regex_message(message: &str, regex: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{regex}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

/// `lo..=hi` in upstream's words.
pub fn range_message(lo: i64, hi: i64) -> String {
    format!("must be between {lo} and {hi}, inclusive")
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Whether `s` is `first (middle* last)?` by byte class.
fn framed(
    s: &str,
    first: impl Fn(u8) -> bool,
    middle: impl Fn(u8) -> bool,
    last: impl Fn(u8) -> bool,
) -> bool {
    let b = s.as_bytes();
    match b {
        [] => false,
        [one] => first(*one),
        [head, mid @ .., tail] => first(*head) && mid.iter().all(|&c| middle(c)) && last(*tail),
    }
}

/// An RFC 1123 subdomain whose labels may hold underscores and start with one (DNS search paths).
pub fn dns1123_subdomain_with_underscore(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errs.push(too_long(SUBDOMAIN_MAX));
    }
    let label = |s: &str| {
        framed(s.strip_prefix('_').unwrap_or(s), lower, |b| lower(b) || b == b'-' || b == b'_', lower)
    };
    if !value.split('.').all(label) {
        errs.push(regex_message(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    errs
}

/// `*.example.com`
pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errs.push(too_long(SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(is_dns1123_subdomain) {
        errs.push(regex_message(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{SUBDOMAIN_FMT}"),
            &["*.example.com"],
        ));
    }
    errs
}

/// A name with an optional DNS subdomain prefix, as of labels and finalizers: `example.com/my.name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    content::label_key(value)
}

/// A name that can be one segment of a URL path: RBAC objects and many cluster-scoped kinds.
pub fn path_segment(value: &str) -> Vec<String> {
    path_segment_begun(value, false)
}

/// [`path_segment`], or what can begin one.
pub fn path_segment_begun(value: &str, is_prefix: bool) -> Vec<String> {
    content::path_segment(value, is_prefix)
}

/// A C identifier.
pub fn c_identifier(value: &str) -> Vec<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if framed(value, |b| b.is_ascii_alphabetic() || b == b'_', word, word) {
        return Vec::new();
    }
    vec![regex_message(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// The name of an environment variable, by the rule that most kinds apply since Kubernetes 1.34: printable
/// ASCII without `=`.
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.is_empty() {
        errs.push("environment variable name must be non-empty".to_owned());
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        errs.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned(),
        );
    }
    errs
}

/// The name of an environment variable by the older, stricter rule.
pub fn strict_env_var_name(value: &str) -> Vec<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let mut errs = Vec::new();
    if !framed(value, |b| word(b) && !b.is_ascii_digit(), word, word) {
        errs.push(regex_message(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errs.extend(dot_dot(value));
    errs
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errs.push(too_long(SUBDOMAIN_MAX));
    }
    if value.is_empty()
        || !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        errs.push(regex_message(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errs.extend(dot_dot(value));
    errs
}

fn dot_dot(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        v if v.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name of a header in an HTTP probe.
pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_message(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// The name of a container port (an IANA service name).
pub fn port_name(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 15 {
        errs.push(too_long(15));
    }
    if value.is_empty() || !value.bytes().all(|b| lower(b) || b == b'-') {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errs.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errs.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errs.push("must not begin or end with a hyphen".to_owned());
    }
    errs
}

/// A port number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![range_message(1, 65535)] }
}

/// A user or group ID.
pub fn user_or_group_id(id: i64) -> Vec<String> {
    let max = i64::from(i32::MAX);
    if (0..=max).contains(&id) { Vec::new() } else { vec![range_message(0, max)] }
}

/// `25%`
pub fn percent(value: &str) -> Vec<String> {
    let good =
        value.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if good {
        return Vec::new();
    }
    vec![regex_message(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// What a rule for names asks of a `generateName`: a trailing dash is fine, since more follows.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        // The character before the dash goes too, as upstream has it: only the ends of the name matter.
        Some(head) if !head.is_empty() => {
            let mut masked: String = head.chars().take(head.chars().count() - 1).collect();
            masked.push('a');
            masked
        }
        _ => prefix.to_owned(),
    }
}

/// Problems of an integer that has to be written as people write it: no plus sign, no leading zeros.
pub fn decimal_integer(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["must be non-empty".to_owned()];
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let padded = digits.starts_with('0') && value != "0";
    if plain && !padded {
        return Vec::new();
    }
    vec!["must be a valid decimal integer in canonical form".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&str) -> Vec<String>;

    #[test]
    fn rules() {
        let cases: &[(Rule, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "0", "a-1"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (dns1123_subdomain, &["a", "a.b-c.0"], &["", ".", "a..b", "a.", "A"]),
            (dns1035_label, &["a", "a-1"], &["", "1a", "a-", "A"]),
            (qualified_name, &["a", "A.b_c-d", "x.y/Z"], &["", "/a", "a/", "a/b/c", "-a", "X.y/z"]),
            (label_value, &["", "a", "A.b_c-d"], &["-a", "a/b", "a "]),
            (config_map_key, &["a", ".a", "A_b-c"], &["", ".", "..", "..a", "a/b"]),
            (env_var_name, &["A", "1a", "a b"], &["", "a=b", "ä"]),
            (strict_env_var_name, &["A", "_a.b"], &["", "1a", "a b", ".."]),
            (port_name, &["http", "p1"], &["", "1", "a--b", "-a", "HTTP", "sixteen-letters0"]),
            (http_header_name, &["X-A"], &["", "a b"]),
            (percent, &["1%"], &["%", "1", "a%"]),
            (path_segment, &["a:b", "system:x"], &[".", "..", "a/b", "a%b"]),
            (wildcard_dns1123_subdomain, &["*.a.b"], &["*", "a.b", "*.*.b"]),
            (dns1123_subdomain_with_underscore, &["_srv.a", "a_b"], &["a_", "__a"]),
        ];
        for (i, (rule, good, bad)) in cases.iter().enumerate() {
            for g in *good {
                assert_eq!(rule(g), Vec::<String>::new(), "rule {i}: {g:?}");
            }
            for b in *bad {
                assert!(!rule(b).is_empty(), "rule {i}: {b:?}");
            }
        }
    }

    #[test]
    fn words() {
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(mask_trailing_dash("abc-"), "aba");
        assert_eq!(mask_trailing_dash("-"), "-");
    }
}

//! Well-formedness of names that the whole API uses: label keys and values, DNS labels and subdomains
//! (`k8s.io/apimachinery/pkg/api/validate/content`). In: a string. Out: what is wrong with it, in
//! upstream's words; an empty list where nothing is. Upstream counts bytes everywhere, but calls them bytes in
//! the parts of labels and characters in names of objects.

const LABEL_KEY_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const DNS1123_LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

const DNS1035_LABEL_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// Longest label value, and longest name part of a label key, in bytes.
pub const LABEL_MAX_BYTES: usize = 63;
/// Longest DNS label in bytes (RFC 1123).
pub const DNS1123_LABEL_MAX_BYTES: usize = 63;
/// Longest DNS subdomain in bytes (RFC 1123).
pub const DNS1123_SUBDOMAIN_MAX_BYTES: usize = 253;

/// Upstream's words for a name of more than `max` bytes.
pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn too_many_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

fn is_dns1123_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => edge(first) && edge(last) && bytes.iter().all(|b| edge(b) || *b == b'-'),
        _ => false,
    }
}

/// Whether `text` is a DNS subdomain (RFC 1123), however long.
pub fn is_dns1123_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns1123_label)
}

/// What is wrong with a label key (a qualified name: `app`, `example.com/app`).
pub fn label_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let mut parts = key.split('/');
    let first = parts.next().unwrap_or_default();
    let name = match (parts.next(), parts.next()) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                if first.len() > DNS1123_SUBDOMAIN_MAX_BYTES {
                    errors.push(format!("prefix part {}", too_many_bytes(DNS1123_SUBDOMAIN_MAX_BYTES)));
                }
                if !is_dns1123_subdomain(first) {
                    errors.push(format!("prefix part {DNS1123_SUBDOMAIN_RULE}"));
                }
            }
            name
        }
        (Some(_), Some(_)) => {
            errors.push(format!(
                "a valid label key {LABEL_KEY_RULE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX_BYTES {
        errors.push(format!("name part {}", too_many_bytes(LABEL_MAX_BYTES)));
    }
    if !is_label_name(name) {
        errors.push(format!("name part {LABEL_KEY_RULE}"));
    }
    errors
}

/// What is wrong with a label value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX_BYTES {
        errors.push(too_many_bytes(LABEL_MAX_BYTES));
    }
    if !value.is_empty() && !is_label_name(value) {
        errors.push(LABEL_VALUE_RULE.to_owned());
    }
    errors
}

/// What is wrong with a DNS label (RFC 1123).
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_LABEL_MAX_BYTES {
        errors.push(too_long(DNS1123_LABEL_MAX_BYTES));
    }
    if !is_dns1123_label(value) {
        let dots_only = is_dns1123_subdomain(value);
        errors.push(if dots_only {
            "must not contain dots".to_owned()
        } else {
            DNS1123_LABEL_RULE.to_owned()
        });
    }
    errors
}

/// What is wrong with a DNS label that starts with a letter (RFC 1035).
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_LABEL_MAX_BYTES {
        errors.push(too_long(DNS1123_LABEL_MAX_BYTES));
    }
    if !is_dns1123_label(value) || value.starts_with(|c: char| c.is_ascii_digit()) {
        errors.push(DNS1035_LABEL_RULE.to_owned());
    }
    errors
}

/// What is wrong with a name that becomes a segment of a URL's path, or the start of one.
pub fn path_segment(name: &str, is_prefix: bool) -> Vec<String> {
    if !is_prefix && (name == "." || name == "..") {
        return vec![format!("may not be '{name}'")];
    }
    ['/', '%'].into_iter().filter(|c| name.contains(*c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// What is wrong with a DNS subdomain (RFC 1123).
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX_BYTES {
        errors.push(too_long(DNS1123_SUBDOMAIN_MAX_BYTES));
    }
    if !is_dns1123_subdomain(value) {
        errors.push(DNS1123_SUBDOMAIN_RULE.to_owned());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys() {
        for good in ["a", "A.b_c-9", "example.com/a", "1.2/x", &"a".repeat(63)] {
            assert!(label_key(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "/a", "a/", "A.com/a", "a/b/c", &"a".repeat(64), "é"] {
            assert!(!label_key(bad).is_empty(), "{bad}");
        }
        assert_eq!(label_key("/a"), ["prefix part must be non-empty"]);
    }

    #[test]
    fn label_values() {
        for good in ["", "a", "1", "a.b-c_d"] {
            assert!(label_value(good).is_empty(), "{good}");
        }
        for bad in ["-", "a ", &"a".repeat(64), "_x"] {
            assert!(!label_value(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn dns_names() {
        assert!(dns1123_label("a-1").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        for bad in ["", ".", "a..b", "A", "a-", "-a", "a.-b"] {
            assert!(!dns1123_subdomain(bad).is_empty(), "{bad}");
        }
    }
}

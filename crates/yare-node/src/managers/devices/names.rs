//! Names of resources that a device plugin may have.

/// Why a plugin is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It speaks no version that this agent speaks.
    Version,
    /// Its resource cannot be an extended one.
    Name,
}

/// Whether this names an extended resource: a domain that is not Kubernetes' own, and a name.
pub(crate) fn is_extended_resource(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    // A quota's name for it, `requests.` and the domain, has to be valid, too.
    if name.contains("kubernetes.io/")
        || name.starts_with("requests.")
        || domain.len() + "requests.".len() > 253
    {
        return false;
    }
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let label = |l: &str| {
        let lower = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        lower(l.chars().next())
            && lower(l.chars().next_back())
            && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    domain.split('.').all(label)
        && rest.len() <= 63
        && alphanumeric(rest.chars().next())
        && alphanumeric(rest.chars().next_back())
        && rest.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, want) in [
            ("vendor.com/gpu", true),
            ("a/b", true),
            ("vendor.com/GPU_2.x", true),
            ("cpu", false),
            ("kubernetes.io/gpu", false),
            ("a.kubernetes.io/gpu", false),
            ("requests.vendor.com/gpu", false),
            ("Vendor.com/gpu", false),
            ("vendor.com/-gpu", false),
            ("vendor.com/a/b", false),
            ("vendor..com/gpu", false),
            ("/gpu", false),
            ("vendor.com/", false),
        ] {
            assert_eq!(is_extended_resource(name), want, "{name}");
        }
        assert!(!is_extended_resource(&format!("{}.com/gpu", "a".repeat(250))));
    }
}

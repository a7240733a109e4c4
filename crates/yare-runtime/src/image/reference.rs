//! Image references: `busybox` means `docker.io/library/busybox:latest`, while `yare.local/hello` names a registry.

use std::fmt;

use crate::error::{Result, RuntimeError};

/// A normalized reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `registry.example:5000`.
    pub registry: String,
    /// `library/busybox`.
    pub repository: String,
    /// `1.36`; absent with a digest alone.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and normalizes.
    pub fn parse(text: &str) -> Result<Self> {
        let bad =
            |why: &str| RuntimeError::InvalidArgument(format!("invalid image reference {text:?}: {why}"));
        if text.is_empty() || text.len() > 512 {
            return Err(bad("its length must be 1 to 512"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let hex =
                    digest.strip_prefix("sha256:").ok_or_else(|| bad("only sha256 digests are supported"))?;
                if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    return Err(bad("the digest must be 64 lower-case hexadecimal digits"));
                }
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        // A colon after the last slash starts the tag; before, it belongs to a port.
        let slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && (tag.is_empty()
                || tag.len() > 128
                || tag.starts_with(['.', '-'])
                || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)))
        {
            return Err(bad("bad tag"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let component = |c: &str| {
            !c.is_empty()
                && c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
                && c.starts_with(|c: char| c.is_ascii_alphanumeric())
                && c.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        if !repository.split('/').all(component) {
            return Err(bad(
                "the repository must consist of lower-case letters, digits, '.', '_', '-' and '/'",
            ));
        }
        let ends = |c: char| c.is_ascii_alphanumeric() || "[]".contains(c);
        if !registry.starts_with(ends)
            || !registry.ends_with(ends)
            || !registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
        {
            return Err(bad("bad registry"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository by digest.
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

/// The form under which the store knows it: a digest wins over a tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalized() {
        let d = format!("sha256:{}", "a1".repeat(32));
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("yare.local/hello", "yare.local/hello:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("reg:5000/a/b:t", "reg:5000/a/b:t".to_owned()),
            ("index.docker.io/library/x", "docker.io/library/x:latest".to_owned()),
            (&format!("reg.example/a@{d}"), format!("reg.example/a@{d}")),
            (&format!("reg.example/a:t@{d}"), format!("reg.example/a@{d}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full, "{text}");
        }
        for bad in ["", "UPPER", "a//b", "a:", "a@sha256:12", "a:b/../c", "../x", "-x", "a b"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Names of images, as far as defaults look into them.

/// Whether the image is the latest of its name: its tag says so, or it has neither tag nor digest. What is no
/// name of an image is not.
pub fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    let (name, tag) = match last.split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    let is_id = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_id || !is_name(name) || !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
        return false;
    }
    tag.map_or(digest.is_none(), |tag| tag == "latest")
}

/// `[domain/]path`
fn is_name(name: &str) -> bool {
    let names_host = |part: &str| {
        part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((domain, path)) if names_host(domain) => (Some(domain), path),
        _ => (None, name),
    };
    name.len() <= 255 && domain.is_none_or(is_domain) && path.split('/').all(is_component)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| !host.is_empty() && host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'));
    (is_v6 || host.split('.').all(is_label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut between = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    component.bytes().next().is_some_and(is_word)
        && component.bytes().next_back().is_some_and(is_word)
        && between.all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_part)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest() {
        let hex = "0123456789abcdef".repeat(4);
        for image in
            ["nginx", "nginx:latest", "host:5000/a/b", "Host/a", "[::1]:5/a", "a.b/c__d--e.f", "localhost/a"]
        {
            assert!(is_latest(image), "{image}");
        }
        assert!(is_latest(&format!("nginx:latest@sha256:{hex}")));
        for image in [
            "",
            "nginx:1",
            "host:5000/nginx:1",
            "Nginx",
            "a/B",
            "a:",
            "a:-",
            "a//b",
            "a___b",
            "-a",
            "a/",
            "a@sha256:0",
            "a:latest@sha256:0",
            "-.b/c",
            "a.b:x/c",
            &hex,
        ] {
            assert!(!is_latest(image), "{image}");
        }
        assert!(!is_latest(&format!("nginx@sha256:{hex}")));
    }
}

//! Which logins fit an image: those of `imagePullSecrets`, of docker's own files on the node, and of credential
//! providers, matched by one set of rules.
//!
//! A login is for a registry's host, whose labels may hold globs, its port, and the beginning of a path. The most
//! specific ones are tried first.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use yare_runtime::RegistryAuth;

/// The registry that an image without one comes from, by its oldest name.
const DEFAULT_HOST: &str = "index.docker.io";
/// A larger file of docker's is not read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whose a login is, where it is not the node's: only who has it may use an image that was pulled with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    Secret(Coordinates),
    ServiceAccount(Coordinates),
}

/// An object of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Coordinates {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A login for a registry.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    /// `host[:port][/path]`, without a scheme.
    key: String,
    pub(crate) auth: RegistryAuth,
    /// Upstream's hash of the login, by which it is known again.
    pub(crate) hash: String,
    /// None: any pod of the node may use it.
    pub(crate) owner: Option<Owner>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    email: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl Login {
    /// A login for a place as people write it: with a scheme or without, `/v1/` and `/v2/` meaning nothing.
    pub(crate) fn new(
        place: &str,
        username: &str,
        password: &str,
        email: &str,
        owner: Option<Owner>,
    ) -> Self {
        let rest = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let path = match path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/v2/")) {
            Some(rest) => format!("/{rest}"),
            None => path.to_owned(),
        };
        let key = if path == "/" { host.to_owned() } else { format!("{host}{path}") };
        let auth = RegistryAuth {
            username: username.to_owned(),
            password: password.to_owned(),
            ..RegistryAuth::default()
        };
        Login { key, hash: hash(username, password, email), auth, owner }
    }

    fn of(place: &str, entry: &Entry, owner: Option<&Owner>) -> Self {
        let pair = STANDARD.decode(&entry.auth).ok().and_then(|b| String::from_utf8(b).ok());
        let (username, password) = match pair.as_deref().and_then(|p| p.split_once(':')) {
            Some((user, password)) => (user, password.trim_end_matches('\0')),
            None => (entry.username.as_str(), entry.password.as_str()),
        };
        let mut login = Login::new(place, username, password, &entry.email, owner.cloned());
        login.auth.identity_token.clone_from(&entry.identitytoken);
        login.auth.registry_token.clone_from(&entry.registrytoken);
        login
    }
}

/// A login as upstream serializes it, hashed.
fn hash(username: &str, password: &str, email: &str) -> String {
    let mut fields = serde_json::Map::new();
    for (name, value) in [("username", username), ("password", password), ("email", email)] {
        if !value.is_empty() {
            fields.insert(name.to_owned(), value.into());
        }
    }
    // Upstream's order is that of its struct.
    let parts: Vec<String> = ["username", "password", "email"]
        .into_iter()
        .filter_map(|name| Some(format!("\"{name}\":{}", fields.get(name)?)))
        .collect();
    let digest = Sha256::digest(format!("{{{}}}", parts.join(",")));
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// The logins in the text of a `config.json`, or of the older `.dockercfg`, which is its `auths` alone.
pub(crate) fn docker_logins(text: &[u8], is_old: bool, owner: Option<&Owner>) -> Vec<Login> {
    let auths = match is_old {
        true => serde_json::from_slice(text).unwrap_or_default(),
        false => serde_json::from_slice::<DockerConfig>(text).unwrap_or_default().auths,
    };
    auths.iter().map(|(place, entry)| Login::of(place, entry, owner)).collect()
}

/// The node's own logins: the first of docker's files that is there, below the kubelet's directory, in the working
/// directory, at home or at the root.
pub(crate) fn of_node(data_dir: &Path) -> Vec<Login> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let places = [Some(data_dir.to_owned()), home, Some("/.docker".into())];
    for place in places.iter().flatten() {
        for (name, is_old) in [("config.json", false), (".dockercfg", true)] {
            let path = place.join(name);
            if std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= FILE_BYTES_MAX)
                && let Ok(text) = std::fs::read(&path)
            {
                return docker_logins(&text, is_old, None);
            }
        }
    }
    Vec::new()
}

/// The logins that fit an image, those with the most specific places first.
pub(crate) fn fitting(logins: &[Login], image: &str) -> Vec<Login> {
    let image = without_tag(image);
    let mut found: Vec<&Login> = logins.iter().filter(|login| place_fits(&login.key, image)).collect();
    if found.is_empty() && is_default(image) {
        found = logins.iter().filter(|login| login.key == DEFAULT_HOST).collect();
    }
    // Longer paths sort behind their beginnings; a stable order leaves equals as they came.
    found.sort_by(|a, b| b.key.cmp(&a.key));
    found.into_iter().cloned().collect()
}

/// Whether an image's name says of no registry, or of docker's.
fn is_default(image: &str) -> bool {
    match image.split_once('/') {
        None => true,
        Some(("", _)) => false,
        Some(("docker.io" | DEFAULT_HOST, _)) => true,
        Some((first, _)) => !first.contains(['.', ':']),
    }
}

/// An image's name as it was written, without tag and digest.
pub(crate) fn without_tag(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

/// Whether a place with globs in its host's labels holds what has this name.
pub(crate) fn place_fits(place: &str, name: &str) -> bool {
    fn split(text: &str) -> (&str, &str, &str) {
        let (host, path) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        let (host, port) = match host.rsplit_once(':') {
            // The colons of an IPv6 address are no port's.
            Some((bare, port)) if !port.contains(']') => (bare, port),
            _ => (host, ""),
        };
        (host, port, path)
    }
    let ((glob, glob_port, start), (host, port, path)) = (split(place), split(name));
    let (globs, labels): (Vec<&str>, Vec<&str>) = (glob.split('.').collect(), host.split('.').collect());
    glob_port == port
        && globs.len() == labels.len()
        && path.starts_with(start)
        && globs.iter().zip(&labels).all(|(glob, label)| glob_fits(glob.as_bytes(), label.as_bytes()))
}

/// Go's `filepath.Match` without a separator: `*`, `?`, classes in brackets, and a backslash before what is meant as
/// it is. A pattern that is none fits nothing.
fn glob_fits(glob: &[u8], text: &[u8]) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| glob_fits(rest, &text[at..])),
        Some((b'?', rest)) => !text.is_empty() && glob_fits(rest, &text[1..]),
        Some((b'[', class)) => {
            let (Some((first, text)), Some(end)) = (text.split_first(), class_end(class)) else {
                return false;
            };
            in_class(&class[..end], *first) && glob_fits(&class[end + 1..], text)
        }
        Some((b'\\', rest)) => match (rest.split_first(), text.split_first()) {
            (Some((wanted, rest)), Some((found, text))) => wanted == found && glob_fits(rest, text),
            _ => false,
        },
        Some((wanted, rest)) => {
            text.split_first().is_some_and(|(found, text)| wanted == found && glob_fits(rest, text))
        }
    }
}

/// Where a class's closing bracket is; the first character of a class is never that.
fn class_end(class: &[u8]) -> Option<usize> {
    let start = 1 + usize::from(class.first() == Some(&b'^'));
    (start..class.len()).find(|at| class[*at] == b']')
}

fn in_class(class: &[u8], found: u8) -> bool {
    let (class, is_negated) = match class.split_first() {
        Some((b'^', rest)) => (rest, true),
        _ => (class, false),
    };
    let mut at = 0;
    let mut holds = false;
    while at < class.len() {
        let (low, mut high) = (class[at], class[at]);
        if class.get(at + 1) == Some(&b'-') && at + 2 < class.len() {
            high = class[at + 2];
            at += 2;
        }
        holds |= (low..=high).contains(&found);
        at += 1;
    }
    holds != is_negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_hold_images() {
        for (place, image, want) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("https://index.docker.io/v1/", "docker.io/library/busybox:1", true),
            ("index.docker.io", "user/app", true),
            ("ghcr.io", "ghcr.io/a/b:1", true),
            ("https://ghcr.io/", "ghcr.io/a/b:1", true),
            ("ghcr.io/v2/", "ghcr.io/a/b:1", true),
            ("ghcr.io/a", "ghcr.io/a/b@sha256:0", true),
            // Upstream compares texts, not words of the path.
            ("ghcr.io/a", "ghcr.io/ab/c", true),
            ("ghcr.io/x", "ghcr.io/a/b", false),
            ("*.example.com", "reg.example.com/a", true),
            ("*.example.com", "a.reg.example.com/a", false),
            ("*.*.example.com", "a.reg.example.com/a", true),
            ("prefix*.example.com", "prefix-1.example.com/a", true),
            ("reg[0-9].example.com", "reg7.example.com/a", true),
            ("reg[^0-9].example.com", "reg7.example.com/a", false),
            ("re?.example.com/team", "reg.example.com/team/a:1", true),
            ("*.example.com:5000", "reg.example.com:5000/a", true),
            ("*.example.com", "reg.example.com:5000/a", false),
            ("localhost:5000", "localhost:5000/a:1", true),
            ("[::1]:5000", "[::1]:5000/a", false),
            ("ghcr.io", "quay.io/a", false),
            ("reg[.example.com", "reg[.example.com/a", false),
        ] {
            let list = [Login::new(place, "u", "p", "", None)];
            assert_eq!(!fitting(&list, image).is_empty(), want, "{place} {image}");
        }
    }

    #[test]
    fn the_most_specific_comes_first() {
        let list = ["quay.io", "quay.io/coreos", "*.io"].map(|place| Login::new(place, place, "p", "", None));
        let found: Vec<String> =
            fitting(&list, "quay.io/coreos/etcd:1").into_iter().map(|l| l.auth.username).collect();
        assert_eq!(found, ["quay.io/coreos", "quay.io", "*.io"]);
    }

    #[test]
    fn every_form_of_a_login_is_read() {
        let pair = STANDARD.encode("u:p:q");
        for (text, is_old, user, password) in [
            (format!(r#"{{"auths": {{"r.io": {{"auth": "{pair}"}}}}}}"#), false, "u", "p:q"),
            (r#"{"auths": {"r.io": {"username": "a", "password": "b"}}}"#.to_owned(), false, "a", "b"),
            (format!(r#"{{"r.io": {{"auth": "{pair}", "email": "e"}}}}"#), true, "u", "p:q"),
        ] {
            let found = docker_logins(text.as_bytes(), is_old, None);
            assert_eq!((found[0].auth.username.as_str(), found[0].auth.password.as_str()), (user, password));
        }
        assert!(docker_logins(b"nonsense", false, None).is_empty());
        let tokens = br#"{"auths": {"r.io": {"identitytoken": "i", "registrytoken": "r"}}}"#;
        let found = docker_logins(tokens, false, None);
        assert_eq!(
            (found[0].auth.identity_token.as_str(), found[0].auth.registry_token.as_str()),
            ("i", "r")
        );
    }

    #[test]
    fn logins_are_known_by_upstreams_hash() {
        // What Go's encoding/json makes of the same login.
        let known: String = Sha256::digest(br#"{"username":"u","password":"p"}"#)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(Login::new("r.io", "u", "p", "", None).hash, known);
        assert_ne!(Login::new("r.io", "u", "p", "e", None).hash, known);
    }
}

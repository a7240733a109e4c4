//! Registry logins from the pod's `imagePullSecrets`.
//!
//! A secret that is missing or unreadable is told in an event and does not stop the pod: the image may be
//! public, or present.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use yare_client::EventKind;
use yare_runtime::RegistryAuth;

use super::{Credential, PodFailure, PodHook, PodStart};
use crate::view::Secret;

pub(crate) struct Credentials;

#[async_trait]
impl PodHook for Credentials {
    fn name(&self) -> &'static str {
        "credentials"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        let metadata = &start.pod.metadata;
        for reference in start.pod.spec.image_pull_secrets.iter().filter(|r| !r.name.is_empty()) {
            let objects = &start.kubelet.objects;
            let secret = objects
                .get::<Secret>(
                    &yare_client::SECRETS,
                    &metadata.namespace,
                    &reference.name,
                    &metadata.uid,
                    start.mailbox,
                )
                .await;
            match secret {
                Ok(secret) => found.extend(parse(&secret)),
                Err(_) => missing.push(reference.name.as_str()),
            }
        }
        if !missing.is_empty() && start.fresh {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            start.kubelet.pod_event(
                start.pod,
                None,
                EventKind::Warning,
                "FailedToRetrieveImagePullSecret",
                text,
            );
        }
        *start.credentials = found;
        Ok(())
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Login>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Login {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// The logins in a `kubernetes.io/dockerconfigjson` (or older `dockercfg`) secret.
fn parse(secret: &Secret) -> Vec<Credential> {
    let decode = |key: &str| secret.data.get(key).and_then(|text| STANDARD.decode(text).ok());
    let auths = if let Some(json) = decode(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(&json).unwrap_or_default().auths
    } else if let Some(json) = decode(".dockercfg") {
        serde_json::from_slice(&json).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    auths
        .into_iter()
        .map(|(registry, mut login)| {
            let pair = STANDARD.decode(&login.auth).ok().and_then(|b| String::from_utf8(b).ok());
            if let Some((user, password)) = pair.as_deref().and_then(|p| p.split_once(':')) {
                user.clone_into(&mut login.username);
                password.trim_end_matches('\0').clone_into(&mut login.password);
            }
            Credential {
                registry,
                auth: RegistryAuth {
                    username: login.username,
                    password: login.password,
                    identity_token: login.identitytoken,
                    registry_token: login.registrytoken,
                },
            }
        })
        .collect()
}

/// The logins to try for an image, the most specific first.
pub(crate) fn matching<'a>(credentials: &'a [Credential], image: &str) -> Vec<&'a RegistryAuth> {
    let (host, path) = repository(image);
    let mut hits: Vec<(usize, &RegistryAuth)> = credentials
        .iter()
        .filter_map(|c| {
            let key = c.registry.trim_start_matches("https://").trim_start_matches("http://");
            let key = key.trim_end_matches('/');
            let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
            let key_path = if matches!(key_path, "v1" | "v2") { "" } else { key_path };
            let under = key_path.is_empty() || path == key_path || path.starts_with(&format!("{key_path}/"));
            (host_matches(key_host, &host) && under).then_some((key.len(), &c.auth))
        })
        .collect();
    hits.sort_by_key(|(specific, _)| std::cmp::Reverse(*specific));
    hits.into_iter().map(|(_, auth)| auth).collect()
}

fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Each label of the pattern's host may be a `*`.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (canonical_host(pattern), canonical_host(host));
    if pattern == host {
        return true;
    }
    let (pattern, host): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len()
        && pattern.iter().zip(&host).all(|(p, h)| match p.split_once('*') {
            Some((before, after)) => {
                h.len() >= before.len() + after.len() && h.starts_with(before) && h.ends_with(after)
            }
            None => p == h,
        })
}

/// Registry host and repository path of an image reference.
fn repository(image: &str) -> (String, String) {
    let name = image.split('@').next().unwrap_or(image);
    let name = match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    };
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            (host.to_owned(), path.to_owned())
        }
        Some(_) => ("docker.io".to_owned(), name.to_owned()),
        None => ("docker.io".to_owned(), format!("library/{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_registries() {
        for (registry, image, want) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "library/busybox:1", true),
            ("ghcr.io", "ghcr.io/a/b:1", true),
            ("ghcr.io/a", "ghcr.io/a/b@sha256:0", true),
            ("ghcr.io/x", "ghcr.io/a/b", false),
            ("*.example.com", "reg.example.com/a", true),
            ("*.example.com", "a.reg.example.com/a", false),
            ("localhost:5000", "localhost:5000/a:1", true),
            ("ghcr.io", "quay.io/a", false),
        ] {
            let list = [Credential { registry: registry.into(), auth: RegistryAuth::default() }];
            assert_eq!(!matching(&list, image).is_empty(), want, "{registry} {image}");
        }
    }

    #[test]
    fn reads_docker_config() {
        let json = serde_json::json!({"auths": {"r.io": {"auth": STANDARD.encode("u:p:q")}}}).to_string();
        let secret = Secret {
            data: BTreeMap::from([(".dockerconfigjson".to_owned(), STANDARD.encode(json))]),
            kind: String::new(),
        };
        let found = parse(&secret);
        assert_eq!((found[0].auth.username.as_str(), found[0].auth.password.as_str()), ("u", "p:q"));
    }
}

//! Registry logins from the pod's `imagePullSecrets`.
//!
//! A secret that is missing or unreadable is told in an event and does not stop the pod: the image may be
//! public, or present.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use yare_client::EventKind;

use super::{PodFailure, PodHook, PodStart};
use crate::images::keyring::{Coordinates, Login, Owner, docker_logins};
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
                Ok(secret) => found.extend(parse(&secret, &metadata.namespace, &reference.name)),
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
        *start.logins = found;
        Ok(())
    }
}

/// The logins in a `kubernetes.io/dockerconfigjson` (or older `dockercfg`) secret.
fn parse(secret: &Secret, namespace: &str, name: &str) -> Vec<Login> {
    let at = Coordinates {
        uid: secret.metadata.uid.clone(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let owner = Owner::Secret(at);
    let decode = |key: &str| secret.data.get(key).and_then(|text| STANDARD.decode(text).ok());
    let found = [(".dockerconfigjson", false), (".dockercfg", true)];
    found
        .into_iter()
        .find_map(|(key, is_old)| decode(key).map(|text| docker_logins(&text, is_old, Some(&owner))))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_and_remembered() {
        let json = serde_json::json!({"auths": {"r.io": {"auth": STANDARD.encode("u:p:q")}}}).to_string();
        let secret = serde_json::json!({
            "metadata": {"uid": "s"}, "data": {".dockerconfigjson": STANDARD.encode(json)},
        });
        let found = parse(&serde_json::from_value(secret).unwrap(), "ns", "name");
        assert_eq!((found[0].auth.username.as_str(), found[0].auth.password.as_str()), ("u", "p:q"));
        let at = Coordinates { uid: "s".into(), namespace: "ns".into(), name: "name".into() };
        assert_eq!(found[0].owner, Some(Owner::Secret(at)));
    }
}

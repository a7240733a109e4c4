//! Signs the ConfigMap `cluster-info` in `kube-public` with every bootstrap token that may, so that who has a
//! token and nothing else knows that what it says of the cluster is true. Somebody else makes the map (kubeadm,
//! an administrator): without it, and without a `kubeconfig` in it, there is nothing to sign.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use yare_auth::bootstrap_token::{self, BootstrapToken};
use yare_client::{CONFIG_MAPS, Cached, Change, Informer, ObjectKey, SECRETS};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{nullable, since},
};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
const CONTENT: &str = "kubeconfig";
/// What the keys of signatures start with; the token's identifier follows.
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

struct BootstrapSigner {
    context: Context,
    maps: Informer,
    secrets: Informer,
}

/// The controller; its only key is the map.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(BootstrapSigner {
        maps: context.informer(CONFIG_MAPS),
        secrets: context.informer(SECRETS),
        context: context.clone(),
    })
}

/// The map itself.
pub fn changed_map(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(map) = change.object()
        && (map.namespace(), map.name()) == (NAMESPACE, NAME)
    {
        add(map.key().clone());
    }
}

/// A bootstrap token.
pub fn changed_token(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if [&change.old, &change.new].into_iter().flatten().any(is_token) {
        add(ObjectKey::new(NAMESPACE, NAME));
    }
}

fn is_token(secret: &Cached) -> bool {
    secret.namespace() == bootstrap_token::NAMESPACE && BootstrapToken::from_secret(secret.bytes()).is_some()
}

/// A token that may sign: its identifier and secret.
fn signing_token(name: &str, token: &BootstrapToken, now: Timestamp) -> Option<(String, String)> {
    let id = bootstrap_token::id_of_name(name)?;
    let may = token.id() == id && !token.secret().is_empty() && token.signs() && !token.is_expired(now);
    may.then(|| (id.to_owned(), token.secret().to_owned()))
}

/// The map's data with the tokens' signatures and no others; `None` where there is nothing to sign or it is
/// signed as it should be.
fn signed(data: &Map<String, Value>, tokens: &BTreeMap<String, String>) -> Option<Map<String, Value>> {
    let content = data.get(CONTENT)?.as_str()?;
    let mut out = data.clone();
    out.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    for (id, secret) in tokens {
        let signature = bootstrap_token::detached_signature(content, id, secret);
        out.insert(format!("{SIGNATURE_PREFIX}{id}"), signature.into());
    }
    (out != *data).then_some(out)
}

#[async_trait]
impl Reconcile for BootstrapSigner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct View {
            #[serde(deserialize_with = "nullable")]
            data: Map<String, Value>,
        }
        let Some(map) = self.maps.get(key) else { return Ok(Next::Done) };
        let now = self.context.now();
        let (mut tokens, mut next_end) = (BTreeMap::new(), None::<Timestamp>);
        for secret in self.secrets.in_namespace(bootstrap_token::NAMESPACE) {
            let Some(token) = BootstrapToken::from_secret(secret.bytes()) else { continue };
            let Some((id, value)) = signing_token(secret.name(), &token, now) else { continue };
            tokens.insert(id, value);
            if let Ok(Some(end)) = token.expiration() {
                next_end = Some(next_end.map_or(end, |e| e.min(end)));
            }
        }
        let view: View = map.view()?;
        if let Some(data) = signed(&view.data, &tokens) {
            let update = |body: &mut Value| body["data"] = data.into();
            match self.context.api.update(&CONFIG_MAPS, &map, update).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        // A token's signature ends with it, whoever removes the token.
        Ok(next_end.map_or(Next::Done, |end| Next::After(since(end, now))))
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::json;

    use super::*;

    #[test]
    fn which_tokens_sign() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let signs = |name: &str, change: Value| {
            let mut data =
                json!({"token-id": "abcdef", "token-secret": "s", "usage-bootstrap-signing": "true"});
            for (key, value) in change.as_object().unwrap() {
                data[key] = value.clone();
            }
            let data: Map<String, Value> = data
                .as_object()
                .unwrap()
                .iter()
                .map(|(k, v)| (k.clone(), STANDARD.encode(v.as_str().unwrap()).into()))
                .collect();
            let secret = json!({"type": bootstrap_token::SECRET_TYPE, "data": data}).to_string();
            let token = BootstrapToken::from_secret(secret.as_bytes()).unwrap();
            signing_token(name, &token, now).is_some()
        };
        let name = "bootstrap-token-abcdef";
        assert!(signs(name, json!({})));
        assert!(signs(name, json!({"expiration": "2026-01-01T00:00:01Z"})));
        for (name, change) in [
            ("abcdef", json!({})),
            ("bootstrap-token-abcdeg", json!({})),
            (name, json!({"token-id": ""})),
            (name, json!({"token-secret": ""})),
            (name, json!({"usage-bootstrap-signing": "True"})),
            (name, json!({"expiration": "2026-01-01T00:00:00Z"})),
            (name, json!({"expiration": "soon"})),
        ] {
            assert!(!signs(name, change.clone()), "{name} {change}");
        }
    }

    #[test]
    fn signatures_follow_tokens_and_content() {
        let tokens = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(id, secret)| ((*id).into(), (*secret).into())).collect()
        };
        let data = |value: Value| value.as_object().unwrap().clone();
        let one = tokens(&[("abcdef", "one")]);
        assert_eq!(signed(&data(json!({})), &one), None);
        assert_eq!(signed(&data(json!({"kubeconfig": "x"})), &tokens(&[])), None);
        let first = signed(&data(json!({"kubeconfig": "x", "else": "y"})), &one).unwrap();
        assert_eq!(first["jws-kubeconfig-abcdef"], bootstrap_token::detached_signature("x", "abcdef", "one"));
        assert_eq!(first["else"], "y");
        assert_eq!(signed(&first, &one), None);
        let other = signed(&first, &tokens(&[("abcdef", "two"), ("ghijkl", "one")])).unwrap();
        assert_ne!(other["jws-kubeconfig-abcdef"], first["jws-kubeconfig-abcdef"]);
        assert!(other.contains_key("jws-kubeconfig-ghijkl"));
        let mut changed = first.clone();
        changed.insert("kubeconfig".into(), "z".into());
        assert!(signed(&changed, &one).is_some());
        let none = signed(&first, &tokens(&[])).unwrap();
        assert_eq!(Value::from(none), json!({"kubeconfig": "x", "else": "y"}));
    }
}

//! Credential providers: programs on the node that know logins for registries (kubelet.config.k8s.io
//! `CredentialProviderConfig`, credentialprovider.kubelet.k8s.io).
//!
//! In: an image, and the pod that wants it. Out: logins, asked of each provider whose images it is and kept for as
//! long as the provider says. A provider may want to know for whom: then it gets a token of the pod's service
//! account, and its logins are that account's.

mod config;
mod exec;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::keyring::{Coordinates, Login, Owner, place_fits, without_tag};
use crate::api::Api;
use crate::clock;
use crate::config::ConfigError;
use crate::kubelet::Kubelet;
use crate::view::Pod;
use config::{Provider, TokenAttributes};

/// Logins that are kept of one provider.
const KEPT_MAX: usize = 1000;
/// The key of a login that serves everywhere.
const GLOBAL: &str = "<global>";

/// The providers of a node.
#[derive(Default)]
pub struct Providers {
    all: Vec<Running>,
}

struct Running {
    config: Provider,
    program: PathBuf,
    kept: Mutex<BTreeMap<Key, Kept>>,
    /// One question at a time about one image for one account: the next finds the answer.
    asking: Mutex<BTreeMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// For what, and for whom.
type Key = (String, String);

// Nothing here can be printed: there are passwords and tokens in it.
#[derive(Clone)]
struct Kept {
    logins: Vec<(String, String, String)>,
    until: Timestamp,
}

/// For whom a provider is asked.
#[derive(Clone, Default)]
pub(super) struct Account {
    at: Coordinates,
    annotations: BTreeMap<String, String>,
    token: String,
}

impl Account {
    /// Whose logins are kept apart: the account's, or each of its tokens'.
    fn key(&self, attributes: &TokenAttributes) -> String {
        let mut parts = vec![self.at.namespace.clone(), self.at.name.clone(), self.at.uid.clone()];
        parts.extend(self.annotations.iter().map(|(key, value)| format!("{key}={value}")));
        if attributes.cache_type == config::PER_TOKEN {
            parts.push(format!("{:x?}", Sha256::digest(self.token.as_bytes()).as_slice()));
        }
        parts.join("\n")
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ServiceAccount {
    metadata: AccountMetadata,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AccountMetadata {
    uid: String,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenAnswer {
    status: TokenStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenStatus {
    token: String,
}

impl Providers {
    /// As the flags `--image-credential-provider-config` (a file, or a directory of them) and
    /// `--image-credential-provider-bin-dir` say.
    pub fn load(path: &std::path::Path, bin_dir: &std::path::Path) -> Result<Self, ConfigError> {
        let providers = config::load(path)?;
        let mut all = Vec::with_capacity(providers.len());
        for config in providers {
            let program = config::program(bin_dir, &config.name)?;
            all.push(Running { config, program, kept: Mutex::default(), asking: Mutex::default() });
        }
        Ok(Providers { all })
    }

    /// The logins that providers know for a pod's image. One that fails is told to the log, and others go on.
    pub(crate) async fn logins(&self, kubelet: &Kubelet, pod: &Pod, image: &str) -> Vec<Login> {
        let mut found = Vec::new();
        let name = without_tag(image);
        for provider in self.all.iter().filter(|p| p.config.match_images.iter().any(|m| place_fits(m, name)))
        {
            match provider.logins(kubelet, pod, name).await {
                Ok(logins) => found.extend(logins),
                Err(error) => {
                    let (provider, pod) = (&provider.config.name, pod.full_name());
                    tracing::warn!(error, provider, image, %pod, "a credential provider failed");
                }
            }
        }
        found
    }
}

impl Running {
    async fn logins(&self, kubelet: &Kubelet, pod: &Pod, image: &str) -> Result<Vec<Login>, String> {
        let account = match &self.config.token_attributes {
            None => None,
            Some(attributes) => match self.account(&kubelet.api, pod, attributes).await? {
                Wanted::Nothing => return Ok(Vec::new()),
                Wanted::For(account) => account,
            },
        };
        let whose = match (&account, &self.config.token_attributes) {
            (Some(account), Some(attributes)) => account.key(attributes),
            _ => String::new(),
        };
        let owner = account.as_ref().map(|account| Owner::ServiceAccount(account.at.clone()));
        let logins = |found: Vec<(String, String, String)>| -> Vec<Login> {
            let login = |(place, user, password): &(String, String, String)| {
                Login::new(place, user, password, "", owner.clone())
            };
            found.iter().map(login).collect()
        };
        if let Some(found) = self.find(image, &whose, kubelet.seams.now()) {
            return Ok(logins(found));
        }
        let key = (image.to_owned(), whose.clone());
        let turn = self.asking.lock().entry(key.clone()).or_default().clone();
        let _turn = turn.lock().await;
        let answer = match self.find(image, &whose, kubelet.seams.now()) {
            Some(found) => Ok(found),
            None => self.ask(kubelet, image, account.as_ref(), &whose).await,
        };
        self.asking.lock().remove(&key);
        answer.map(logins)
    }

    /// What is kept for an image, its registry or everything.
    fn find(&self, image: &str, whose: &str, now: Timestamp) -> Option<Vec<(String, String, String)>> {
        let kept = self.kept.lock();
        let places = [image, registry(image), GLOBAL];
        let found = places.into_iter().find_map(|place| kept.get(&(place.to_owned(), whose.to_owned())));
        found.filter(|kept| kept.until > now).map(|kept| kept.logins.clone())
    }

    async fn ask(
        &self,
        kubelet: &Kubelet,
        image: &str,
        account: Option<&Account>,
        whose: &str,
    ) -> Result<Vec<(String, String, String)>, String> {
        let asked = exec::ask(&self.config, &self.program, image, account).await;
        let answer = asked.map_err(|e| {
            format!("failed to get credential from external registry credential provider: {e}")
        })?;
        let is_per_token =
            self.config.token_attributes.as_ref().is_some_and(|a| a.cache_type == config::PER_TOKEN);
        if let Some(account) = account.filter(|a| !a.token.is_empty() && !is_per_token)
            && answer.auth.values().any(|auth| auth.password == account.token)
        {
            return Err("credential provider plugin returned the service account token as the password which is not allowed when service account cache type is not set to 'Token'".to_owned());
        }
        let place = match answer.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => registry(image),
            "Global" => GLOBAL,
            other => {
                return Err(format!(
                    "credential provider plugin did not return a valid cacheKeyType: {other}"
                ));
            }
        };
        let logins: Vec<(String, String, String)> =
            answer.auth.into_iter().map(|(place, auth)| (place, auth.username, auth.password)).collect();
        let lasts = answer.cache_duration.unwrap_or(self.config.default_cache_duration);
        if !lasts.is_zero() {
            self.keep((place.to_owned(), whose.to_owned()), &logins, kubelet.seams.now(), lasts);
        }
        Ok(logins)
    }

    fn keep(&self, key: Key, logins: &[(String, String, String)], now: Timestamp, lasts: Duration) {
        let mut kept = self.kept.lock();
        kept.retain(|_, kept| kept.until > now);
        while kept.len() >= KEPT_MAX {
            let soonest = kept.iter().min_by_key(|(_, kept)| kept.until).map(|(key, _)| key.clone());
            if let Some(key) = soonest {
                kept.remove(&key);
            }
        }
        kept.insert(key, Kept { logins: logins.to_vec(), until: clock::after(now, lasts) });
    }

    /// The pod's service account with a token for the provider.
    async fn account(&self, api: &Api, pod: &Pod, attributes: &TokenAttributes) -> Result<Wanted, String> {
        let m = &pod.metadata;
        let name = pod.spec.service_account_name.as_str();
        if name.is_empty() {
            let requires = attributes.require_service_account.unwrap_or(true);
            return Ok(if requires { Wanted::Nothing } else { Wanted::For(None) });
        }
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{name}", m.namespace);
        let found: ServiceAccount =
            api.get(&path).await.map_err(|e| format!("failed to get service account: {e}"))?;
        let mut annotations = BTreeMap::new();
        let present = |key: &String| found.metadata.annotations.get(key).map(|v| (key.clone(), v.clone()));
        for key in &attributes.required_service_account_annotation_keys {
            // An annotation may be how a workload asks for this; without it, it does not.
            let Some((key, value)) = present(key) else { return Ok(Wanted::Nothing) };
            annotations.insert(key, value);
        }
        annotations.extend(attributes.optional_service_account_annotation_keys.iter().filter_map(present));
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": { "name": name, "namespace": m.namespace, "uid": found.metadata.uid },
            "spec": {
                "audiences": [attributes.service_account_token_audience],
                "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": m.name, "uid": m.uid },
            },
        });
        let answer: TokenAnswer = api
            .create(&format!("{path}/token"), &body)
            .await
            .map_err(|e| format!("failed to get service account token: {e}"))?;
        let at =
            Coordinates { uid: found.metadata.uid, namespace: m.namespace.clone(), name: name.to_owned() };
        Ok(Wanted::For(Some(Account { at, annotations, token: answer.status.token })))
    }
}

/// What comes of looking for an account.
enum Wanted {
    /// This pod is none of the provider's.
    Nothing,
    /// It is asked, for this account if there is one.
    For(Option<Account>),
}

/// A Go duration that is not negative.
fn lifetime(text: &str) -> Option<Duration> {
    let nanos = yare_schema::gotime::parse_duration(text).ok()?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// The registry's part of an image's name.
fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        let config = Provider {
            name: "p".into(),
            api_version: "credentialprovider.kubelet.k8s.io/v1".into(),
            match_images: vec!["*.example.com".into()],
            ..Provider::default()
        };
        Running { config, program: "/none".into(), kept: Mutex::default(), asking: Mutex::default() }
    }

    #[test]
    fn logins_are_kept_for_their_time() {
        let running = running();
        let now = Timestamp::from_second(1000).unwrap();
        let later = |s: u64| clock::after(now, Duration::from_secs(s));
        let login = [("reg.example.com".to_owned(), "u".to_owned(), "p".to_owned())];
        running.keep(("reg.example.com".into(), String::new()), &login, now, Duration::from_secs(60));
        assert!(running.find("reg.example.com/a", "", later(59)).is_some());
        assert!(running.find("reg.example.com/b", "", later(59)).is_some(), "it is the registry's");
        assert!(running.find("other.example.com/b", "", now).is_none());
        assert!(running.find("reg.example.com/a", "", later(60)).is_none());
        assert!(running.find("reg.example.com/a", "somebody", now).is_none());
        running.keep((GLOBAL.into(), String::new()), &login, now, Duration::from_secs(60));
        assert!(running.find("other.example.com/b", "", now).is_some());
        for i in 0..KEPT_MAX + 5 {
            running.keep((format!("r{i}"), String::new()), &login, now, Duration::from_secs(100));
        }
        assert_eq!(running.kept.lock().len(), KEPT_MAX);
    }

    #[test]
    fn accounts_are_kept_apart() {
        let per_account =
            TokenAttributes { cache_type: "ServiceAccount".into(), ..TokenAttributes::default() };
        let per_token = TokenAttributes { cache_type: "Token".into(), ..TokenAttributes::default() };
        let account = |name: &str, token: &str| Account {
            at: Coordinates { uid: "u".into(), namespace: "n".into(), name: name.into() },
            token: token.into(),
            ..Account::default()
        };
        assert_eq!(account("a", "1").key(&per_account), account("a", "2").key(&per_account));
        assert_ne!(account("a", "1").key(&per_token), account("a", "2").key(&per_token));
        assert_ne!(account("a", "1").key(&per_account), account("b", "1").key(&per_account));
        assert!(!account("a", "secret").key(&per_token).contains("secret"));
    }
}

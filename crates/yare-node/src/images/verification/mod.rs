//! Who may use an image that is on the node already: `imagePullCredentialsVerificationPolicy` (KEP-2535).
//!
//! In: which login an image was pulled with, remembered below `image_manager` in upstream's form. Out: whether a
//! pod has to show that it may have the image, by pulling it. An intent is written before a pull and taken away after
//! it: whoever crashed in between has pulled an image that nobody's login is known of.

mod files;
mod policy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use yare_runtime::ImageStatus;

use self::files::{Kept, entries, file_name, files, load, store};
use self::policy::Policy;
use super::keyring::{Coordinates, Login, Owner, without_tag};
use crate::config::Settings;

pub(crate) use self::policy::check_pattern;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Logins of one image that are remembered as they are seen to fit.
const LOGINS_MAX: usize = 100;
/// What is said of a check: a record lets the pod in; nothing does.
pub(super) const RECORD_FOUND: &str = "credentialRecordFound";
pub(super) const MUST_AUTHENTICATE: &str = "mustAuthenticate";
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    kind: String,
    api_version: String,
    last_updated_time: String,
    image_ref: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Access>,
}

impl Kept for Intent {
    const KIND: &str = "ImagePullIntent";
}

impl Kept for Record {
    const KIND: &str = "ImagePulledRecord";
}

/// Who may use an image under one name.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Access {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<SecretAccess>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<AccountAccess>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", default)]
struct SecretAccess {
    uid: String,
    namespace: String,
    name: String,
    credential_hash: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", default)]
struct AccountAccess {
    uid: String,
    namespace: String,
    name: String,
}

impl SecretAccess {
    fn is_at(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

impl From<&Coordinates> for AccountAccess {
    fn from(at: &Coordinates) -> Self {
        AccountAccess { uid: at.uid.clone(), namespace: at.namespace.clone(), name: at.name.clone() }
    }
}

fn secret_access(login: &Login) -> Option<SecretAccess> {
    match &login.owner {
        Some(Owner::Secret(at)) => Some(SecretAccess {
            uid: at.uid.clone(),
            namespace: at.namespace.clone(),
            name: at.name.clone(),
            credential_hash: login.hash.clone(),
        }),
        _ => None,
    }
}

/// What a login opens. No login, or one of the node's: the image is everybody's.
fn access(login: Option<&Login>) -> Access {
    match login.map(|l| (l, &l.owner)) {
        Some((login, Some(Owner::Secret(_)))) => {
            Access { kubernetes_secrets: secret_access(login).into_iter().collect(), ..Access::default() }
        }
        Some((_, Some(Owner::ServiceAccount(at)))) => {
            Access { kubernetes_service_accounts: vec![at.into()], ..Access::default() }
        }
        _ => Access { node_pods_accessible: true, ..Access::default() },
    }
}

impl Access {
    /// Adds another way in; whether that is news.
    fn merge(&mut self, other: Access) -> bool {
        if self.node_pods_accessible {
            return false;
        }
        if other.node_pods_accessible {
            *self = other;
            return true;
        }
        let before = self.clone();
        for secret in other.kubernetes_secrets {
            // A secret's older content opens nothing any more.
            self.kubernetes_secrets.retain(|s| !s.is_at(&secret));
            self.kubernetes_secrets.push(secret);
        }
        for account in other.kubernetes_service_accounts {
            if !self.kubernetes_service_accounts.contains(&account) {
                self.kubernetes_service_accounts.push(account);
            }
        }
        self.kubernetes_secrets.sort();
        self.kubernetes_service_accounts.sort();
        *self != before
    }
}

/// Who may use an image that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Every pod.
    Open,
    /// Nobody who does not pull it.
    Closed,
    /// Those with certain logins.
    Shared,
}

/// What is remembered, and what follows from it.
pub(crate) struct Verification {
    policy: Policy,
    pulling: PathBuf,
    pulled: PathBuf,
    /// Pulls on their way, by image.
    intents: Mutex<BTreeMap<String, usize>>,
}

impl Verification {
    /// Takes up what is remembered below `data_dir`.
    pub(crate) fn new(settings: &Settings, data_dir: &Path) -> Self {
        let root = data_dir.join("image_manager");
        Verification {
            policy: Policy::new(settings),
            pulling: root.join("pulling"),
            pulled: root.join("pulled"),
            intents: Mutex::default(),
        }
    }

    /// Images whose pulls were under way when the agent ended last: those that are there were pulled by it, nobody
    /// knows with which login.
    pub(crate) fn restore(&self, images: &[ImageStatus], now: &str) {
        for (path, intent) in entries::<Intent>(&self.pulling) {
            let image = intent.image.as_str();
            let is_it =
                |i: &&ImageStatus| i.repo_tags.iter().chain(&i.repo_digests).any(|n| same_image(n, image));
            if let Some(found) = images.iter().find(is_it) {
                let written = self.write(image, &found.id, None, now);
                if let Err(error) = written {
                    tracing::warn!(%error, image, "an image's record cannot be written");
                    continue;
                }
            }
            let _ = std::fs::remove_file(path);
        }
    }

    /// A pull begins. The error is of the disk.
    pub(crate) fn begin(&self, image: &str) -> std::io::Result<()> {
        let mut intents = self.intents.lock();
        let intent =
            Intent { kind: Intent::KIND.into(), api_version: API_VERSION.into(), image: image.into() };
        store(&self.pulling, image, &intent)?;
        *intents.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// A pull has ended: with the image's id, and the login that opened it.
    pub(crate) fn end(&self, image: &str, pulled: Option<(&str, Option<&Login>)>, now: &str) {
        if let Some((id, login)) = pulled
            && let Err(error) = self.write(image, id, Some(access(login)), now)
        {
            // The intent stays, and with it the knowledge that the image was pulled here.
            tracing::warn!(%error, image, "an image's record cannot be written");
            return;
        }
        let mut intents = self.intents.lock();
        let left = intents.get(image).map_or(0, |count| count - 1);
        if left > 0 {
            intents.insert(image.to_owned(), left);
            return;
        }
        intents.remove(image);
        let _ = std::fs::remove_file(self.pulling.join(file_name(image)));
    }

    /// How many intents and records there are.
    pub(crate) fn count(&self) -> (usize, usize) {
        (files(&self.pulling).count(), files(&self.pulled).count())
    }

    /// Who may use the image with this id without pulling it, and upstream's word for why. What cannot be read may
    /// say anything: the image has to be pulled.
    pub(crate) fn known(&self, image: &str, id: &str) -> (Known, &'static str) {
        let (record, is_intended) = match (self.record(id), self.is_intended(image)) {
            (Ok(record), Ok(is_intended)) => (record, is_intended),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, image, "records of image pulls cannot be read");
                return (Known::Closed, "error");
            }
        };
        if !self.policy.must_verify(image, record.is_some() || is_intended) {
            return (Known::Open, "credentialPolicyAllowed");
        }
        match record.as_ref().and_then(|r| r.credential_mapping.get(without_tag(image))) {
            Some(access) if access.node_pods_accessible => (Known::Open, RECORD_FOUND),
            Some(access) if *access != Access::default() => (Known::Shared, ""),
            _ => (Known::Closed, MUST_AUTHENTICATE),
        }
    }

    fn is_intended(&self, image: &str) -> std::io::Result<bool> {
        if self.intents.lock().contains_key(image) {
            return Ok(true);
        }
        Ok(load::<Intent>(&self.pulling, image)?.is_some_and(|intent| intent.image == image))
    }

    /// Whether one of these logins is known to open the image. One that is seen to be the same as a known one is
    /// remembered.
    pub(crate) fn admits(&self, image: &str, id: &str, logins: &[Login], now: &str) -> bool {
        let Ok(Some(record)) = self.record(id) else { return false };
        let Some(known) = record.credential_mapping.get(without_tag(image)) else { return false };
        for login in logins {
            if let Some(own) = secret_access(login) {
                // A secret's new content counts where it can be remembered.
                let has_room = known.kubernetes_secrets.len() < LOGINS_MAX;
                let fits = |s: &&SecretAccess| {
                    s.credential_hash == own.credential_hash || (s.is_at(&own) && has_room)
                };
                if let Some(fitting) = known.kubernetes_secrets.iter().find(fits) {
                    if *fitting != own && has_room {
                        let own = Access { kubernetes_secrets: vec![own], ..Access::default() };
                        if let Err(error) = self.write(image, id, Some(own), now) {
                            tracing::warn!(%error, image, "an image's record cannot be written");
                        }
                    }
                    return true;
                }
            }
            if let Some(Owner::ServiceAccount(at)) = &login.owner
                && known.kubernetes_service_accounts.contains(&at.into())
            {
                return true;
            }
        }
        false
    }

    fn record(&self, id: &str) -> std::io::Result<Option<Record>> {
        Ok(load::<Record>(&self.pulled, id)?.filter(|record| record.image_ref == id))
    }

    /// Forgets images that are not there any more. `before`: records younger than this stay.
    pub(crate) fn prune(&self, images: &[ImageStatus], before: &str) {
        for (path, record) in entries::<Record>(&self.pulled) {
            let is_there = images.iter().any(|image| image.id == record.image_ref);
            if !is_there && record.last_updated_time.as_str() < before {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Remembers how an image was come by. No access: nobody knows.
    fn write(&self, image: &str, id: &str, access: Option<Access>, now: &str) -> std::io::Result<()> {
        // One writer at a time.
        let _intents = self.intents.lock();
        let known = self.record(id).unwrap_or_else(|error| {
            tracing::warn!(%error, image, "an image's record cannot be read, and is made anew");
            None
        });
        let is_new = known.is_none();
        let mut record = known.unwrap_or_else(|| Record { image_ref: id.to_owned(), ..Record::default() });
        let name = without_tag(image);
        let has_changed = match access {
            None => false,
            Some(access) => match record.credential_mapping.get_mut(name) {
                Some(known) => known.merge(access),
                None => record.credential_mapping.insert(name.to_owned(), access).is_none(),
            },
        };
        if !is_new && !has_changed {
            return Ok(());
        }
        record.kind = Record::KIND.into();
        record.api_version = API_VERSION.into();
        record.last_updated_time = now.to_owned();
        store(&self.pulled, id, &record)
    }
}

/// Whether a normalized name is what a pod's name of an image stands for.
fn same_image(normalized: &str, asked: &str) -> bool {
    yare_runtime::Reference::parse(asked).is_ok_and(|reference| reference.to_string() == normalized)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2030-01-01T00:00:00Z";

    fn verification(dir: &Path, policy: &str) -> Verification {
        let settings = Settings {
            image_pull_credentials_verification_policy: policy.into(),
            preloaded_images_verification_allowlist: vec!["r.io/open/*".into(), "r.io/one".into()],
            ..Settings::default()
        };
        Verification::new(&settings, dir)
    }

    fn login(secret: &str, password: &str) -> Login {
        let at = Coordinates { uid: format!("uid-{secret}"), namespace: "ns".into(), name: secret.into() };
        Login::new("r.io", "u", password, "", Some(Owner::Secret(at)))
    }

    fn account(name: &str) -> Login {
        let at = Coordinates { uid: format!("uid-{name}"), namespace: "ns".into(), name: name.into() };
        Login::new("r.io", "u", "token", "", Some(Owner::ServiceAccount(at)))
    }

    fn may_use(v: &Verification, image: &str, id: &str, logins: &[Login]) -> bool {
        match v.known(image, id).0 {
            Known::Open => true,
            Known::Closed => false,
            Known::Shared => v.admits(image, id, logins, NOW),
        }
    }

    fn pulled(v: &Verification, image: &str, id: &str, login: Option<&Login>) {
        v.begin(image).unwrap();
        v.end(image, Some((id, login)), NOW);
    }

    #[test]
    fn policies_ask_for_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        for (policy, image, here, want) in [
            ("NeverVerify", "r.io/x:1", true, false),
            ("NeverVerifyPreloadedImages", "r.io/x:1", true, true),
            ("NeverVerifyPreloadedImages", "r.io/x:1", false, false),
            ("AlwaysVerify", "r.io/x:1", false, true),
            ("NeverVerifyAllowlistedImages", "r.io/x:1", false, true),
            ("NeverVerifyAllowlistedImages", "r.io/open/a@sha256:0", true, false),
            ("NeverVerifyAllowlistedImages", "r.io/one:1", true, false),
            ("NeverVerifyAllowlistedImages", "r.io/one/more", true, true),
        ] {
            assert_eq!(
                verification(dir.path(), policy).policy.must_verify(image, here),
                want,
                "{policy} {image}"
            );
        }
    }

    #[test]
    fn patterns_are_checked() {
        for (pattern, part) in [
            ("r.io/a", ""),
            ("r.io/*", ""),
            (" r.io/a", "leading/trailing spaces"),
            ("", "too short"),
            ("/*", "at least registry hostname"),
            ("r.io/*/a", "not a valid wildcard pattern"),
            ("r.io/a*", "not a valid wildcard pattern"),
            ("r.io/a:1", "neither tag nor digest"),
            ("r.io/A", "failed to parse"),
        ] {
            match check_pattern(pattern) {
                Ok(()) => assert_eq!(part, "", "{pattern}"),
                Err(why) => assert!(!part.is_empty() && why.contains(part), "{pattern}: {why}"),
            }
        }
    }

    #[test]
    fn only_who_could_pull_it_may_use_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let v = verification(dir.path(), "NeverVerifyPreloadedImages");
        let ask = |image: &str, id: &str, logins: &[Login]| may_use(&v, image, id, logins);
        assert!(ask("r.io/pre:1", "sha256:pre", &[]), "nobody pulled it here");

        pulled(&v, "r.io/open:1", "sha256:open", None);
        assert!(ask("r.io/open:2", "sha256:open", &[]), "it was pulled without a login");

        let (a, b) = (login("a", "secret"), login("b", "other"));
        pulled(&v, "r.io/own:1", "sha256:own", Some(&a));
        assert!(ask("r.io/own:1", "sha256:own", &[b.clone(), a.clone()]));
        assert!(!ask("r.io/own:1", "sha256:own", std::slice::from_ref(&b)));
        assert!(!ask("r.io/own:1", "sha256:own", &[]));
        assert!(
            !ask("mirror.io/own:1", "sha256:own", std::slice::from_ref(&a)),
            "under another name it is another's"
        );
        // The same login in another secret is seen to fit, and remembered; so is the secret's new content.
        let copy = login("copy", "secret");
        assert!(ask("r.io/own:1", "sha256:own", &[copy]));
        assert!(ask("r.io/own:1", "sha256:own", &[login("copy", "renewed")]));
        assert!(ask("r.io/own:1", "sha256:own", &[login("third", "renewed")]));

        pulled(&v, "r.io/acc:1", "sha256:acc", Some(&account("sa")));
        assert!(ask("r.io/acc:1", "sha256:acc", &[account("sa")]));
        assert!(!ask("r.io/acc:1", "sha256:acc", &[account("other"), a.clone()]));
        // A pull that needs none opens it for all.
        pulled(&v, "r.io/own:1", "sha256:own", None);
        assert!(ask("r.io/own:1", "sha256:own", &[]));
        // Nothing of a login is on disk but its hash.
        let text: String = entries::<Record>(&v.pulled)
            .iter()
            .map(|(path, _)| std::fs::read_to_string(path).unwrap())
            .collect();
        assert!(text.contains(&a.hash) || !text.contains("secret\""), "{text}");
        assert!(!text.contains("renewed"), "{text}");
    }

    #[test]
    fn what_was_pulled_in_a_crash_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let v = verification(dir.path(), "NeverVerifyPreloadedImages");
        v.begin("r.io/a:1").unwrap();
        v.begin("r.io/gone:1").unwrap();
        let v = verification(dir.path(), "NeverVerifyPreloadedImages");
        assert!(!may_use(&v, "r.io/a:1", "sha256:a", &[]), "the intent tells");
        let image = ImageStatus {
            id: "sha256:a".into(),
            repo_tags: vec!["r.io/a:1".into()],
            ..ImageStatus::default()
        };
        v.restore(std::slice::from_ref(&image), NOW);
        assert!(entries::<Intent>(&v.pulling).is_empty());
        assert!(!may_use(&v, "r.io/a:1", "sha256:a", &[login("a", "x")]));
        assert!(may_use(&v, "r.io/gone:1", "sha256:gone", &[]), "it never came");
        pulled(&v, "r.io/a:1", "sha256:a", Some(&login("a", "x")));
        assert!(may_use(&v, "r.io/a:1", "sha256:a", &[login("a", "x")]));
        v.prune(&[image], "2031-01-01T00:00:00Z");
        assert_eq!(entries::<Record>(&v.pulled).len(), 1);
        v.prune(&[], NOW);
        assert_eq!(entries::<Record>(&v.pulled).len(), 1, "it is not old enough");
        v.prune(&[], "2031-01-01T00:00:00Z");
        assert!(entries::<Record>(&v.pulled).is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_read_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let v = verification(dir.path(), "NeverVerifyPreloadedImages");
        let a = login("a", "secret");
        pulled(&v, "r.io/a:1", "sha256:a", Some(&a));
        let path = v.pulled.join(file_name("sha256:a"));
        for torn in ["", "{\"kind\": ", "[]"] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(v.known("r.io/a:1", "sha256:a"), (Known::Closed, "error"), "{torn:?}");
            assert!(!may_use(&v, "r.io/a:1", "sha256:a", std::slice::from_ref(&a)));
        }
        pulled(&v, "r.io/a:1", "sha256:a", Some(&a));
        assert!(may_use(&v, "r.io/a:1", "sha256:a", &[a]), "a pull makes it anew");
        std::fs::write(v.pulling.join(file_name("r.io/b:1")), "{").unwrap();
        assert_eq!(v.known("r.io/b:1", "sha256:b"), (Known::Closed, "error"));
        assert_eq!(v.count(), (1, 1));
    }

    #[test]
    fn full_records_take_no_new_content() {
        let dir = tempfile::tempdir().unwrap();
        let v = verification(dir.path(), "NeverVerifyPreloadedImages");
        for n in 0..LOGINS_MAX {
            pulled(&v, "r.io/a:1", "sha256:a", Some(&login(&n.to_string(), &format!("secret {n}"))));
        }
        assert!(may_use(&v, "r.io/a:1", "sha256:a", &[login("new", "secret 7")]), "it opens it");
        assert!(!may_use(&v, "r.io/a:1", "sha256:a", &[login("7", "renewed")]));
    }

    #[test]
    fn two_pulls_of_one_image_are_one_intent() {
        let dir = tempfile::tempdir().unwrap();
        let v = verification(dir.path(), "NeverVerifyPreloadedImages");
        v.begin("r.io/a:1").unwrap();
        v.begin("r.io/a:1").unwrap();
        v.end("r.io/a:1", None, NOW);
        assert_eq!(entries::<Intent>(&v.pulling).len(), 1);
        v.end("r.io/a:1", None, NOW);
        assert!(entries::<Intent>(&v.pulling).is_empty());
    }
}

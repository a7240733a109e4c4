//! Removes service-account tokens of the old kind that were made for their account by themselves (before
//! Kubernetes 1.24) and that nobody has used for a year: first they are marked invalid, and what is still
//! marked a year later goes (KEP-2799).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::Deserialize;
use serde_json::{Value, json};
use yare_auth::{
    node::secrets_of_pod,
    token::legacy::{INVALID_SINCE_LABEL, LAST_USED_LABEL, TRACKING_MAP, TRACKING_SINCE},
};
use yare_client::{CONFIG_MAPS, Cached, Change, Informer, ObjectKey, PODS, SECRETS, SERVICE_ACCOUNTS};

use crate::{
    api::{Deletion, Patch},
    context::{Context, Error},
    harness::{Next, Reconcile},
    service_account_tokens::account_of,
    views::{Meta, nullable},
};

/// How often a token is looked at.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const DAY_FORMAT: &str = "%Y-%m-%d";

struct Cleaner {
    context: Context,
    secrets: Informer,
    accounts: Informer,
    pods: Informer,
}

/// The controller; keys are Secrets.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Cleaner {
        secrets: context.informer(SECRETS),
        accounts: context.informer(SERVICE_ACCOUNTS),
        pods: context.informer(PODS),
        context: context.clone(),
    })
}

/// A token that came or changed.
pub fn changed(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(secret) = &change.new
        && account_of(secret).is_some()
    {
        add(secret.key().clone());
    }
}

/// Reads `2026-01-31`, and nothing else that may be a day.
fn day(text: &str) -> Option<Date> {
    text.parse().ok().filter(|day: &Date| day.strftime(DAY_FORMAT).to_string() == text)
}

/// What a token's age and labels say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It stays as it is.
    Keep,
    /// It is to be marked invalid as of today.
    Mark,
    /// It is to go.
    Remove,
}

/// `tracked`: since which day uses are noted. What only pods and accounts can say is not asked here.
fn judge(
    created: Option<Timestamp>,
    last_used: Option<&str>,
    invalid_since: Option<&str>,
    tracked: Date,
    period: Duration,
    now: Timestamp,
) -> Verdict {
    let of_day = |day: Date| day.tomorrow().and_then(|d| d.to_zoned(TimeZone::UTC)).map(|d| d.timestamp());
    // A token that was used on the day before tracking began must not be taken for unused.
    let begun = of_day(tracked).unwrap_or(Timestamp::MAX);
    let limit = now.saturating_sub(period).unwrap_or(Timestamp::MIN);
    let last_day = limit.to_zoned(TimeZone::UTC).date();
    if limit < begun || created.is_none_or(|at| at >= limit) {
        return Verdict::Keep;
    }
    // Nobody can say when one was used whose day is unreadable.
    if last_used.is_some_and(|text| day(text).is_none_or(|used| used >= last_day)) {
        return Verdict::Keep;
    }
    match invalid_since.and_then(day) {
        None => Verdict::Mark,
        Some(since) if since >= last_day => Verdict::Keep,
        Some(_) => Verdict::Remove,
    }
}

impl Cleaner {
    /// Since which day the API server notes uses.
    async fn tracked(&self) -> Result<Option<Date>, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct View {
            #[serde(deserialize_with = "nullable")]
            data: std::collections::BTreeMap<String, String>,
        }
        let key = ObjectKey::new("kube-system", TRACKING_MAP);
        let Some(map) = self.context.api.get(&CONFIG_MAPS, &key).await? else { return Ok(None) };
        let view: View = map.view()?;
        Ok(view.data.get(TRACKING_SINCE).and_then(|text| day(text)))
    }

    /// Whether it was made for its account without anybody asking: the account refers to it.
    fn is_automatic(&self, secret: &Cached) -> bool {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct View {
            #[serde(deserialize_with = "nullable")]
            secrets: Vec<Reference>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Reference {
            name: String,
        }
        let Some((account, uid)) = account_of(secret) else { return false };
        self.accounts
            .get(&ObjectKey::new(secret.namespace(), &account))
            .filter(|account| uid.is_empty() || account.uid() == uid)
            .and_then(|account| account.view::<View>().ok())
            .is_some_and(|view| view.secrets.iter().any(|s| s.name == secret.name()))
    }

    fn is_mounted(&self, secret: &Cached) -> bool {
        let refers = |pod: &Cached| secrets_of_pod(pod.bytes()).iter().any(|name| name == secret.name());
        self.pods.in_namespace(secret.namespace()).iter().any(refers)
    }
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct View {
            metadata: Meta,
        }
        let Some(secret) = self.secrets.get(key).filter(|s| s.deletion_timestamp().is_none()) else {
            return Ok(Next::Done);
        };
        if !self.is_automatic(&secret) || self.is_mounted(&secret) {
            return Ok(Next::After(INTERVAL));
        }
        let Some(tracked) = self.tracked().await? else { return Ok(Next::After(INTERVAL)) };
        let now = self.context.now();
        let verdict = judge(
            secret.view::<View>()?.metadata.creation_timestamp,
            secret.label(LAST_USED_LABEL),
            secret.label(INVALID_SINCE_LABEL),
            tracked,
            self.context.config.legacy_token_clean_up_period,
            now,
        );
        let api = &self.context.api;
        match verdict {
            Verdict::Keep => {}
            Verdict::Mark => {
                let today = now.strftime(DAY_FORMAT).to_string();
                tracing::info!(%key, "marking an unused service account token as invalid");
                // The UID keeps a new Secret of that name from it.
                let mut patch: Value = json!({"metadata": {"uid": secret.uid(), "labels": {}}});
                patch["metadata"]["labels"][INVALID_SINCE_LABEL] = today.into();
                api.patch(&SECRETS, key, "", Patch::Merge, &patch).await?;
            }
            Verdict::Remove => {
                tracing::info!(%key, "deleting an unused service account token");
                let how =
                    Deletion { resource_version: Some(secret.resource_version()), ..Deletion::default() };
                api.delete(&SECRETS, key, how).await?;
            }
        }
        Ok(Next::After(INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_token() {
        const PERIOD: Duration = Duration::from_secs(10 * 24 * 3600);
        let now: Timestamp = "2026-03-20T12:00:00Z".parse().unwrap();
        // created, last used, invalid since, tracked since
        for (created, used, invalid, tracked, want) in [
            ("2026-01-01T00:00:00Z", None, None, "2026-01-01", Verdict::Mark),
            ("2026-01-01T00:00:00Z", Some("2026-03-09"), None, "2026-01-01", Verdict::Mark),
            ("2026-01-01T00:00:00Z", Some("2026-03-10"), None, "2026-01-01", Verdict::Keep),
            ("2026-01-01T00:00:00Z", Some("lately"), None, "2026-01-01", Verdict::Keep),
            ("2026-01-01T00:00:00Z", Some("2026-3-9"), None, "2026-01-01", Verdict::Keep),
            ("2026-03-10T12:00:00Z", None, None, "2026-01-01", Verdict::Keep),
            ("2026-03-10T11:59:59Z", None, None, "2026-01-01", Verdict::Mark),
            // Not tracked for long enough: the day itself counts to its end.
            ("2026-01-01T00:00:00Z", None, None, "2026-03-10", Verdict::Keep),
            ("2026-01-01T00:00:00Z", None, None, "2026-03-09", Verdict::Mark),
            ("2026-01-01T00:00:00Z", None, Some("soon"), "2026-01-01", Verdict::Mark),
            ("2026-01-01T00:00:00Z", None, Some("2026-03-10"), "2026-01-01", Verdict::Keep),
            ("2026-01-01T00:00:00Z", None, Some("2026-03-09"), "2026-01-01", Verdict::Remove),
            ("2026-01-01T00:00:00Z", Some("2026-03-19"), Some("2026-03-09"), "2026-01-01", Verdict::Keep),
        ] {
            let created = Some(created.parse().unwrap());
            let tracked = day(tracked).unwrap();
            let found = judge(created, used, invalid, tracked, PERIOD, now);
            assert_eq!(found, want, "{created:?} {used:?} {invalid:?} {tracked}");
        }
        assert_eq!(judge(None, None, None, day("2020-01-01").unwrap(), PERIOD, now), Verdict::Keep);
    }
}

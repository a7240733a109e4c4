//! EventRateLimit: events that come faster than their bucket fills are refused, by server, namespace, user, or
//! source and object.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use yare_kinds::view::View;

use super::{Attributes, settings::EventLimit};
use crate::status::{ApiError, ApiResult};

/// What events are counted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitBy {
    /// All together.
    Server,
    /// Their namespace.
    Namespace,
    /// Who reports them.
    User,
    /// What reports them of what.
    SourceAndObject,
}

impl LimitBy {
    /// As configurations have it.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("Namespace", Self::Namespace),
        ("Server", Self::Server),
        ("SourceAndObject", Self::SourceAndObject),
        ("User", Self::User),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, by)| *by == self).map_or("", |(name, _)| name)
    }
}

/// A bucket of tokens: how many are in it, and when that was so.
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// The buckets of each limit.
pub struct Buckets(Vec<(EventLimit, Mutex<HashMap<String, Bucket>>)>);

impl Buckets {
    /// Empty ones.
    pub fn new(limits: &[EventLimit]) -> Self {
        Self(limits.iter().map(|l| (l.clone(), Mutex::default())).collect())
    }

    /// Takes a token of every limit; names those that have none left.
    fn take(&self, now: Timestamp, key: impl Fn(LimitBy) -> String) -> Vec<String> {
        let mut empty = Vec::new();
        for (limit, buckets) in &self.0 {
            let key = key(limit.by);
            let mut buckets = buckets.lock();
            if buckets.len() >= limit.cache_size && !buckets.contains_key(&key) {
                // The one that was used longest ago is most likely full again.
                if let Some(oldest) = buckets.iter().min_by_key(|(_, b)| b.at).map(|(k, _)| k.clone()) {
                    buckets.remove(&oldest);
                }
            }
            let full = f64::from(limit.burst);
            let bucket = buckets.entry(key.clone()).or_insert(Bucket { tokens: full, at: now });
            let passed: Duration = now.duration_since(bucket.at).try_into().unwrap_or_default();
            bucket.tokens = (bucket.tokens + passed.as_secs_f64() * f64::from(limit.qps)).min(full);
            bucket.at = now;
            if bucket.tokens >= 1.0 {
                bucket.tokens -= 1.0;
            } else {
                empty.push(format!("limit reached on type {} for key {key}", limit.by.name()));
            }
        }
        empty
    }
}

/// Refuses an event over a limit.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    // What is not stored costs nothing.
    if attributes.dry_run {
        return Ok(());
    }
    let Some(event) = object else { return Ok(()) };
    let key = |by| match by {
        LimitBy::Server => String::new(),
        LimitBy::Namespace => attributes.namespace.to_owned(),
        LimitBy::User => attributes.call.user.name.clone(),
        LimitBy::SourceAndObject => [
            "source.component",
            "source.host",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
        ]
        .map(|field| event.str_at(field))
        .concat(),
    };
    let empty = attributes.admission().events.take(attributes.call.core.now(), key);
    match empty.as_slice() {
        [] => Ok(()),
        [one] => Err(ApiError::too_many_requests(one.clone(), 0)),
        many => Err(ApiError::too_many_requests(format!("[{}]", many.join(", ")), 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_fill_with_time() {
        let limit = EventLimit { by: LimitBy::User, qps: 2, burst: 2, cache_size: 1 };
        let buckets = Buckets::new(&[limit]);
        let at = |ms: i64| Timestamp::from_millisecond(ms).unwrap();
        let taken = |ms, user: &str| buckets.take(at(ms), |_| user.to_owned()).is_empty();
        assert!(taken(0, "a") && taken(0, "a") && !taken(0, "a"));
        assert!(!taken(400, "a") && taken(600, "a"));
        // Room for one bucket: another user's displaces it.
        assert!(taken(600, "b") && taken(600, "a") && taken(600, "a") && !taken(600, "a"));
    }
}

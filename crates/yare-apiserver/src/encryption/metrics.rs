//! Metrics of encryption at rest, under upstream's names.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use ring::digest;
use yare_metrics::{Histogram, text::Page};

/// Keys whose use is remembered at most, for each of the two families.
const MAX_KEYS: usize = 100;

/// What is counted.
#[derive(Default)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
    cache_misses: AtomicU64,
}

#[derive(Default)]
struct Counts {
    /// Resource, direction, prefix, status.
    operations: BTreeMap<[String; 4], u64>,
    /// Direction, prefix.
    durations: BTreeMap<[String; 2], Histogram<25>>,
    /// Provider, method, gRPC code.
    calls: BTreeMap<[String; 3], Histogram<20>>,
    key_generation: Histogram<14>,
    /// Direction, provider, hash of the key's ID: how often it was used, and when last.
    keys: Recent<[String; 3]>,
    /// Provider, hash of the key's ID.
    status_keys: Recent<[String; 2]>,
    /// Provider, what was wrong.
    invalid_keys: BTreeMap<[String; 2], u64>,
    cache_sizes: BTreeMap<String, usize>,
    /// Outcome of reloads.
    reloads: BTreeMap<&'static str, (u64, f64)>,
    configuration: String,
}

/// `N` bounds in seconds that double from a first one.
const fn doubling<const N: usize>(first: f64) -> [f64; N] {
    let mut bounds = [first; N];
    let mut at = 1;
    while at < N {
        bounds[at] = bounds[at - 1] * 2.0;
        at += 1;
    }
    bounds
}

/// The most recently used of what there may be too much of.
struct Recent<K>(BTreeMap<K, (u64, f64)>);

impl<K> Default for Recent<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Recent<K> {
    fn note(&mut self, key: K, now: f64) {
        let used = self.0.entry(key).or_default();
        *used = (used.0 + 1, now);
        while self.0.len() > MAX_KEYS {
            let oldest = self.0.iter().min_by(|a, b| a.1.1.total_cmp(&b.1.1)).map(|(key, _)| key.clone());
            if let Some(key) = oldest {
                self.0.remove(&key);
            }
        }
    }
}

const TRANSFORMATION: [f64; 25] = doubling(5e-6);
const KEY_GENERATION: [f64; 14] = doubling(5e-6);
const CALL: [f64; 20] = doubling(1e-4);

/// `sha256:…` of what is not empty.
pub(crate) fn hash(data: impl AsRef<[u8]>) -> String {
    let data = data.as_ref();
    if data.is_empty() {
        return String::new();
    }
    let digest = digest::digest(&digest::SHA256, data);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

impl Metrics {
    /// A value was read or made; `failed`: with this code.
    pub fn transformed(
        &self,
        resource: &str,
        direction: &str,
        prefix: &str,
        failed: Option<&str>,
        elapsed: Duration,
    ) {
        let mut counts = self.counts.lock();
        let key = [resource, direction, prefix, failed.unwrap_or("OK")].map(str::to_owned);
        *counts.operations.entry(key).or_default() += 1;
        if failed.is_none() {
            let key = [direction, prefix].map(str::to_owned);
            counts.durations.entry(key).or_default().observe(&TRANSFORMATION, elapsed.as_secs_f64());
        }
    }

    /// A key had to be decrypted by its plugin.
    pub fn cache_missed(&self) {
        self.cache_misses.fetch_add(1, Ordering::Relaxed);
    }

    /// A plugin keeps so many keys decrypted.
    pub fn cached(&self, provider: &str, keys: usize) {
        self.counts.lock().cache_sizes.insert(provider.to_owned(), keys);
    }

    /// A seed was made.
    pub fn key_made(&self, elapsed: Duration) {
        self.counts.lock().key_generation.observe(&KEY_GENERATION, elapsed.as_secs_f64());
    }

    /// A plugin was called.
    pub fn called(&self, provider: &str, method: &str, code: &str, elapsed: Duration) {
        let key = [provider, method, code].map(str::to_owned);
        self.counts.lock().calls.entry(key).or_default().observe(&CALL, elapsed.as_secs_f64());
    }

    /// A key was used.
    pub fn key_used(&self, direction: &str, provider: &str, key_id: &str, now: f64) {
        let key = [direction.to_owned(), provider.to_owned(), hash(key_id)];
        self.counts.lock().keys.note(key, now);
    }

    /// A plugin names its key.
    pub fn key_named(&self, provider: &str, key_id: &str, now: f64) {
        self.counts.lock().status_keys.note([provider.to_owned(), hash(key_id)], now);
    }

    /// A plugin names a key that is none.
    pub fn key_invalid(&self, provider: &str, error: &str) {
        let key = [provider, error].map(str::to_owned);
        *self.counts.lock().invalid_keys.entry(key).or_default() += 1;
    }

    /// The configuration was replaced, or could not be.
    pub fn reloaded(&self, outcome: &'static str, now: f64) {
        let mut counts = self.counts.lock();
        let entry = counts.reloads.entry(outcome).or_default();
        *entry = (entry.0 + 1, now);
    }

    /// The configuration that is in effect.
    pub fn configured(&self, hash: &str) {
        self.counts.lock().configuration = hash.to_owned();
    }

    /// Everything; `server`: the server's identity.
    pub fn expose(&self, page: &mut Page, server: &str) {
        let counts = &*self.counts.lock();
        let server = hash(server);
        let server = server.as_str();
        let name = "apiserver_storage_transformation_operations_total";
        page.family(name, "counter", "[ALPHA] Total number of transformations. Successful transformation will have a status 'OK' and a varied status string when the transformation fails. The status, resource, and transformation_type fields can be used for alerting purposes. For example, you can monitor for encryption/decryption failures using the transformation_type (e.g., from_storage for decryption and to_storage for encryption). Additionally, these fields can be used to ensure that the correct transformers are applied to each resource.");
        for ([resource, direction, prefix, status], count) in &counts.operations {
            let labels = [
                ("resource", resource.as_str()),
                ("status", status),
                ("transformation_type", direction),
                ("transformer_prefix", prefix),
            ];
            page.sample(name, &labels, count);
        }
        let name = "apiserver_storage_transformation_duration_seconds";
        page.family(name, "histogram", "[ALPHA] Latencies in seconds of value transformation operations.");
        for ([direction, prefix], histogram) in &counts.durations {
            let labels = [("transformation_type", direction.as_str()), ("transformer_prefix", prefix)];
            histogram.expose(page, name, &labels, &TRANSFORMATION);
        }
        page.single(
            "apiserver_storage_envelope_transformation_cache_misses_total",
            "counter",
            "[ALPHA] Total number of cache misses while accessing key decryption key(KEK).",
            self.cache_misses.load(Ordering::Relaxed),
        );
        let name = "apiserver_storage_data_key_generation_duration_seconds";
        page.family(
            name,
            "histogram",
            "[ALPHA] Latencies in seconds of data encryption key(DEK) generation operations.",
        );
        counts.key_generation.expose(page, name, &[], &KEY_GENERATION);
        page.single(
            "apiserver_storage_data_key_generation_failures_total",
            "counter",
            "[ALPHA] Total number of failed data encryption key(DEK) generation operations.",
            0,
        );
        counts.plugins(page, server);
        counts.controller(page, server);
    }
}

impl Counts {
    fn plugins(&self, page: &mut Page, server: &str) {
        let name = "apiserver_envelope_encryption_kms_operations_latency_seconds";
        page.family(name, "histogram", "[ALPHA] KMS operation duration with gRPC error code status total.");
        for ([provider, method, code], histogram) in &self.calls {
            let labels =
                [("grpc_status_code", code.as_str()), ("method_name", method), ("provider_name", provider)];
            histogram.expose(page, name, &labels, &CALL);
        }
        let name = "apiserver_envelope_encryption_dek_source_cache_size";
        page.family(name, "gauge", "[ALPHA] Number of records in data encryption key (DEK) source cache. On a restart, this value is an approximation of the number of decrypt RPC calls the server will make to the KMS plugin.");
        for (provider, size) in &self.cache_sizes {
            page.sample(name, &[("provider_name", provider)], size);
        }
        let mut keys = |name, kind, help, value: fn(&(u64, f64)) -> f64| {
            page.family(name, kind, help);
            for ([direction, provider, key], used) in &self.keys.0 {
                let labels = [
                    ("apiserver_id_hash", server),
                    ("key_id_hash", key),
                    ("provider_name", provider),
                    ("transformation_type", direction),
                ];
                page.sample(name, &labels, value(used));
            }
        };
        keys(
            "apiserver_envelope_encryption_key_id_hash_total",
            "counter",
            "[ALPHA] Number of times a keyID is used split by transformation type, provider, and apiserver identity.",
            |used| used.0 as f64,
        );
        keys(
            "apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds",
            "gauge",
            "[ALPHA] The last time in seconds when a keyID was used.",
            |used| used.1,
        );
        let name = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
        page.family(
            name,
            "gauge",
            "[ALPHA] The last time in seconds when a keyID was returned by the Status RPC call.",
        );
        for ([provider, key], (_, at)) in &self.status_keys.0 {
            let labels =
                [("apiserver_id_hash", server), ("key_id_hash", key.as_str()), ("provider_name", provider)];
            page.sample(name, &labels, at);
        }
        let name = "apiserver_envelope_encryption_invalid_key_id_from_status_total";
        page.family(
            name,
            "counter",
            "[ALPHA] Number of times an invalid keyID is returned by the Status RPC call split by error.",
        );
        for ([provider, error], count) in &self.invalid_keys {
            page.sample(name, &[("error", error.as_str()), ("provider_name", provider)], count);
        }
    }

    fn controller(&self, page: &mut Page, server: &str) {
        let name = "apiserver_encryption_config_controller_automatic_reloads_total";
        page.family(name, "counter", "[ALPHA] Total number of reload successes and failures of encryption configuration split by apiserver identity.");
        for (status, (count, _)) in &self.reloads {
            page.sample(name, &[("apiserver_id_hash", server), ("status", *status)], count);
        }
        let name = "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds";
        page.family(name, "gauge", "[ALPHA] Timestamp of the last successful or failed automatic reload of encryption configuration split by apiserver identity.");
        for (status, (_, at)) in &self.reloads {
            page.sample(name, &[("apiserver_id_hash", server), ("status", *status)], at);
        }
        let name = "apiserver_encryption_config_controller_last_config_info";
        page.family(name, "gauge", "[ALPHA] Information about the last applied encryption configuration with hash as label, split by apiserver identity.");
        page.sample(name, &[("apiserver_id_hash", server), ("hash", &self.configuration)], 1);
    }
}

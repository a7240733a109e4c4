//! Envelope encryption with a KMS plugin, version 2 (KEP-3299). The server makes a seed, the plugin encrypts
//! it once, and every value gets a key of its own, derived from the seed. The plugin is asked again when its
//! key changes, and for seeds of values that other processes wrote. Its status is polled, as the plugin's API
//! asks for: a change of its key is noticed within a minute, and while it is not well the present seed may
//! write for three minutes more.

mod calls;
mod wire;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;
use prost::Message as _;
use ring::digest;
use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use yare_auth::{config::encryption::Kms, gotext};

use yare_schema::{
    content,
    field::{FieldError, Path},
};

use self::{
    calls::Calls,
    wire::{
        Annotations, DEK, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, EncryptedObject,
        SEED, StatusRequest, StatusResponse,
    },
};
use super::{
    chain::{Context, Failure, Transformer},
    ciphers::{self, SEED_BYTES, Seeded},
    metrics::{Metrics, hash},
};
use crate::core::{Clock, Random, rfc3339};

const STATUS: &str = "/v2.KeyManagementService/Status";
const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";
const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";
/// How long a decrypted key is kept after it was last needed.
const CACHE_TTL: Duration = Duration::from_secs(24 * 3600);
const MAX_KEY_ID_BYTES: usize = 1024;
const MAX_SOURCE_BYTES: usize = 1024;
const MAX_ANNOTATION_BYTES: usize = 32 * 1024;
const VERSIONS: [&str; 2] = ["v2", "v2beta1"];

/// What writes now.
struct State {
    seed: Arc<Seeded>,
    /// What stands before a value, without the value.
    head: EncryptedObject,
    uid: String,
    expires: Timestamp,
    cache_key: CacheKey,
}

type CacheKey = [u8; 32];

/// What came of asking last.
struct Probe {
    answered: Option<(Instant, Result<(), String>)>,
    version: String,
}

/// Until when a key is kept, and what reads with it.
type Cache = HashMap<CacheKey, (Instant, Arc<dyn Transformer>)>;

/// A plugin.
pub(crate) struct Plugin {
    pub name: String,
    calls: Calls,
    state: ArcSwapOption<State>,
    probe: tokio::sync::Mutex<Probe>,
    /// Decrypted keys of values that are read, by what the plugin decrypts them from.
    cache: Mutex<Cache>,
    /// It could not be reached a moment ago: reads need not all wait to find out.
    unreachable: Mutex<Option<(Instant, Failure)>>,
    well: AtomicBool,
    seat: Seat,
}

/// How often plugins are asked, and how long what they say counts. By default upstream's.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How often a plugin that is well is asked how it is.
    pub well_interval: Duration,
    /// How often one that is not.
    pub ill_interval: Duration,
    /// How long a good answer counts for whoever asks for the server's health.
    pub well_ttl: Duration,
    /// How long a bad one.
    pub ill_ttl: Duration,
    /// How long a seed may write after it was last confirmed.
    pub write_ttl: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            well_interval: Duration::from_secs(60),
            ill_interval: Duration::from_secs(10),
            well_ttl: Duration::from_secs(20),
            ill_ttl: Duration::from_secs(3),
            write_ttl: Duration::from_secs(180),
        }
    }
}

/// What plugins need of the server.
#[derive(Clone)]
pub(crate) struct Seat {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub metrics: Arc<Metrics>,
    pub timings: Timings,
    /// Where calls run that reads wait for.
    pub runtime: Handle,
    /// Told when a plugin answers that it is well.
    pub well: Arc<Notify>,
}

impl Seat {
    /// Now, in seconds since 1970.
    pub fn now_s(&self) -> f64 {
        self.clock.now().as_duration().as_secs_f64()
    }

    fn uid(&self) -> String {
        let mut b = [0u8; 16];
        self.random.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl Plugin {
    /// Asks the plugin once, so that a server whose plugin is up can write from the start, and then now and
    /// then until `stop`. One that does not answer is no error: it may come up later.
    pub async fn start(config: &Kms, seat: &Seat, stop: CancellationToken) -> Arc<Self> {
        let calls = Calls::new(&config.name, config.socket(), config.timeout(), seat.metrics.clone());
        let plugin = Arc::new(Self {
            name: config.name.clone(),
            calls,
            state: ArcSwapOption::empty(),
            probe: tokio::sync::Mutex::new(Probe { answered: None, version: String::new() }),
            cache: Mutex::default(),
            unreachable: Mutex::default(),
            well: AtomicBool::new(false),
            seat: seat.clone(),
        });
        let mut well = plugin.check_and_log().await;
        let (polled, timings) = (plugin.clone(), seat.timings);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(if well { timings.well_interval } else { timings.ill_interval }) => {}
                    () = stop.cancelled() => return,
                }
                well = polled.check_and_log().await;
            }
        });
        plugin
    }

    async fn check_and_log(&self) -> bool {
        let outcome = self.check().await;
        if let Err(error) = &outcome {
            tracing::warn!(name = self.name, error, "kms plugin failed health check probe");
        }
        outcome.is_ok()
    }

    /// What the last answer was.
    pub fn is_well(&self) -> bool {
        self.well.load(Ordering::Acquire)
    }

    /// Whether the plugin is well; asked again unless it just was.
    pub async fn check(&self) -> Result<(), String> {
        let mut probe = self.probe.lock().await;
        if let Some((at, outcome)) = &probe.answered {
            let Timings { well_ttl, ill_ttl, .. } = self.seat.timings;
            let ttl = if outcome.is_ok() { well_ttl } else { ill_ttl };
            if at.elapsed() < ttl {
                return outcome.clone();
            }
        }
        let outcome = match self.calls.call(STATUS, StatusRequest {}).await {
            Err(failure) => Err(format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {}",
                self.name, failure.message
            )),
            Ok(status) => self
                .judge(&mut probe, &status)
                .await
                .map_err(|why| format!("kmsv2 Provider {} is not healthy, error: {why}", self.name)),
        };
        probe.answered = Some((Instant::now(), outcome.clone()));
        self.well.store(outcome.is_ok(), Ordering::Release);
        if outcome.is_ok() {
            self.unreachable.lock().take();
            self.seat.well.notify_waiters();
        }
        outcome
    }

    /// What is wrong with a status; where nothing is, its key writes from now on.
    async fn judge(&self, probe: &mut Probe, status: &StatusResponse) -> Result<(), String> {
        let mut errors = Vec::new();
        let StatusResponse { version, healthz, key_id } = status;
        if healthz != "ok" {
            errors.push(format!("got unexpected healthz status: {healthz}"));
        }
        if VERSIONS.contains(&version.as_str()) {
            if probe.version.is_empty() {
                probe.version.clone_from(version);
            }
            if probe.version != *version {
                errors.push(format!(
                    "KMSv2 API version should not change after the initial status response version {}, got {version}",
                    probe.version
                ));
            }
        } else {
            errors.push(format!("expected KMSv2 API version v2, got {version}"));
        }
        match check_key_id(key_id) {
            Err((code, why)) => {
                self.seat.metrics.key_invalid(&self.name, code);
                errors.push(format!("got invalid KMSv2 KeyID hash {:?}: {why}", hash(key_id)));
            }
            Ok(()) => {
                self.seat.metrics.key_named(&self.name, key_id, self.seat.now_s());
                errors.extend(self.rotate(key_id).await.err());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(gotext::aggregate(&errors)) }
    }

    /// Lets the plugin's key write: the present seed for longer, where the key is the same, or a new one. What
    /// cannot be replaced stays, until it expires.
    async fn rotate(&self, key_id: &str) -> Result<(), String> {
        // Before anything is asked: the time is an upper bound.
        let now = self.seat.clock.now();
        let expires = now.checked_add(self.seat.timings.write_ttl).unwrap_or(Timestamp::MAX);
        let state = self.state.load_full();
        if let Some(state) = state.as_ref().filter(|s| s.head.key_id == key_id) {
            let (head, uid) = (state.head.clone(), state.uid.clone());
            let (seed, cache_key) = (state.seed.clone(), state.cache_key);
            self.state.store(Some(Arc::new(State { seed, head, uid, expires, cache_key })));
            return Ok(());
        }
        let uid = self.seat.uid();
        let made = self.generate(&uid).await;
        let (error, encrypted_with) = match made {
            Ok((seed, head)) if head.key_id == key_id => {
                let cache_key = cache_key(&head);
                tracing::debug!(name = self.name, uid, key = hash(key_id), "a new seed writes");
                self.state.store(Some(Arc::new(State { seed, head, uid, expires, cache_key })));
                return Ok(());
            }
            Ok((_, head)) => ("<nil>".to_owned(), head.key_id),
            Err(failure) => (failure.message, String::new()),
        };
        let (state_error, state_key, until) = match &state {
            Some(state) => ("<nil>", state.head.key_id.as_str(), rfc3339(state.expires)),
            None => ("got unexpected nil transformer", "", "0001-01-01T00:00:00Z".to_owned()),
        };
        Err(format!(
            "failed to rotate DEK uid={uid:?}, useSeed=true, errState={state_error}, errGen={error}, statusKeyIDHash={:?}, encryptKeyIDHash={:?}, stateKeyIDHash={:?}, expirationTimestamp={until}",
            hash(key_id),
            hash(&encrypted_with),
            hash(state_key),
        ))
    }

    /// A new seed, and what stands before values of it.
    async fn generate(&self, uid: &str) -> Result<(Arc<Seeded>, EncryptedObject), Failure> {
        let started = std::time::Instant::now();
        let mut seed = [0; SEED_BYTES];
        self.seat.random.fill(&mut seed);
        self.seat.metrics.key_made(started.elapsed());
        let request = EncryptRequest { plaintext: seed.to_vec(), uid: uid.to_owned() };
        let response = self.calls.call(ENCRYPT, request).await;
        let EncryptResponse { ciphertext, key_id, annotations } =
            response.map_err(|failure| failure.while_doing("failed to encrypt DEK, error"))?;
        let head =
            EncryptedObject { data: Vec::new(), key_id, source: ciphertext, annotations, source_type: SEED };
        check_head(&head)?;
        Ok((Arc::new(Seeded::new(&seed, self.seat.random.clone())?), head))
    }

    /// What decrypts a value, asked of the plugin where it is not known.
    fn key_of(&self, object: &EncryptedObject) -> Result<Arc<dyn Transformer>, Failure> {
        let key = cache_key(object);
        if let Some((_, known)) = self.cache.lock().get(&key) {
            return Ok(known.clone());
        }
        self.seat.metrics.cache_missed();
        let wrap = |failure: Failure| failure.while_doing("failed to decrypt DEK, error");
        if let Some((at, failure)) = &*self.unreachable.lock()
            && at.elapsed() < self.seat.timings.ill_ttl
        {
            return Err(wrap(failure.clone()));
        }
        let request = DecryptRequest {
            ciphertext: object.source.clone(),
            uid: self.seat.uid(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer: Result<DecryptResponse, Failure> =
            self.seat.runtime.block_on(self.calls.call(DECRYPT, request));
        if let Err(failure) = &answer
            && calls::is_unreachable(failure)
        {
            *self.unreachable.lock() = Some((Instant::now(), failure.clone()));
        }
        let plain = answer.map_err(wrap)?.plaintext;
        let random = &self.seat.random;
        let made: Arc<dyn Transformer> = if object.source_type == SEED {
            Arc::new(Seeded::new(&plain, random.clone())?)
        } else {
            let why = || format!("crypto/aes: invalid key size {}", plain.len());
            ciphers::gcm(&plain, random).ok_or_else(why)?
        };
        self.remember(key, made.clone());
        Ok(made)
    }

    fn remember(&self, key: CacheKey, transformer: Arc<dyn Transformer>) {
        let mut cache = self.cache.lock();
        let now = Instant::now();
        cache.retain(|_, (at, _)| now.duration_since(*at) < CACHE_TTL);
        cache.insert(key, (now, transformer));
        self.seat.metrics.cached(&self.name, cache.len());
    }

    /// What writes now; reads need it, too, to know what is stale.
    fn state(&self) -> Result<Arc<State>, Failure> {
        self.state.load_full().ok_or_else(|| "got unexpected nil transformer".into())
    }
}

impl Transformer for Plugin {
    fn read(&self, data: &[u8], context: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        let object = EncryptedObject::read(data)?;
        if object.data.is_empty() {
            return Err("encrypted data is empty".into());
        }
        check_head(&object)?;
        let state = self.state()?;
        let transformer = self.key_of(&object)?;
        self.seat.metrics.key_used("from_storage", &self.name, &object.key_id, self.seat.now_s());
        let (json, stale) = transformer.read(&object.data, context)?;
        let other = object.key_id != state.head.key_id || object.source_type != state.head.source_type;
        Ok((json, stale || other))
    }

    fn write(&self, json: &[u8], context: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let state = self.state()?;
        let now = self.seat.clock.now();
        if now > state.expires {
            return Err(format!(
                "encryptedDEKSource with keyID hash {:?} expired at {} (current time is {})",
                hash(&state.head.key_id),
                rfc3339(state.expires),
                rfc3339(now)
            )
            .into());
        }
        if !self.cache.lock().contains_key(&state.cache_key) {
            self.remember(state.cache_key, state.seed.clone());
        }
        let data = state.seed.write(json, context)?;
        self.seat.metrics.key_used("to_storage", &self.name, &state.head.key_id, self.seat.now_s());
        Ok(EncryptedObject { data, ..state.head.clone() }.encode_to_vec())
    }
}

/// A short name for what the plugin decrypts.
fn cache_key(object: &EncryptedObject) -> CacheKey {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(bytes);
    };
    part(&object.source_type.to_le_bytes());
    part(&object.source);
    part(object.key_id.as_bytes());
    for (key, value) in &object.annotations {
        part(key.as_bytes());
        part(value);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// With a word for metrics.
fn check_key_id(key_id: &str) -> Result<(), (&'static str, String)> {
    match key_id.len() {
        0 => Err(("empty", "keyID is empty".into())),
        1..=MAX_KEY_ID_BYTES => Ok(()),
        len => Err((
            "too_long",
            format!("keyID is {len} bytes, which exceeds the max size of {MAX_KEY_ID_BYTES}"),
        )),
    }
}

/// Checks what stands before a value.
fn check_head(object: &EncryptedObject) -> Result<(), Failure> {
    let EncryptedObject { source, key_id, annotations, source_type, .. } = object;
    if !matches!(*source_type, DEK | SEED) {
        return Err(format!("unknown encryptedDEKSourceType: {source_type}").into());
    }
    let source = match source.len() {
        0 => Err("encrypted DEK source is empty".to_owned()),
        1..=MAX_SOURCE_BYTES => Ok(()),
        len => Err(format!(
            "encrypted DEK source is {len} bytes, which exceeds the max size of {MAX_SOURCE_BYTES}"
        )),
    };
    source.map_err(|why| format!("failed to validate encrypted DEK source: {why}"))?;
    check_key_id(key_id).map_err(|(_, why)| format!("failed to validate key id: {why}"))?;
    check_annotations(annotations).map_err(|why| format!("failed to validate annotations: {why}"))?;
    Ok(())
}

fn check_annotations(annotations: &Annotations) -> Result<(), String> {
    let mut errors = Vec::new();
    let path = Path::new("annotations");
    for key in annotations.keys() {
        let name = key.strip_suffix('.').unwrap_or(key);
        if key.is_empty() {
            errors.push(FieldError::required(&path, "").to_string());
            continue;
        }
        let wrong = content::dns1123_subdomain(name);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(&path, name, wrong.join(",")).to_string());
        } else if !name.contains('.') {
            let why = "should be a domain with at least two segments separated by dots";
            errors.push(FieldError::invalid(&path, name, why).to_string());
        }
    }
    let total: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > MAX_ANNOTATION_BYTES {
        errors.push(format!(
            "total size of annotations is {total}, which exceeds the max size of {MAX_ANNOTATION_BYTES}"
        ));
    }
    if errors.is_empty() { Ok(()) } else { Err(gotext::aggregate(&errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> EncryptedObject {
        EncryptedObject {
            key_id: "1".into(),
            source: vec![1],
            source_type: SEED,
            ..EncryptedObject::default()
        }
    }

    #[test]
    fn what_stands_before_values_is_checked() {
        let annotation = |key: &str, len: usize| [(key.to_owned(), vec![0; len])].into();
        for (object, expected) in [
            (head(), None),
            (EncryptedObject { annotations: annotation("a.io", 1000), ..head() }, None),
            (EncryptedObject { source_type: 2, ..head() }, Some("unknown encryptedDEKSourceType: 2")),
            (
                EncryptedObject { source: Vec::new(), ..head() },
                Some("failed to validate encrypted DEK source: encrypted DEK source is empty"),
            ),
            (
                EncryptedObject { source: vec![0; 1025], ..head() },
                Some(
                    "failed to validate encrypted DEK source: encrypted DEK source is 1025 bytes, which exceeds the max size of 1024",
                ),
            ),
            (
                EncryptedObject { key_id: String::new(), ..head() },
                Some("failed to validate key id: keyID is empty"),
            ),
            (
                EncryptedObject { annotations: annotation("a", 1), ..head() },
                Some(
                    r#"failed to validate annotations: annotations: Invalid value: "a": should be a domain with at least two segments separated by dots"#,
                ),
            ),
            (
                EncryptedObject { annotations: annotation("a.io", 32 * 1024), ..head() },
                Some(
                    "failed to validate annotations: total size of annotations is 32772, which exceeds the max size of 32768",
                ),
            ),
        ] {
            assert_eq!(check_head(&object).err().map(|f| f.message).as_deref(), expected);
        }
    }

    #[test]
    fn cache_keys_tell_everything_apart() {
        let mut keys = std::collections::HashSet::new();
        for object in [
            head(),
            EncryptedObject { source_type: DEK, ..head() },
            EncryptedObject { source: vec![1, b'1'], key_id: String::new(), ..head() },
            EncryptedObject { annotations: [("a".to_owned(), b"b".to_vec())].into(), ..head() },
            EncryptedObject { annotations: [("ab".to_owned(), Vec::new())].into(), ..head() },
        ] {
            assert!(keys.insert(cache_key(&object)));
        }
    }
}

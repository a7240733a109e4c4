//! Encryption at rest: what `--encryption-provider-config` says of it. [`Encryption`] is the store's
//! [`Sealer`]: the store asks it what lies on disk in the place of an object's JSON, and for the JSON of what
//! lies there. Objects of resources that the file does not name rest as they are.
//!
//! Everything is decrypted once, when the server starts, and is JSON in memory from then on, as in upstream's
//! watch cache. When the file changes, everything is tried again: a key that is gone takes what it encrypted out
//! of memory, so that no server serves what it could not after a restart. What cannot be decrypted is locked
//! ([`locked`]) and tried again: when a plugin comes up, when the file changes, when somebody asks for it.

mod chain;
mod ciphers;
mod kms;
pub mod locked;
pub(crate) mod metrics;
mod reload;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::{CancellationToken, DropGuard};
use yare_auth::{
    config::encryption::{EncryptionConfiguration, Keys, Provider, group_resource},
    gotext,
};
use yare_store::{Object, Sealer};

use self::{
    chain::{Chain, Context, Identity, Link, Transformer},
    kms::{Plugin, Seat},
};
use crate::{
    core::{Clock, Core, Random},
    metrics::text::Page,
    registry::store_kind,
};

pub use self::kms::Timings;

/// How encryption is set up.
pub struct Settings {
    /// The file.
    pub file: PathBuf,
    /// Changes of the file take effect while the server runs.
    pub reload: bool,
    /// Whether plugins of version 1 were asked for (the feature KMSv1).
    pub kms_v1: bool,
    /// Which server this is, in metrics.
    pub server: String,
    /// How often plugins are asked.
    pub timings: Timings,
}

/// Encryption at rest.
pub struct Encryption {
    settings: Settings,
    now: ArcSwap<Loaded>,
    seat: Seat,
    /// The first object that waits for a plugin tries them all; others wait for what comes of it.
    trying: tokio::sync::Mutex<()>,
}

/// What a file says, ready for use.
struct Loaded {
    /// By the store's kind.
    kinds: HashMap<Box<str>, Arc<Chain>>,
    /// `*.apps`, by group.
    groups: HashMap<Box<str>, Arc<Chain>>,
    /// `*.*`
    all: Option<Arc<Chain>>,
    plugins: Vec<Arc<Plugin>>,
    /// Of the file's text.
    hash: String,
    /// How long calls may be under way after all this was replaced.
    grace: Duration,
    /// Ends the plugins' polling.
    _stop: DropGuard,
}

impl Encryption {
    /// Reads the file and gets in touch with the plugins that it names.
    pub async fn open(
        settings: Settings,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Arc<Self>, String> {
        let seat = Seat {
            clock,
            random,
            metrics: Arc::default(),
            timings: settings.timings,
            runtime: Handle::current(),
            well: Arc::new(Notify::new()),
        };
        let loaded = Loaded::read(&settings, &seat, None).await?.ok_or("nothing was read")?;
        seat.metrics.configured(&loaded.hash);
        let now = ArcSwap::from_pointee(loaded);
        Ok(Arc::new(Self { settings, now, seat, trying: tokio::sync::Mutex::default() }))
    }

    /// Whether `/readyz` has a part for plugins.
    pub fn has_check(&self) -> bool {
        self.settings.reload || !self.now.load().plugins.is_empty()
    }

    /// Whether changes of the file take effect.
    pub fn reloads(&self) -> bool {
        self.settings.reload
    }

    /// Asks all plugins how they are, one after the other.
    pub async fn check(&self) -> Result<(), String> {
        self.now.load_full().check().await
    }

    /// Whether all plugins were well when last asked.
    pub fn is_well(&self) -> bool {
        self.now.load().plugins.iter().all(|plugin| plugin.is_well())
    }

    /// Waits until a plugin says that it is well, or says it again.
    pub(crate) async fn until_well(&self) {
        self.seat.well.notified().await;
    }

    /// Whether what lies on disk of the object was not made as it would be now: an update writes it anew, also
    /// when it changes nothing.
    pub async fn is_stale(self: &Arc<Self>, object: &Arc<Object>) -> Result<bool, String> {
        let chain = self.now.load().chain(&object.kind);
        if object.sealed().is_none() {
            // As `open` would find it, without the copy.
            return match &chain {
                None => Ok(false),
                Some(chain) => chain.plain_at().map(|at| at != 0).ok_or_else(|| chain.missing.to_owned()),
            };
        }
        // A plugin may have to be asked for the key.
        let (this, object) = (self.clone(), object.clone());
        let read = tokio::task::spawn_blocking(move || {
            let sealed = object.sealed().unwrap_or_default();
            this.read(&object.kind, &object.key, sealed).map(|(_, stale)| stale)
        });
        read.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn read(&self, kind: &str, key: &str, sealed: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let chain = self.now.load().chain(kind);
        let context = Context::new(kind, key, &self.seat.metrics);
        let outcome = match &chain {
            Some(chain) => chain.read(sealed, &context),
            None => Identity.read(sealed, &context),
        };
        outcome.map_err(|failure| failure.message)
    }

    pub(crate) fn expose(&self, page: &mut Page) {
        self.seat.metrics.expose(page, &self.settings.server);
    }
}

impl Sealer for Encryption {
    fn seal(&self, kind: &str, key: &str, json: &[u8]) -> Result<Option<Box<[u8]>>, String> {
        let now = self.now.load();
        let Some(chain) = now.find(kind) else { return Ok(None) };
        let context = Context::new(kind, key, &self.seat.metrics);
        if chain.plain_at() == Some(0) {
            return Ok(None);
        }
        let sealed = chain.write(json, &context).map_err(|failure| failure.message)?;
        Ok(Some(sealed.into()))
    }

    fn open(&self, kind: &str, key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        self.read(kind, key, sealed).map(|(json, _)| json)
    }

    fn reads_plain(&self, kind: &str) -> bool {
        self.now.load().find(kind).is_none_or(|chain| chain.plain_at().is_some())
    }
}

/// Starts what goes on while the server runs.
pub(crate) fn start(core: &Arc<Core>) {
    let Some(encryption) = &core.config.encryption else { return };
    if encryption.settings.reload {
        reload::start(core, encryption);
    }
    let (core, encryption) = (core.clone(), encryption.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = encryption.until_well() => locked::unlock(&core).await,
                () = core.stop.cancelled() => return,
            }
        }
    });
}

impl Loaded {
    /// Nothing where the text is the one that has the hash `known`.
    async fn read(settings: &Settings, seat: &Seat, known: Option<&str>) -> Result<Option<Self>, String> {
        let path = settings.file.display().to_string();
        let parsing = |why: String| format!("error while parsing file: {why}");
        let text = tokio::fs::read(&settings.file).await.map_err(|error| {
            let why = error.to_string().to_lowercase();
            let why = why.split(" (os error").next().unwrap_or_default().to_owned();
            let why =
                format!("error reading encryption provider configuration file {path:?}: open {path}: {why}");
            parsing(format!("error while loading file: {why}"))
        })?;
        if text.is_empty() {
            let why = format!("encryption provider configuration file {path:?} is empty");
            return Err(parsing(format!("error while loading file: {why}")));
        }
        let hash = metrics::hash(&text);
        if known == Some(&hash) {
            return Ok(None);
        }
        let configuration = EncryptionConfiguration::parse(&text, settings.reload).map_err(|error| {
            let why = error.to_string();
            parsing(match error {
                yare_auth::config::ConfigError::Form(_) => {
                    format!("error decoding encryption provider configuration file {path:?}: {why}")
                }
                yare_auth::config::ConfigError::Fields(_) => why,
            })
        })?;
        let built = Self::build(&configuration, settings, hash, seat).await;
        built.map(Some).map_err(|why| format!("error while building transformers: {why}"))
    }

    async fn build(
        configuration: &EncryptionConfiguration,
        settings: &Settings,
        hash: String,
        seat: &Seat,
    ) -> Result<Self, String> {
        // Before any plugin is asked.
        let mut named = HashSet::new();
        for resource in configuration.resources.iter().flat_map(|entry| &entry.resources) {
            // Rules of one entry do not mask each other; validation has seen to that.
            check_masked(resource, &named)?;
            named.insert(group_resource(resource));
        }
        let stop = CancellationToken::new();
        let mut plugins = Vec::new();
        let mut grace = Duration::ZERO;
        let mut links: HashMap<(&str, &str), Vec<Link>> = HashMap::new();
        for entry in &configuration.resources {
            let mut own: Vec<Link> = Vec::new();
            for provider in &entry.providers {
                if let Some(kms) = &provider.kms {
                    if kms.api_version != "v2" && settings.kms_v1 {
                        return Err(format!(
                            "KMS plugin {:?} speaks v1, which this server does not: use v2",
                            kms.name
                        ));
                    }
                    if kms.api_version != "v2" {
                        return Err("KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.".into());
                    }
                    let plugin = Plugin::start(kms, seat, stop.clone()).await;
                    own.push((format!("k8s:enc:kms:v2:{}:", kms.name), plugin.clone()));
                    plugins.push(plugin);
                    grace += 2 * kms.timeout();
                } else {
                    own.push(local(provider, seat)?);
                }
            }
            for resource in &entry.resources {
                links.entry(group_resource(resource)).or_default().extend(own.iter().cloned());
            }
        }
        let mut loaded = Self {
            kinds: HashMap::new(),
            groups: HashMap::new(),
            all: None,
            plugins,
            hash,
            grace,
            _stop: stop.drop_guard(),
        };
        for ((group, plural), links) in links {
            let chain = Arc::new(Chain { links, missing: "no matching prefix found" });
            match (group, plural) {
                ("*", "*") => loaded.all = Some(chain),
                (group, "*") => drop(loaded.groups.insert(group.into(), chain)),
                (group, plural) => {
                    drop(loaded.kinds.insert(store_kind(group, plural).as_ref().into(), chain))
                }
            }
        }
        Ok(loaded)
    }

    /// The chain of a kind, where it has one: its own, its group's, everybody's.
    fn find(&self, kind: &str) -> Option<&Arc<Chain>> {
        if let Some(chain) = self.kinds.get(kind) {
            return Some(chain);
        }
        if self.groups.is_empty() {
            return self.all.as_ref();
        }
        let group = kind.split_once('/').map_or("", |(group, _)| group);
        self.groups.get(group).or(self.all.as_ref())
    }

    fn chain(&self, kind: &str) -> Option<Arc<Chain>> {
        self.find(kind).cloned()
    }

    async fn check(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for (at, plugin) in self.plugins.iter().enumerate() {
            if let Err(why) = plugin.check().await {
                errors.push(format!("kms-provider-{at}: {why}"));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(gotext::aggregate(&errors)) }
    }
}

/// A rule that comes after one that is wider would have no effect.
fn check_masked(resource: &str, named: &HashSet<(&str, &str)>) -> Result<(), String> {
    let (group, _) = group_resource(resource);
    for (wide, shown) in [((group, "*"), format!("*.{group}")), (("*", "*"), "*.*".to_owned())] {
        if named.contains(&wide) {
            return Err(format!("resource {resource:?} is masked by earlier rule {shown:?}"));
        }
    }
    Ok(())
}

/// The providers that need nobody else.
fn local(provider: &Provider, seat: &Seat) -> Result<Link, String> {
    type Make = fn(&[u8], &Arc<dyn Random>) -> Option<Arc<dyn Transformer>>;
    let rows: [(&Option<Keys>, &str, Make, &str); 3] = [
        (&provider.aesgcm, "k8s:enc:aesgcm:v1:", ciphers::gcm, AES_MISSING),
        (&provider.aescbc, "k8s:enc:aescbc:v1:", ciphers::cbc, AES_MISSING),
        (
            &provider.secretbox,
            "k8s:enc:secretbox:v1:",
            ciphers::secretbox,
            "no matching key was found for the provided Secretbox transformer",
        ),
    ];
    for (keys, prefix, make, missing) in rows {
        let Some(keys) = keys else { continue };
        let mut links = Vec::new();
        for key in &keys.keys {
            let made = key.bytes().and_then(|bytes| make(&bytes, &seat.random));
            let made =
                made.ok_or_else(|| format!("error while creating cipher for named key {}", key.name))?;
            links.push((format!("{}:", key.name), made));
        }
        return Ok((prefix.to_owned(), Arc::new(Chain { links, missing })));
    }
    Ok((String::new(), Arc::new(Identity)))
}

const AES_MISSING: &str = "no matching key was found for the provided AES transformer";

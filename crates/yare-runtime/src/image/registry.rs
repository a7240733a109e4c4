//! Images from registries, by the OCI distribution specification: manifest for this machine, configuration,
//! layers; every byte checked against its digest.
//!
//! Layers that are unpacked already are not fetched. The others are fetched a few at a time into nameless files,
//! a broken transfer going on where it stopped, and unpacked in their order.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{Method, StatusCode, Uri, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use yare_schema::release::architecture;

use super::archive::tempfile_in;
use super::http::{Response, Unreachable, send};
use super::manifest::{Descriptor, Document, MAX_DOCUMENT, Plan, check_digest, choose, parse};
use super::{ImageStore, Reference, digest_of, named};
use crate::api::{ImageId, ProgressFn, PullProgress, RegistryAuth};
use crate::error::{Result, RuntimeError};

/// Layers fetched at once.
const PARALLEL: usize = 3;
/// How often anything is tried.
const ATTEMPTS: u32 = 5;
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why a request failed.
struct Failure {
    message: String,
    again: Again,
}

/// Whether trying again soon helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Again {
    Yes,
    /// Only who has come half way already waits for a registry that cannot be reached: other images wait for their
    /// turn, and whoever asked for this one asks again later.
    Underway,
    No,
}

impl Again {
    fn when(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        let again = if e.get_ref().is_some_and(|e| e.is::<Unreachable>()) {
            Again::Underway
        } else {
            // Certificates do not become valid by waiting.
            Again::when(e.kind() != io::ErrorKind::InvalidData)
        };
        Self { message: e.to_string(), again }
    }
}

/// One repository of one registry.
struct Repository {
    reference: Reference,
    base: String,
    auth: RegistryAuth,
    /// What goes into `Authorization`, once known.
    credentials: Mutex<Option<String>>,
}

/// Aborts a task when dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Counts for the progress callback.
pub(super) struct Progress {
    pub(super) call: Option<ProgressFn>,
    pub(super) layers: u32,
    pub(super) total: u64,
    pub(super) done: AtomicU32,
    pub(super) bytes: AtomicU64,
}

impl Progress {
    pub(super) fn tell(&self) {
        if let Some(call) = &self.call {
            call(PullProgress {
                layers: self.layers,
                layers_done: self.done.load(Ordering::Relaxed),
                bytes: self.bytes.load(Ordering::Relaxed),
                total_bytes: self.total,
            });
        }
    }
}

/// Takes a pull out of the list of those under way, unless somebody waits for it.
struct Turn<'a> {
    store: &'a ImageStore,
    reference: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut pulling = self.store.pulling.lock();
        // One is the list's own, one is ours.
        if pulling.get(self.reference).is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            pulling.remove(self.reference);
        }
    }
}

fn loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

impl ImageStore {
    /// Pulls an image and answers its id. `insecure` lists registries (`host:port`) spoken to without TLS.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: Option<ProgressFn>,
        insecure: &[String],
    ) -> Result<ImageId> {
        let reference = Reference::parse(reference)?;
        let shown = reference.to_string();
        // A built-in image has no registry, whatever the pull policy says.
        if let Some(image) = self.get(&shown).filter(|i| !i.binds.is_empty()) {
            return Ok(image.id.clone());
        }
        let turn = self.pulling.lock().entry(shown.clone()).or_default().clone();
        let _turn = turn.lock_owned().await;
        let _done = Turn { store: self, reference: &shown };
        let plain = loopback(&reference.registry) || insecure.contains(&reference.registry);
        let host =
            if reference.registry == "docker.io" { "registry-1.docker.io" } else { &reference.registry };
        let repository = Arc::new(Repository {
            base: format!("{}://{host}/v2/{}", if plain { "http" } else { "https" }, reference.repository),
            auth: auth.unwrap_or_default(),
            credentials: Mutex::default(),
            reference: reference.clone(),
        });
        let (manifest_digest, top_bytes, manifest) = repository.manifest(&shown).await?;
        let config = manifest.config.clone().unwrap_or_default();
        let config_bytes = repository.document(&shown, "configuration", &config).await?;
        let plan = Plan::new(&shown, config_bytes, manifest.layers.len())?;
        let _held = plan.hold(self);
        self.fetch_layers(&shown, &repository, &plan, &manifest.layers, progress).await?;
        self.put_blob(&top_bytes)?;
        let tags = if reference.digest.is_some() { Vec::new() } else { vec![reference.clone()] };
        let digests = vec![reference.with_digest(&manifest_digest)];
        let store = Arc::clone(self);
        spawn(move || plan.record(&store, tags, digests)).await
    }

    async fn fetch_layers(
        self: &Arc<Self>,
        shown: &str,
        repository: &Arc<Repository>,
        plan: &Plan,
        layers: &[Descriptor],
        call: Option<ProgressFn>,
    ) -> Result<()> {
        let missing = |i: usize| !self.layer_dir(&plan.chain[i]).is_dir();
        let progress = Arc::new(Progress {
            call,
            layers: layers.len() as u32,
            total: layers.iter().enumerate().filter(|(i, _)| missing(*i)).map(|(_, l)| l.size).sum(),
            done: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
        });
        progress.tell();
        let slots = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            let (repository, layer, slots) = (Arc::clone(repository), layer.clone(), Arc::clone(&slots));
            let (store, progress) = (Arc::clone(self), Arc::clone(&progress));
            let (shown, name) = (shown.to_owned(), plan.chain[i].clone());
            let diff_id = plan.config.rootfs.diff_ids[i].clone();
            tasks.push(missing(i).then(|| {
                Task(tokio::spawn(async move {
                    // The semaphore is never closed.
                    let _slot = slots.acquire().await;
                    let pull = |message: String| RuntimeError::Pull { reference: shown.clone(), message };
                    let fetched = async {
                        let file = tempfile_in(&store.ingest_dir()).map_err(Failure::from)?;
                        let room =
                            store.room().map_err(|e| Failure { message: e.to_string(), again: Again::No })?;
                        repository.blob(&layer, file, room, &progress).await
                    };
                    let file = fetched.await.map_err(|f| pull(f.message))?;
                    // Whatever is below it may still be on its way.
                    let again = file.try_clone().map_err(|e| pull(e.to_string()))?;
                    let image = shown.clone();
                    let prepared =
                        spawn(move || store.prepare_layer(&image, &name, &diff_id, Box::new(file))).await?;
                    Ok::<_, RuntimeError>((prepared, again))
                }))
            }));
        }
        for (i, task) in tasks.into_iter().enumerate() {
            if let Some(mut task) = task {
                let abandoned = |e| RuntimeError::Pull {
                    reference: shown.to_owned(),
                    message: format!("fetching was abandoned: {e}"),
                };
                let (prepared, mut file) = (&mut task.0).await.map_err(abandoned)??;
                let (store, shown) = (Arc::clone(self), shown.to_owned());
                let (chain, diff_id) = (plan.chain[..=i].to_vec(), plan.config.rootfs.diff_ids[i].clone());
                let open = move || {
                    let rewound = file.seek(SeekFrom::Start(0));
                    rewound.map_err(|e| RuntimeError::io("read a layer again", e))?;
                    Ok(Box::new(file) as Box<dyn Read + Send>)
                };
                spawn(move || store.settle_layer(&shown, &chain, &diff_id, Some(prepared), open)).await?;
            }
            progress.done.fetch_add(1, Ordering::Relaxed);
            progress.tell();
        }
        Ok(())
    }
}

async fn spawn<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|e| RuntimeError::io("unpacking was abandoned", io::Error::other(e)))?
}

impl Repository {
    /// The manifest for this machine: the digest the reference stands for, its bytes, and the manifest itself.
    async fn manifest(&self, shown: &str) -> Result<(String, Vec<u8>, Document)> {
        let asked =
            self.reference.digest.as_ref().or(self.reference.tag.as_ref()).cloned().unwrap_or_default();
        let top = self.get_small(shown, &format!("{}/manifests/{asked}", self.base)).await?;
        if let Some(digest) = &self.reference.digest {
            check_digest(shown, "manifest", &top, digest)?;
        }
        let digest = digest_of(&top);
        let document: Document = parse(shown, "manifest", &top)?;
        if document.config.is_some() {
            return Ok((digest, top, document));
        }
        let refused = |message: String| RuntimeError::Pull { reference: shown.to_owned(), message };
        if document.manifests.is_empty() {
            return Err(refused("the registry answered something that is not an image manifest".into()));
        }
        let inner = choose(&document.manifests)
            .ok_or_else(|| refused(format!("no match for platform in manifest: linux/{}", architecture())))?;
        let bytes = self.get_small(shown, &format!("{}/manifests/{}", self.base, inner.digest)).await?;
        check_digest(shown, "manifest", &bytes, &inner.digest)?;
        let manifest: Document = parse(shown, "manifest", &bytes)?;
        if manifest.config.is_none() {
            return Err(refused("an index inside an index".into()));
        }
        Ok((digest, top, manifest))
    }

    async fn document(&self, shown: &str, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let bytes = self.get_small(shown, &format!("{}/blobs/{}", self.base, descriptor.digest)).await?;
        check_digest(shown, what, &bytes, &descriptor.digest)?;
        Ok(bytes)
    }

    async fn get_small(&self, shown: &str, url: &str) -> Result<Vec<u8>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = async {
                let response = self.get(url, None).await?;
                Ok::<_, Failure>(response.bytes(MAX_DOCUMENT).await?)
            };
            match result.await {
                Ok(bytes) => return Ok(bytes),
                Err(f) if f.again == Again::Yes && attempt < ATTEMPTS => pause(attempt).await,
                Err(f) => return Err(RuntimeError::Pull { reference: shown.to_owned(), message: f.message }),
            }
        }
    }

    /// Fetches a blob into a file, going on after a break, and checks its digest.
    async fn blob(
        &self,
        layer: &Descriptor,
        mut file: File,
        room: u64,
        progress: &Progress,
    ) -> std::result::Result<File, Failure> {
        let (digest, size) = (&layer.digest, layer.size);
        if size == 0 || size > room {
            let message = match size {
                0 => format!("the manifest says no size of layer {digest}"),
                _ => format!("layer {digest} has {size} bytes, and the disk has room for {room}"),
            };
            return Err(Failure { message, again: Again::No });
        }
        let url = format!("{}/blobs/{}", self.base, layer.digest);
        let mut hash = Sha256::new();
        let mut have = 0u64;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.blob_part(&url, layer, &mut file, &mut hash, &mut have, progress).await {
                Ok(()) => break,
                Err(f) if f.again == Again::No || attempt == ATTEMPTS => return Err(f),
                Err(f) if f.again == Again::Underway && have == 0 => return Err(f),
                Err(_) => pause(attempt).await,
            }
        }
        let digest = named(hash);
        if digest != layer.digest {
            let message = format!("layer {} has the digest {digest}", layer.digest);
            return Err(Failure { message, again: Again::No });
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    }

    async fn blob_part(
        &self,
        url: &str,
        layer: &Descriptor,
        file: &mut File,
        hash: &mut Sha256,
        have: &mut u64,
        progress: &Progress,
    ) -> std::result::Result<(), Failure> {
        let mut response = self.get(url, (*have > 0).then_some(*have)).await?;
        if *have > 0 && response.status != StatusCode::PARTIAL_CONTENT {
            // The registry starts from the beginning again, and so do we.
            progress.bytes.fetch_sub(*have, Ordering::Relaxed);
            *have = 0;
            *hash = Sha256::new();
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        while let Some(chunk) = response.chunk().await? {
            *have += chunk.len() as u64;
            if *have > layer.size {
                let message =
                    format!("layer {} is larger than the {} bytes in the manifest", layer.digest, layer.size);
                return Err(Failure { message, again: Again::No });
            }
            hash.update(&chunk);
            file.write_all(&chunk)?;
            progress.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            progress.tell();
        }
        if *have < layer.size {
            let message = format!("layer {} ended after {have} of {} bytes", layer.digest, layer.size);
            return Err(Failure { message, again: Again::Yes });
        }
        Ok(())
    }

    /// A successful answer to a GET, getting a token when asked for one.
    async fn get(&self, url: &str, from: Option<u64>) -> std::result::Result<Response, Failure> {
        let uri: Uri =
            url.parse().map_err(|e| Failure { message: format!("{url}: {e}"), again: Again::No })?;
        let mut challenged = false;
        loop {
            let mut headers = vec![(header::ACCEPT, ACCEPT.to_owned())];
            if let Some(credentials) = self.credentials.lock().clone() {
                headers.push((header::AUTHORIZATION, credentials));
            }
            if let Some(from) = from {
                headers.push((header::RANGE, format!("bytes={from}-")));
            }
            let response = send(Method::GET, &uri, &headers, Bytes::new()).await?;
            let status = response.status;
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                let challenge = response.header(header::WWW_AUTHENTICATE).unwrap_or_default().to_owned();
                self.authenticate(&challenge).await?;
                continue;
            }
            let again = Again::when(status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS);
            let text = response.bytes(64 * 1024).await.unwrap_or_default();
            return Err(Failure { message: refusal(url, status, &text), again });
        }
    }

    async fn authenticate(&self, challenge: &str) -> std::result::Result<(), Failure> {
        let refuse = |message: String| Failure { message, again: Again::No };
        let basic = (!self.auth.username.is_empty()).then(|| {
            let pair = format!("{}:{}", self.auth.username, self.auth.password);
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        });
        if !self.auth.registry_token.is_empty() {
            *self.credentials.lock() = Some(format!("Bearer {}", self.auth.registry_token));
            return Ok(());
        }
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            let basic = basic.ok_or_else(|| {
                refuse("the registry requires credentials (no basic auth credentials)".into())
            })?;
            *self.credentials.lock() = Some(basic);
            return Ok(());
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refuse(format!(
                "the registry requires an unknown kind of authentication: {challenge:?}"
            )));
        }
        let parameters = parameters(rest);
        let find = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let realm = find("realm").ok_or_else(|| refuse("the registry's challenge has no realm".into()))?;
        let scope = find("scope")
            .map_or_else(|| format!("repository:{}:pull", self.reference.repository), str::to_owned);
        let mut query = format!("scope={}", escape(&scope));
        if let Some(service) = find("service") {
            query = format!("service={}&{query}", escape(service));
        }
        let response = if self.auth.identity_token.is_empty() {
            let uri = format!("{realm}{}{query}", if realm.contains('?') { '&' } else { '?' });
            let uri: Uri = uri.parse().map_err(|e| refuse(format!("realm {realm:?}: {e}")))?;
            let headers: Vec<_> = basic.map(|b| (header::AUTHORIZATION, b)).into_iter().collect();
            send(Method::GET, &uri, &headers, Bytes::new()).await?
        } else {
            let uri: Uri = realm.parse().map_err(|e| refuse(format!("realm {realm:?}: {e}")))?;
            let form = format!(
                "grant_type=refresh_token&client_id=yare&refresh_token={}&{query}",
                escape(&self.auth.identity_token)
            );
            let kind = (header::CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned());
            send(Method::POST, &uri, &[kind], Bytes::from(form)).await?
        };
        if !response.status.is_success() {
            let again = Again::when(response.status.is_server_error());
            return Err(Failure {
                message: format!("failed to authorize: {realm} answered {}", response.status),
                again,
            });
        }
        let answer = response.bytes(MAX_DOCUMENT).await?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|e| refuse(format!("{realm}: {e}")))?;
        let token = answer
            .get("token")
            .or_else(|| answer.get("access_token"))
            .and_then(|t| t.as_str())
            .ok_or_else(|| refuse(format!("{realm} answered without a token")))?;
        *self.credentials.lock() = Some(format!("Bearer {token}"));
        Ok(())
    }
}

/// Waits before the next attempt: longer each time, and never in step with others.
async fn pause(attempt: u32) {
    let base = 200u64 << attempt.min(6);
    let jitter = crate::sys::now_ns().unsigned_abs() % base;
    tokio::time::sleep(Duration::from_millis(base + jitter)).await;
}

/// `key="value",key=value` of a challenge.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.push((key, value.to_owned()));
        rest = next;
    }
    found
}

/// Percent-encodes what a query may not contain.
fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~:/,".contains(&b) {
            out.push(char::from(b));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// What a registry said, in one line.
fn refusal(url: &str, status: StatusCode, body: &[u8]) -> String {
    let said = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|v| {
        let error = v.get("errors")?.get(0)?;
        let text = |k: &str| error.get(k).and_then(|t| t.as_str()).unwrap_or_default().to_owned();
        Some(format!("{}: {}", text("code"), text("message")))
    });
    match (status, said) {
        (StatusCode::NOT_FOUND, None) => format!("{url}: not found"),
        (StatusCode::NOT_FOUND, Some(said)) => format!("{url}: not found: {said}"),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, said) => {
            format!(
                "{url}: pull access denied, repository does not exist or may require authorization: {status} {}",
                said.unwrap_or_default()
            )
        }
        (status, said) => format!("{url}: unexpected status {status} {}", said.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_registry_that_cannot_be_reached_is_left_to_whoever_asks_later() {
        // A port where nobody listens.
        let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        drop(bound);
        let ask = async |authority: &str| {
            let uri: Uri = format!("http://{authority}/v2/").parse().unwrap();
            let answer = send(Method::GET, &uri, &[], Bytes::new()).await;
            Failure::from(answer.map(|_| "an answer").unwrap_err())
        };
        let refused = ask(&address.to_string()).await;
        assert_eq!(refused.again, Again::Underway);
        assert!(refused.message.starts_with(&format!("connect to {address}: ")), "{}", refused.message);

        // One that is there and hangs up is another matter.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hangs_up = async {
            let _ = listener.accept().await;
        };
        let (hung_up, ()) = tokio::join!(ask(&address), hangs_up);
        assert_eq!(hung_up.again, Again::Yes, "{}", hung_up.message);
    }

    #[test]
    fn challenges_are_read() {
        let p =
            parameters(r#"realm="https://auth/token",service="reg",scope="repository:a/b:pull,push", x=y"#);
        assert_eq!(p.len(), 4);
        assert_eq!(p[0], ("realm".into(), "https://auth/token".into()));
        assert_eq!(p[2].1, "repository:a/b:pull,push");
        assert_eq!(p[3], ("x".into(), "y".into()));
        assert_eq!(escape("a b&c:d/e"), "a%20b%26c:d/e");
    }

    #[test]
    fn loopback_registries_are_plain() {
        for (registry, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:1", true),
            ("[::1]:5", true),
            ("docker.io", false),
            ("10.0.0.1:5", false),
        ] {
            assert_eq!(loopback(registry), plain, "{registry}");
        }
    }
}

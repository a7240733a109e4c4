//! A KMS plugin: a real gRPC server on a unix socket, that tests can stop, let hang, and give another key. What
//! it calls encryption keeps nothing secret.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::Context as _;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// How the plugin behaves. Tests change it while it runs.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// The key that encrypts.
    pub key_id: String,
    /// Keys that decrypt.
    pub known: BTreeSet<String>,
    /// What it says of its health; `ok` is well.
    pub healthz: String,
    /// The version that it says it speaks.
    pub version: String,
    /// It takes calls and does not answer them.
    pub hangs: bool,
    /// The key that it says encrypted, where it lies.
    pub claims: Option<String>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            key_id: "1".into(),
            known: ["1".to_owned()].into(),
            healthz: "ok".into(),
            version: "v2".into(),
            hangs: false,
            claims: None,
        }
    }
}

#[derive(Default)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    calls: Mutex<Vec<String>>,
}

/// A KMS plugin, version 2. It stops when it is dropped.
pub struct Kms {
    socket: PathBuf,
    shared: Arc<Shared>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Kms {
    /// A plugin that does not run yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), shared: Arc::default(), running: None }
    }

    /// A plugin that runs.
    pub fn started(socket: &Path) -> anyhow::Result<Self> {
        let mut kms = Self::new(socket);
        kms.start()?;
        Ok(kms)
    }

    /// What `endpoint` of a configuration says of it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Changes its behaviour.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock());
    }

    /// A new key encrypts; the ones before still decrypt.
    pub fn rotate(&self, key_id: &str) {
        self.change(|b| {
            b.key_id = key_id.into();
            b.known.insert(key_id.into());
        });
    }

    /// The methods that were called (`Status`, `Encrypt`, `Decrypt`), in order.
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().clone()
    }

    /// Listens.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(&self.socket);
        let listener = std::os::unix::net::UnixListener::bind(&self.socket)
            .with_context(|| format!("listen on {}", self.socket.display()))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, shared) = (CancellationToken::new(), self.shared.clone());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            // Whatever is under way ends with the runtime.
            runtime.block_on(async { stopped.run_until_cancelled(serve(listener, shared)).await });
        });
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Breaks all connections, and listens no more.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            let _ = thread.join();
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

impl Drop for Kms {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: std::os::unix::net::UnixListener, shared: Arc<Shared>) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, shared.clone()));
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Infallible> {
    let method = request.uri().path().trim_start_matches("/v2.KeyManagementService/").to_owned();
    shared.calls.lock().push(method.clone());
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let behaviour = shared.behaviour.lock().clone();
    if behaviour.hangs {
        std::future::pending::<()>().await;
    }
    let outcome = behaviour.run(&method, body.get(5..).unwrap_or_default());
    let mut trailers = HeaderMap::new();
    let mut frames = Vec::new();
    match outcome {
        Ok(message) => {
            let mut framed = BytesMut::new();
            framed.put_u8(0);
            framed.put_u32(message.len() as u32);
            framed.put_slice(&message);
            frames.push(Ok(Frame::data(framed.freeze())));
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        Err((code, why)) => {
            trailers.insert("grpc-status", HeaderValue::from(code));
            trailers.insert("grpc-message", HeaderValue::from_static(why));
        }
    }
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

impl Behaviour {
    fn run(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, (u16, &'static str)> {
        let mut out = Vec::new();
        match method {
            "Status" => {
                for (number, text) in [(1, &self.version), (2, &self.healthz), (3, &self.key_id)] {
                    put(number, text.as_bytes(), &mut out);
                }
            }
            "Encrypt" => {
                let plaintext = field(message, 1);
                put(1, &mask(&plaintext), &mut out);
                put(2, self.claims.as_ref().unwrap_or(&self.key_id).as_bytes(), &mut out);
                let mut entry = Vec::new();
                put(1, b"version.kms.example", &mut entry);
                put(2, b"1", &mut entry);
                put(3, &entry, &mut out);
            }
            "Decrypt" => {
                let key_id = String::from_utf8_lossy(&field(message, 3)).into_owned();
                if !self.known.contains(&key_id) {
                    return Err((5, "no such key"));
                }
                let annotation = field(message, 4);
                if field(&annotation, 1) != b"version.kms.example" || field(&annotation, 2) != b"1" {
                    return Err((3, "the annotations are not those of the encryption"));
                }
                put(1, &mask(&field(message, 1)), &mut out);
            }
            _ => return Err((12, "no such method")),
        }
        Ok(out)
    }
}

fn mask(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| b ^ 0x5a).collect()
}

/// Appends a field of up to 127 bytes.
fn put(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.extend([number << 3 | 2, bytes.len() as u8]);
    out.extend_from_slice(bytes);
}

/// A field of up to 127 bytes; empty where there is none.
fn field(message: &[u8], number: u8) -> Vec<u8> {
    let mut rest = message;
    while let [tag, len, tail @ ..] = rest {
        let (value, next) = tail.split_at((*len as usize).min(tail.len()));
        if tag >> 3 == number {
            return value.to_vec();
        }
        rest = next;
    }
    Vec::new()
}

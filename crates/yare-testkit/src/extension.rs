//! An API server to stand behind another one: a small API of its own over HTTPS, on a port of its own, with
//! watch and a stream. What it was asked is on record.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::sync::CancellationToken;
use yare_auth::{
    User,
    pki::{Pki, Subject, Usage},
    tls::{self, Speaks},
};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Its group and version.
const GROUP: &str = "wardle.example.com";
const VERSION: &str = "v1alpha1";
const VALIDITY: Duration = Duration::from_secs(3600);

/// What the server has beside its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Aggregated discovery and OpenAPI v3, as of today.
    Modern,
    /// Lists of resources and OpenAPI v2, as of old.
    Legacy,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers, several values of a name joined by commas.
    pub headers: HashMap<String, String>,
    /// Whom the client's certificate names.
    pub certificate: Option<String>,
    /// Over HTTP/2.
    pub http2: bool,
}

struct Shared {
    extra: Extra,
    seen: Mutex<Vec<Seen>>,
    healthy: AtomicBool,
    objects: Mutex<BTreeMap<String, Value>>,
    revision: AtomicU64,
    events: broadcast::Sender<Bytes>,
}

/// A running server; it stops when dropped.
pub struct Extension {
    /// Its port on the loopback address.
    pub port: u16,
    /// The authority that signed its certificate, PEM.
    pub authority: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Extension {
    /// Starts one under the name of the service `NAME.NAMESPACE.svc`. A client that shows a certificate must have
    /// it from `client_authority` (PEM); without one its own authority is asked for.
    pub async fn start(service: &str, extra: Extra, client_authority: Option<&str>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let pki = Pki::open(directory.path())?;
        let names = [service.to_owned()];
        let subject = Subject { common_name: service, alternative_names: &names, ..Subject::default() };
        let pair = pki.cluster.issue(Usage::Server, &subject, VALIDITY)?;
        let authority = pki.cluster.certificate.clone();
        let config = tls::server(&pair, client_authority.unwrap_or(&authority), Speaks::Both)?;
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            extra,
            seen: Mutex::default(),
            healthy: AtomicBool::new(true),
            objects: Mutex::default(),
            revision: AtomicU64::new(1),
            events: broadcast::channel(64).0,
        });
        let stop = CancellationToken::new();
        let (state, stopped) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(_) => continue,
                    },
                    () = stopped.cancelled() => return,
                };
                let (acceptor, state, stopped) = (acceptor.clone(), state.clone(), stopped.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                    let name = leaf
                        .and_then(|leaf| User::from_certificate(leaf).ok().flatten())
                        .map(|user| user.name);
                    let service = hyper::service::service_fn(move |request| {
                        let (state, name) = (state.clone(), name.clone());
                        async move { Ok::<_, Infallible>(state.answer(request, name).await) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Ok(Self { port, authority, shared, stop, _directory: directory })
    }

    /// Whether its list of resources is answered, or fails.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::Release);
    }

    /// What it was asked for, under a path with this prefix.
    pub fn seen(&self, prefix: &str) -> Vec<Seen> {
        self.shared.seen.lock().iter().filter(|s| s.path.starts_with(prefix)).cloned().collect()
    }

    /// Stops; connections break.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn json_answer(code: u16, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn not_found() -> Answer {
    json_answer(
        404,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404,
            "message": "this is not here",
        }),
    )
}

fn join(headers: &HeaderMap) -> HashMap<String, String> {
    let mut out: HashMap<String, String> = HashMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let all = out.entry(name.as_str().to_owned()).or_default();
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(&value);
    }
    out
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>, certificate: Option<String>) -> Answer {
        let path = request.uri().path().to_owned();
        self.seen.lock().push(Seen {
            method: request.method().to_string(),
            path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: join(request.headers()),
            certificate,
            http2: request.version() == http::Version::HTTP_2,
        });
        let root = format!("/apis/{GROUP}/{VERSION}");
        let modern = self.extra == Extra::Modern;
        match path.as_str() {
            "/apis" => self.groups(&request),
            "/openapi/v2" => json_answer(200, &openapi_v2()),
            "/openapi/v3" if modern => json_answer(
                200,
                &json!({"paths": {
                    format!("apis/{GROUP}/{VERSION}"):
                        {"serverRelativeURL": format!("/openapi/v3/apis/{GROUP}/{VERSION}?hash=ABC")}
                }}),
            ),
            "/openapi/v3/apis/wardle.example.com/v1alpha1" if modern => {
                json_answer(200, &json!({"openapi": "3.0.0", "components": {"schemas": {"Flunder": {}}}}))
            }
            _ if path == root => {
                let code = if self.healthy.load(Ordering::Acquire) { 200 } else { 500 };
                json_answer(code, &resources())
            }
            _ => match path.strip_prefix(&format!("{root}/")) {
                Some("redirect") => {
                    let mut response = json_answer(302, &json!({}));
                    let place = header::HeaderValue::from_static("https://elsewhere.example.com/");
                    response.headers_mut().insert(header::LOCATION, place);
                    response
                }
                Some(rest) => {
                    let parts: Vec<String> = rest.split('/').map(str::to_owned).collect();
                    self.flunders(&parts, request).await
                }
                None => not_found(),
            },
        }
    }

    fn groups(&self, request: &Request<Incoming>) -> Answer {
        let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if self.extra == Extra::Modern && accept.contains("as=APIGroupDiscoveryList") {
            let mut response = json_answer(
                200,
                &json!({
                    "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
                    "items": [{"metadata": {"name": GROUP}, "versions": [{"version": VERSION, "resources": [{
                        "resource": "flunders", "responseKind": {"group": GROUP, "version": VERSION, "kind": "Flunder"},
                        "scope": "Namespaced", "singularResource": "flunder", "verbs": verbs(), "shortNames": ["fl"],
                    }]}]}],
                }),
            );
            let media = header::HeaderValue::from_static(
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            );
            response.headers_mut().insert(header::CONTENT_TYPE, media);
            return response;
        }
        json_answer(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))
    }

    async fn flunders(&self, parts: &[String], request: Request<Incoming>) -> Answer {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (namespace, rest) = match parts.as_slice() {
            ["namespaces", namespace, "flunders", rest @ ..] => (*namespace, rest),
            ["flunders", rest @ ..] => ("", rest),
            _ => return not_found(),
        };
        let watching =
            request.uri().query().is_some_and(|q| q.contains("watch=1") || q.contains("watch=true"));
        match (request.method(), rest) {
            (&Method::GET, []) if watching => self.watch(),
            (&Method::GET, []) => {
                let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
                let objects = self.objects.lock();
                let items: Vec<&Value> =
                    objects.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(_, v)| v).collect();
                let revision = self.revision.load(Ordering::Acquire).to_string();
                json_answer(
                    200,
                    &json!({
                        "kind": "FlunderList", "apiVersion": format!("{GROUP}/{VERSION}"),
                        "metadata": {"resourceVersion": revision}, "items": items,
                    }),
                )
            }
            (&Method::POST, []) => {
                let Ok(body) = request.into_body().collect().await else { return not_found() };
                let Ok(object) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
                    return json_answer(400, &json!({"kind": "Status", "code": 400, "reason": "BadRequest"}));
                };
                json_answer(201, &self.put("ADDED", namespace, object))
            }
            (&Method::GET, [name]) => match self.objects.lock().get(&format!("{namespace}/{name}")) {
                Some(object) => json_answer(200, object),
                None => not_found(),
            },
            (&Method::DELETE, [name]) => {
                let Some(object) = self.objects.lock().remove(&format!("{namespace}/{name}")) else {
                    return not_found();
                };
                self.tell("DELETED", &object);
                json_answer(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            (_, [_, "echo"]) => echo(request),
            _ => not_found(),
        }
    }

    fn put(&self, event: &str, namespace: &str, mut object: Value) -> Value {
        let revision = self.revision.fetch_add(1, Ordering::AcqRel) + 1;
        object["apiVersion"] = format!("{GROUP}/{VERSION}").into();
        object["kind"] = "Flunder".into();
        object["metadata"]["namespace"] = namespace.into();
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.objects.lock().insert(format!("{namespace}/{name}"), object.clone());
        self.tell(event, &object);
        object
    }

    fn tell(&self, event: &str, object: &Value) {
        // Nobody may be listening.
        let _ = self.events.send(Bytes::from(format!("{}\n", json!({"type": event, "object": object}))));
    }

    fn watch(&self) -> Answer {
        let events = self.events.subscribe();
        let stream =
            futures::stream::unfold(
                events,
                |mut events| async move { Some((events.recv().await.ok()?, events)) },
            );
        let frames = stream.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let media = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, media);
        response
    }
}

/// Switches to whatever protocol was asked for, and sends back what comes.
fn echo(mut request: Request<Incoming>) -> Answer {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else { return not_found() };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    let mut response = json_answer(101, &json!({}));
    *response.body_mut() = Full::default().boxed_unsync();
    response.headers_mut().insert(header::UPGRADE, protocol);
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    response
}

fn verbs() -> Value {
    json!(["create", "delete", "get", "list", "watch"])
}

fn resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [{
            "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
            "verbs": verbs(), "shortNames": ["fl"],
        }],
    })
}

fn openapi_v2() -> Value {
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    json!({
        "swagger": "2.0", "info": {"title": "wardle", "version": "1"},
        "paths": {
            format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/flunders"): {"get": {
                "operationId": "listFlunders", "produces": ["application/json"],
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/com.example.Flunder"}}},
            }},
            "/healthz": {"get": {"responses": {"200": {"description": "OK"}}}},
        },
        "definitions": {
            "com.example.Flunder": {
                "type": "object", "properties": {"metadata": {"$ref": format!("#/definitions/{meta}")}},
                "x-kubernetes-group-version-kind": [{"group": GROUP, "version": VERSION, "kind": "Flunder"}],
            },
            meta: {"type": "object", "description": "Not what this server's is."},
        },
    })
}

//! A document there and a document back. A [`Client`] is made once per configuration: its trust anchors are parsed
//! then, and its connections are used again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::task::JoinHandle;
use yare_auth::pki::KeyPairPem;

use super::{
    Dialer,
    answer::{Answer, Kind},
    dial::{authority, http_text, is_reset},
    egress::{Network, Route},
    identity::{Identity, Peer, Shown, secret},
    kubeconfig::Users,
    metrics::{Calls, Of},
    target::{Place, Target, webhook},
};
use crate::{core::Core, subresource::proxy, trace};

/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// How often a call is made again because the other side asks for that.
const MAX_REPETITIONS: usize = 10;
/// Connections kept for the next call, and for how long.
const MAX_IDLE: usize = 16;
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);

/// Why a call came to nothing.
#[derive(Debug, Clone, Default, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One line, with the URL where that helps.
    pub message: String,
    /// What the other side answered, if it did.
    pub code: Option<u16>,
    /// There was no answer in time.
    pub timed_out: bool,
    /// The connection was cut, or the other side asks to be called again later.
    pub(super) may_pass: bool,
}

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Whether the same call may succeed in a moment, by upstream's rules for webhooks.
    pub fn is_transient(&self) -> bool {
        self.may_pass || matches!(self.code, Some(429 | 500 | 504))
    }
}

/// What reaches one server.
pub struct Client {
    /// Absent where the configuration is no place, which calls are told.
    target: Result<Target, String>,
    identity: Identity,
    agent: &'static str,
    /// The way to it, which may be the direct one; absent: what the server's configuration says of such places.
    out: Option<Option<Arc<Route>>>,
    /// Where its calls are counted that are made without a server at hand; absent: nowhere.
    calls: Option<Arc<Calls>>,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    /// Which certificate it shows; 0: the one that all others do.
    shows: u64,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    since: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One call.
struct Call<'a> {
    method: Method,
    query: &'a str,
    body: Bytes,
    authorization: Option<&'a HeaderValue>,
}

impl Client {
    fn of(target: Result<Target, String>, agent: &'static str) -> Self {
        let (identity, idle) = Default::default();
        Self { target, identity, agent, out: None, calls: None, idle }
    }

    /// Of a `clientConfig` (of a webhook or a conversion). What is wrong with it is told to whoever calls. `users`:
    /// who this server is to webhooks.
    pub fn of_webhook(config: &Value, users: Option<&Users>) -> Self {
        let agent = "kube-apiserver-admission";
        let identified = webhook(config).and_then(|(mut target, peer)| {
            let Some(users) = users else { return Ok((target, Identity::default())) };
            let identity = users.identity(&peer, target.place.port())?;
            if identity.pair.is_some() {
                target.dialer = peer.dialer(identity.pair.as_ref());
            }
            Ok((target, identity))
        });
        match identified {
            Ok((target, identity)) => Self::of(Ok(target), agent).identified(identity),
            Err(why) => Self::of(Err(why), agent),
        }
    }

    /// Of a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_url(url: &str, tls: &Arc<ClientConfig>) -> Result<Self, String> {
        Self::at(url, |host| Dialer::tls(tls.clone(), host))
    }

    /// Of the URL of a server that must prove to be `peer`; connections show `pair`, if there is one.
    ///
    /// # Errors
    /// What is wrong with the URL, the certificates or the name.
    pub fn of_server(url: &str, peer: &Peer, pair: Option<&KeyPairPem>) -> Result<Self, String> {
        Self::at(url, |_| peer.dialer(pair))
    }

    fn at(url: &str, secure: impl FnOnce(&str) -> Result<Dialer, String>) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("url {url:?}: names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let (dialer, default_port) = match uri.scheme_str() {
            Some("https") => {
                let dialer = secure(&host);
                (dialer.map_err(|e| format!("url {url:?}: {e}"))?, 443)
            }
            Some("http") => (Dialer::plain(), 80),
            _ => return Err(format!("url {url:?}: must begin with https:// or http://")),
        };
        let port = uri.port_u16().unwrap_or(default_port);
        let target = Target {
            host: if port == default_port { host.clone() } else { authority(&host, port) },
            place: Place::Address { host, port },
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            url: url.to_owned(),
            dialer: Ok(dialer),
        };
        Ok(Self::of(Ok(target), "kube-apiserver"))
    }

    /// Shows this to the server.
    #[must_use]
    pub fn identified(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Goes this way, or directly, whatever the server's configuration says of such places.
    #[must_use]
    pub fn through(mut self, out: Option<Arc<Route>>) -> Self {
        self.out = Some(out);
        self
    }

    /// Counts its calls there.
    #[must_use]
    pub fn counted(mut self, calls: Arc<Calls>) -> Self {
        self.calls = Some(calls);
        self
    }

    /// Where it is, for messages.
    pub fn url(&self) -> &str {
        self.target.as_ref().map_or("", |target| &target.url)
    }

    /// What is there. `authorization`: for this call alone.
    ///
    /// # Errors
    /// One line that names the URL.
    pub async fn get(&self, authorization: Option<&str>, timeout: Duration) -> Result<Bytes, Failure> {
        let authorization = authorization.map(secret).transpose().map_err(Failure::new)?;
        let call = Call {
            method: Method::GET,
            query: "",
            body: Bytes::new(),
            authorization: authorization.as_ref(),
        };
        self.call(None, &call, timeout).await.map(|answer| answer.body)
    }

    /// Posts `document`, with `query` (`a=b`) added to the URL. Services are looked up in `core`.
    ///
    /// # Errors
    /// One line that names the URL.
    pub async fn post(
        &self,
        core: Option<&Core>,
        query: &str,
        document: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Failure> {
        let call = Call { method: Method::POST, query, body: document, authorization: None };
        self.call(core, &call, timeout).await.map(|answer| answer.body)
    }

    /// The same, and reads the answer as an object of the kind.
    ///
    /// # Errors
    /// As of [`Client::post`], or that it is none.
    pub async fn ask_for(
        &self,
        core: Option<&Core>,
        query: &str,
        document: Bytes,
        timeout: Duration,
        kind: Kind<'_>,
    ) -> Result<Value, Failure> {
        let call = Call { method: Method::POST, query, body: document, authorization: None };
        let answer = self.call(core, &call, timeout).await?;
        answer.read(kind).map_err(Failure::new)
    }

    /// The same, and reads the answer as JSON.
    ///
    /// # Errors
    /// As of [`Client::post`], or that it is none.
    pub async fn ask(
        &self,
        core: Option<&Core>,
        query: &str,
        document: Bytes,
        timeout: Duration,
    ) -> Result<Value, Failure> {
        let answer = self.post(core, query, document, timeout).await?;
        serde_json::from_slice(&answer)
            .map_err(|e| Failure::new(format!("couldn't get version/kind; json parse error: {e}")))
    }

    async fn call(&self, core: Option<&Core>, call: &Call<'_>, timeout: Duration) -> Result<Answer, Failure> {
        let target = self.target.as_ref().map_err(Failure::new)?;
        let named = |mut failure: Failure| {
            let verb = if call.method == Method::GET { "Get" } else { "Post" };
            failure.message =
                format!("{verb} \"{}\": {}", with_query(&target.url, call.query), failure.message);
            failure
        };
        let mut span = trace::calls(&call.method, || with_query(&target.url, call.query));
        let calls = core.map(|core| &core.config.calls).or(self.calls.as_ref());
        let exchange = self.exchanges(core, calls, target, call);
        let exchange = yare_trace::scoped(span.as_ref().map(yare_trace::Span::active), exchange);
        let began = Instant::now();
        let done = tokio::time::timeout(timeout, exchange).await;
        if let Some(calls) = calls {
            let answer = done.as_ref().ok().and_then(|done| done.as_ref().ok());
            let answer = answer.map(|answer| (answer.status.as_u16(), answer.body.len()));
            let sent = (call.method == Method::POST).then_some(call.body.len());
            calls.called(
                Of { host: target.authority(), method: &call.method, sent },
                answer,
                began.elapsed(),
            );
        }
        if let Some(span) = &mut span {
            trace::called(
                span,
                match &done {
                    Ok(Ok(answer)) => Ok(answer.status.as_u16()),
                    Ok(Err(failure)) => Err(&failure.message),
                    Err(_) => Err("context deadline exceeded"),
                },
            );
        }
        match done {
            Ok(Ok(answer)) if answer.is_success() => Ok(answer),
            Ok(Ok(answer)) => Err(answer.refused(call.method == Method::GET)),
            Ok(Err(failure)) => Err(named(failure)),
            Err(_) => Err(named(Failure { timed_out: true, ..Failure::new("context deadline exceeded") })),
        }
    }

    /// Makes the call, and makes it again as often as the other side asks for that.
    async fn exchanges(
        &self,
        core: Option<&Core>,
        calls: Option<&Arc<Calls>>,
        target: &Target,
        call: &Call<'_>,
    ) -> Result<Answer, Failure> {
        let mut answer = self.exchange(core, calls, target, call).await?;
        for _ in 0..MAX_REPETITIONS {
            let Some(seconds) = answer.again_after_s() else { break };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            answer = self.exchange(core, calls, target, call).await?;
        }
        Ok(answer)
    }

    async fn exchange(
        &self,
        core: Option<&Core>,
        calls: Option<&Arc<Calls>>,
        target: &Target,
        call: &Call<'_>,
    ) -> Result<Answer, Failure> {
        let shown = self.identity.now(calls).await.map_err(Failure::new)?;
        let answer = self.send(core, target, call, &shown).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            self.identity.refused(&shown).await;
        }
        Ok(answer)
    }

    async fn send(
        &self,
        core: Option<&Core>,
        target: &Target,
        call: &Call<'_>,
        shown: &Shown,
    ) -> Result<Answer, Failure> {
        let request = || self.request(target, call, shown);
        let shows = shown.dialer.as_ref().map_or(0, |(number, _)| *number);
        while let Some(mut connection) = self.take(shows) {
            match connection.sender.send_request(request()?).await {
                Ok(response) => return self.answer(connection, response).await,
                // The other side had closed it already, or was about to.
                Err(e) if e.is_canceled() || e.is_closed() || e.is_incomplete_message() => {}
                Err(e) => return Err(failure(&e)),
            }
        }
        let connecting = target.connect(core, self.way(core, target), shown.dialer.as_ref());
        let mut connection = connecting.await.map_err(Failure::new)?;
        match connection.sender.send_request(request()?).await {
            Ok(response) => self.answer(connection, response).await,
            Err(e) => Err(failure(&e)),
        }
    }

    /// The way to the server; none: directly.
    fn way(&self, core: Option<&Core>, target: &Target) -> Option<Arc<Route>> {
        if let Some(out) = &self.out {
            return out.clone();
        }
        core?.config.route(match target.place {
            Place::Address { .. } => Network::ControlPlane,
            Place::Service { .. } => Network::Cluster,
        })
    }

    fn request(
        &self,
        target: &Target,
        call: &Call<'_>,
        shown: &Shown,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(&call.method)
            .uri(with_query(&target.path, call.query))
            .header(header::HOST, &target.host)
            .header(header::USER_AGENT, self.agent)
            .header(header::ACCEPT, "application/json, */*");
        if !call.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(value) = call.authorization.or(shown.authorization.as_ref()) {
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, value) in self.identity.headers() {
            request = request.header(name, value);
        }
        if let Some(headers) = request.headers_mut() {
            yare_trace::inject(headers);
        }
        request.body(Full::new(call.body.clone())).map_err(|e| Failure::new(e.to_string()))
    }

    fn take(&self, shows: u64) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|c| c.shows == shows && !c.sender.is_closed() && c.since.elapsed() < MAX_IDLE_TIME);
        idle.pop()
    }

    async fn answer(
        &self,
        mut connection: Connection,
        response: http::Response<hyper::body::Incoming>,
    ) -> Result<Answer, Failure> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|e| {
            if e.is::<LengthLimitError>() {
                Failure::new(format!("the answer is larger than {MAX_ANSWER_BYTES} bytes"))
            } else {
                failure(&*e)
            }
        })?;
        if connection.sender.ready().await.is_ok() {
            connection.since = Instant::now();
            let mut idle = self.idle.lock();
            if idle.len() < MAX_IDLE {
                idle.push(connection);
            }
        }
        Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() })
    }
}

fn failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure { may_pass: is_reset(error), ..Failure::new(http_text(error)) }
}

fn with_query(url: &str, query: &str) -> String {
    match query {
        "" => url.to_owned(),
        query if url.contains('?') => format!("{url}&{query}"),
        query => format!("{url}?{query}"),
    }
}

impl Target {
    async fn connect(
        &self,
        core: Option<&Core>,
        out: Option<Arc<Route>>,
        own: Option<&(u64, Dialer)>,
    ) -> Result<Connection, String> {
        let (shows, dialer) = match own {
            Some((number, dialer)) => (*number, dialer),
            None => (0, self.dialer.as_ref().map_err(Clone::clone)?),
        };
        let routed = out.map(|out| dialer.clone().through(Some(out)));
        let dialer = routed.as_ref().unwrap_or(dialer);
        let stream = match (&self.place, core) {
            (Place::Address { host, port }, _) => dialer.connect(host, *port).await?,
            (Place::Service { namespace, name, port }, Some(core)) => {
                let found = proxy::service_endpoint(core, namespace, name, &port.to_string());
                let endpoint = found.map_err(|e| {
                    if e.code == 404 { format!("service {name:?} not found") } else { e.message }
                })?;
                dialer.connect(&endpoint.host, endpoint.port).await?
            }
            (Place::Service { name, .. }, None) => return Err(format!("service {name:?} not found")),
        };
        let (sender, connection) = handshake(stream.io()).await.map_err(|e| http_text(&e))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a server elsewhere ended");
            }
        });
        Ok(Connection { shows, sender, driver, since: Instant::now() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yare_auth::tls::{Speaks, Trust, outside_client};

    use super::*;

    #[test]
    fn what_may_pass() {
        let failure = |code| Failure { code: Some(code), ..Failure::default() };
        for (code, expect) in [(500, true), (504, true), (429, true), (503, false), (404, false)] {
            assert_eq!(failure(code).is_transient(), expect, "{code}");
        }
        assert!(!Failure::new("connection refused").is_transient());
    }

    #[test]
    fn places() {
        let tls = outside_client(Trust::Anybody, None, Speaks::Http1).unwrap();
        let shown = |client: Client| {
            let target = client.target.unwrap();
            let Place::Address { host, port } = &target.place else { panic!("an address") };
            let path = with_query(&target.path, "timeout=3s");
            format!("{host} {port} {} {path} {}", target.host, target.authority())
        };
        for (url, expect) in [
            ("https://a.example", "a.example 443 a.example /?timeout=3s a.example"),
            ("https://[::1]:8/x", "::1 8 [::1]:8 /x?timeout=3s [::1]:8"),
            ("http://127.0.0.1/audit?x=1", "127.0.0.1 80 127.0.0.1 /audit?x=1&timeout=3s 127.0.0.1"),
            ("http://127.0.0.1:80/?x=1", "127.0.0.1 80 127.0.0.1 /?x=1&timeout=3s 127.0.0.1:80"),
        ] {
            assert_eq!(shown(Client::of_url(url, &tls).unwrap()), expect);
        }
        for (url, part) in
            [("ftp://a", "must begin with https://"), ("/x", "names no host"), ("https://", "url")]
        {
            let error = Client::of_url(url, &tls).err().unwrap();
            assert!(error.contains(part), "{url}: {error}");
        }
        let url = Client::of_webhook(&json!({"service": {"namespace": "n", "name": "s", "path": "p"}}), None);
        assert_eq!(url.url(), "https://s.n.svc:443/p");
    }
}

//! The ways in which a caller is known. [`TABLE`] is the order in which they are tried: what a request shows
//! itself first, then its bearer token, local knowledge before anybody is asked over the network.
//!
//! The first row that knows the caller ends the search. Errors of rows before it do not matter; where nobody
//! knows the caller and any row had an error, the caller gets a 401 and not anonymity.

mod anonymous;
mod bootstrap_token;
mod certificate;
pub mod front_proxy;
pub mod oidc;
mod service_account;
mod static_token;
pub mod webhook;

use std::{sync::Arc, time::Instant};

use futures::future::BoxFuture;
use http::{HeaderMap, header};
use yare_auth::{User, gotext};

pub use anonymous::Anonymous;

use super::{Auth, Peer, metrics::Attempt};
use crate::{
    core::Core,
    metrics::Filter,
    status::{ApiError, ApiResult},
};

/// What a request shows of its sender.
pub struct Credentials<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The certificate that the connection showed.
    pub certificate: Option<&'a Peer>,
    /// The path asked for.
    pub path: &'a str,
}

/// A bearer token.
#[derive(Clone, Copy)]
pub struct Bearer<'a> {
    /// The token.
    pub token: &'a str,
    /// The audiences it must be for one of, where a TokenReview names them; absent: the API server's own.
    pub audiences: Option<&'a [String]>,
}

impl<'a> Bearer<'a> {
    /// The audiences it must be for one of; empty: the API server's own.
    fn wanted(&self) -> &'a [String] {
        self.audiences.unwrap_or_default()
    }
}

/// A caller, known.
#[derive(Clone, Debug)]
pub struct Identified {
    /// Who it is.
    pub user: Arc<User>,
    /// For which of the wanted audiences the token is good; empty for requests, which do not report them.
    pub audiences: Vec<String>,
    /// What the audit log should hold: annotations.
    pub annotations: Vec<(&'static str, String)>,
    /// What the client should be told.
    pub warnings: Vec<String>,
}

impl From<Arc<User>> for Identified {
    fn from(user: Arc<User>) -> Self {
        Self { user, audiences: Vec::new(), annotations: Vec::new(), warnings: Vec::new() }
    }
}

/// What a row says.
pub enum Verdict {
    /// It knows nothing of this caller.
    Unknown,
    /// It knows the caller.
    Known(Identified),
    /// It would know the caller, but something is wrong.
    Wrong(String),
}

type OfRequest = fn(&Arc<Core>, &Credentials<'_>) -> Verdict;
type OfToken = fn(&Arc<Core>, &Bearer<'_>) -> Verdict;
type Asking = for<'a> fn(&'a Arc<Core>, Bearer<'a>) -> BoxFuture<'a, Verdict>;

/// What a row looks at.
enum Reads {
    /// The request and its connection.
    Request(OfRequest),
    /// The bearer token, knowing itself whose it is.
    Token(OfToken),
    /// The bearer token, by asking somebody else; only where it is set up.
    Network(fn(&Auth) -> bool, Asking),
    /// Whether there is nothing to look at.
    Nothing(OfRequest),
}

/// One way to know a caller.
struct Row {
    /// Its name in logs.
    name: &'static str,
    reads: Reads,
}

const TABLE: &[Row] = &[
    Row { name: "requestheader", reads: Reads::Request(front_proxy::authenticate) },
    Row { name: "x509", reads: Reads::Request(certificate::authenticate) },
    Row { name: "tokenfile", reads: Reads::Token(static_token::authenticate) },
    Row { name: "serviceaccount", reads: Reads::Token(service_account::authenticate) },
    Row {
        name: "serviceaccount",
        reads: Reads::Network(service_account::is_external, service_account::authenticate_afresh),
    },
    Row { name: "bootstraptoken", reads: Reads::Token(bootstrap_token::authenticate) },
    Row { name: "oidc", reads: Reads::Network(oidc::is_on, oidc::authenticate) },
    Row { name: "webhook", reads: Reads::Network(webhook::is_on, webhook::authenticate) },
    Row { name: "anonymous", reads: Reads::Nothing(anonymous::authenticate) },
];

/// The search through the table.
struct Search {
    next: usize,
    errors: Vec<String>,
}

/// What a search came to without the network.
enum Found {
    Known(Identified),
    Nobody(Vec<String>),
    /// The row at `next` asks the network.
    Ask(Search),
}

impl Search {
    const fn new() -> Self {
        Self { next: 0, errors: Vec::new() }
    }

    /// Goes on until somebody is known or the network has to be asked.
    fn local(
        mut self,
        core: &Arc<Core>,
        request: Option<&Credentials<'_>>,
        token: Option<&Bearer<'_>>,
    ) -> Found {
        while let Some(row) = TABLE.get(self.next) {
            let verdict = match (&row.reads, request, token) {
                (Reads::Request(read), Some(request), _) => read(core, request),
                (Reads::Token(read), _, Some(token)) => read(core, token),
                (Reads::Network(is_on, _), _, Some(_)) if is_on(&core.config.auth) => {
                    return Found::Ask(self);
                }
                // Anonymity is only for those who showed nothing.
                (Reads::Nothing(read), Some(request), None) if self.errors.is_empty() => read(core, request),
                _ => Verdict::Unknown,
            };
            self.next += 1;
            match verdict {
                Verdict::Known(known) => return Found::Known(known),
                Verdict::Wrong(why) => self.errors.push(why),
                Verdict::Unknown => {}
            }
        }
        Found::Nobody(self.errors)
    }

    /// Asks the row that [`Found::Ask`] stopped at.
    async fn ask(&mut self, core: &Arc<Core>, token: Bearer<'_>) -> Option<Identified> {
        let row = TABLE.get(self.next)?;
        self.next += 1;
        let Reads::Network(_, ask) = &row.reads else { return None };
        match ask(core, token).await {
            Verdict::Known(known) => return Some(known),
            Verdict::Wrong(why) => {
                tracing::debug!(row = row.name, why, "not authenticated");
                self.errors.push(why);
            }
            Verdict::Unknown => {}
        }
        None
    }
}

/// Who sent this, or 401. The error never says what was wrong.
pub async fn authenticate(core: &Arc<Core>, credentials: &Credentials<'_>) -> ApiResult<Identified> {
    let began = Instant::now();
    let found = search(core, credentials).await;
    let (metrics, took) = (&core.config.auth.metrics, began.elapsed());
    core.metrics.filters.passed(Filter::Authentication, took);
    match found {
        Ok(known) => {
            metrics.attempted(Attempt::Success, Some(&known.user.name), took);
            Ok(known)
        }
        Err(errors) => {
            tracing::debug!(?errors, "unable to authenticate the request");
            let attempt = if errors.is_empty() { Attempt::Failure } else { Attempt::Error };
            metrics.attempted(attempt, None, took);
            Err(ApiError::unauthorized())
        }
    }
}

async fn search(core: &Arc<Core>, credentials: &Credentials<'_>) -> Result<Identified, Vec<String>> {
    let from_protocol = websocket_token(credentials.headers);
    let token = bearer_token(credentials.headers).or(from_protocol.as_deref());
    let bearer = token.map(|token| Bearer { token, audiences: None });
    match Search::new().local(core, Some(credentials), bearer.as_ref()) {
        Found::Known(known) => Ok(known),
        Found::Nobody(errors) => Err(errors),
        // Boxed: what asks the network is rare, and its state would be part of every request's.
        Found::Ask(search) => match bearer {
            Some(bearer) => Box::pin(through_network(core, search, Some(credentials), bearer)).await,
            None => Err(Vec::new()),
        },
    }
}

/// Whose token it is, for a TokenReview: the error is what the review shows.
pub async fn review(core: &Arc<Core>, bearer: Bearer<'_>) -> Result<Identified, String> {
    let found = match Search::new().local(core, None, Some(&bearer)) {
        Found::Known(known) => Ok(known),
        Found::Nobody(errors) => Err(errors),
        Found::Ask(search) => through_network(core, search, None, bearer).await,
    };
    found.map_err(
        |errors| {
            if errors.is_empty() { "invalid bearer token".into() } else { gotext::aggregate(&errors) }
        },
    )
}

async fn through_network(
    core: &Arc<Core>,
    mut search: Search,
    request: Option<&Credentials<'_>>,
    bearer: Bearer<'_>,
) -> Result<Identified, Vec<String>> {
    loop {
        if let Some(known) = search.ask(core, bearer).await {
            return Ok(known);
        }
        match search.local(core, request, Some(&bearer)) {
            Found::Known(known) => return Ok(known),
            Found::Nobody(errors) => return Err(errors),
            Found::Ask(more) => search = more,
        }
    }
}

/// For which audiences a token is good whose own say nothing of audiences: it is for the API server.
/// `None`: for none of those that are wanted.
fn agnostic(core: &Core, bearer: &Bearer<'_>) -> Option<Vec<String>> {
    let Some(wanted) = bearer.audiences else { return Some(Vec::new()) };
    let own = core.config.auth.audiences();
    let good: Vec<String> = own.iter().filter(|a| wanted.contains(a)).cloned().collect();
    (!good.is_empty() || own.is_empty()).then_some(good)
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, rest) = value.split_once(' ')?;
    let token = rest.split(' ').next().unwrap_or_default();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Clients in browsers can set no header but this one when they open a WebSocket.
fn websocket_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded =
        protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok().filter(|t| !t.is_empty())
}

//! Service-account tokens that somebody else signs (KEP-740): a gRPC service on a unix socket, which holds the
//! private keys and says which public ones verify. Its keys are fetched before the server starts, again when the
//! service's hint says so, and when a token names a key that is not known.

mod answers;
mod metrics;
mod wire;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use yare_auth::token::{Claims, Signer};
use yare_grpc::{Client, Code, Status, code_name, describe};
use yare_metrics::{table::Counts, text::Page};

use self::wire::{
    FetchKeysRequest, FetchKeysResponse, MetadataRequest, MetadataResponse, SignRequest, SignResponse,
};
use crate::core::{Clock, Core};

/// What a signer must let tokens live at least, in seconds: the shortest time that may be asked for.
const MIN_EXPIRATION_S: i64 = 600;
/// A hint is not followed further than this: a year.
const MAX_REFRESH_S: u64 = 365 * 24 * 3600;
/// How an attempt is counted that failed for another reason than a call.
const NO_CALL: &str = "unknown-non-grpc";

/// Why there is no token, or there are no keys.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExternalError {
    /// A call failed.
    #[error("{doing}: {}", describe(.status))]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What came back.
        status: Status,
    },
    /// The answer cannot be used.
    #[error("{0}")]
    Answer(String),
    /// Something was done that takes keys, and there are none.
    #[error("{doing}: {why}")]
    While {
        /// What was being done.
        doing: &'static str,
        /// What went wrong in it.
        why: Box<ExternalError>,
    },
}

impl ExternalError {
    fn within(self, doing: &'static str) -> Self {
        Self::While { doing, why: Box::new(self) }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Call { status, .. } => code_name(status.code()),
            Self::While { why, .. } => why.code(),
            Self::Answer(_) => NO_CALL,
        }
    }
}

/// How long a signer may take. By default upstream's.
#[derive(Clone, Copy, Debug)]
pub struct SignerTimings {
    /// To say its keys, or to sign.
    pub call: Duration,
    /// To say how long tokens may live.
    pub metadata: Duration,
    /// Until its keys are asked for again after that failed.
    pub retry: Duration,
}

impl Default for SignerTimings {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(60),
            metadata: Duration::from_secs(10),
            retry: Duration::from_secs(10),
        }
    }
}

/// A signer elsewhere.
pub struct ExternalSigner {
    client: Client,
    /// Knows issuers and audiences, and verifies with the keys that are put into it here.
    signer: Arc<Signer>,
    timings: SignerTimings,
    clock: Arc<dyn Clock>,
    counts: Counts,
    max_expiration_s: i64,
    /// One asks for keys at a time; who waits takes what comes of it.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Last>,
}

/// What came of asking for keys.
struct Last {
    times: u64,
    outcome: Result<(), ExternalError>,
    /// When they are to be fetched again.
    next: Instant,
}

impl ExternalSigner {
    /// Gets in touch with the signer at `socket` (a path, or a name in the abstract namespace after `@`) and puts
    /// its keys into `signer`.
    pub async fn open(
        socket: &str,
        signer: Arc<Signer>,
        clock: Arc<dyn Clock>,
        timings: SignerTimings,
    ) -> Result<Self, ExternalError> {
        let client = Client::unix(socket).waiting().user_agent(crate::outbound::USER_AGENT);
        let mut external = Self {
            client,
            signer,
            timings,
            clock,
            counts: Counts::default(),
            max_expiration_s: 0,
            turn: tokio::sync::Mutex::default(),
            last: Mutex::new(Last { times: 0, outcome: Ok(()), next: Instant::now() }),
        };
        external.fetch().await.map_err(|error| {
            error.within("while performing initial cache fill").within("while initially filling key cache")
        })?;
        let metadata: MetadataResponse = external
            .call(wire::METADATA, MetadataRequest {}, timings.metadata)
            .await
            .map_err(|status| ExternalError::Call { doing: "while fetching metadata", status })?;
        external.max_expiration_s = metadata.max_token_expiration_seconds;
        if external.max_expiration_s < MIN_EXPIRATION_S {
            return Err(ExternalError::Answer(format!(
                "max token life supported by external-jwt-signer ({}s) is less than acceptable (min {MIN_EXPIRATION_S}s)",
                external.max_expiration_s
            )));
        }
        Ok(external)
    }

    /// The longest that tokens may live, in seconds.
    pub fn max_expiration_s(&self) -> i64 {
        self.max_expiration_s
    }

    /// For how many seconds its keys will be the same.
    pub fn keys_last_s(&self) -> u64 {
        self.last.lock().next.saturating_duration_since(Instant::now()).as_secs()
    }

    /// A token for `claims`.
    pub async fn sign(&self, claims: &Claims) -> Result<String, ExternalError> {
        let token = self.assemble(claims).await;
        let code = token.as_ref().map_or_else(ExternalError::code, |_| code_name(Code::Ok));
        self.counts.count(&metrics::SIGNED, &[code]);
        token
    }

    async fn assemble(&self, claims: &Claims) -> Result<String, ExternalError> {
        let json = serde_json::to_vec(claims)
            .map_err(|error| ExternalError::Answer(format!("while merging claims: {error}")))?;
        let payload = URL_SAFE_NO_PAD.encode(json);
        let request = SignRequest { claims: payload.clone() };
        let answer: SignResponse = self
            .call(wire::SIGN, request, self.timings.call)
            .await
            .map_err(|status| ExternalError::Call { doing: "while signing jwt", status })?;
        self.check_header(&answer.header)
            .await
            .map_err(|why| ExternalError::Answer(format!("while validating header: {why}")))?;
        if answer.signature.is_empty() {
            return Err(ExternalError::Answer("empty signature returned".into()));
        }
        Ok(format!("{}.{payload}.{}", answer.header, answer.signature))
    }

    /// Others must be able to verify the token by what this server publishes.
    async fn check_header(&self, text: &str) -> Result<(), String> {
        let kid = answers::header(text)?;
        let mut unpublished = self.signer.is_unpublished(&kid);
        if unpublished.is_none() {
            self.refresh().await;
            unpublished = self.signer.is_unpublished(&kid);
        }
        if unpublished == Some(true) {
            return Err(format!(
                "key used for signing JWT (kid: {kid}) is excluded from OIDC discovery docs"
            ));
        }
        Ok(())
    }

    /// Fetches the keys, for one is missing. Where that fails, those that are known stay.
    pub async fn refresh(&self) {
        if let Err(error) = self.fetch().await {
            tracing::warn!(%error, "the keys of service account tokens cannot be fetched");
        }
    }

    async fn fetch(&self) -> Result<(), ExternalError> {
        let before = self.last.lock().times;
        let _turn = self.turn.lock().await;
        {
            let last = self.last.lock();
            if last.times != before {
                return last.outcome.clone();
            }
        }
        let fetched = self.fetch_once().await;
        let now_s = self.clock.now().as_duration().as_secs_f64();
        let code = fetched.as_ref().map_or_else(ExternalError::code, |_| code_name(Code::Ok));
        self.counts.count(&metrics::FETCHES, &[code]);
        let mut last = self.last.lock();
        last.times += 1;
        last.outcome = match fetched {
            Ok(fetched) => {
                self.counts.set(&metrics::FETCHED, &[], now_s);
                self.counts.set(&metrics::DATA, &[], fetched.data_timestamp_s);
                self.signer.replace_keys(fetched.keys);
                last.next = Instant::now() + Duration::from_secs(fetched.refresh_s.min(MAX_REFRESH_S));
                Ok(())
            }
            Err(error) => Err(error.within("while fetching token verification keys")),
        };
        last.outcome.clone()
    }

    async fn fetch_once(&self) -> Result<answers::Fetched, ExternalError> {
        let answer: FetchKeysResponse =
            self.call(wire::FETCH_KEYS, FetchKeysRequest {}, self.timings.call).await.map_err(|status| {
                ExternalError::Call { doing: "while getting externally supported jwt signing keys", status }
            })?;
        answers::keys(answer).map_err(ExternalError::Answer)
    }

    async fn call<Q, R>(&self, method: &'static str, message: Q, timeout: Duration) -> Result<R, Status>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let started = Instant::now();
        let outcome = self.client.call(method, message, timeout).await;
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.counts.observe(&metrics::CALLS, &[code_name(code), method], started.elapsed().as_secs_f64());
        outcome
    }

    /// Adds the metrics.
    pub(super) fn expose(&self, page: &mut Page) {
        self.counts.expose(&metrics::TABLE, page);
    }

    /// Fetches the keys whenever it is time.
    async fn keep(&self) {
        loop {
            let next = self.last.lock().next;
            tokio::time::sleep_until(next).await;
            // A token may have asked for them meanwhile.
            if self.last.lock().next > Instant::now() {
                continue;
            }
            if let Err(error) = self.fetch().await {
                tracing::warn!(%error, "the keys of service account tokens stay as they are");
                tokio::time::sleep(self.timings.retry).await;
            }
        }
    }
}

/// Keeps the keys of a signer elsewhere fresh until the server stops.
pub(super) fn start(core: &Arc<Core>) {
    let Some(external) = core.config.auth.external.clone() else { return };
    let stop = core.stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(external.keep()).await });
}

//! An external signer of service-account tokens: a real gRPC server on a unix socket, whose keys and manners tests
//! change while it runs.
//!
//! Its messages are written down here once more, so that a wrong number in the server's own shows.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use prost::Message;
use yare_auth::jws::{self, PrivateKey};
use yare_grpc::{Code, Server, Status};

use crate::socket::Socket;

/// A key of the signer.
#[derive(Clone)]
pub struct SignerKey {
    /// What tokens call it.
    pub id: String,
    /// It is not to be published.
    pub excluded: bool,
    key: Arc<PrivateKey>,
}

impl SignerKey {
    /// A key (PEM) under a name.
    pub fn new(id: &str, pem: &str) -> anyhow::Result<Self> {
        Ok(Self { id: id.to_owned(), excluded: false, key: Arc::new(jws::private_key(pem)?) })
    }
}

/// How the signer behaves. Tests change it while it runs.
#[derive(Clone)]
pub struct SignerBehaviour {
    /// The keys it tells of.
    pub keys: Vec<SignerKey>,
    /// The key that signs; it need not be among those.
    pub signs_with: Option<SignerKey>,
    /// When it wants to be asked for keys again, in seconds.
    pub refresh_hint_s: i64,
    /// When the keys were true, Unix seconds.
    pub data_timestamp_s: i64,
    /// How long tokens may live, in seconds.
    pub max_expiration_s: i64,
    /// The header (JSON) that it gives instead of a right one.
    pub header: Option<String>,
    /// The signature that it gives instead of a right one.
    pub signature: Option<String>,
    /// The code that all calls fail with.
    pub fails: Option<Code>,
    /// It takes calls and does not answer them.
    pub hangs: bool,
}

impl Default for SignerBehaviour {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            signs_with: None,
            refresh_hint_s: 3600,
            data_timestamp_s: 1_700_000_000,
            max_expiration_s: 24 * 3600,
            header: None,
            signature: None,
            fails: None,
            hangs: false,
        }
    }
}

#[derive(Default)]
struct Shared {
    behaviour: Mutex<SignerBehaviour>,
    calls: Mutex<Vec<&'static str>>,
}

/// A signer of service-account tokens. It stops when it is dropped.
pub struct TokenSigner {
    socket: Socket,
    shared: Arc<Shared>,
}

impl TokenSigner {
    /// A signer that does not run yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: Socket::at(socket), shared: Arc::default() }
    }

    /// Its socket.
    pub fn endpoint(&self) -> String {
        self.socket.path().display().to_string()
    }

    /// Changes its behaviour.
    pub fn change(&self, change: impl FnOnce(&mut SignerBehaviour)) {
        change(&mut self.shared.behaviour.lock());
    }

    /// How often a method (`Sign`, `FetchKeys`, `Metadata`) was called.
    pub fn count(&self, method: &str) -> usize {
        self.shared.calls.lock().iter().filter(|call| **call == method).count()
    }

    /// Listens.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.socket.serve(server(&self.shared))
    }

    /// Breaks all connections, and listens no more.
    pub fn stop(&mut self) {
        self.socket.close();
    }
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct ToSign {
    #[prost(string, tag = "1")]
    claims: String,
}

#[derive(Clone, PartialEq, Message)]
struct Signed {
    #[prost(string, tag = "1")]
    header: String,
    #[prost(string, tag = "2")]
    signature: String,
}

#[derive(Clone, PartialEq, Message)]
struct Keys {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<Key>,
    #[prost(message, optional, tag = "2")]
    data_timestamp: Option<Time>,
    #[prost(int64, tag = "3")]
    refresh_hint_seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Key {
    #[prost(string, tag = "1")]
    key_id: String,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bool, tag = "3")]
    exclude_from_oidc_discovery: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Limits {
    #[prost(int64, tag = "1")]
    max_token_expiration_seconds: i64,
}

impl Shared {
    /// A call of `method`: how to behave.
    async fn called(&self, method: &'static str) -> Result<SignerBehaviour, Status> {
        self.calls.lock().push(method);
        let behaviour = self.behaviour.lock().clone();
        if behaviour.hangs {
            std::future::pending::<()>().await;
        }
        match behaviour.fails {
            Some(code) => Err(Status::new(code, "not today")),
            None => Ok(behaviour),
        }
    }
}

fn server(shared: &Arc<Shared>) -> Server {
    let [sign, keys, metadata] = [(); 3].map(|()| shared.clone());
    Server::new()
        .unary("/v1.ExternalJWTSigner/Sign", move |asked: ToSign| {
            let shared = sign.clone();
            async move { shared.called("Sign").await?.sign(&asked.claims) }
        })
        .unary("/v1.ExternalJWTSigner/FetchKeys", move |_: Nothing| {
            let shared = keys.clone();
            async move { Ok(shared.called("FetchKeys").await?.keys()) }
        })
        .unary("/v1.ExternalJWTSigner/Metadata", move |_: Nothing| {
            let shared = metadata.clone();
            async move {
                let behaviour = shared.called("Metadata").await?;
                Ok(Limits { max_token_expiration_seconds: behaviour.max_expiration_s })
            }
        })
}

impl SignerBehaviour {
    fn sign(self, claims: &str) -> Result<Signed, Status> {
        let with = self.signs_with.ok_or_else(|| Status::failed_precondition("no key signs"))?;
        let usual = format!(r#"{{"alg":"{}","kid":"{}","typ":"JWT"}}"#, with.key.algorithm().name(), with.id);
        let header = URL_SAFE_NO_PAD.encode(self.header.unwrap_or(usual));
        let signature = with.key.sign(format!("{header}.{claims}").as_bytes());
        let signature =
            URL_SAFE_NO_PAD.encode(signature.map_err(|error| Status::internal(error.to_string()))?);
        Ok(Signed { header, signature: self.signature.unwrap_or(signature) })
    }

    fn keys(self) -> Keys {
        let key = |key: &SignerKey| Key {
            key_id: key.id.clone(),
            key: key.key.public().to_spki(),
            exclude_from_oidc_discovery: key.excluded,
        };
        Keys {
            keys: self.keys.iter().map(key).collect(),
            data_timestamp: Some(Time { seconds: self.data_timestamp_s, nanos: 0 }),
            refresh_hint_seconds: self.refresh_hint_s,
        }
    }
}

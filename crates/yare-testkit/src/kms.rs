//! A KMS plugin: a real gRPC server on a unix socket, that tests can stop, let hang, and give another key. What
//! it calls encryption keeps nothing secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use prost::Message;
use yare_grpc::{Server, Status};

use crate::socket::Socket;

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
    socket: Socket,
    shared: Arc<Shared>,
}

impl Kms {
    /// A plugin that does not run yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: Socket::at(socket), shared: Arc::default() }
    }

    /// A plugin that runs.
    pub fn started(socket: &Path) -> anyhow::Result<Self> {
        let mut kms = Self::new(socket);
        kms.start()?;
        Ok(kms)
    }

    /// What `endpoint` of a configuration says of it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.path().display())
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
struct Health {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Plain {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Encrypted {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct ToDecrypt {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
}

impl Shared {
    /// A call of `method`: how to behave.
    async fn called(&self, method: &str) -> Behaviour {
        self.calls.lock().push(method.to_owned());
        let behaviour = self.behaviour.lock().clone();
        if behaviour.hangs {
            std::future::pending::<()>().await;
        }
        behaviour
    }
}

fn server(shared: &Arc<Shared>) -> Server {
    let [status, encrypt, decrypt] = [(); 3].map(|()| shared.clone());
    Server::new()
        .unary("/v2.KeyManagementService/Status", move |_: Nothing| {
            let shared = status.clone();
            async move { Ok(shared.called("Status").await.health()) }
        })
        .unary("/v2.KeyManagementService/Encrypt", move |asked: Plain| {
            let shared = encrypt.clone();
            async move { Ok(shared.called("Encrypt").await.encrypt(&asked)) }
        })
        .unary("/v2.KeyManagementService/Decrypt", move |asked: ToDecrypt| {
            let shared = decrypt.clone();
            async move { shared.called("Decrypt").await.decrypt(&asked) }
        })
}

impl Behaviour {
    fn health(self) -> Health {
        Health { version: self.version, healthz: self.healthz, key_id: self.key_id }
    }

    fn encrypt(self, asked: &Plain) -> Encrypted {
        Encrypted {
            ciphertext: mask(&asked.plaintext),
            key_id: self.claims.unwrap_or(self.key_id),
            annotations: annotations(),
        }
    }

    fn decrypt(self, asked: &ToDecrypt) -> Result<Plain, Status> {
        if !self.known.contains(&asked.key_id) {
            return Err(Status::not_found("no such key"));
        }
        if asked.annotations != annotations() {
            return Err(Status::invalid_argument("the annotations are not those of the encryption"));
        }
        Ok(Plain { plaintext: mask(&asked.ciphertext) })
    }
}

/// What the plugin wants to see again.
fn annotations() -> BTreeMap<String, Vec<u8>> {
    [("version.kms.example".to_owned(), b"1".to_vec())].into()
}

fn mask(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| b ^ 0x5a).collect()
}

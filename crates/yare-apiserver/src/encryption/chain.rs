//! Transformers behind prefixes: the first of a chain writes, and what it wrote starts with its prefix; whoever's
//! prefix fits reads. What was not written by the first is stale: the next update writes it anew, also when
//! nothing else changes. A provider is a chain of its keys, a resource a chain of its providers.

use std::{sync::Arc, time::Instant};

use yare_auth::gotext;

use super::metrics::Metrics;

/// Why a value cannot be made or read.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// In upstream's words.
    pub message: String,
    /// The gRPC code, for metrics.
    pub code: &'static str,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        // What upstream counts errors as that do not come from a call.
        Self { message, code: "unknown-non-grpc" }
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl Failure {
    /// The same, with what was tried before it.
    pub fn while_doing(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }
}

/// Whose value it is.
pub(crate) struct Context<'a> {
    /// Where it rests, `/registry/secrets/default/x`: a value is bound to its place.
    pub path: String,
    /// `secrets`, `apps/deployments`
    pub kind: &'a str,
    pub metrics: &'a Metrics,
}

impl<'a> Context<'a> {
    pub fn new(kind: &'a str, key: &str, metrics: &'a Metrics) -> Self {
        Self { path: path(kind, key), kind, metrics }
    }

    /// `deployments.apps`, as metrics have it.
    fn resource(&self) -> String {
        self.kind
            .split_once('/')
            .map_or_else(|| self.kind.into(), |(group, plural)| format!("{plural}.{group}"))
    }
}

/// The place of a value in upstream's form.
pub(crate) fn path(kind: &str, key: &str) -> String {
    format!("/registry/{kind}/{key}")
}

/// Makes what rests on disk of JSON, and JSON of it.
pub(crate) trait Transformer: Send + Sync {
    /// The JSON, and whether it should be written anew.
    fn read(&self, data: &[u8], context: &Context<'_>) -> Result<(Vec<u8>, bool), Failure>;
    /// What rests.
    fn write(&self, json: &[u8], context: &Context<'_>) -> Result<Vec<u8>, Failure>;
}

/// What begins a value, and who reads such values.
pub(crate) type Link = (String, Arc<dyn Transformer>);

/// Transformers, each behind its prefix. One without a prefix is the identity.
pub(crate) struct Chain {
    pub links: Vec<Link>,
    /// What is said where no prefix fits.
    pub missing: &'static str,
}

impl Chain {
    /// Where the identity stands.
    pub fn plain_at(&self) -> Option<usize> {
        self.links.iter().position(|(prefix, _)| prefix.is_empty())
    }
}

impl Transformer for Chain {
    fn read(&self, data: &[u8], context: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        let started = Instant::now();
        let mut errors: Vec<Failure> = Vec::new();
        for (at, (prefix, transformer)) in self.links.iter().enumerate() {
            let Some(rest) = data.strip_prefix(prefix.as_bytes()) else { continue };
            let outcome = transformer.read(rest, context);
            if prefix.is_empty() && outcome.is_err() {
                // Encrypted: a later one may know it.
                continue;
            }
            let name = if prefix.is_empty() { "identity" } else { prefix };
            let code = outcome.as_ref().err().map(|e| e.code);
            context.metrics.transformed(&context.resource(), "from_storage", name, code, started.elapsed());
            match outcome {
                Ok((json, stale)) => return Ok((json, stale || at != 0)),
                // Keys of the same name may stand in several providers, so the others are tried.
                Err(failure) => errors.push(failure),
            }
        }
        let Some(first) = errors.first() else {
            let failure = Failure::from(self.missing);
            let code = Some(failure.code);
            let resource = context.resource();
            context.metrics.transformed(&resource, "from_storage", "unknown", code, started.elapsed());
            return Err(failure);
        };
        let all: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
        Err(Failure { message: gotext::aggregate(&all), code: first.code })
    }

    fn write(&self, json: &[u8], context: &Context<'_>) -> Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let Some((prefix, transformer)) = self.links.first() else { return Err(self.missing.into()) };
        let outcome = transformer.write(json, context);
        let code = outcome.as_ref().err().map(|e| e.code);
        context.metrics.transformed(&context.resource(), "to_storage", prefix, code, started.elapsed());
        outcome.map(|data| [prefix.as_bytes(), &data].concat())
    }
}

/// No encryption. It refuses to read what is encrypted.
pub(crate) struct Identity;

/// Starts everything that is encrypted; JSON starts with a brace.
pub(crate) const ENCRYPTED: &[u8] = b"k8s:enc:";

impl Transformer for Identity {
    fn read(&self, data: &[u8], _: &Context<'_>) -> Result<(Vec<u8>, bool), Failure> {
        if data.starts_with(ENCRYPTED) {
            return Err("identity transformer tried to read encrypted data".into());
        }
        Ok((data.to_vec(), false))
    }

    fn write(&self, json: &[u8], _: &Context<'_>) -> Result<Vec<u8>, Failure> {
        Ok(json.to_vec())
    }
}

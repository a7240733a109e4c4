//! What every component holds to speak to the API: a kube client and shared informers that keep bytes.
//!
//! In flow the watch streams of an API server, in this process or across the network; out flow cached
//! objects ([`Cached`]), changes ([`Subscription`]), work ([`Queue`]), events ([`Recorder`]) and
//! leadership ([`Elector`]). Nothing here decodes whole objects: a cached object is its JSON with the few
//! fields everyone asks for, and a component reads the rest through small views ([`Cached::view`]).
//!
//! * [`Client`]: the pair of `kube::Client` (for writes) and [`Informers`] (for reads).
//! * [`in_process`]: a `kube::Client` over a tower service in this process, without a socket. Identity
//!   travels as a request extension that the caller's service sets. Over it, an informer keeps the very
//!   `Bytes` that the API server holds, so a second copy of an object never exists.
//! * [`remote`]: the same over the network, for a node whose certificate is replaced now and then.
//! * [`Informers::of`]: asking twice for the same resource and selection gives the same cache.

mod backoff;
mod cache;
mod candidate;
mod client;
mod election;
mod frames;
mod informer;
mod object;
mod queue;
mod queue_metrics;
mod recorder;
mod remote;
mod resource;
mod subscription;

pub use backoff::Backoff;
pub use candidate::{Candidate, CandidateConfig, OLDEST_EMULATION_VERSION};
pub use client::{Client, ClientError, from_kubeconfig, in_process, in_process_as};
pub use election::{Elector, ElectorConfig, Leadership};
pub use informer::{Informer, Informers, Selection};
pub use object::{Cached, ObjectKey, OwnerRef, ViewError, nullable};
pub use queue::Queue;
pub use queue_metrics::Queues;
pub use recorder::{EventKind, ObjectRef, Recorder};
pub use remote::{HangUp, RemoteError, get_bytes, remote};
pub use resource::*;
pub use subscription::{Change, ChangeKind, Subscription};

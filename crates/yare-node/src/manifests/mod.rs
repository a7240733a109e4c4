//! Static pods: manifests on this machine or behind a URL, run without the API server.
//!
//! In: bytes of a manifest. Out: pods as the rest of the agent knows them, named `<pod>-<node>`, with a uid that
//! is a digest of what is written. Each source tells its whole list whenever it differs; what the API server
//! sees of them is [`mirror`]'s doing.

mod decode;
mod file;
pub(crate) mod mirror;
mod url;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use yare_client::{Cached, ObjectKey};

use crate::config::Settings;
use crate::kubelet::Kubelet;

/// The longest manifest.
const BYTES_MAX: usize = 10 << 20;
/// Pods of one source that are run.
const PODS_MAX: usize = 1000;

/// Where manifests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// `staticPodPath`
    File,
    /// `staticPodURL`
    Url,
}

impl Source {
    /// As the annotation `kubernetes.io/config.source` says it.
    fn name(self) -> &'static str {
        match self {
            Source::File => "file",
            Source::Url => "http",
        }
    }

    /// The sources that a configuration has.
    pub(crate) fn all(settings: &Settings) -> Vec<Source> {
        let mut out = Vec::new();
        if !settings.static_pod_path.is_empty() {
            out.push(Source::File);
        }
        if !settings.static_pod_url.is_empty() {
            out.push(Source::Url);
        }
        out
    }
}

/// All pods of a source, as they are now.
pub(crate) struct Update {
    pub(crate) source: Source,
    pub(crate) pods: Vec<Cached>,
}

/// Follows the configured sources until the tasks end.
pub(crate) fn follow(kubelet: &Arc<Kubelet>, tasks: &mut JoinSet<()>) -> mpsc::Receiver<Update> {
    let (sender, receiver) = mpsc::channel(8);
    for source in Source::all(kubelet.config.settings()) {
        let (kubelet, teller) = (kubelet.clone(), Teller { source, told: None, sender: sender.clone() });
        match source {
            Source::File => tasks.spawn(file::follow(kubelet, teller)),
            Source::Url => tasks.spawn(url::follow(kubelet, teller)),
        };
    }
    receiver
}

/// Tells a source's list where it differs from the last one.
struct Teller {
    source: Source,
    told: Option<Vec<Cached>>,
    sender: mpsc::Sender<Update>,
}

impl Teller {
    async fn tell(&mut self, mut pods: Vec<Cached>) {
        if pods.len() > PODS_MAX {
            tracing::warn!(
                source = self.source.name(),
                "more than {PODS_MAX} static pods, the rest is left out"
            );
            pods.truncate(PODS_MAX);
        }
        let before = self.told.as_deref().unwrap_or_default();
        // What is known already keeps the moment at which it was first seen.
        for pod in &mut pods {
            let same = |other: &&Cached| other.key() == pod.key() && other.uid() == pod.uid();
            if let Some(known) = before.iter().find(same) {
                *pod = known.clone();
            }
        }
        let is_news = self.told.is_none()
            || before.len() != pods.len()
            || before.iter().zip(&pods).any(|(a, b)| !a.same(b));
        if is_news {
            self.told = Some(pods.clone());
            // Nobody listens only when the node stops.
            let _ = self.sender.send(Update { source: self.source, pods }).await;
        }
    }
}

/// The static pods of this node, for those who look from outside: mirrors and the HTTP API.
#[derive(Default)]
pub(crate) struct Statics {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What should run.
    wanted: BTreeMap<ObjectKey, Cached>,
    /// Names whose earlier pods still end.
    ending: BTreeMap<ObjectKey, usize>,
    /// Every source has said what should run.
    complete: bool,
}

impl Statics {
    pub(crate) fn want(&self, wanted: BTreeMap<ObjectKey, Cached>) {
        self.state.lock().wanted = wanted;
        self.changed.notify_one();
    }

    /// Every source has spoken: what is not wanted by now is not wanted.
    pub(crate) fn heard_all(&self) {
        self.state.lock().complete = true;
        self.changed.notify_one();
    }

    fn is_complete(&self) -> bool {
        self.state.lock().complete
    }

    pub(crate) fn list(&self) -> Vec<Cached> {
        self.state.lock().wanted.values().cloned().collect()
    }

    /// A pod of this name begins to end.
    pub(crate) fn ends(&self, key: &ObjectKey) {
        *self.state.lock().ending.entry(key.clone()).or_default() += 1;
    }

    /// A pod of this name has ended.
    pub(crate) fn ended(&self, key: &ObjectKey) {
        let mut state = self.state.lock();
        if let Some(count) = state.ending.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                state.ending.remove(key);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn is_known(&self, key: &ObjectKey) -> bool {
        let state = self.state.lock();
        state.wanted.contains_key(key) || state.ending.contains_key(key)
    }
}

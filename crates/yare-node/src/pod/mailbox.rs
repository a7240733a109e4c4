//! What reaches a pod's task: its newest object, and a wake-up.
//!
//! Nothing queues here. Whoever learns something (watch, runtime, probe, referenced object) sets the newest
//! state and wakes the task, which then looks at everything anew.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::view::Pod;

pub(crate) struct Mailbox {
    state: Mutex<State>,
    notify: Notify,
    /// Cancelled once the pod should stop, for whatever reason: long waits of a start (pulling, hooks) end.
    stopping: CancellationToken,
    /// Cancelled once the pod's object goes away.
    leaving: CancellationToken,
}

struct State {
    pod: Arc<Pod>,
    removed: bool,
    eviction: Option<Eviction>,
}

/// A pod is to fail and to stop although its object stays.
#[derive(Debug)]
pub(crate) struct Eviction {
    /// `status.reason`
    pub(crate) reason: String,
    /// `status.message`
    pub(crate) message: String,
    /// What its containers get to stop, seconds.
    pub(crate) grace_s: i64,
    /// Whether the pod is told to have been disrupted (condition `DisruptionTarget`).
    pub(crate) disrupted: bool,
    /// Hears when everything of the pod is gone from the node.
    pub(crate) done: Option<oneshot::Sender<()>>,
}

impl Mailbox {
    pub(crate) fn new(pod: Arc<Pod>, removed: bool) -> Arc<Self> {
        let mailbox = Mailbox {
            state: Mutex::new(State { pod: pod.clone(), removed, eviction: None }),
            notify: Notify::new(),
            stopping: CancellationToken::new(),
            leaving: CancellationToken::new(),
        };
        if removed || pod.is_deleting() {
            mailbox.leave();
        }
        Arc::new(mailbox)
    }

    fn leave(&self) {
        self.leaving.cancel();
        self.stopping.cancel();
    }

    /// The pod is to fail and to stop. A second order replaces one that was not taken up.
    pub(crate) fn evict(&self, eviction: Eviction) {
        self.state.lock().eviction = Some(eviction);
        self.stopping.cancel();
        self.wake();
    }

    /// The order to go, once.
    pub(crate) fn take_eviction(&self) -> Option<Eviction> {
        self.state.lock().eviction.take()
    }

    /// The newest object.
    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.state.lock().pod.clone()
    }

    /// Whether the object is gone from the API server.
    pub(crate) fn removed(&self) -> bool {
        self.state.lock().removed
    }

    /// A newer object.
    pub(crate) fn update(&self, pod: Arc<Pod>) {
        if pod.is_deleting() {
            self.leave();
        }
        self.state.lock().pod = pod;
        self.wake();
    }

    /// The object is gone.
    pub(crate) fn remove(&self) {
        self.state.lock().removed = true;
        self.leave();
        self.wake();
    }

    /// Something relevant happened.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Waits for the next wake-up; one that came before is not lost.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }

    /// Waits until the pod should stop, for whatever reason.
    pub(crate) async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Whether the pod should stop, for whatever reason.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Whether the pod's object goes away, or is gone.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }
}

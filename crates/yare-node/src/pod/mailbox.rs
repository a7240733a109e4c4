//! What reaches a pod's task: its newest object, and a wake-up.
//!
//! Nothing queues here. Whoever learns something (watch, runtime, probe, referenced object) sets the newest
//! state and wakes the task, which then looks at everything anew.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::view::Pod;

pub(crate) struct Mailbox {
    state: Mutex<State>,
    notify: Notify,
    /// Cancelled once the pod should stop: long waits of a start (pulling, hooks) end.
    stopping: CancellationToken,
}

struct State {
    pod: Arc<Pod>,
    removed: bool,
}

impl Mailbox {
    pub(crate) fn new(pod: Arc<Pod>, removed: bool) -> Arc<Self> {
        let stopping = CancellationToken::new();
        if removed || pod.is_deleting() {
            stopping.cancel();
        }
        Arc::new(Mailbox { state: Mutex::new(State { pod, removed }), notify: Notify::new(), stopping })
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
            self.stopping.cancel();
        }
        self.state.lock().pod = pod;
        self.wake();
    }

    /// The object is gone.
    pub(crate) fn remove(&self) {
        self.state.lock().removed = true;
        self.stopping.cancel();
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

    /// Waits until the pod should stop.
    pub(crate) async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Whether the pod should stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }
}

//! How the server's own parts keep in step with the store: they watch kinds until the server stops.
//!
//! Whoever follows begins with [`Changes::from_now`], looks at the present state, and looks again at what
//! [`Changes::next`] tells; nothing falls in between.

use std::sync::Arc;

use futures::future::select_all;
use yare_store::{Event, Object, SnapshotError, Watcher};

use crate::core::Core;

/// What became of the kinds that are watched.
pub enum Change {
    /// Events of one kind, by its place among those that were asked for.
    Of(usize, Vec<Arc<Event>>),
    /// More than is remembered: only the present state tells.
    Missed,
}

/// Kinds that are watched together.
pub struct Changes {
    core: Arc<Core>,
    kinds: Vec<Box<str>>,
    /// One for each kind; none after something was missed.
    watchers: Vec<Watcher>,
}

impl Changes {
    /// From now on.
    pub fn from_now<'a>(core: &Arc<Core>, kinds: impl IntoIterator<Item = &'a str>) -> Self {
        let kinds = kinds.into_iter().map(Into::into).collect();
        let mut changes = Self { core: core.clone(), kinds, watchers: Vec::new() };
        changes.open();
        changes
    }

    fn open(&mut self) {
        let store = self.core.store();
        let from = store.revision();
        let watchers: Result<_, SnapshotError> =
            self.kinds.iter().map(|kind| store.watch(kind, from)).collect();
        // History may move past `from` in between. The next call says that something was missed.
        self.watchers = watchers.unwrap_or_default();
    }

    /// What changed next; `None` when the server stops or its store is closed, and from then on. Dropping the future
    /// loses nothing.
    pub async fn next(&mut self) -> Option<Change> {
        let Self { core, watchers, .. } = self;
        let event = async {
            if watchers.is_empty() {
                return None;
            }
            let (batch, at, _) = select_all(watchers.iter_mut().map(|w| Box::pin(w.next()))).await;
            batch.ok().map(|batch| Change::Of(at, batch))
        };
        let change = tokio::select! {
            // First: a closed store ends every watch at once, so that whoever opened it again would never wait.
            biased;
            () = core.stop.cancelled() => return None,
            change = event => change,
        };
        if change.is_some() {
            return change;
        }
        if self.core.store().is_closed() {
            return None;
        }
        // History moves past whoever is slow; that must not keep others from their turn as well.
        tokio::task::yield_now().await;
        self.open();
        Some(Change::Missed)
    }

    /// Returns when an object that is `ours` may have changed; `false`: nothing is told any more, see [`Self::next`].
    pub async fn until(&mut self, ours: impl Fn(&Object) -> bool) -> bool {
        while let Some(change) = self.next().await {
            match change {
                Change::Of(_, batch) if !batch.iter().any(|event| ours(&event.object)) => {}
                Change::Of(..) | Change::Missed => return true,
            }
        }
        false
    }
}

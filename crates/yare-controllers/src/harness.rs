//! Runs the controllers of the table: watches become keys, keys are reconciled, failures back off.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yare_client::{Change, Client, ObjectKey, Queue, Resource};

use crate::{
    context::{Config, Context, Error},
    metrics, selector,
    table::{CONTROLLERS, GATED, Row},
};

/// What a reconciliation asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing: an event will come when there is something to do.
    Done,
    /// To be called again after a while.
    After(Duration),
}

/// A controller's behaviour.
#[async_trait]
pub trait Reconcile: Send + Sync + 'static {
    /// Reads the current state of what `key` names and drives it to the desired state.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error>;

    /// Work beside the keys (timers, graphs); runs until `stop`.
    async fn background(&self, queue: Queue<ObjectKey>, stop: CancellationToken) {
        let _ = (queue, stop);
    }
}

/// One resource a controller watches.
pub struct Watch {
    /// What is watched.
    pub resource: Resource,
    /// How a change becomes keys.
    pub keys: Keys,
    /// The feature without which it is not watched.
    pub gate: Option<&'static str>,
}

/// How a change becomes keys.
pub enum Keys {
    /// The object's own key.
    Own,
    /// The key of the object's controller, if that is of this resource.
    Controller(Resource),
    /// The same; and for objects without a controller, every object of the resource in the namespace whose
    /// `spec.selector` matches, since it may want to adopt.
    ControllerOrSelector(Resource),
    /// Whatever the function says.
    With(fn(&Context, &Change, &mut dyn FnMut(ObjectKey))),
}

impl Keys {
    fn of(&self, context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
        match self {
            Self::Own => {
                if let Some(object) = change.object() {
                    add(object.key().clone());
                }
            }
            Self::Controller(resource) => {
                controllers(change, resource, add);
            }
            Self::ControllerOrSelector(resource) => {
                if controllers(change, resource, add) {
                    return;
                }
                let Some(object) = &change.new else { return };
                if object.controller().is_some() || object.deletion_timestamp().is_some() {
                    return;
                }
                for candidate in context.informer(resource.clone()).in_namespace(object.namespace()) {
                    if selector::of_workload(&candidate).is_some_and(|s| s.matches(object.labels())) {
                        add(candidate.key().clone());
                    }
                }
            }
            Self::With(map) => map(context, change, add),
        }
    }
}

/// Adds the controllers before and after the change; whether there was one after.
fn controllers(change: &Change, resource: &Resource, add: &mut dyn FnMut(ObjectKey)) -> bool {
    for object in [&change.old, &change.new].into_iter().flatten() {
        if let Some(owner) = object.controller()
            && *owner.kind == *resource.kind
            && group_of(&owner.api_version) == resource.group
        {
            let namespace = if resource.namespaced { object.namespace() } else { "" };
            add(ObjectKey::new(namespace, &owner.name));
        }
    }
    change.new.as_ref().is_some_and(|o| o.controller().is_some())
}

/// `apps` of `apps/v1`; empty for core.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Running controllers.
pub struct Controllers {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Controllers {
    /// Starts every controller of the table that is not disabled and whose feature is on. Must be called within a tokio runtime.
    pub fn start(client: &Client, config: Config) -> Self {
        Self::start_rows(client, config, CONTROLLERS)
    }

    /// Starts the given controllers.
    pub fn start_rows(client: &Client, config: Config, rows: &'static [Row]) -> Self {
        let config = Arc::new(config);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let is_on = |row: &&Row| {
            let gate = GATED.iter().find(|(name, _)| *name == row.name);
            gate.is_none_or(|(_, gate)| config.gates.is_on(gate))
                && !config.disabled.iter().any(|d| d == row.name)
        };
        for row in rows.iter().filter(is_on) {
            let context = Context::new(row.name, row.account, client, config.clone());
            tasks.spawn(run(row, context, stop.clone(), tasks.clone()));
        }
        tasks.close();
        Self { stop, tasks }
    }

    /// Stops all controllers; returns when each has finished what it was doing.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

async fn run(row: &'static Row, context: Context, stop: CancellationToken, tasks: TaskTracker) {
    let controller: Arc<dyn Reconcile> = (row.make)(&context);
    let metrics = context.config.metrics.clone();
    let queue = Queue::measured(metrics::queue(row.name), &metrics.queues);
    let mut synced = Vec::new();
    let gates = &context.config.gates;
    for watch in row.watches.iter().filter(|w| w.gate.is_none_or(|gate| gates.is_on(gate))) {
        let informer = context.informer(watch.resource.clone());
        synced.push(informer.clone());
        let (context, queue, stop) = (context.clone(), queue.clone(), stop.clone());
        tasks.spawn(async move {
            let mut changes = informer.subscribe();
            loop {
                let change = tokio::select! {
                    change = changes.recv() => change,
                    () = stop.cancelled() => None,
                };
                let Some(change) = change else { break };
                watch.keys.of(&context, &change, &mut |key| queue.add(key));
            }
        });
    }
    // Acting on half of the state would be wrong, not just early.
    for informer in synced {
        tokio::select! {
            () = informer.synced() => {}
            () = stop.cancelled() => return,
        }
    }
    tracing::debug!(controller = row.name, "started");
    metrics.running(row.name, true);
    for _ in 0..row.workers {
        tasks.spawn(work(row.name, controller.clone(), queue.clone()));
    }
    {
        let (controller, queue, stop) = (controller.clone(), queue.clone(), stop.clone());
        tasks.spawn(async move {
            let end = stop.clone();
            tokio::select! {
                () = controller.background(queue, stop) => {}
                () = end.cancelled() => {}
            }
        });
    }
    stop.cancelled().await;
    queue.close();
    metrics.running(row.name, false);
}

async fn work(name: &'static str, controller: Arc<dyn Reconcile>, queue: Queue<ObjectKey>) {
    while let Some(key) = queue.get().await {
        let outcome = AssertUnwindSafe(controller.reconcile(&key)).catch_unwind().await;
        match outcome {
            Ok(Ok(next)) => {
                queue.forget(&key);
                if let Next::After(delay) = next {
                    queue.add_after(key.clone(), delay);
                }
            }
            // Trying again would help nobody; the object goes soon, and of that there will be an event.
            Ok(Err(error)) if error.is_namespace_terminating() => {
                tracing::debug!(controller = name, %key, %error, "dropped");
                queue.forget(&key);
            }
            Ok(Err(error)) => {
                if error.is_race() {
                    tracing::debug!(controller = name, %key, %error, "will retry");
                } else {
                    tracing::warn!(controller = name, %key, %error, "will retry");
                }
                queue.add_rate_limited(key.clone());
            }
            Err(_) => {
                tracing::error!(controller = name, %key, "reconciliation panicked, will retry");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

//! When containers end, as well as the runtime can tell.
//!
//! | the runtime | how it is learnt |
//! |---|---|
//! | has CRI's `GetContainerEvents` (containerd 1.7, CRI-O 1.26) | by its stream |
//! | is an older containerd | by its own stream of events, which the same socket offers |
//! | has neither | by a look at all containers every second, upstream's period |
//!
//! A stream is a hint like all events here: beside it everything is looked at every five minutes, as upstream does,
//! and at once when a stream begins, for what happened before it. What is known is one map of what runs, so that
//! an end is told once, whoever sees it first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use yare_grpc::{Code, Status, Streaming};

use super::{Inner, cri, map, method};
use crate::api::*;
use crate::error::Result;

/// Between looks at everything while a stream tells, as upstream's kubelet has it.
const STREAM_RELIST: Duration = Duration::from_secs(300);
/// An end may show in the status only later: containerd tells of it to everyone at once, its own CRI part among them,
/// and that may still be busy with the start. It is looked for soon, then every second, until this is over.
const SETTLE: Duration = Duration::from_secs(120);
const SETTLE_MIN: Duration = Duration::from_millis(2);
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Between attempts to have a stream of a runtime that has one.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Where containerd keeps what was made over CRI.
const CONTAINERD_NAMESPACE: &str = "k8s.io";

/// What is told there: a process ended; a container was out of memory, which is the reason of an end.
const EXIT: &str = "/tasks/exit";
const OOM: &str = "/tasks/oom";

/// A way to be told.
enum Source {
    Cri(Streaming<cri::Event>),
    Containerd(Streaming<cri::Envelope>),
    /// None: looks only.
    None,
}

/// What runs, by id: containers with their sandbox, sandboxes that are ready.
#[derive(Default)]
struct Running {
    containers: BTreeMap<ContainerId, SandboxId>,
    sandboxes: BTreeSet<SandboxId>,
}

/// Tells what happens for as long as the runtime's client lives.
pub(super) async fn follow(inner: Weak<Inner>) {
    let mut running = Running::default();
    let mut retry = RETRY_MIN;
    loop {
        let Some(client) = inner.upgrade() else { return };
        let opened = open(&client).await;
        // First the stream, then the look: what ends between them shows in one of both.
        let seen = look(&client, &mut running).await;
        let period = client.relist_period;
        drop(client);
        match (opened, seen) {
            (Ok(source), Ok(())) => {
                retry = RETRY_MIN;
                if listen(&inner, source, period, &mut running).await.is_none() {
                    return;
                }
                // The runtime restarts, perhaps.
                pause(&mut retry).await;
            }
            (Err(status), _) => {
                tracing::debug!(error = yare_grpc::describe(&status), "events of the container runtime");
                pause(&mut retry).await;
            }
            (_, Err(error)) => {
                tracing::debug!(%error, "what the container runtime holds");
                pause(&mut retry).await;
            }
        }
    }
}

async fn pause(retry: &mut Duration) {
    tokio::time::sleep(*retry).await;
    *retry = (*retry * 2).min(RETRY_MAX);
}

/// Opens the best stream that the runtime has.
async fn open(client: &Inner) -> Result<Source, Status> {
    match client.runtime.watch(method!(runtime "GetContainerEvents"), cri::Nothing {}).await {
        Ok(stream) => return Ok(Source::Cri(stream)),
        Err(status) if !lacks(&status) => return Err(status),
        Err(_) => {}
    }
    subscribe(client).await
}

/// Opens containerd's own stream; where there is none, nothing tells.
async fn subscribe(client: &Inner) -> Result<Source, Status> {
    let request = cri::SubscribeRequest {
        filters: [EXIT, OOM]
            .map(|topic| format!("topic=={topic:?},namespace=={CONTAINERD_NAMESPACE:?}"))
            .into(),
    };
    match client.runtime.watch("/containerd.services.events.v1.Events/Subscribe", request).await {
        Ok(stream) => Ok(Source::Containerd(stream)),
        Err(status) if lacks(&status) => Ok(Source::None),
        Err(status) => Err(status),
    }
}

/// Whether the runtime has no such method, or has it switched off.
fn lacks(status: &Status) -> bool {
    status.code() == Code::Unimplemented
}

/// Passes on what a source tells until it ends. `None`: nobody wants to know any more.
async fn listen(
    inner: &Weak<Inner>,
    mut source: Source,
    period: Duration,
    running: &mut Running,
) -> Option<()> {
    let period = if matches!(source, Source::None) { period } else { STREAM_RELIST };
    let mut look_at = Instant::now() + period;
    loop {
        tokio::select! {
            told = next(&mut source) => match told {
                Ok(Some(told)) => heard(&inner.upgrade()?, told, running).await,
                // It lacks the method after all: some say so with the first message only.
                Err(status) if lacks(&status) && matches!(source, Source::Cri(_)) => {
                    let client = inner.upgrade()?;
                    source = subscribe(&client).await.unwrap_or(Source::None);
                    look_at = Instant::now();
                }
                Ok(None) | Err(_) => return Some(()),
            },
            () = tokio::time::sleep_until(look_at) => {
                let client = inner.upgrade()?;
                if let Err(error) = look(&client, running).await {
                    tracing::debug!(%error, "what the container runtime holds");
                }
                let period = if matches!(source, Source::None) { client.relist_period } else { STREAM_RELIST };
                look_at = Instant::now() + period;
            }
        }
    }
}

/// A container or sandbox may have ended.
struct Told {
    id: String,
    /// Its sandbox, where that is told; the same id: the sandbox itself.
    sandbox: Option<SandboxId>,
    exit_code: Option<i32>,
    /// It was out of memory.
    oom: bool,
}

async fn next(source: &mut Source) -> Result<Option<Option<Told>>, Status> {
    match source {
        Source::Cri(stream) => Ok(stream.message().await?.map(of_cri)),
        Source::Containerd(stream) => Ok(stream.message().await?.map(of_containerd)),
        Source::None => std::future::pending().await,
    }
}

fn of_cri(event: cri::Event) -> Option<Told> {
    if event.kind != i32::from(cri::EventType::Stopped) {
        return None;
    }
    let exit_code = event.containers.iter().find(|c| c.id == event.container_id).map(|c| c.exit_code);
    Some(Told { id: event.container_id, sandbox: event.sandbox.map(|s| s.id), exit_code, oom: false })
}

fn of_containerd(envelope: cri::Envelope) -> Option<Told> {
    if envelope.namespace != CONTAINERD_NAMESPACE {
        return None;
    }
    // Both kinds of events begin with the container.
    let exit = cri::TaskExit::decode(envelope.event?.value.as_slice()).ok()?;
    let told = |oom| Told { id: exit.container_id.clone(), sandbox: None, exit_code: None, oom };
    match envelope.topic.as_str() {
        OOM => Some(told(true)),
        // The end of an exec is no end of the container.
        EXIT if exit.id == exit.container_id || exit.id.is_empty() => Some(told(false)),
        _ => None,
    }
}

async fn heard(client: &Arc<Inner>, told: Option<Told>, running: &mut Running) {
    let Some(told) = told else { return };
    let sandbox = match &told.sandbox {
        Some(sandbox) => Some(sandbox.clone()),
        None => client.sandbox_of.lock().get(&told.id).cloned(),
    };
    if sandbox.as_ref().is_none_or(|s| *s == told.id) && told.sandbox.is_some()
        || running.sandboxes.contains(&told.id)
    {
        running.sandboxes.remove(&told.id);
        settle_sandbox(client.clone(), told.id);
        return;
    }
    running.containers.remove(&told.id);
    match (sandbox, told.exit_code) {
        (Some(sandbox), Some(exit_code)) => {
            client.emit(RuntimeEvent::ContainerExited { id: told.id, sandbox, exit_code });
        }
        _ => settle_container(client.clone(), told.id, told.oom),
    }
}

/// Waits between looks, ever longer, for as long as something may take to settle.
struct Settling {
    deadline: Instant,
    wait: Duration,
}

impl Settling {
    fn new() -> Self {
        Self { deadline: Instant::now() + SETTLE, wait: SETTLE_MIN }
    }

    /// `false`: it took too long.
    async fn again(&mut self) -> bool {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(SETTLE_MAX);
        Instant::now() < self.deadline
    }
}

/// Tells of a container's end once its status shows it, with its reason where that was told. What never shows is
/// found by the next look.
fn settle_container(client: Arc<Inner>, id: ContainerId, oom: bool) {
    tokio::spawn(async move {
        let mut settling = Settling::new();
        loop {
            match client.container(&id).await {
                Ok(status)
                    if status.state == ContainerState::Exited && (!oom || status.reason == "OOMKilled") =>
                {
                    let (sandbox, exit_code) = (status.sandbox_id, status.exit_code);
                    return client.emit(RuntimeEvent::ContainerExited { id, sandbox, exit_code });
                }
                // No container: a sandbox that was made since the last look. Or gone.
                Err(error) if error.is_not_found() => return settle_sandbox(client, id),
                _ if settling.again().await => {}
                _ => return,
            }
        }
    });
}

fn settle_sandbox(client: Arc<Inner>, id: SandboxId) {
    tokio::spawn(async move {
        let mut settling = Settling::new();
        loop {
            match client.raw_sandbox(&id).await {
                Ok(status) if status.state != i32::from(cri::SandboxState::Ready) => {
                    return client.emit(RuntimeEvent::SandboxGone { sandbox: id });
                }
                Err(error) if error.is_not_found() => return,
                _ if settling.again().await => {}
                _ => return,
            }
        }
    });
}

/// Looks at everything, and tells what ended since the last time.
async fn look(client: &Inner, running: &mut Running) -> Result<()> {
    let sandboxes = client.list_sandboxes(None).await?;
    let containers = client.list_containers(None).await?;
    client.forget_all_but(
        &sandboxes.iter().map(|s| s.id.as_str()).collect(),
        &containers.iter().map(|c| c.id.as_str()).collect(),
    );
    let ready = sandboxes.into_iter().filter(|s| s.state == i32::from(cri::SandboxState::Ready));
    let ready: BTreeSet<SandboxId> = ready.map(|s| s.id).collect();
    let alive = containers
        .into_iter()
        .filter(|c| map::container::state(c.state) == ContainerState::Running)
        .map(|c| (c.id, c.sandbox_id))
        .collect();
    let before = std::mem::replace(running, Running { containers: alive, sandboxes: ready });
    for (id, sandbox) in before.containers {
        if running.containers.contains_key(&id) {
            continue;
        }
        // One that was removed has no exit code any more.
        let exit_code = client.container(&id).await.map_or(255, |status| status.exit_code);
        client.emit(RuntimeEvent::ContainerExited { id, sandbox, exit_code });
    }
    for sandbox in before.sandboxes {
        if !running.sandboxes.contains(&sandbox) {
            client.emit(RuntimeEvent::SandboxGone { sandbox });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_tells() {
        let envelope = |namespace: &str, topic: &str, container: &str, process: &str| cri::Envelope {
            namespace: namespace.into(),
            topic: topic.into(),
            event: Some(cri::Any {
                type_url: String::new(),
                value: cri::TaskExit { container_id: container.into(), id: process.into() }.encode_to_vec(),
            }),
        };
        for (namespace, topic, process, want) in [
            (CONTAINERD_NAMESPACE, EXIT, "c", Some(false)),
            (CONTAINERD_NAMESPACE, EXIT, "an-exec", None),
            (CONTAINERD_NAMESPACE, OOM, "", Some(true)),
            (CONTAINERD_NAMESPACE, "/tasks/start", "c", None),
            ("moby", EXIT, "c", None),
        ] {
            let told = of_containerd(envelope(namespace, topic, "c", process));
            assert_eq!(
                told.map(|t| (t.id, t.oom)),
                want.map(|oom| ("c".into(), oom)),
                "{namespace} {topic} {process}"
            );
        }
    }
}

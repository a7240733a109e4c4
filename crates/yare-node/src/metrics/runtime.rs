//! What the container runtime is asked, how often and for how long: a [`Runtime`] around the runtime. What a runtime in
//! this process does on behalf of something that is traced has a span here; calls of one behind CRI have their own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::broadcast;
use yare_runtime::*;

use super::{Metrics, table};

/// A runtime whose operations are counted.
pub(crate) struct Measured {
    runtime: Arc<dyn Runtime>,
    metrics: Metrics,
    own_spans: bool,
}

impl Measured {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, metrics: Metrics, own_spans: bool) -> Self {
        Self { runtime, metrics, own_spans }
    }

    async fn count<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, RuntimeError>> + Send,
    ) -> Result<T, RuntimeError> {
        let labels = &[operation];
        self.metrics.count(&table::RUNTIME_OPERATIONS, labels);
        let began = Instant::now();
        let outcome = match self.own_spans {
            true => yare_trace::within(operation, |_| {}, work).await,
            false => work.await,
        };
        self.metrics.took(&table::RUNTIME_DURATION, labels, began.elapsed());
        if outcome.is_err() {
            self.metrics.count(&table::RUNTIME_ERRORS, labels);
        }
        outcome
    }
}

/// One operation: its word in the metrics, and its signature, which is the trait's.
macro_rules! operations {
    ($($word:literal: $name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        #[async_trait]
        impl Runtime for Measured {
            $(async fn $name(&self, $($arg: $kind),*) -> Result<$out, RuntimeError> {
                self.count($word, self.runtime.$name($($arg),*)).await
            })*

            async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, RuntimeError> {
                let handler = config.runtime_handler.clone();
                let began = Instant::now();
                let outcome = self.count("run_podsandbox", self.runtime.run_sandbox(config)).await;
                self.metrics.took(&table::RUN_SANDBOX_DURATION, &[&handler], began.elapsed());
                if outcome.is_err() {
                    self.metrics.count(&table::RUN_SANDBOX_ERRORS, &[&handler]);
                }
                outcome
            }

            fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
                self.runtime.events()
            }
        }
    };
}

operations! {
    "version": version() -> RuntimeVersion;
    "status": status() -> RuntimeStatus;
    "stop_podsandbox": stop_sandbox(id: &str) -> ();
    "remove_podsandbox": remove_sandbox(id: &str) -> ();
    "podsandbox_status": sandbox(id: &str) -> SandboxStatus;
    "list_podsandbox": sandboxes() -> Vec<SandboxStatus>;
    "create_container": create_container(sandbox: &str, config: ContainerConfig) -> ContainerId;
    "start_container": start_container(id: &str) -> ();
    "stop_container": stop_container(id: &str, grace: Duration) -> ();
    "remove_container": remove_container(id: &str) -> ();
    "container_status": container(id: &str) -> ContainerStatus;
    "list_containers": containers() -> Vec<ContainerStatus>;
    "update_container": update_resources(id: &str, resources: Resources) -> ();
    "update_podsandbox_resources": update_sandbox_resources(id: &str, resources: Resources) -> ();
    "exec_sync": exec_sync(id: &str, argv: Vec<String>, timeout: Option<Duration>) -> ExecOutput;
    "exec": exec(id: &str, argv: Vec<String>, tty: bool, stdin: bool) -> ExecSession;
    "attach": attach(id: &str, tty: bool, stdin: bool) -> ExecSession;
    "port_forward": port_forward(sandbox: &str, port: u16) -> Box<dyn Duplex>;
    "reopen_container_log": reopen_log(id: &str) -> ();
    "checkpoint_container": checkpoint_container(id: &str, location: &Path, timeout_s: i64) -> ();
    "list_container_stats": stats() -> Vec<ContainerStats>;
    "container_stats": container_stats(ids: &[ContainerId]) -> Vec<ContainerStats>;
    "pull_image": pull_image(reference: &str, auth: Option<RegistryAuth>, progress: Option<ProgressFn>) -> ImageId;
    "image_status": image(reference: &str) -> Option<ImageStatus>;
    "list_images": images() -> Vec<ImageStatus>;
    "remove_image": remove_image(reference: &str) -> ();
    "image_fs_info": image_fs() -> FsUsage;
    "container_fs_info": container_fs() -> Option<FsUsage>;
}

//! The pod's RuntimeClass: which of the runtime's handlers runs it.

use async_trait::async_trait;
use serde::Deserialize;
use yare_client::RUNTIME_CLASSES;

use super::{PodFailure, PodHook, PodStart};
use crate::objects::Missing;

pub(crate) struct RuntimeClass;

/// What is read of a `RuntimeClass`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    handler: String,
}

#[async_trait]
impl PodHook for RuntimeClass {
    fn name(&self) -> &'static str {
        "runtime class"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        let Some(name) = start.pod.spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
            return Ok(());
        };
        // A sandbox stays with the handler that it was made by, whatever becomes of the class.
        if !start.fresh {
            return Ok(());
        }
        let uid = &start.pod.metadata.uid;
        let class = start.kubelet.objects.get::<View>(&RUNTIME_CLASSES, "", name, uid, start.mailbox).await;
        let class = class.map_err(|missing| PodFailure {
            reason: "FailedCreatePodSandBox",
            message: match missing {
                Missing::NotFound(_) => {
                    format!("Failed to create pod sandbox: runtimeclass.node.k8s.io {name:?} not found")
                }
                Missing::Unavailable(why) => {
                    format!("Failed to create pod sandbox: failed to lookup RuntimeClass {name}: {why}")
                }
            },
        })?;
        start.sandbox.runtime_handler = class.handler;
        Ok(())
    }
}

//! A container's limits, from its resource requests and limits.

use async_trait::async_trait;

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::pod::limits;

pub(crate) struct ContainerResources;

#[async_trait]
impl ContainerHook for ContainerResources {
    fn name(&self) -> &'static str {
        "resources"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let kubelet = start.kubelet;
        let mut resources = limits::container(&kubelet.resources.policy, start.pod, start.container);
        kubelet.managers.place(start.pod, start.container, &mut resources);
        start.config.resources = resources;
        Ok(())
    }
}

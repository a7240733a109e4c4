//! What a container gets for its devices: nodes, mounts, environment, annotations, CDI names.

use async_trait::async_trait;
use yare_runtime::{Device, Mount};

use super::{ContainerHook, ContainerStart, StartFailure};

pub(crate) struct Devices;

#[async_trait]
impl ContainerHook for Devices {
    fn name(&self) -> &'static str {
        "devices"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let managers = &start.kubelet.managers;
        managers.prepare(start.pod, start.container).await.map_err(StartFailure::config)?;
        let claimed = managers.dra.cdi(start.pod, start.container).map_err(StartFailure::config)?;
        let additions = managers.devices.additions(&start.pod.metadata.uid, &start.container.name);
        let config = &mut start.config;
        // The container's own variables are stronger: they come later.
        let mut env: Vec<(String, String)> = additions.env.into_iter().collect();
        for (name, value) in &env {
            start.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        env.append(&mut config.env);
        config.env = env;
        config.devices.extend(additions.devices.into_iter().map(|(path, (host, permissions))| Device {
            container_path: path.into(),
            host_path: host.into(),
            permissions,
        }));
        config.mounts.extend(additions.mounts.into_iter().map(|(path, (host, readonly))| Mount {
            container_path: path.into(),
            host_path: host.into(),
            readonly,
            ..Mount::default()
        }));
        config.annotations.extend(additions.annotations);
        config.cdi_devices.extend(claimed);
        for name in additions.cdi {
            if !config.cdi_devices.contains(&name) {
                config.cdi_devices.push(name);
            }
        }
        Ok(())
    }
}

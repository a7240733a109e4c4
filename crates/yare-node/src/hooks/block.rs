//! Volumes as devices of a container (`volumeDevices`).

use async_trait::async_trait;
use yare_runtime::Device;

use super::{ContainerHook, ContainerStart, StartFailure};

pub(crate) struct BlockDevices;

#[async_trait]
impl ContainerHook for BlockDevices {
    fn name(&self) -> &'static str {
        "block devices"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        for wanted in &start.container.volume_devices {
            let found = start.volumes.get(&wanted.name);
            let Some((volume, device)) = found.and_then(|v| Some((v, v.device.clone()?))) else {
                return Err(StartFailure::config(format!(
                    "cannot find volume {:?} to pass into container {:?}",
                    wanted.name, start.container.name
                )));
            };
            let permissions = if volume.read_only { "r" } else { "mrw" };
            start.config.devices.push(Device {
                container_path: wanted.device_path.clone().into(),
                host_path: device,
                permissions: permissions.to_owned(),
            });
        }
        Ok(())
    }
}

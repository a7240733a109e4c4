//! The file in which a container may leave its last words.

use async_trait::async_trait;
use yare_runtime::Mount;

use super::{ContainerHook, ContainerStart, StartFailure};

pub(crate) struct Termination;

#[async_trait]
impl ContainerHook for Termination {
    fn name(&self) -> &'static str {
        "termination"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let file = start.dirs.termination_message(&start.container.name, start.attempt);
        let make = || -> std::io::Result<()> {
            if let Some(parent) = file.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::File::create(&file)?;
            // Any user of the container may write it.
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        };
        make().map_err(|e| StartFailure::config(format!("make {}: {e}", file.display())))?;
        start.config.mounts.push(Mount {
            container_path: start.container.termination_message_path().into(),
            host_path: file,
            selinux_relabel: true,
            ..Mount::default()
        });
        Ok(())
    }
}

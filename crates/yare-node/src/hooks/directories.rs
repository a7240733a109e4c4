//! A pod's directories for volumes, containers and logs.

use async_trait::async_trait;

use super::{PodFailure, PodHook, PodStart};

pub(crate) struct Directories;

#[async_trait]
impl PodHook for Directories {
    fn name(&self) -> &'static str {
        "directories"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        if !start.fresh && start.dirs.root.is_dir() && start.dirs.logs.is_dir() {
            return Ok(());
        }
        start.dirs.create().map_err(|e| PodFailure {
            reason: "Failed",
            message: format!("error making pod data directories: {e}"),
        })
    }
}

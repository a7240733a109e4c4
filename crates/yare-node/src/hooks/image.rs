//! The image: present, or pulled, or the reason why not.

use async_trait::async_trait;

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::images::{self, Wish};

pub(crate) struct Image;

#[async_trait]
impl ContainerHook for Image {
    fn name(&self) -> &'static str {
        "image"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure> {
        let wish = Wish {
            kubelet: start.kubelet,
            mailbox: start.mailbox,
            pod: start.pod,
            container: Some(&start.container.name),
            image: &start.container.image,
            policy: start.container.pull_policy(),
            logins: start.logins,
        };
        let image = images::ensure(&wish).await.map_err(|lacking| StartFailure {
            reason: lacking.reason.to_owned(),
            message: lacking.message,
            event: format!("Error: {}", lacking.reason),
            retry_at: lacking.retry_at,
        })?;
        start.config.image.clone_from(&image.id);
        start.config.user_specified_image.clone_from(&start.container.image);
        start.config.stop_signal =
            start.container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()).unwrap_or_default();
        start.image = Some(image);
        Ok(())
    }
}

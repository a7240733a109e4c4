//! Images, as a runtime behind CRI keeps them.

use std::path::PathBuf;

use prost::Message;
use yare_grpc::{Code, Status};

use super::{Inner, NOTHING, PATIENCE, cri, map, method};
use crate::api::*;
use crate::error::{IoContext, Result, RuntimeError};

impl Inner {
    async fn ask_images<Q, R>(
        &self,
        method: &'static str,
        request: Q,
        timeout: std::time::Duration,
    ) -> Result<R, Status>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.images.call(method, request, timeout).await
    }

    pub(super) async fn pull_image(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ImageId> {
        let request =
            cri::PullImageRequest { image: Some(map::image_spec(reference)), auth: auth.map(map::auth) };
        let answer: Result<cri::PullImageResponse, Status> =
            self.ask_images(method!(image "PullImage"), request, PATIENCE).await;
        match answer {
            Ok(answer) if answer.image_ref.is_empty() => {
                Err(RuntimeError::Remote(format!("imageRef of image {reference:?} is not set")))
            }
            Ok(answer) => Ok(answer.image_ref),
            Err(status) if status.code() == Code::Unavailable => Err(NOTHING.error(&status)),
            // A code that says nothing is left out, as upstream does: some messages begin with a reason.
            Err(status) if status.code() == Code::Unknown => {
                Err(RuntimeError::Remote(status.message().to_owned()))
            }
            Err(status) => Err(RuntimeError::Remote(yare_grpc::describe(&status))),
        }
    }

    pub(super) async fn image(&self, reference: &str) -> Result<Option<ImageStatus>> {
        let request = cri::ImageRequest { image: Some(map::image_spec(reference)) };
        let answer: Result<cri::ImageResponse, Status> =
            self.ask_images(method!(image "ImageStatus"), request, self.timeout).await;
        match answer {
            Ok(answer) => Ok(answer.image.filter(|i| !i.id.is_empty()).map(map::image)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(NOTHING.error(&status)),
        }
    }

    pub(super) async fn list_images(&self) -> Result<Vec<ImageStatus>> {
        let answer: cri::ListImagesResponse = self
            .ask_images(method!(image "ListImages"), cri::Nothing {}, self.timeout)
            .await
            .map_err(|status| NOTHING.error(&status))?;
        Ok(answer.images.into_iter().map(map::image).collect())
    }

    pub(super) async fn remove_image(&self, reference: &str) -> Result<()> {
        // CRI removes an image with all its names, also while a container uses it: so that is looked at here.
        let Some(image) = self.image(reference).await? else { return Ok(()) };
        let uses = |c: &cri::Container| {
            let named = c.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
            [named, &c.image_ref, &c.image_id].iter().any(|n| {
                **n == image.id || image.repo_tags.iter().chain(&image.repo_digests).any(|t| t == *n)
            })
        };
        if let Some(user) = self.list_containers(None).await?.into_iter().find(uses) {
            return Err(RuntimeError::ImageInUse { image: reference.to_owned(), container: user.id });
        }
        let request = cri::ImageRequest { image: Some(map::image_spec(&image.id)) };
        let gone: Result<cri::Nothing, Status> =
            self.ask_images(method!(image "RemoveImage"), request, self.timeout).await;
        match gone {
            Err(status) if status.code() != Code::NotFound => Err(NOTHING.error(&status)),
            _ => Ok(()),
        }
    }

    pub(super) async fn image_fs(&self) -> Result<FsUsage> {
        let answer: cri::ImageFsResponse = self
            .ask_images(method!(image "ImageFsInfo"), cri::Nothing {}, self.timeout)
            .await
            .map_err(|status| NOTHING.error(&status))?;
        let Some(first) = answer.image_filesystems.into_iter().next() else {
            return Err(RuntimeError::Remote("the runtime tells of no filesystem for images".into()));
        };
        let mountpoint = PathBuf::from(first.fs_id.unwrap_or_default().mountpoint);
        let path = mountpoint.clone();
        let disk = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&path))
            .await
            .map_err(|e| RuntimeError::io("read a filesystem's size", std::io::Error::other(e)))?
            .ctx(|| format!("size of {}", mountpoint.display()))?;
        Ok(FsUsage {
            used_bytes: first.used_bytes.map_or(0, |v| v.value),
            inodes_used: first.inodes_used.map_or(0, |v| v.value),
            capacity_bytes: disk.blocks() * disk.fragment_size(),
            available_bytes: disk.blocks_available() * disk.fragment_size(),
            inodes: disk.files(),
            inodes_free: disk.files_available(),
            timestamp_ns: first.timestamp,
            mountpoint,
        })
    }
}

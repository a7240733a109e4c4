//! `yare image`: the images of this node.

use anyhow::Context as _;
use yare_runtime::{Engine, EngineConfig, ImageStore, Runtime as _};

use crate::{
    cli::{DataDir, ImageCommand},
    progress::say,
};

/// Runs an image command. The store on disk is shared with a running server.
pub async fn run(command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import { path, name, data } => {
            let store = open(&data)?;
            let imported = tokio::task::spawn_blocking(move || store.import(&path, name.as_deref()))
                .await?
                .context("import")?;
            for image in imported {
                say(&image);
            }
            Ok(())
        }
        ImageCommand::Ls { data } => {
            let mut rows = Vec::new();
            for image in open(&data)?.list() {
                let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
                for name in names {
                    let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
                    rows.push((name.clone(), id, human(image.size_bytes)));
                }
            }
            rows.sort();
            let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0).max(5);
            say(&format!("{:<width$}  {:<12}  SIZE", "IMAGE", "ID"));
            for (name, id, size) in rows {
                say(&format!("{name:<width$}  {id:<12}  {size}"));
            }
            Ok(())
        }
        ImageCommand::Rm { image, data } => {
            let engine = engine(&data, Vec::new()).await?;
            engine.remove_image(&image).await.with_context(|| format!("remove {image}"))
        }
        ImageCommand::Pull { image, insecure_registry, data } => {
            let engine = engine(&data, insecure_registry).await?;
            let id = engine.pull_image(&image, None, None).await.with_context(|| format!("pull {image}"))?;
            say(&id);
            Ok(())
        }
    }
}

/// An engine on the node's images and containers: what a container uses is not removed.
async fn engine(data: &DataDir, insecure_registries: Vec<String>) -> anyhow::Result<Engine> {
    let mut config = EngineConfig::new(&data.data_dir, "/run/yare");
    config.insecure_registries = insecure_registries;
    Engine::open(config).await.context("container runtime")
}

fn open(data: &DataDir) -> anyhow::Result<ImageStore> {
    let path = data.data_dir.join("images");
    ImageStore::open(&path).with_context(|| format!("image store {}", path.display()))
}

fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

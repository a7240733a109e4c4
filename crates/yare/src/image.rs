//! `yare image`: the images of this node.
//!
//! The store on disk has one owner. While a server runs, it is the server, and commands are sent to it over a
//! Unix socket below the data directory (one JSON line each way); otherwise the command opens the store itself.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use yare_runtime::{ImageStatus, ImageStore, Runtime};

use crate::{
    cli::{DataDir, ImageCommand},
    progress::say,
};

/// The longest request or answer, bytes.
const MAX_LINE_BYTES: u64 = 4 * 1024 * 1024;
/// The socket below the data directory.
const SOCKET: &str = "images.sock";

/// What is asked of the owner of the store.
#[derive(Serialize, Deserialize)]
enum Ask {
    Import { path: PathBuf, name: Option<String> },
    List,
    Remove { image: String },
    Pull { image: String },
}

/// One image, as it is listed.
#[derive(Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    name: String,
    id: String,
    size_bytes: u64,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    /// Names or identifiers of what was brought in or removed.
    Done(Vec<String>),
    Rows(Vec<Row>),
    Failed(String),
}

/// Runs an image command.
pub async fn run(command: ImageCommand) -> anyhow::Result<()> {
    let (data, insecure, ask) = match command {
        ImageCommand::Import { path, name, data } => {
            // The server has another working directory.
            let path = std::path::absolute(&path).with_context(|| path.display().to_string())?;
            (data, Vec::new(), Ask::Import { path, name })
        }
        ImageCommand::Ls { data } => (data, Vec::new(), Ask::List),
        ImageCommand::Rm { image, data } => (data, Vec::new(), Ask::Remove { image }),
        ImageCommand::Pull { image, insecure_registry, data } => {
            (data, insecure_registry, Ask::Pull { image })
        }
    };
    let answer = match UnixStream::connect(data.data_dir.join(SOCKET)).await {
        Ok(server) => send(server, &ask).await?,
        Err(_) => alone(&data, &insecure, ask).await?,
    };
    show(answer)
}

fn show(answer: Answer) -> anyhow::Result<()> {
    match answer {
        Answer::Done(names) => names.iter().for_each(|name| say(name)),
        Answer::Rows(mut rows) => {
            rows.sort();
            let width = rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max(5);
            say(&format!("{:<width$}  {:<12}  SIZE", "IMAGE", "ID"));
            for Row { name, id, size_bytes } in rows {
                let id: String = id.trim_start_matches("sha256:").chars().take(12).collect();
                say(&format!("{name:<width$}  {id:<12}  {}", human(size_bytes)));
            }
        }
        Answer::Failed(why) => bail!(why),
    }
    Ok(())
}

async fn send(mut server: UnixStream, ask: &Ask) -> anyhow::Result<Answer> {
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    server.write_all(&line).await?;
    let mut answer = Vec::new();
    server.take(MAX_LINE_BYTES).read_to_end(&mut answer).await?;
    serde_json::from_slice(&answer).context("the server broke off; see its log")
}

/// Does what is asked without a server.
async fn alone(data: &DataDir, insecure: &[String], ask: Ask) -> anyhow::Result<Answer> {
    let path = data.data_dir.join("images");
    let store = Arc::new(ImageStore::open(&path).with_context(|| format!("image store {}", path.display()))?);
    Ok(match ask {
        Ask::Import { path, name } => import(&store, path, name).await?,
        Ask::List => rows(store.list()),
        Ask::Pull { image } => {
            let id =
                store.pull(&image, None, None, insecure).await.with_context(|| format!("pull {image}"))?;
            Answer::Done(vec![id])
        }
        Ask::Remove { image } => {
            bail!("remove {image}: no server runs on {}, and only it knows what is in use", path.display())
        }
    })
}

async fn import(store: &Arc<ImageStore>, path: PathBuf, name: Option<String>) -> anyhow::Result<Answer> {
    let store = store.clone();
    let shown = path.display().to_string();
    let imported =
        tokio::task::spawn_blocking(move || store.import(&path, name.as_deref())).await?.context(shown)?;
    Ok(Answer::Done(imported))
}

fn rows(images: Vec<ImageStatus>) -> Answer {
    let rows = images.into_iter().flat_map(|image| {
        let names = if image.repo_tags.is_empty() { image.repo_digests } else { image.repo_tags };
        let (id, size_bytes) = (image.id, image.size_bytes);
        names.into_iter().map(move |name| Row { name, id: id.clone(), size_bytes })
    });
    Answer::Rows(rows.collect())
}

/// The images of the node: the runtime's, and the store that can import some, which is the embedded one's.
#[derive(Clone)]
pub struct Images {
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Its store; none: the runtime is another program, which brings images in by its own tools.
    pub store: Option<Arc<ImageStore>>,
}

/// Answers image commands until the task is aborted. Only the server's own user may connect.
pub fn serve(data_dir: &Path, images: Images) -> anyhow::Result<JoinHandle<()>> {
    let path = data_dir.join(SOCKET);
    let what = || format!("image socket {}", path.display());
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(what),
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(what)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(what)?;
    Ok(tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let images = images.clone();
            tokio::spawn(async move {
                if let Err(error) = answer(stream, &images).await {
                    tracing::debug!(%error, "image command");
                }
            });
        }
    }))
}

async fn answer(mut stream: UnixStream, images: &Images) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_LINE_BYTES)).read_line(&mut line).await?;
    let ask = serde_json::from_str(&line)?;
    let answer = act(images, ask).await.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
    writer.write_all(&serde_json::to_vec(&answer)?).await?;
    Ok(())
}

async fn act(images: &Images, ask: Ask) -> anyhow::Result<Answer> {
    let runtime = &images.runtime;
    Ok(match ask {
        Ask::Import { path, name } => match &images.store {
            Some(store) => import(store, path, name).await?,
            None => bail!(
                "this node's images are another container runtime's: import with its own tools (containerd: ctr -n \
                 k8s.io images import {})",
                path.display()
            ),
        },
        Ask::List => rows(runtime.images().await?),
        Ask::Remove { image } => {
            runtime.remove_image(&image).await.with_context(|| format!("remove {image}"))?;
            Answer::Done(vec![image])
        }
        Ask::Pull { image } => {
            let id = runtime.pull_image(&image, None, None).await.with_context(|| format!("pull {image}"))?;
            Answer::Done(vec![id])
        }
    })
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

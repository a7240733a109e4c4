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
    sync::watch,
    task::JoinHandle,
};
use yare_runtime::{ImageStatus, ImageStore, ProgressFn, PullProgress, Runtime};

use crate::{
    bar::Bar,
    cli::{DataDir, ImageCommand},
    progress::say,
};

/// The longest request or answer, bytes.
const MAX_LINE_BYTES: u64 = 4 * 1024 * 1024;
/// Progress is told this often at most.
const PROGRESS_PERIOD: std::time::Duration = std::time::Duration::from_millis(50);
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
    /// How far it has come; the answer is still to come.
    Progress {
        layers: u32,
        layers_done: u32,
        bytes: u64,
        total_bytes: u64,
    },
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
    let bar = Bar::new();
    let progress = bar.as_ref().map(Bar::callback);
    let answer = match UnixStream::connect(data.data_dir.join(SOCKET)).await {
        Ok(server) => send(server, &ask, progress).await?,
        Err(_) => alone(&data, &insecure, ask, progress).await?,
    };
    drop(bar);
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
        // Told on the way.
        Answer::Progress { .. } => {}
    }
    Ok(())
}

async fn send(mut server: UnixStream, ask: &Ask, progress: Option<ProgressFn>) -> anyhow::Result<Answer> {
    server.write_all(&line(ask)?).await?;
    let mut answers = BufReader::new(server);
    loop {
        let mut answer = String::new();
        (&mut answers).take(MAX_LINE_BYTES).read_line(&mut answer).await?;
        match serde_json::from_str(&answer).context("the server broke off; see its log")? {
            Answer::Progress { layers, layers_done, bytes, total_bytes } => {
                if let Some(progress) = &progress {
                    progress(PullProgress { layers, layers_done, bytes, total_bytes });
                }
            }
            answer => return Ok(answer),
        }
    }
}

/// A question or an answer, as it goes over the socket.
fn line(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Does what is asked without a server.
async fn alone(
    data: &DataDir,
    insecure: &[String],
    ask: Ask,
    progress: Option<ProgressFn>,
) -> anyhow::Result<Answer> {
    let path = data.data_dir.join("images");
    let store = Arc::new(ImageStore::open(&path).with_context(|| format!("image store {}", path.display()))?);
    Ok(match ask {
        Ask::Import { path, name } => import(&store, path, name, progress).await?,
        Ask::List => rows(store.list()),
        Ask::Pull { image } => {
            let id = store
                .pull(&image, None, progress, insecure)
                .await
                .with_context(|| format!("pull {image}"))?;
            Answer::Done(vec![id])
        }
        Ask::Remove { image } => {
            bail!("remove {image}: no server runs on {}, and only it knows what is in use", path.display())
        }
    })
}

async fn import(
    store: &Arc<ImageStore>,
    path: PathBuf,
    name: Option<String>,
    progress: Option<ProgressFn>,
) -> anyhow::Result<Answer> {
    let store = store.clone();
    let shown = path.display().to_string();
    let import = move || store.import_told(&path, name.as_deref(), progress);
    let imported = tokio::task::spawn_blocking(import).await?.context(shown)?;
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
    let mut text = String::new();
    BufReader::new(reader.take(MAX_LINE_BYTES)).read_line(&mut text).await?;
    let ask = serde_json::from_str(&text)?;
    // Only the newest state of things is of interest.
    let (sender, mut told) = watch::channel(None);
    let progress: ProgressFn = Arc::new(move |progress| {
        sender.send_replace(Some(progress));
    });
    let mut last = std::time::Instant::now();
    let mut work = std::pin::pin!(act(images, ask, progress));
    let answer = loop {
        tokio::select! {
            answer = &mut work => break answer,
            Ok(()) = told.changed() => {
                let state = *told.borrow_and_update();
                let Some(PullProgress { layers, layers_done, bytes, total_bytes }) =
                    state.filter(|_| last.elapsed() >= PROGRESS_PERIOD)
                else {
                    continue;
                };
                last = std::time::Instant::now();
                let told = line(&Answer::Progress { layers, layers_done, bytes, total_bytes })?;
                writer.write_all(&told).await?;
            }
        }
    };
    let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
    writer.write_all(&line(&answer)?).await?;
    Ok(())
}

async fn act(images: &Images, ask: Ask, progress: ProgressFn) -> anyhow::Result<Answer> {
    let runtime = &images.runtime;
    Ok(match ask {
        Ask::Import { path, name } => match &images.store {
            Some(store) => import(store, path, name, Some(progress)).await?,
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
            let pulled = runtime.pull_image(&image, None, Some(progress)).await;
            let id = pulled.with_context(|| format!("pull {image}"))?;
            Answer::Done(vec![id])
        }
    })
}

/// Bytes, for people.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

//! A registry over plain HTTP with one image, whole or damaged.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;

use crate::{
    Namespace,
    image::{busybox_parts, sha256},
};

/// The name of an image that only waits, as the first process of a sandbox does; all others run a shell.
pub const PAUSE: &str = "pause";

/// What is wrong with the layer that a registry sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Nothing.
    Whole,
    /// The connection ends half way.
    Half,
    /// It is a byte shorter than announced by the manifest.
    Short,
    /// One of its bits is another one.
    Flipped,
}

/// What a path answers: its media type, what is announced and what is sent.
struct Answer {
    kind: &'static str,
    announced: usize,
    body: Vec<u8>,
}

/// Serves an image with busybox as `127.0.0.1:PORT/NAME:1` in the namespace, one name for each kind of damage,
/// for as long as the test's process lives.
pub fn serve(namespace: &Namespace, port: u16, images: &[(&str, Layer)]) -> anyhow::Result<()> {
    answer_at(namespace.run(|| TcpListener::bind(("127.0.0.1", port)))??, images, None)
}

/// The same in this process's own network.
pub fn serve_here(port: u16, images: &[(&str, Layer)]) -> anyhow::Result<()> {
    answer_at(TcpListener::bind(("127.0.0.1", port))?, images, None)
}

/// Serves images in the namespace to those who log in; `login` is what follows `Basic ` in their requests.
pub fn serve_private(
    namespace: &Namespace,
    port: u16,
    login: &str,
    images: &[(&str, Layer)],
) -> anyhow::Result<()> {
    let listener = namespace.run(|| TcpListener::bind(("127.0.0.1", port)))??;
    answer_at(listener, images, Some(format!("basic {login}")))
}

fn answer_at(listener: TcpListener, images: &[(&str, Layer)], login: Option<String>) -> anyhow::Result<()> {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const BLOB: &str = "application/octet-stream";
    let directory = tempfile::tempdir()?;
    let (layer_path, config) = busybox_parts(directory.path())?;
    let layer = std::fs::read(layer_path)?;
    let mut waiting: serde_json::Value = serde_json::from_str(&config)?;
    waiting["config"]["Cmd"] = json!(["sleep", "2147483647"]);
    let configs = [config, waiting.to_string()];
    let layer_digest = sha256(&layer)?;
    let mut answers = BTreeMap::new();
    let mut add = |path: String, kind, announced, body: &[u8]| {
        answers.insert(path, Answer { kind, announced, body: body.to_vec() });
    };
    for (name, damage) in images {
        let config = &configs[usize::from(*name == PAUSE)];
        let config_digest = sha256(config.as_bytes())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer_digest}"), "size": layer.len(),
            }],
        })
        .to_string();
        add(format!("/v2/{name}/manifests/1"), MANIFEST, manifest.len(), manifest.as_bytes());
        // Some ask by the digest once they know it.
        let manifest_digest = sha256(manifest.as_bytes())?;
        let by_digest = format!("/v2/{name}/manifests/sha256:{manifest_digest}");
        add(by_digest, MANIFEST, manifest.len(), manifest.as_bytes());
        add(format!("/v2/{name}/blobs/sha256:{config_digest}"), BLOB, config.len(), config.as_bytes());
        let (mut sent, mut announced) = (layer.clone(), layer.len());
        match damage {
            Layer::Whole => {}
            Layer::Half => sent.truncate(layer.len() / 2),
            Layer::Short => {
                announced -= 1;
                sent.truncate(announced);
            }
            Layer::Flipped => sent[layer.len() / 2] ^= 1,
        }
        add(format!("/v2/{name}/blobs/sha256:{layer_digest}"), BLOB, announced, &sent);
    }
    let answers = Arc::new(answers);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answers, login) = (answers.clone(), login.clone());
            // A client that breaks off is no event.
            thread::spawn(move || drop(answer(&stream, &answers, login.as_deref())));
        }
    });
    Ok(())
}

fn answer(
    mut stream: &TcpStream,
    answers: &BTreeMap<String, Answer>,
    login: Option<&str>,
) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().context("no request")??;
    let mut said = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            // Of the scheme's name no letter is large or small.
            said = value.split_once(' ').map(|(scheme, rest)| format!("{} {rest}", scheme.to_lowercase()));
        }
    }
    if login.is_some() && said.as_deref() != login {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"test\"\r\n\
            content-length: 0\r\nconnection: close\r\n\r\n";
        return Ok(stream.write_all(refusal.as_bytes())?);
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // A mirror is told whose images it is asked for.
    let path = path.split('?').next().unwrap_or_default();
    let Some(Answer { kind, announced, body }) = answers.get(path) else {
        return Ok(
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?
        );
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {announced}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if method != "HEAD" {
        stream.write_all(body)?;
    }
    Ok(())
}

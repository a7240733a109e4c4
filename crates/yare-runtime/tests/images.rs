//! Images: imported, pulled, unpacked, refused, removed.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use common::image::*;
use common::*;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use yare_runtime::*;

fn layers() -> Vec<Vec<u8>> {
    vec![
        busybox_layer(),
        layer(&[
            Entry::Dir("data", 0o750),
            Entry::Dir("data/old", 0o755),
            Entry::File("data/old/a", 0o644, b"a\n"),
            Entry::File("data/gone", 0o644, b"gone\n"),
            Entry::Owned("data/owned", 1000, 0o4755),
            Entry::File("data/one", 0o600, b"linked\n"),
            Entry::Hard("data/two", "data/one"),
            Entry::Link("lib", "data"),
            Entry::Link("evil", "/etc"),
        ]),
        layer(&[
            Entry::File("data/.wh.gone", 0o644, b""),
            Entry::File("data/old/b", 0o644, b"b\n"),
            Entry::File("data/old/.wh..wh..opq", 0o644, b""),
            // Through a link of the layer below, and one that leads outside.
            Entry::File("lib/through", 0o644, b"through\n"),
            Entry::File("evil/inside", 0o644, b"inside\n"),
            Entry::Hard("data/three", "data/one"),
        ]),
    ]
}

const LOOK: &str = "ls /data /data/old; cat /data/three /data/through /etc/inside; stat -c '%a %u' /data /data/owned /data/two /tmp";
const SEEN: &str = "/data:\nold\none\nowned\nthree\nthrough\ntwo\n\n/data/old:\nb\nlinked\nthrough\ninside\n750 0\n4755 1000\n600 0\n1777 0\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_become_a_filesystem() {
    let rig = Rig::new().await;
    let images = rig.engine().images();
    let docker = rig.dir.path().join("d.tar");
    docker_archive(
        &docker,
        "test/docker:1",
        &layers(),
        json!({"Cmd": ["sh"], "User": "app:extra", "WorkingDir": "/data", "StopSignal": "SIGINT", "Env": ["A=b"]}),
    );
    images.import(&docker, None).unwrap();
    let status = images.status("docker.io/test/docker:1").unwrap();
    assert_eq!(status.repo_tags, ["docker.io/test/docker:1"]);
    assert_eq!((status.username.as_str(), status.stop_signal.as_str()), ("app", "SIGINT"));
    let (_, log) = rig
        .script(LOOK, |c| {
            c.image = "test/docker:1".into();
            c.security.uid = Some(0);
        })
        .await;
    assert_eq!(log, SEEN);
    let (_, log) = rig.script("id -u; id -g; pwd; echo $A", |c| c.image = "test/docker:1".into()).await;
    assert_eq!(log, "1000\n77\n/data\nb\n");
    assert!(!Path::new("/etc/inside").exists(), "it stayed inside");

    // The same as an OCI layout: a directory, a tar, a compressed tar.
    let zstd = |l: &[u8]| ruzstd::encoding::compress_to_vec(l, ruzstd::encoding::CompressionLevel::Fastest);
    for (i, compress) in [gzip as fn(&[u8]) -> Vec<u8>, zstd].into_iter().enumerate() {
        let dir = rig.dir.path().join(format!("layout{i}"));
        let manifest =
            oci_layout(&dir, "reg.example/oci:2", &oci_blobs(&layers(), compress, json!({"Cmd": ["sh"]})));
        let tar = rig.dir.path().join("layout.tar.gz");
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all(".", &dir).unwrap();
        std::fs::write(&tar, gzip(&builder.into_inner().unwrap())).unwrap();
        for path in [&dir, &tar] {
            let id = images.import(path, None).unwrap().remove(0);
            let status = images.status("reg.example/oci:2").unwrap();
            assert_eq!(status.id, id);
            assert_eq!(status.repo_digests.last().unwrap(), &format!("reg.example/oci@{manifest}"));
        }
    }
    let (_, log) = rig.script(LOOK, |c| c.image = "reg.example/oci:2".into()).await;
    assert_eq!(log, SEEN);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_images_are_refused_and_leave_nothing() {
    let rig = Rig::new().await;
    let images = rig.engine().images();
    let files = |dir: &str| -> Vec<_> {
        std::fs::read_dir(rig.dir.path().join("data/images").join(dir))
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .collect()
    };
    let before = files("layers");
    let path = rig.dir.path().join("bad.tar");
    let good = layers();
    docker_archive(&path, "x", &good, json!({}));
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 100, 700, whole.len() / 2] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = images.import(&path, None).unwrap_err();
        assert!(matches!(error, RuntimeError::CorruptImage { .. }), "{cut}: {error}");
    }
    let mut flipped = whole.clone();
    let at = flipped.windows(7).rposition(|w| w == b"linked\n").unwrap();
    flipped[at] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    let error = images.import(&path, None).unwrap_err().to_string();
    assert!(error.contains("has the digest sha256:"), "{error}");
    let mut out = tar::Header::new_gnu();
    out.set_size(1);
    out.as_mut_bytes()[..11].copy_from_slice(b"../../evil\0");
    out.set_mode(0o644);
    out.set_cksum();
    let mut evil = tar::Builder::new(Vec::new());
    evil.append(&out, &b"x"[..]).unwrap();
    docker_archive(&path, "x", &[evil.into_inner().unwrap()], json!({}));
    let error = images.import(&path, None).unwrap_err().to_string();
    assert!(error.contains("leads out of the image"), "{error}");
    images.import(Path::new("/etc/passwd"), None).unwrap_err();
    assert!(images.status("x").is_none());
    // What failed may have left complete layers; collecting them is the next removal's business.
    images.import(&rig.dir.path().join("busybox.tar"), Some("y")).unwrap();
    rig.engine().remove_image("y").await.unwrap();
    let other = rig.dir.path().join("other.tar");
    docker_archive(&other, "z", &[layer(&[Entry::Dir("d", 0o755)])], json!({}));
    images.import(&other, None).unwrap();
    rig.engine().remove_image("z").await.unwrap();
    assert_eq!(files("layers"), before);
    assert!(files("ingest").is_empty(), "{:?}", files("ingest"));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_tagged_used_and_removed() {
    let mut rig = Rig::new().await;
    let e = rig.engine().clone();
    let id = e.image(BUSYBOX).await.unwrap().unwrap().id;
    e.images().tag(BUSYBOX, "second:tag").unwrap();
    let (sandbox, _) = rig.run(rig.pod("u"), sh("sleep 1000")).await;
    e.remove_image("second:tag").await.unwrap();
    let error = e.remove_image(&id).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageInUse { .. }), "{error}");
    assert!(e.remove_image(BUSYBOX).await.is_err());
    e.remove_sandbox(&sandbox).await.unwrap();
    drop(e);
    rig.reopen().await;
    let e = rig.engine();
    assert_eq!(e.images().list().len(), 1);
    let fs = e.image_fs().await.unwrap();
    assert!(fs.used_bytes > 500_000 && fs.capacity_bytes > fs.available_bytes, "{fs:?}");
    e.remove_image(&id[..20]).await.unwrap();
    e.remove_image(&id).await.unwrap();
    assert!(e.image(BUSYBOX).await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(rig.dir.path().join("data/images/layers")).unwrap().count(), 0);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_an_image() {
    let rig = Rig::new().await;
    let e = rig.engine();
    // A dynamically linked program that does something with its second argument.
    let program = Path::new(env!("CARGO_BIN_EXE_yare-shim-test"));
    e.images().add_builtin("yare.local/exit-with", program).unwrap();
    e.images().add_builtin("yare.local/exit-with", program).unwrap();
    let status = e.image("yare.local/exit-with").await.unwrap().unwrap();
    assert_eq!(status.entrypoint, ["/yare", "exit-with"]);
    assert!(status.pinned && status.repo_tags == ["yare.local/exit-with:latest"]);
    let mut config = sh("");
    config.command.clear();
    config.image = "yare.local/exit-with".into();
    config.security.readonly_rootfs = true;
    let (_, id) = rig.run(rig.pod("b"), config).await;
    let status = rig.wait(&id).await;
    assert_eq!(status.exit_code, 2, "{status:?}");
    rig.finish().await;
}

/// A registry that wants a token, breaks transfers, and redirects.
struct Registry {
    blobs: BTreeMap<String, Vec<u8>>,
    index: Vec<u8>,
    log: Mutex<Vec<String>>,
    broken: AtomicU32,
    address: Mutex<String>,
}

impl Registry {
    fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let header =
            |n: &str| request.headers().get(n).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        self.log.lock().push(path.clone());
        let reply = |status: StatusCode, body: &[u8]| {
            Response::builder().status(status).body(Full::from(body.to_vec())).unwrap()
        };
        let address = self.address.lock().clone();
        if path == "/token" {
            // user:pass
            assert_eq!(header("authorization"), "Basic dXNlcjpwYXNz");
            assert!(request.uri().query().unwrap().contains("scope=repository:team/app:pull"));
            return reply(StatusCode::OK, br#"{"token":"secret"}"#);
        }
        if let Some(digest) = path.strip_prefix("/direct/") {
            let blob = &self.blobs[digest];
            let from = header("range")
                .strip_prefix("bytes=")
                .map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
            if blob.len() > 100_000 && self.broken.fetch_add(1, Ordering::Relaxed) == 0 {
                // Announces everything and sends half.
                let mut half = reply(StatusCode::OK, &blob[..blob.len() / 2]);
                half.headers_mut().insert("x-half", "1".parse().unwrap());
                return half;
            }
            let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
            return reply(status, &blob[from..]);
        }
        if header("authorization") != "Bearer secret" {
            let mut r = reply(StatusCode::UNAUTHORIZED, b"{}");
            let challenge = format!(
                r#"Bearer realm="http://{address}/token",service="s",scope="repository:team/app:pull""#
            );
            r.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            return r;
        }
        match path.strip_prefix("/v2/team/app/") {
            Some("manifests/1.0") => reply(StatusCode::OK, &self.index),
            Some(rest) => match rest.split_once('/') {
                Some(("manifests", digest)) if self.blobs.contains_key(digest) => {
                    reply(StatusCode::OK, &self.blobs[digest])
                }
                Some(("blobs", digest)) if self.blobs.contains_key(digest) => {
                    let mut r = reply(StatusCode::TEMPORARY_REDIRECT, b"");
                    r.headers_mut().insert("location", format!("/direct/{digest}").parse().unwrap());
                    r
                }
                _ => reply(
                    StatusCode::NOT_FOUND,
                    br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                ),
            },
            None => reply(StatusCode::NOT_FOUND, b""),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_pulled() {
    let rig = Rig::new().await;
    let e = rig.engine();
    let blobs = oci_blobs(&layers(), gzip, json!({"Cmd": ["sh"]}));
    let manifest = blobs.last().unwrap().clone();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mut ours = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    ours["platform"] = json!({"os": "linux", "architecture": arch});
    let mut other = ours.clone();
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    other["digest"] = json!(digest(b"nothing"));
    let index = json!({"schemaVersion": 2, "manifests": [other, ours]}).to_string().into_bytes();
    let registry = Arc::new(Registry {
        blobs: blobs.iter().map(|b| (digest(b), b.clone())).collect(),
        index: index.clone(),
        log: Mutex::default(),
        broken: AtomicU32::new(0),
        address: Mutex::default(),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    registry.address.lock().clone_from(&address);
    let server = {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = Arc::clone(&registry);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let response = registry.answer(&request);
                        async move { Ok::<_, std::convert::Infallible>(response) }
                    });
                    let io = hyper_util::rt::TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        })
    };
    let auth = RegistryAuth { username: "user".into(), password: "pass".into(), ..RegistryAuth::default() };
    assert!(!format!("{auth:?}").contains("pass"), "no secrets in logs");
    let reference = format!("{address}/team/app:1.0");
    let last = Arc::new(Mutex::new(PullProgress::default()));
    let progress: ProgressFn = {
        let last = Arc::clone(&last);
        Arc::new(move |p| *last.lock() = p)
    };
    let id = e.pull_image(&reference, Some(auth.clone()), Some(progress)).await.unwrap();
    let p = *last.lock();
    assert_eq!((p.layers, p.layers_done, p.bytes), (3, 3, p.total_bytes));
    let status = e.image(&reference).await.unwrap().unwrap();
    assert_eq!(status.id, id);
    assert_eq!(status.repo_digests, [format!("{address}/team/app@{}", digest(&index))]);
    let by_digest = format!("{address}/team/app@{}", digest(&index));
    assert_eq!(e.image(&by_digest).await.unwrap().unwrap().id, id);
    let (_, log) = rig.script(LOOK, |c| c.image = by_digest).await;
    assert_eq!(log, SEEN);
    let fetched = registry.log.lock().len();
    e.pull_image(&reference, Some(auth.clone()), None).await.unwrap();
    let again = registry.log.lock().len() - fetched;
    assert!(again < 8, "layers that are there are not fetched: {again} requests");
    let error = e
        .pull_image(&format!("{address}/team/app:nope"), Some(auth.clone()), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not found: MANIFEST_UNKNOWN: manifest unknown"), "{error}");
    let error = e
        .pull_image(&format!("{address}/team/app@{}", digest(b"x")), Some(auth), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not found"), "{error}");
    server.abort();
    rig.finish().await;
}

/// What hides something does so without what is below, and nothing else is seen of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_say_all_hide_what_they_should() {
    let rig = Rig::new().await;
    let below = layer(&[
        Entry::Dir("data", 0o755),
        Entry::File("data/gone", 0o644, b"gone\n"),
        Entry::File("data/kept", 0o644, b"kept\n"),
        Entry::Dir("data/old", 0o755),
        Entry::File("data/old/a", 0o644, b"a\n"),
        Entry::Dir("data/anew", 0o755),
        Entry::File("data/anew/a", 0o644, b"a\n"),
        Entry::File("data/file", 0o644, b"file\n"),
    ]);
    let above = layer(&[
        Entry::Dir("data", 0o755),
        Entry::File("data/.wh.gone", 0o644, b""),
        Entry::Dir("data/old", 0o755),
        Entry::File("data/old/.wh..wh..opq", 0o644, b""),
        Entry::File("data/old/b", 0o644, b"b\n"),
        // Hidden, and made again.
        Entry::File("data/.wh.anew", 0o644, b""),
        Entry::Dir("data/anew", 0o755),
        Entry::File("data/anew/b", 0o644, b"b\n"),
        Entry::Dir("data/file", 0o755),
        // These hide nothing.
        Entry::File("data/.wh.never", 0o644, b""),
        Entry::Dir("own", 0o755),
        Entry::File("own/.wh.never", 0o644, b""),
        Entry::File("own/x", 0o644, b"x\n"),
        Entry::Hard("own/y", "own/x"),
    ]);
    let archive = rig.dir.path().join("hiding.tar");
    docker_archive(&archive, "test/hiding:1", &[busybox_layer(), below, above], json!({"Cmd": ["sh"]}));
    rig.engine().images().import(&archive, None).unwrap();
    let script = "ls -A /data /data/old /data/anew /data/file /own; cat /data/kept /own/y";
    let (_, log) = rig.script(script, |c| c.image = "test/hiding:1".into()).await;
    assert_eq!(
        log,
        "/data:\nanew\nfile\nkept\nold\n\n/data/anew:\nb\n\n/data/file:\n\n/data/old:\nb\n\n/own:\nx\ny\nkept\nx\n"
    );
    rig.finish().await;
}

/// Small files come from another thread than large ones, links and directories.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_as_their_headers_say() {
    let rig = Rig::new().await;
    let names: Vec<String> = (0..500).map(|n| format!("many/{n}")).collect();
    let texts: Vec<String> = (0..500).map(|n| "x".repeat(n)).collect();
    let large = vec![b'l'; 3 << 20];
    let mut entries =
        vec![Entry::Dir("many", 0o755), Entry::Dir("group", 0o2775), Entry::Dir("group/sub", 0o700)];
    entries.extend(names.iter().zip(&texts).map(|(n, t)| Entry::File(n, 0o640, t.as_bytes())));
    entries.extend([
        // What came before is waited for, and replaced.
        Entry::File("many/499", 0o4711, b"again\n"),
        Entry::Hard("many/linked", "many/499"),
        Entry::File("many/498", 0o444, b"once\n"),
        Entry::Hard("many/498", "many/497"),
        Entry::Link("many/496", "497"),
        Entry::File("many/large", 0o644, &large),
        Entry::File("group/sub/file", 0o644, b"in\n"),
        // What was in a directory goes with it, and not to where the link leads.
        Entry::Dir("swapped", 0o755),
        Entry::File("swapped/lost", 0o644, b"lost\n"),
        Entry::Link("swapped", "many"),
        Entry::Owned("group/owned", 1000, 0o6755),
    ]);
    let archive = rig.dir.path().join("files.tar");
    docker_archive(&archive, "test/files:1", &[busybox_layer(), layer(&entries)], json!({"Cmd": ["sh"]}));
    rig.engine().images().import(&archive, None).unwrap();
    let script =
        "cd /many; ls | wc -l; readlink /swapped; cat linked; stat -c '%n %a %s %h' 0 100 497 498 499 large; readlink 496
        cat $(seq 0 495) | wc -c; cd /group; stat -c '%n %a %u %g' . sub sub/file owned; cat sub/file";
    let (_, log) = rig
        .script(script, |c| {
            c.image = "test/files:1".into();
            c.security.uid = Some(0);
        })
        .await;
    assert_eq!(
        log,
        "502\nmany\nagain\n0 640 0 1\n100 640 100 1\n497 640 497 2\n498 640 497 2\n499 4711 6 2\nlarge 644 3145728 1\n497\n\
         122760\n. 2775 0 0\nsub 700 0 0\nsub/file 644 0 0\nowned 6755 1000 1000\nin\n"
    );
    rig.finish().await;
}

/// Answers every request from a table of paths; what is not in it is not there.
async fn serve(answers: BTreeMap<String, (StatusCode, Vec<u8>)>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers = Arc::new(answers);
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let path = request.uri().path().to_owned();
                    let (status, body) =
                        answers.get(&path).cloned().unwrap_or((StatusCode::NOT_FOUND, Vec::new()));
                    let mut response = Response::builder().status(status);
                    if status.is_redirection() {
                        // To itself.
                        response = response.header("location", &path);
                    }
                    let response = response.body(Full::<Bytes>::from(body)).unwrap();
                    async move { Ok::<_, std::convert::Infallible>(response) }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    (address, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lies_is_found_out() {
    let rig = Rig::new().await;
    // Not one that is there already.
    let own = layer(&[Entry::Dir("own", 0o755), Entry::File("own/file", 0o644, &[7; 100_000])]);
    let blobs = oci_blobs(&[own], gzip, json!({"Cmd": ["sh"]}));
    let [packed, config, manifest] = blobs.as_slice() else { panic!("three blobs") };
    let document: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let ok = |body: &[u8]| (StatusCode::OK, body.to_vec());
    let mut answers = BTreeMap::new();
    let mut image =
        |name: &str, manifest: &[u8], config: (StatusCode, Vec<u8>), layer: (StatusCode, Vec<u8>)| {
            let at = |what: &str| format!("/v2/{name}/{what}");
            answers.insert(at("manifests/1"), ok(manifest));
            answers.insert(at(&format!("manifests/{}", digest(b"another"))), ok(manifest));
            answers.insert(at(&format!("blobs/{}", digest(&blobs[1]))), config);
            answers.insert(at(&format!("blobs/{}", digest(packed))), layer);
        };
    let mut flipped = packed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let longer = [packed.as_slice(), b"x"].concat();
    let with_size = |size: serde_json::Value| {
        let mut document = document.clone();
        document["layers"][0]["size"] = size;
        document.to_string().into_bytes()
    };
    let index = |digest: String| {
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        json!({"manifests": [{"digest": digest, "platform": {"os": "linux", "architecture": arch}}]})
            .to_string()
            .into_bytes()
    };
    let nested = index(digest(b"nothing"));
    image("whole", manifest, ok(config), ok(packed));
    image("flipped", manifest, ok(config), ok(&flipped));
    image("longer", manifest, ok(config), ok(&longer));
    image("sizeless", &with_size(json!(0)), ok(config), ok(packed));
    image("huge", &with_size(json!(u64::MAX)), ok(config), ok(packed));
    image("config", manifest, ok(b"{}"), ok(packed));
    image("loop", manifest, (StatusCode::TEMPORARY_REDIRECT, Vec::new()), ok(packed));
    image("endless", &vec![b' '; 9 << 20], ok(config), ok(packed));
    image("nonsense", b"<html>", ok(config), ok(packed));
    image("empty", b"{}", ok(config), ok(packed));
    image("nested", &index(digest(&nested)), ok(config), ok(packed));
    answers.insert(format!("/v2/nested/manifests/{}", digest(&nested)), ok(&nested));
    let (address, server) = serve(answers).await;
    let pull = async |name: &str| rig.engine().pull_image(&format!("{address}/{name}"), None, None).await;
    for (name, part) in [
        ("flipped:1", "has the digest sha256:"),
        ("longer:1", "is larger than the"),
        ("sizeless:1", "says no size of layer"),
        ("huge:1", "and the disk has room for"),
        ("config:1", "configuration sha256:"),
        ("loop:1", "more than 8 redirects"),
        ("endless:1", "is larger than 8388608 bytes"),
        ("nonsense:1", "is corrupt: manifest"),
        ("empty:1", "is not an image manifest"),
        ("nested:1", "an index inside an index"),
        (&format!("whole@{}", digest(b"another")), "has the digest sha256:"),
    ] {
        let error = pull(name).await.unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert!(rig.engine().image(&format!("{address}/{name}")).await.unwrap().is_none(), "{name}");
    }
    let ingest = rig.dir.path().join("data/images/ingest");
    assert_eq!(std::fs::read_dir(&ingest).unwrap().count(), 0, "something is left of what was refused");
    // At once, several pulls of one image are one.
    let (a, b, c) = tokio::join!(pull("whole:1"), pull("whole:1"), pull("whole:1"));
    assert_eq!((a.as_ref().unwrap(), b.unwrap()), (&c.unwrap(), a.as_ref().unwrap().clone()));
    server.abort();
    rig.finish().await;
}

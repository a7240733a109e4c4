//! Images for tests, made from the machine's static busybox.

use std::path::Path;

use sha2::{Digest, Sha256};

/// One entry of a layer.
pub enum Entry<'a> {
    Dir(&'a str, u32),
    File(&'a str, u32, &'a [u8]),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Owned(&'a str, u32, u32),
}

pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// A layer's tar.
pub fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match entry {
            Entry::Dir(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                tar.append_data(&mut header, path, std::io::empty()).unwrap();
            }
            Entry::File(path, mode, data) => {
                header.set_mode(*mode);
                header.set_size(data.len() as u64);
                tar.append_data(&mut header, path, *data).unwrap();
            }
            Entry::Link(path, to) | Entry::Hard(path, to) => {
                let hard = matches!(entry, Entry::Hard(..));
                header.set_entry_type(if hard { tar::EntryType::Link } else { tar::EntryType::Symlink });
                header.set_mode(0o777);
                tar.append_link(&mut header, path, to).unwrap();
            }
            Entry::Owned(path, uid, mode) => {
                header.set_uid(u64::from(*uid));
                header.set_gid(u64::from(*uid));
                header.set_mode(*mode);
                tar.append_data(&mut header, path, std::io::empty()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

const APPLETS: [&str; 34] = [
    "sh", "cat", "echo", "sleep", "ls", "id", "true", "false", "env", "pwd", "mount", "umount", "touch",
    "head", "dd", "tail", "grep", "hostname", "ps", "kill", "stty", "mknod", "chmod", "ping", "nc", "wc",
    "seq", "stat", "readlink", "mkdir", "yes", "chroot", "unshare", "ulimit",
];

/// busybox with links, users and a sticky `/tmp`.
pub fn busybox_layer() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").unwrap();
    let links: Vec<String> = APPLETS.iter().map(|a| format!("bin/{a}")).collect();
    let mut entries = vec![
        Entry::Dir("bin", 0o755),
        Entry::Dir("tmp", 0o1777),
        Entry::Dir("etc", 0o755),
        Entry::Dir("root", 0o700),
        Entry::File("bin/busybox", 0o755, &program),
        Entry::File("bin/noexec", 0o644, b"#!/bin/sh\n"),
        Entry::File("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/tmp:/bin/sh\n"),
        Entry::File("etc/group", 0o644, b"root:x:0:\napp:x:1001:\nextra:x:77:app\n"),
    ];
    entries.extend(links.iter().map(|l| Entry::Link(l, "busybox")));
    layer(&entries)
}

/// A configuration for layers.
pub fn config(layers: &[Vec<u8>], run: serde_json::Value) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    serde_json::to_vec(&serde_json::json!({
        "architecture": arch, "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": ids},
    }))
    .unwrap()
}

/// Writes a docker archive.
pub fn docker_archive(path: &Path, tag: &str, layers: &[Vec<u8>], run: serde_json::Value) {
    let config = config(layers, run);
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest =
        serde_json::to_vec(&serde_json::json!([{"Config": "c.json", "RepoTags": [tag], "Layers": names}]))
            .unwrap();
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data).unwrap();
    };
    add("c.json", &config);
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    add("manifest.json", &manifest);
    tar.finish().unwrap();
}

/// A blob and its descriptor.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// An OCI image: all its blobs, the manifest last.
pub fn oci_blobs(
    layers: &[Vec<u8>],
    compress: impl Fn(&[u8]) -> Vec<u8>,
    run: serde_json::Value,
) -> Vec<Vec<u8>> {
    let config = config(layers, run);
    let packed: Vec<Vec<u8>> = layers.iter().map(|l| compress(l)).collect();
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": packed.iter().map(|l| descriptor(layer_type, l)).collect::<Vec<_>>(),
    }))
    .unwrap();
    packed.into_iter().chain([config, manifest]).collect()
}

/// Writes an OCI layout directory; answers the manifest's digest.
pub fn oci_layout(dir: &Path, name: &str, blobs: &[Vec<u8>]) -> String {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for blob in blobs {
        std::fs::write(dir.join("blobs").join(digest(blob).replace(':', "/")), blob).unwrap();
    }
    let manifest = blobs.last().unwrap();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest);
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    digest(manifest)
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

//! Images made here, so that no test needs a registry.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde_json::json;

/// Writes a docker archive of an image `name` with Debian's static busybox and all its applets.
pub fn busybox(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let (layer_path, config) = busybox_parts(directory)?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let path = directory.join("busybox.tar");
    let mut archive = tar::Builder::new(File::create(&path)?);
    append(&mut archive, "config.json", config.as_bytes())?;
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
    archive.append_path_with_name(&layer_path, "layer.tar")?;
    archive.finish()?;
    Ok(path)
}

/// Writes a docker archive of an image `name` with one layer: the file `layer`, which is the root file system `rootfs`,
/// perhaps compressed.
pub fn of_layer(directory: &Path, name: &str, rootfs: &Path, layer: &Path) -> anyhow::Result<PathBuf> {
    let digest = sha256(&std::fs::read(rootfs)?)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let path = directory.join("layer-image.tar");
    let mut archive = tar::Builder::new(File::create(&path)?);
    append(&mut archive, "config.json", config.to_string().as_bytes())?;
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
    archive.append_path_with_name(layer, "layer.tar")?;
    archive.finish()?;
    Ok(path)
}

/// The one layer of that image as a file below `directory`, and its configuration.
pub(crate) fn busybox_parts(directory: &Path) -> anyhow::Result<(PathBuf, String)> {
    let binary = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .context("busybox is not there: apt-get install busybox-static")?;
    let listed = Command::new(binary).arg("--list").output()?;
    let applets = String::from_utf8(listed.stdout)?;

    let layer_path = directory.join("layer.tar");
    let mut layer = tar::Builder::new(File::create(&layer_path)?);
    for (path, mode) in [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755)] {
        let mut header = numeric_header();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        layer.append_data(&mut header, format!("{path}/"), std::io::empty())?;
    }
    let mut header = numeric_header();
    header.set_mode(0o755);
    header.set_size(std::fs::metadata(binary)?.len());
    layer.append_data(&mut header, "bin/busybox", File::open(binary)?)?;
    for applet in applets.lines().filter(|a| *a != "busybox") {
        let mut header = numeric_header();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ] {
        append(&mut layer, path, text.as_bytes())?;
    }
    layer.finish()?;
    drop(layer);

    let digest = sha256(&std::fs::read(&layer_path)?)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    Ok((layer_path, config.to_string()))
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = numeric_header();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    Ok(archive.append_data(&mut header, path, bytes)?)
}

/// A header whose every field is a number.
fn numeric_header() -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The SHA-256 of some bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> anyhow::Result<String> {
    let mut program = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    program.stdin.take().context("its input")?.write_all(bytes)?;
    let text = String::from_utf8(program.wait_with_output()?.stdout)?;
    Ok(text.split_whitespace().next().context("sha256sum said nothing")?.to_owned())
}

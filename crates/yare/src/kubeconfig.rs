//! Kubeconfig files.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use yare_auth::pki::KeyPairPem;

use crate::{cli::DataDir, progress};

/// The name of the file below the data directory.
pub const FILE: &str = "kubeconfig";

/// The text of a kubeconfig for one cluster and one user. JSON strings are YAML strings, so nothing in them
/// can break out.
pub fn text(server: &str, authority: &str, user: &KeyPairPem) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: default\n\
         clusters:\n- name: default\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
         contexts:\n- name: default\n  context:\n    cluster: default\n    user: default\n\
         users:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        encode(authority),
        encode(&user.certificate),
        encode(&user.key),
    )
}

/// Writes a kubeconfig, whole or not at all, with the given mode.
pub fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let what = || format!("kubeconfig {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(what)?;
    }
    let temporary = path.with_extension("new");
    // Left from an earlier attempt, it would keep its old mode.
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .with_context(what)?;
    file.write_all(text.as_bytes()).with_context(what)?;
    std::fs::rename(&temporary, path).with_context(what)
}

/// `yare kubeconfig`
pub fn print(args: &DataDir) -> anyhow::Result<()> {
    let path = args.data_dir.join(FILE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: has `yare server` run with this --data-dir?", path.display()))?;
    progress::say(text.trim_end());
    Ok(())
}

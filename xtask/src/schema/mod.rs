//! `cargo xtask schema` and `schema-check`: from upstream's packages to the tables of `yare-schema`.

mod go;
mod tables;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Writes the tables.
pub fn generate(packages: Option<PathBuf>, _scratch: Option<PathBuf>, out: Option<PathBuf>) -> Result<()> {
    let packages = packages.context("--packages")?;
    let out = out.unwrap_or_else(|| root().join("crates/yare-schema/tables"));
    fs::create_dir_all(&out)?;
    for (name, text) in tables::Sources::read(&packages)?.tables()? {
        fs::write(out.join(format!("{name}.txt")), text)?;
    }
    Ok(())
}

/// Checks them.
pub fn check(_packages: Option<PathBuf>, _scratch: Option<PathBuf>) -> Result<()> {
    Ok(())
}

//! `cargo xtask schema` and `schema-check`: from upstream's packages to the tables of `yare-schema`.

mod crosscheck;
mod fetch;
mod go;
mod golden;
mod tables;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn packages_in(packages: Option<PathBuf>, scratch: Option<PathBuf>) -> Result<PathBuf> {
    match packages {
        Some(packages) => Ok(packages),
        None => fetch::fetch(&scratch.unwrap_or_else(|| repository().join("target/schema-packages"))),
    }
}

/// The files that belong into the tables' directory, by name.
fn generated(packages: &Path) -> Result<BTreeMap<String, String>> {
    let tables = tables::Sources::read(packages)?.tables()?;
    let mut files: BTreeMap<String, String> =
        tables.into_iter().map(|(name, text)| (format!("{name}.txt"), text)).collect();
    files.insert("SOURCES".into(), fetch::record(packages)?);
    Ok(files)
}

/// Writes the tables.
pub fn generate(packages: Option<PathBuf>, scratch: Option<PathBuf>, out: Option<PathBuf>) -> Result<()> {
    let packages = packages_in(packages, scratch)?;
    let out = out.unwrap_or_else(|| repository().join("crates/yare-schema/tables"));
    fs::create_dir_all(&out)?;
    for (name, text) in generated(&packages)? {
        fs::write(out.join(name), text)?;
    }
    println!("wrote {}", out.display());
    Ok(())
}

/// Regenerates and compares the tables, and checks the codecs against upstream's fixtures.
pub fn check(packages: Option<PathBuf>, scratch: Option<PathBuf>) -> Result<()> {
    let packages = packages_in(packages, scratch)?;
    let mut problems = Vec::new();
    let tables = repository().join("crates/yare-schema/tables");
    for (name, text) in generated(&packages)? {
        let path = tables.join(&name);
        let current = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if current != text {
            let line = current.lines().zip(text.lines()).position(|(a, b)| a != b).map_or(0, |at| at + 1);
            problems.push(format!("tables/{name} differs from what upstream's packages say, at line {line}"));
        }
    }
    let (fixtures, wrong) = golden::check(&packages)?;
    problems.extend(wrong);
    let (merge_types, wrong) = crosscheck::merge_schema(&packages)?;
    problems.extend(wrong);
    let (definitions, wrong) = match fetch::openapi(&packages)? {
        Some(document) => crosscheck::openapi(&document["$defs"]),
        None => (0, Vec::new()),
    };
    problems.extend(wrong);
    println!("{fixtures} fixtures, {merge_types} merge types, {definitions} OpenAPI definitions");
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} problems; if upstream changed, run `cargo xtask schema`", problems.len());
    }
    Ok(())
}

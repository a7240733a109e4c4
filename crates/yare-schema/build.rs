//! Lists the schema tables, and extracts the API's documentation from the `k8s-openapi` crate's doc comments
//! into one compressed blob.
//!
//! In: `tables/*.txt`, and the sources of that crate, wherever cargo keeps them. Out: `OUT_DIR/tables.rs`,
//! an array of the tables' texts; `OUT_DIR/openapi.fingerprint`, which changes with what OpenAPI documents are
//! made of; and `OUT_DIR/docs.z` (deflate), a text whose lines are `=DEFINITION`, then the type's own documentation, then `.FIELD documentation` for each field.
//! So prose for `kubectl explain` is in the binary without a copy of it in the repository.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    println!("cargo::rerun-if-changed=tables");
    println!("cargo::rerun-if-changed=src/openapi");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("tables.rs"), tables()).expect("OUT_DIR is writable");
    let mut text = String::new();
    match sources() {
        Some(dir) => {
            let mut docs = BTreeMap::new();
            read_dir(&dir, &mut docs);
            for (definition, doc) in docs {
                text.push_str(&format!("={definition}\n{doc}"));
            }
        }
        None => println!("cargo::warning=no k8s-openapi sources found: `kubectl explain` will have no prose"),
    }
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).expect("writing to memory cannot fail");
    let bytes = encoder.finish().expect("writing to memory cannot fail");
    fs::write(out.join("openapi.fingerprint"), fingerprint(&text)).expect("OUT_DIR is writable");
    fs::write(out.join("docs.z"), bytes).expect("OUT_DIR is writable");
}

/// A hash of the prose, of the tables, and of the code that makes documents of both.
fn fingerprint(prose: &str) -> String {
    let mut hasher = DefaultHasher::new();
    prose.hash(&mut hasher);
    let files =
        |dir: &str| fs::read_dir(dir).expect("the crate has its directories").flatten().map(|e| e.path());
    let mut all: Vec<PathBuf> = files("tables").chain(files("src/openapi")).collect();
    all.sort();
    for path in all {
        fs::read(path).expect("the crate's files can be read").hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// `&[include_str!("…/apps.txt"), …]`. Where the crate lies is for the compiler to say: clones may share what is built.
fn tables() -> String {
    let mut names: Vec<String> = fs::read_dir("tables")
        .expect("the tables are part of the crate")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".txt"))
        .collect();
    names.sort();
    let row = |name: &String| {
        let path = format!("/tables/{name}");
        format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?})),\n")
    };
    format!("&[\n{}]", names.iter().map(row).collect::<String>())
}

/// `src/v1_NN` of the crate that the workspace resolves to: of the release that the tables are of, or else the newest.
fn sources() -> Option<PathBuf> {
    let src = by_metadata().or_else(by_lock_file)?.join("src");
    let of_tables = release();
    fs::read_dir(src)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let minor: u32 = path.file_name()?.to_str()?.strip_prefix("v1_")?.parse().ok()?;
            path.is_dir().then_some(((Some(minor) == of_tables, minor), path))
        })
        .max()
        .map(|(_, path)| path)
}

/// The release that the tables are of: upstream's Go modules count 0.N where the release counts 1.N.
fn release() -> Option<u32> {
    let packages = fs::read_to_string("tables/SOURCES").ok()?;
    packages.split_once("golang-k8s-api-dev_0.")?.1.split('.').next()?.parse().ok()
}

/// The crate's directory, asked of cargo.
fn by_metadata() -> Option<PathBuf> {
    let output = Command::new(env::var_os("CARGO")?)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform"])
        .arg(env::var("HOST").ok()?)
        .output()
        .ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let package = metadata["packages"].as_array()?.iter().find(|p| p["name"] == "k8s-openapi")?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_path_buf())
}

/// The crate's directory in cargo's registry, for when cargo cannot say: it wants every package at hand,
/// also those that this build does not need.
fn by_lock_file() -> Option<PathBuf> {
    let lock = fs::read_to_string("../../Cargo.lock").ok()?;
    let (_, rest) = lock.split_once("name = \"k8s-openapi\"\nversion = \"")?;
    let name = format!("k8s-openapi-{}", rest.split('"').next()?);
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src")).ok()?;
    registries.filter_map(|entry| Some(entry.ok()?.path().join(&name))).find(|path| path.is_dir())
}

fn read_dir(dir: &Path, docs: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_dir(&path, docs);
        } else if path.extension().is_some_and(|e| e == "rs")
            && let Ok(text) = fs::read_to_string(&path)
        {
            read_file(&text, docs);
        }
    }
}

fn read_file(text: &str, docs: &mut BTreeMap<String, String>) {
    // Rust's names of fields to JSON's.
    let names: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| {
            let (json, rust) = line.trim().split_once(" => Field::Key_")?;
            Some((rust.trim_end_matches(','), json.trim_matches('"')))
        })
        .collect();
    let mut definition = None;
    let mut comment: Vec<&str> = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("// Generated from definition ") {
            definition = Some(name.trim().to_owned());
            continue;
        }
        let trimmed = line.trim();
        if let Some(doc) = trimmed.strip_prefix("///") {
            comment.push(doc.strip_prefix(' ').unwrap_or(doc));
            continue;
        }
        if trimmed.starts_with("#[") {
            continue;
        }
        if line.starts_with("pub struct ") || line.starts_with("pub enum ") {
            // Of an event, which is an enum in Rust, one comment says what the type and what its field is.
            let doc = joined(&comment);
            let (doc, object) = doc.split_once("\\n\\nObject is:").unwrap_or((&doc, ""));
            out.push_str(&format!("{doc}\n"));
            if !object.is_empty() {
                out.push_str(&format!(".object Object is:{object}\n"));
            }
        } else if let Some((name, _)) = line.strip_prefix("    pub ").and_then(|l| l.split_once(':')) {
            let name = name.trim_start_matches("r#");
            let json = names.get(name).copied().unwrap_or(name);
            out.push_str(&format!(".{json} {}\n", joined(&comment)));
        } else if line == "}" && !out.is_empty() {
            break;
        }
        comment.clear();
    }
    if let Some(definition) = definition.filter(|_| !out.is_empty()) {
        docs.insert(definition, out);
    }
}

/// One line; line breaks inside as `\n`. What is escaped for rustdoc is unescaped.
fn joined(comment: &[&str]) -> String {
    let mut text = comment.join("\n").trim().to_owned();
    for punctuation in ["[", "]", "<", ">", "\\"] {
        text = text.replace(&format!("\\{punctuation}"), punctuation);
    }
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

//! Getting upstream's packages: Debian's Go sources with apt, the OpenAPI with pip.
//!
//! Everything goes into a scratch directory: apt gets a sources list, state and cache of its own, so that
//! the machine's own apt is left alone and no root is needed. Packages are unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The Debian packages (unstable) that hold the API.
pub const PACKAGES: &[&str] = &[
    "golang-k8s-api-dev",
    "golang-k8s-apimachinery-dev",
    "golang-k8s-apiextensions-apiserver-dev",
    "golang-k8s-apiserver-dev",
    "golang-k8s-client-go-dev",
];

/// The wheel that holds the OpenAPI v2 definitions.
pub const WHEEL: &str = "kubernetes-validate";

/// Fetches into `scratch` and returns the directory that holds `usr/share/gocode`.
pub fn fetch(scratch: &Path) -> Result<PathBuf> {
    let scratch = std::path::absolute(scratch)?;
    let root = scratch.join("root");
    let debs = scratch.join("debs");
    if scratch.join("sources.list").is_file() {
        // Ours from an earlier run: packages of other versions must not be mixed in.
        for dir in ["debs", "root", "pypi"] {
            fs::remove_dir_all(scratch.join(dir)).or_else(|e| match e.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            })?;
        }
    }
    for dir in ["debs", "root", "pypi", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(scratch.join(dir))?;
    }
    fs::write(
        scratch.join("sources.list"),
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian unstable main\n",
    )?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        for (key, value) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{key}={}", scratch.join(value).display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root", "-q"]);
        run(command.args(arguments).current_dir(&debs))
    };
    apt(&["update"])?;
    apt(&[&["download"], PACKAGES].concat())?;
    for deb in files(&debs, "deb")? {
        run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&root))?;
    }
    run(Command::new("pip")
        .args(["download", "--no-deps", "--quiet", "--dest"])
        .arg(scratch.join("pypi"))
        .arg(WHEEL))?;
    Ok(root)
}

/// Files and SHA-256 sums of what was fetched beside `packages`, for the record.
pub fn record(packages: &Path) -> Result<String> {
    let mut out = String::from("# What the tables were written from: SHA-256 and name of each package.\n");
    let beside = packages.parent().unwrap_or(packages);
    let mut found = Vec::new();
    for (dir, extension) in [("debs", "deb"), ("pypi", "whl")] {
        let dir = beside.join(dir);
        if dir.is_dir() {
            found.extend(files(&dir, extension)?);
        }
    }
    for path in found {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let ours = PACKAGES.iter().any(|p| name.starts_with(&format!("{p}_")))
            || name.starts_with(&WHEEL.replace('-', "_"));
        if !ours {
            continue;
        }
        let sum = output(Command::new("sha256sum").arg(&path))?;
        out.push_str(sum.split_whitespace().next().unwrap_or_default());
        out.push_str("  ");
        out.push_str(name);
        out.push('\n');
    }
    Ok(out)
}

/// The minor release `1.N` that the packages beside `packages` are of, as their version `0.N` says.
fn minor(packages: &Path) -> Result<Option<u32>> {
    let dir = packages.parent().unwrap_or(packages).join("debs");
    if !dir.is_dir() {
        return Ok(None);
    }
    let prefix = format!("{}_0.", PACKAGES[0]);
    Ok(files(&dir, "deb")?
        .iter()
        .find_map(|path| path.file_name()?.to_str()?.strip_prefix(&prefix)?.split('.').next()?.parse().ok()))
}

/// The OpenAPI definitions of that release out of the wheel, where both were fetched.
pub fn openapi(packages: &Path) -> Result<Option<serde_json::Value>> {
    let dir = packages.parent().unwrap_or(packages).join("pypi");
    let Some(minor) = minor(packages)?.filter(|_| dir.is_dir()) else { return Ok(None) };
    for wheel in files(&dir, "whl")? {
        let name = wheel.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !name.starts_with(&WHEEL.replace('-', "_")) {
            continue;
        }
        // A wheel is a zip file, which Python reads.
        let script = format!(
            "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\n\
             n = [n for n in z.namelist() if '/v1.{minor}.' in n and n.endswith('-local/_definitions.json')]\n\
             sys.stdout.write(z.read(n[0]).decode() if n else 'null')"
        );
        let text = output(Command::new("python3").args(["-c", &script]).arg(&wheel))?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        return Ok(Some(value).filter(|v| !v.is_null()));
    }
    Ok(None)
}

/// Files of this extension in a directory, sorted.
pub fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! Leads a container runtime to the pod network: a network configuration, and the plugin where it is looked for.
//!
//! A configuration that somebody else put there is honoured: then nothing is written, and the pods' network is theirs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{OWN_VERSION, plugin};

/// The name of our configuration. Runtimes take the first by name.
pub const FILE: &str = "10-yare.conflist";

/// Where a container runtime looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// For network configurations: `/etc/cni/net.d`.
    pub configurations: PathBuf,
    /// For plugins: `/opt/cni/bin`.
    pub plugins: PathBuf,
}

/// Whose network pods get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Ours.
    Ours,
    /// That of this configuration.
    Theirs(PathBuf),
}

/// The first network configuration that is not ours.
fn other(directory: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name != FILE))
        .filter(|path| path.extension().is_some_and(|e| ["conf", "conflist", "json"].iter().any(|x| e == *x)))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// Installs plugin and configuration, or takes the configuration away where somebody else's is there. `program` is
/// this very program; `socket` is where it answers.
pub fn install(places: &Places, program: &Path, socket: &Path) -> io::Result<Whose> {
    let own = places.configurations.join(FILE);
    if let Some(theirs) = other(&places.configurations) {
        remove(&own)?;
        return Ok(Whose::Theirs(theirs));
    }
    fs::create_dir_all(&places.plugins).map_err(|e| at(&places.plugins, &e))?;
    link(&places.plugins.join(plugin::NAME), program)?;
    // Old runtimes fail every sandbox without it; one that is there already is as good.
    let loopback = places.plugins.join(plugin::LOOPBACK);
    if !loopback.exists() {
        link(&loopback, program)?;
    }
    let text = json!({
        "cniVersion": OWN_VERSION,
        "name": "yare",
        "plugins": [{
            "type": plugin::NAME,
            "socket": socket,
            "capabilities": { "portMappings": true },
        }],
    });
    fs::create_dir_all(&places.configurations).map_err(|e| at(&places.configurations, &e))?;
    // Under a name that runtimes do not read, until it is whole.
    let unfinished = own.with_extension("tmp");
    fs::write(&unfinished, format!("{text:#}\n")).map_err(|e| at(&unfinished, &e))?;
    fs::rename(&unfinished, &own).map_err(|e| at(&own, &e))?;
    Ok(Whose::Ours)
}

/// Takes our configuration and plugin away.
pub fn uninstall(places: &Places, program: &Path) -> io::Result<()> {
    remove(&places.configurations.join(FILE))?;
    for name in [plugin::NAME, plugin::LOOPBACK] {
        let path = places.plugins.join(name);
        if fs::read_link(&path).is_ok_and(|target| target == program) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// A symbolic link to this program, a new one where it leads elsewhere.
fn link(path: &Path, program: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|target| target == program) {
        return Ok(());
    }
    remove(path)?;
    std::os::unix::fs::symlink(program, path).map_err(|e| at(path, &e))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path, &e)),
        _ => Ok(()),
    }
}

fn at(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_honoured() {
        let directory = tempfile::tempdir().unwrap();
        let places =
            Places { configurations: directory.path().join("net.d"), plugins: directory.path().join("bin") };
        let program = Path::new("/usr/bin/yare");
        let install = || install(&places, program, Path::new("/run/yare/cni.sock")).unwrap();
        assert_eq!(install(), Whose::Ours);
        let own = places.configurations.join(FILE);
        let text: serde_json::Value = serde_json::from_str(&fs::read_to_string(&own).unwrap()).unwrap();
        assert_eq!(text["plugins"][0]["socket"], "/run/yare/cni.sock");
        assert_eq!(fs::read_link(places.plugins.join("yare-cni")).unwrap(), program);
        assert_eq!(fs::read_link(places.plugins.join("loopback")).unwrap(), program);
        // Again; what is no configuration is none.
        fs::write(places.configurations.join("README"), "").unwrap();
        assert_eq!(install(), Whose::Ours);
        let theirs = places.configurations.join("10-calico.conflist");
        fs::write(&theirs, "{}").unwrap();
        assert_eq!(install(), Whose::Theirs(theirs.clone()));
        assert!(!own.exists());
        fs::remove_file(&theirs).unwrap();
        assert_eq!(install(), Whose::Ours);
        uninstall(&places, program).unwrap();
        assert!(!own.exists() && !places.plugins.join("yare-cni").is_symlink());
    }
}

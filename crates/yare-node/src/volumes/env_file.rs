//! One variable out of an environment file in a volume (`fileKeyRef`).

use std::io::Read as _;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

/// Largest file that is read.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// The value of `key` in the file `path` below `volume`; links out of the volume lead nowhere.
pub(crate) fn read(volume: &Path, path: &str, key: &str) -> Result<Option<String>, String> {
    let fail = |e: nix::Error| format!("open {path} in {}: {e}", volume.display());
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(fail)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = nix::fcntl::openat2(&root, path, how).map_err(fail)?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(FILE_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| format!("read {path}: {e}"))?;
    Ok(parse(&text, key))
}

fn parse(text: &str, key: &str) -> Option<String> {
    text.lines().map(str::trim).filter(|l| !l.starts_with('#')).find_map(|line| {
        let (name, value) = line.split_once('=')?;
        if name.trim() != key {
            return None;
        }
        let value = value.trim();
        let bare = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\''));
        let bare = bare.or_else(|| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')));
        Some(bare.unwrap_or(value).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let text = "# A=0\nA=1\nB='two words'\n C = x=y\n";
        for (key, want) in [("A", Some("1")), ("B", Some("two words")), ("C", Some("x=y")), ("D", None)] {
            assert_eq!(parse(text, key).as_deref(), want, "{key}");
        }
    }
}

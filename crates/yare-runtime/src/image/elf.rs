//! What a dynamically linked program needs: its loader and libraries, read from the ELF headers.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The parts of one file's dynamic section that we need.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dynamic {
    interpreter: Option<String>,
    needed: Vec<String>,
    runpath: Vec<String>,
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Names in ELF files are shorter than this.
const NAME_MAX_BYTES: usize = 4096;
/// Dynamic sections are a few hundred bytes.
const DYNAMIC_MAX_BYTES: u64 = 1 << 20;

/// Bytes read where they lie: our own program has a hundred megabytes, of which a few kilobytes matter here.
trait Source {
    /// Up to `len` bytes from `at`; fewer at the end.
    fn some(&self, at: u64, len: usize) -> io::Result<Vec<u8>>;

    fn exactly(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = self.some(at, len)?;
        if bytes.len() == len { Ok(bytes) } else { Err(bad("truncated ELF file")) }
    }

    fn number(&self, at: u64, len: usize) -> io::Result<u64> {
        Ok(self.exactly(at, len)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn text(&self, at: u64) -> io::Result<String> {
        let bytes = self.some(at, NAME_MAX_BYTES)?;
        let end = bytes.iter().position(|b| *b == 0).ok_or_else(|| bad("unterminated string"))?;
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

impl Source for File {
    fn some(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            match self.read_at(&mut bytes[have..], at.saturating_add(have as u64)) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // An offset that no file can have.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => break,
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(have);
        Ok(bytes)
    }
}

/// Reads a 64-bit little-endian ELF file.
fn parse(data: &impl Source) -> io::Result<Dynamic> {
    if data.exactly(0, 6)? != b"\x7fELF\x02\x01" {
        return Err(bad("not a 64-bit little-endian ELF file"));
    }
    let mut found = Dynamic::default();
    let (table, size, count) = (data.number(32, 8)?, data.number(54, 2)?, data.number(56, 2)?);
    let mut loads = Vec::new();
    let mut dynamic = None;
    for i in 0..count {
        let header = table.checked_add(i * size).filter(|h| *h < u64::MAX - 64);
        let header = header.ok_or_else(|| bad("truncated ELF file"))?;
        let (offset, address, length) =
            (data.number(header + 8, 8)?, data.number(header + 16, 8)?, data.number(header + 32, 8)?);
        match data.number(header, 4)? {
            1 => loads.push((address, offset, length)),
            2 => dynamic = Some((offset, length)),
            3 => found.interpreter = Some(data.text(offset)?),
            _ => {}
        }
    }
    let Some((offset, length)) = dynamic else { return Ok(found) };
    let mut strings = None;
    let mut names = Vec::new();
    for at in (offset..offset.saturating_add(length.min(DYNAMIC_MAX_BYTES))).step_by(16) {
        let (tag, value) = (data.number(at, 8)?, data.number(at.saturating_add(8), 8)?);
        match tag {
            0 => break,
            1 | 15 | 29 => names.push((tag, value)),
            5 => strings = Some(value),
            _ => {}
        }
    }
    let Some(strings) = strings else { return Ok(found) };
    let (address, base, _) = loads
        .iter()
        .find(|(address, _, length)| (*address..address.saturating_add(*length)).contains(&strings))
        .ok_or_else(|| bad("no string table"))?;
    let strings = (strings - address).saturating_add(*base);
    for (tag, value) in names {
        let name = data.text(strings.saturating_add(value))?;
        match tag {
            1 => found.needed.push(name),
            _ => found.runpath.extend(name.split(':').map(str::to_owned)),
        }
    }
    Ok(found)
}

/// Where loaders look without being told.
fn default_directories() -> Vec<PathBuf> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["/lib64", "/usr/lib64", "/lib", "/usr/lib"]
        .into_iter()
        .map(PathBuf::from)
        .chain([PathBuf::from(format!("/lib/{triple}")), PathBuf::from(format!("/usr/lib/{triple}"))])
        .collect()
}

/// Files beside the program that it needs to start: its loader under the path the program names, and libraries
/// under the directories where a loader looks. Empty for a static program.
pub(super) fn dependencies(program: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    let mut queue = vec![program.to_path_buf()];
    let mut names: BTreeSet<String> = BTreeSet::new();
    while let Some(file) = queue.pop() {
        let dynamic = parse(&File::open(&file)?)?;
        if let Some(loader) = dynamic.interpreter {
            files.insert(PathBuf::from(loader));
        }
        let origin = file.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let own = dynamic
            .runpath
            .iter()
            .map(|p| PathBuf::from(p.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin)));
        let directories: Vec<PathBuf> = own.chain(default_directories()).collect();
        for name in dynamic.needed {
            if !names.insert(name.clone()) || names.len() > 256 {
                continue;
            }
            let library =
                directories.iter().map(|d| d.join(&name)).find(|p| p.is_file()).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("{} needs {name}, which is in none of {directories:?}", file.display()),
                    )
                })?;
            files.insert(library.clone());
            queue.push(library);
        }
    }
    Ok(files.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Source for &[u8] {
        fn some(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
            let rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
            Ok(rest[..len.min(rest.len())].to_vec())
        }
    }

    #[test]
    fn our_own_program_needs_a_loader_and_the_c_library() {
        let files = dependencies(&std::env::current_exe().unwrap()).unwrap();
        let names: Vec<_> =
            files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert!(names.iter().any(|n| n.starts_with("ld-")) || names.is_empty(), "{names:?}");
        assert!(names.iter().any(|n| n.starts_with("libc.so")) || names.is_empty(), "{names:?}");
    }

    #[test]
    fn garbage_is_refused() {
        assert!(parse(&&b""[..]).is_err());
        assert!(parse(&&b"#!/bin/sh\n"[..]).is_err());
        let mut header = [0u8; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[56] = 9;
        header[54] = 56;
        header[32..40].copy_from_slice(&u64::MAX.to_le_bytes()[..8]);
        assert!(parse(&&header[..]).is_err());
    }
}

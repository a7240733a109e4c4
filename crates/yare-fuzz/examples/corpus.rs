//! Writes the documents that targets begin with, for runs in which coverage leads: `corpus DIRECTORY` makes
//! `DIRECTORY/TARGET/0`, `1`, …

use std::{fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "fuzz/corpus".into()));
    for target in yare_fuzz::TARGETS {
        let directory = directory.join(target.name);
        fs::create_dir_all(&directory)?;
        for (i, seed) in (target.seeds)().iter().enumerate() {
            fs::write(directory.join(i.to_string()), seed)?;
        }
    }
    Ok(())
}

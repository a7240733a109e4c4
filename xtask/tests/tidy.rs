//! What every file of the tree has in common.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// No file may be longer.
const MAX_LINES: usize = 1000;
/// Crates that may hold `unsafe`.
const MAY_BE_UNSAFE: &[&str] = &["crates/yare-runtime/", "crates/yare-net/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                sources(&path, out);
            }
        } else if name.ends_with(".rs") {
            out.push(path);
        }
    }
}

/// Runs `check` on each file; it returns what is wrong.
fn each_file(check: impl Fn(&str, &str) -> Option<String>) {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 100, "the tree was not found");
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(path).unwrap();
            check(&name, &text).map(|what| format!("{name}: {what}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    each_file(|_, text| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("{lines} lines: which second subject does it hold?"))
    });
}

#[test]
fn files_say_what_they_are_for() {
    each_file(|_, text| {
        let first = text.lines().find(|l| !l.is_empty() && !l.starts_with("#!["));
        (!first.is_some_and(|l| l.starts_with("//!"))).then(|| "does not open with `//!`".into())
    });
}

#[test]
fn nothing_is_left_unfinished() {
    // Spelled apart, so that this file passes.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["#[ig", "nore"]];
    each_file(|_, text| {
        let found =
            text.lines().enumerate().find(|(_, line)| marks.iter().any(|m| line.contains(&m.concat())));
        found.map(|(number, line)| format!("line {}: {}", number + 1, line.trim()))
    });
}

#[test]
fn unsafe_stays_where_it_belongs_and_says_why() {
    let keyword = ["unsafe", " {"].concat();
    each_file(|name, text| {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if !line.contains(&keyword) || line.trim_start().starts_with("//") {
                continue;
            }
            if !MAY_BE_UNSAFE.iter().any(|c| name.starts_with(c)) {
                return Some(format!("line {}: unsafe code outside the crates for it", number + 1));
            }
            let before = &lines[number.saturating_sub(6)..=number];
            if !before.iter().any(|l| l.contains("SAFETY:")) {
                return Some(format!("line {}: no SAFETY comment", number + 1));
            }
        }
        None
    });
}

#[test]
fn whitespace_is_clean() {
    each_file(|_, text| {
        let trailing = text.lines().position(|l| l.ends_with([' ', '\t']));
        trailing.map(|line| format!("line {}: trailing white space", line + 1))
    });
}

//! The configuration file: every flag of `yare server` or `yare agent`, by its name, as YAML.
//!
//! ```yaml
//! cluster-cidr: 10.52.0.0/16
//! disable: [dns]
//! disable-agent: true
//! ```
//!
//! What the command line says goes first.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{ArgAction, CommandFactory as _};
use serde_json::Value;

use crate::cli::Cli;

/// Read where no other is named.
const DEFAULT: &str = "/etc/yare/config.yaml";
const FLAG: &str = "--config";
const VARIABLE: &str = "YARE_CONFIG";

/// The arguments with those of the configuration file before the command line's own.
pub fn expand(args: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if args.get(1).is_none_or(|command| command != "server" && command != "agent") {
        return Ok(args);
    }
    let named = named(&args);
    let path = named.clone().unwrap_or_else(|| DEFAULT.into());
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => return Ok(args),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let command = args[1].to_string_lossy();
    let from_file = flags(&text, &command).with_context(|| path.display().to_string())?;
    let (head, tail) = args.split_at(2);
    Ok([head, &from_file, tail].concat())
}

/// The file that the command line or the environment names.
fn named(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == FLAG {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|a| a.strip_prefix(FLAG)?.strip_prefix('=')) {
            return Some(path.into());
        }
    }
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// The flags of a command that a file says.
fn flags(yaml: &[u8], command_name: &str) -> anyhow::Result<Vec<OsString>> {
    let (json, duplicates) = yare_schema::decode::yaml_to_json(yaml).map_err(|e| anyhow::anyhow!("{e}"))?;
    if let Some(duplicate) = duplicates.first() {
        bail!("{duplicate}");
    }
    let value: Value = serde_json::from_slice(&json)?;
    let map = match &value {
        Value::Object(map) => map,
        Value::Null => return Ok(Vec::new()),
        _ => bail!("not a map of flags"),
    };
    let command = Cli::command();
    let command = command.find_subcommand(command_name);
    let is_switch = |name: &str| {
        let arg = command.and_then(|c| c.get_arguments().find(|arg| arg.get_long() == Some(name)));
        arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
    };
    let mut out = Vec::new();
    for (name, value) in map {
        let items = match value {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        for item in items {
            match item {
                Value::Bool(true) => out.push(format!("--{name}").into()),
                // What is off unless it is said has no way to say it.
                Value::Bool(false) if is_switch(name) => {}
                Value::Bool(false) => out.push(format!("--{name}=false").into()),
                Value::String(text) => out.push(format!("--{name}={text}").into()),
                Value::Number(number) => out.push(format!("--{name}={number}").into()),
                _ => bail!("{name}: neither text, number, boolean nor a list of them"),
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_becomes_a_flag() {
        let yaml = b"https-listen-port: 7443\ndisable: [dns, scheduler]\ndisable-agent: true\n\
            write-kubeconfig-mode: '644'\nnode-name: node-a\nenable-priority-and-fairness: false\n\
            audit-log-compress: false\nanonymous-auth: false\n";
        let flags = flags(yaml, "server").unwrap();
        assert_eq!(
            flags,
            [
                "--anonymous-auth=false",
                "--disable=dns",
                "--disable=scheduler",
                "--disable-agent",
                "--enable-priority-and-fairness=false",
                "--https-listen-port=7443",
                "--node-name=node-a",
                "--write-kubeconfig-mode=644",
            ]
        );
        assert!(super::flags(b"", "server").unwrap().is_empty());
        for bad in [&b"- a"[..], b"a: {b: c}", b"a: [", b"\xff"] {
            assert!(super::flags(bad, "server").is_err());
        }
    }

    #[test]
    fn only_the_server_reads_a_file_and_a_named_one_must_exist() {
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let image = args(&["yare", "image", "ls", "--config", "/no/such"]);
        assert_eq!(expand(image.clone()).unwrap(), image);
        let error = expand(args(&["yare", "server", "--config=/no/such"])).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "node-name: node-a").unwrap();
        let given = args(&["yare", "server", "--config", path.to_str().unwrap(), "--max-pods=5"]);
        let expanded = expand(given).unwrap();
        assert_eq!(expanded[2], "--node-name=node-a");
        assert_eq!(expanded.last().unwrap(), "--max-pods=5");
    }
}

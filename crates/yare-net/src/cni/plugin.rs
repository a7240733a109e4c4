//! The program that a container runtime starts: asks the running server, prints what it says.
//!
//! It starts no threads and reads no files, so that a sandbox waits for it no longer than for a process to begin.
//! Under the name `loopback` it is the plugin of that name, which old runtimes insist on having.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Answer, Ask, Failure, MAX_BYTES, VERSIONS, code, version};
use crate::{
    link,
    netlink::{self, Socket},
};

/// The plugin's name, which is its file's.
pub const NAME: &str = "yare-cni";
/// The name under which only a pod's loopback link is brought up.
pub const LOOPBACK: &str = "loopback";
/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process was started as a plugin, under which name.
pub fn called() -> Option<&'static str> {
    std::env::var_os("CNI_COMMAND")?;
    let program = std::env::args_os().next()?;
    let name = Path::new(&program).file_name()?.to_str()?;
    [NAME, LOOPBACK].into_iter().find(|n| *n == name)
}

/// Answers one question of the container runtime.
pub fn main(name: &str) -> ExitCode {
    let mut input = String::new();
    let read = io::stdin().take(MAX_BYTES).read_to_string(&mut input);
    let config = match read {
        Ok(_) => serde_json::from_str::<Value>(&input)
            .map_err(|e| Failure::because(code::DECODE, "the network configuration is no JSON", e)),
        Err(e) => Err(Failure::because(code::IO, "read the network configuration", e)),
    };
    let spoken = config.as_ref().ok().and_then(|c| c["cniVersion"].as_str()).unwrap_or("1.0.0").to_owned();
    let answer = config.and_then(|config| answer(name, config, |variable| std::env::var(variable).ok()));
    let (text, code) = match answer {
        Ok(Value::Null) => return ExitCode::SUCCESS,
        Ok(value) => (value.to_string(), ExitCode::SUCCESS),
        Err(failure) => {
            let mut value = json!(failure);
            value["cniVersion"] = json!(spoken);
            (value.to_string(), ExitCode::FAILURE)
        }
    };
    // A runtime that no longer reads has its own reasons.
    let _ = writeln!(io::stdout(), "{text}");
    code
}

fn answer(name: &str, config: Value, variable: impl Fn(&str) -> Option<String>) -> Result<Value, Failure> {
    let command = variable("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        let spoken = config["cniVersion"].as_str().unwrap_or("1.0.0");
        return Ok(json!({ "cniVersion": spoken, "supportedVersions": VERSIONS }));
    }
    version(&config)?;
    let needed: &[&str] = match command.as_str() {
        "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
        "GC" | "STATUS" => &[],
        other => return Err(Failure::new(code::ENVIRONMENT, format!("unknown CNI_COMMAND: {other}"))),
    };
    let missing: Vec<&str> =
        needed.iter().copied().filter(|n| variable(n).is_none_or(|v| v.is_empty())).collect();
    if !missing.is_empty() {
        let msg = "required env variables missing";
        return Err(Failure::because(code::ENVIRONMENT, msg, format_args!("{missing:?}")));
    }
    let ask = Ask {
        command,
        container: variable("CNI_CONTAINERID").unwrap_or_default(),
        netns: variable("CNI_NETNS").unwrap_or_default().into(),
        interface: variable("CNI_IFNAME").unwrap_or_default(),
        config,
    };
    if name == LOOPBACK { loopback(&ask) } else { pass_on(&ask) }
}

/// Asks the server.
fn pass_on(ask: &Ask) -> Result<Value, Failure> {
    let Some(socket) = ask.config["socket"].as_str().map(PathBuf::from) else {
        return Err(Failure::new(code::NETWORK_CONFIG, "the network configuration names no socket"));
    };
    let away = |e: &dyn std::fmt::Display| {
        // The runtime tries again, or says so to the kubelet, which does.
        let code = if ask.command == "STATUS" { code::UNAVAILABLE } else { code::LATER };
        Failure::because(code, "yare does not answer", format_args!("{}: {e}", socket.display()))
    };
    let mut stream = UnixStream::connect(&socket).map_err(|e| away(&e))?;
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut line = serde_json::to_vec(ask).map_err(|e| Failure::new(code::DECODE, e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|e| away(&e))?;
    let mut text = String::new();
    BufReader::new(stream.take(MAX_BYTES)).read_line(&mut text).map_err(|e| away(&e))?;
    match serde_json::from_str(&text).map_err(|e| away(&e))? {
        Answer::Done(value) => Ok(value),
        Answer::Failed(failure) => Err(failure),
    }
}

/// Brings the loopback link up (or down again); nothing of it is ours to keep.
fn loopback(ask: &Ask) -> Result<Value, Failure> {
    let result = json!({
        "cniVersion": ask.config["cniVersion"],
        "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": ask.netns }],
        "ips": [{ "interface": 0, "address": "127.0.0.1/8" }, { "interface": 0, "address": "::1/128" }],
    });
    let up = || -> Result<(), String> {
        let namespace = File::open(&ask.netns).map_err(|e| format!("{}: {e}", ask.netns.display()))?;
        let mut inside = Socket::open_in(namespace.as_fd(), netlink::ROUTE)
            .map_err(|e| format!("network namespace: {e}"))?;
        let lo = link::find(&mut inside, "lo").map_err(|e| e.to_string())?.ok_or("there is no lo")?;
        link::set_up(&mut inside, lo.index).map_err(|e| e.to_string())
    };
    match ask.command.as_str() {
        "ADD" | "CHECK" => up().map_err(|e| Failure::because(code::OWN, "bring lo up", e))?,
        // It goes with its namespace.
        _ => return Ok(Value::Null),
    }
    Ok(if ask.command == "ADD" { super::server::worded(result) } else { Value::Null })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_that_no_server_hears() {
        let all =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
        let with = |command: &str, without: &str| {
            let (command, without) = (command.to_owned(), without.to_owned());
            move |name: &str| match name {
                "CNI_COMMAND" => Some(command.clone()),
                name if name == without => None,
                name => all.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
            }
        };
        let config =
            |version: &str| json!({"cniVersion": version, "name": "yare", "socket": "/no/such.sock"});
        for (command, without, version, code) in [
            ("ADD", "", "0.2.0", code::VERSION),
            ("ADD", "CNI_NETNS", "1.0.0", code::ENVIRONMENT),
            ("DEL", "CNI_CONTAINERID", "1.0.0", code::ENVIRONMENT),
            ("WHAT", "", "1.0.0", code::ENVIRONMENT),
            ("ADD", "", "1.0.0", code::LATER),
            ("DEL", "CNI_NETNS", "1.0.0", code::LATER),
            ("STATUS", "CNI_IFNAME", "1.1.0", code::UNAVAILABLE),
        ] {
            let failure = answer(NAME, config(version), with(command, without)).unwrap_err();
            assert_eq!(failure.code, code, "{command} without {without:?} in {version}: {failure:?}");
        }
        let failure = answer(NAME, json!({"cniVersion": "1.0.0"}), with("ADD", "")).unwrap_err();
        assert_eq!(failure.code, code::NETWORK_CONFIG);
        let versions = answer(NAME, config("1.0.0"), with("VERSION", "CNI_NETNS")).unwrap();
        assert_eq!(versions["supportedVersions"], json!(VERSIONS));
    }
}

//! The server's side: answers plugins from the pod network.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{Duration, timeout},
};

use super::{Answer, Ask, Failure, MAX_BYTES, code, version};
use crate::{HostPort, NetError, PodNetwork, Protocol};

/// Questions that are answered at a time.
const AT_ONCE: usize = 64;
/// How long a plugin may take to ask.
const ASK_PATIENCE: Duration = Duration::from_secs(10);
/// The interface that pods have.
const INTERFACE: &str = "eth0";

/// Listens at `socket` and answers, for as long as the task lives.
pub fn serve(socket: &Path, network: Arc<PodNetwork>) -> io::Result<JoinHandle<()>> {
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Made under another name, so that nobody gets in before it is root's alone.
    let hidden = socket.with_extension(format!("{}.tmp", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, socket)?;
    Ok(tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            // Never closed, so there is always a place sooner or later.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if stream.peer_cred().map_or(u32::MAX, |peer| peer.uid()) != 0 {
                continue;
            }
            let network = network.clone();
            tokio::spawn(async move {
                // A plugin that was killed has nobody to hear it.
                let _ = converse(stream, network).await;
                drop(place);
            });
        }
    }))
}

async fn converse(stream: UnixStream, network: Arc<PodNetwork>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(MAX_BYTES));
    timeout(ASK_PATIENCE, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Ask>(&line) {
        Ok(ask) => {
            // The kernel is asked, which may take its time.
            let done = tokio::task::spawn_blocking(move || {
                let answered = answer(&network, &ask);
                if let Err(failure) = &answered {
                    tracing::warn!(command = ask.command, sandbox = ask.container, ?failure, "CNI");
                }
                answered
            });
            done.await.unwrap_or_else(|e| Err(Failure::new(code::OWN, e.to_string())))
        }
        Err(e) => Err(Failure::because(code::DECODE, "the plugin is of another version", e)),
    };
    let answer = match answer {
        Ok(value) => Answer::Done(value),
        Err(failure) => Answer::Failed(failure),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// A port as the runtime tells it (capability `portMappings`). containerd writes its own names, which other plugins,
/// written in Go, read all the same.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default, alias = "HostPort")]
    host_port: u16,
    #[serde(default, alias = "ContainerPort")]
    container_port: u16,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

fn ports(config: &Value) -> Result<Vec<HostPort>, Failure> {
    let list = &config["runtimeConfig"]["portMappings"];
    if list.is_null() {
        return Ok(Vec::new());
    }
    let bad = |details: String| Failure::because(code::NETWORK_CONFIG, "runtimeConfig.portMappings", details);
    let list: Vec<Port> = serde_json::from_value(list.clone()).map_err(|e| bad(e.to_string()))?;
    list.into_iter()
        .filter(|p| p.host_port > 0)
        .map(|p| {
            let ip = match p.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| bad(format!("{text:?} is no address")))?),
            };
            let protocol = match p.protocol.to_ascii_lowercase().as_str() {
                "" | "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                other => return Err(bad(format!("protocol {other:?}"))),
            };
            Ok(HostPort { protocol, ip, port: p.host_port, pod_port: p.container_port })
        })
        .collect()
}

fn answer(network: &PodNetwork, ask: &Ask) -> Result<Value, Failure> {
    version(&ask.config)?;
    let named = matches!(ask.command.as_str(), "ADD" | "DEL" | "CHECK");
    let sound = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if named && (ask.container.is_empty() || !ask.container.chars().all(sound)) {
        return Err(Failure::new(code::ENVIRONMENT, format!("CNI_CONTAINERID {:?}", ask.container)));
    }
    if named && ask.interface != INTERFACE {
        let text = format!("CNI_IFNAME {:?}: pods have one interface, {INTERFACE}", ask.interface);
        return Err(Failure::new(code::ENVIRONMENT, text));
    }
    match ask.command.as_str() {
        "ADD" => add(network, ask),
        "DEL" => {
            network.detach(&ask.container).map_err(|e| failed("take the pod's network back", &e))?;
            Ok(Value::Null)
        }
        "CHECK" => check(network, ask).map(|()| Value::Null),
        "GC" => {
            let valid = ask.config["cni.dev/valid-attachments"].as_array().cloned().unwrap_or_default();
            let valid: BTreeSet<&str> = valid.iter().filter_map(|a| a["containerID"].as_str()).collect();
            for id in network.owners().into_iter().filter(|id| !valid.contains(id.as_str())) {
                network.detach(&id).map_err(|e| failed("take a lost pod's network back", &e))?;
            }
            Ok(Value::Null)
        }
        "STATUS" if network.ready() => Ok(Value::Null),
        "STATUS" => {
            Err(Failure::because(code::UNAVAILABLE, "the pod network is not ready", NetError::NoRange))
        }
        other => Err(Failure::new(code::ENVIRONMENT, format!("unknown CNI_COMMAND: {other}"))),
    }
}

fn failed(what: &str, error: &NetError) -> Failure {
    let code = if matches!(error, NetError::NoRange) { code::LATER } else { code::OWN };
    Failure::because(code, what, error)
}

fn add(network: &PodNetwork, ask: &Ask) -> Result<Value, Failure> {
    let ports = ports(&ask.config)?;
    network.attach(&ask.container, &ask.netns, &ports).map_err(|e| failed("give the pod a network", &e))?;
    let Some(made) = network.attached(&ask.container) else {
        return Err(Failure::new(code::OWN, "the pod's network was taken back meanwhile"));
    };
    let mac = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
    let (bits, everywhere) = match made.ip {
        IpAddr::V4(_) => (32, "0.0.0.0/0"),
        IpAddr::V6(_) => (128, "::/0"),
    };
    Ok(worded(json!({
        "cniVersion": ask.config["cniVersion"],
        "interfaces": [
            { "name": made.link, "mac": mac(made.link_mac) },
            { "name": INTERFACE, "mac": mac(made.mac), "sandbox": ask.netns },
        ],
        "ips": [{ "address": format!("{}/{bits}", made.ip), "gateway": made.next_hop, "interface": 1 }],
        "routes": [{ "dst": everywhere, "gw": made.next_hop }],
        "dns": {},
    })))
}

/// A result as its version has it: before 1.0, each address says its family.
pub(super) fn worded(mut result: Value) -> Value {
    let old = result["cniVersion"].as_str().is_some_and(|v| v.starts_with("0."));
    if old {
        for ip in result["ips"].as_array_mut().into_iter().flatten() {
            let six = ip["address"].as_str().is_some_and(|a| a.contains(':'));
            ip["version"] = json!(if six { "6" } else { "4" });
        }
    }
    result
}

/// Whether the pod still has what it was given.
fn check(network: &PodNetwork, ask: &Ask) -> Result<(), Failure> {
    let lost = |what: String| Failure::new(code::OWN, what);
    let Some(made) = network.attached(&ask.container) else {
        return Err(lost(format!("sandbox {} has no network", ask.container)));
    };
    if made.link_mac == [0; 6] {
        return Err(lost(format!("link {} is gone", made.link)));
    }
    let told = ask.config["prevResult"]["ips"].as_array().cloned().unwrap_or_default();
    let own = told.iter().any(|ip| {
        let address = ip["address"].as_str().and_then(|a| a.split('/').next());
        address.and_then(|a| a.parse::<IpAddr>().ok()) == Some(made.ip)
    });
    if !told.is_empty() && !own {
        return Err(lost(format!("sandbox {} has address {} now", ask.container, made.ip)));
    }
    if !PathBuf::from(&ask.netns).exists() {
        return Err(lost(format!("network namespace {} is gone", ask.netns.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_runtimes_tell_them() {
        let config = json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
            {"HostPort": 53, "ContainerPort": 5353, "Protocol": "UDP", "HostIP": ""},
            {"hostPort": 0, "containerPort": 1, "protocol": "tcp"},
        ]}});
        let got = ports(&config).unwrap();
        let port = |protocol, ip, port, pod_port| HostPort { protocol, ip, port, pod_port };
        assert_eq!(
            got,
            [port(Protocol::Tcp, Some([127, 0, 0, 1].into()), 8080, 80), port(Protocol::Udp, None, 53, 5353)]
        );
        assert_eq!(ports(&json!({})).unwrap(), []);
        for bad in
            [json!("x"), json!([{"hostPort": 1, "hostIP": "x"}]), json!([{"hostPort": 1, "protocol": "x"}])]
        {
            let failure = ports(&json!({"runtimeConfig": {"portMappings": bad}})).unwrap_err();
            assert_eq!(failure.code, code::NETWORK_CONFIG);
        }
    }

    #[test]
    fn a_network_without_a_range_is_for_later() {
        let directory = tempfile::tempdir().unwrap();
        let network = PodNetwork::new(directory.path());
        let ask = |command: &str, container: &str, interface: &str, version: &str| Ask {
            command: command.into(),
            container: container.into(),
            netns: "/proc/self/ns/net".into(),
            interface: interface.into(),
            config: json!({ "cniVersion": version }),
        };
        for (command, container, interface, version, code) in [
            ("ADD", "abc", "eth0", "1.0.0", Some(code::LATER)),
            ("ADD", "abc", "net1", "1.0.0", Some(code::ENVIRONMENT)),
            ("ADD", "../a", "eth0", "1.0.0", Some(code::ENVIRONMENT)),
            ("ADD", "abc", "eth0", "2.0.0", Some(code::VERSION)),
            ("CHECK", "abc", "eth0", "1.0.0", Some(code::OWN)),
            ("STATUS", "", "", "1.1.0", Some(code::UNAVAILABLE)),
            ("DEL", "abc", "eth0", "0.4.0", None),
            ("GC", "", "", "1.1.0", None),
            ("WHAT", "", "", "1.1.0", Some(code::ENVIRONMENT)),
        ] {
            let got = answer(&network, &ask(command, container, interface, version));
            assert_eq!(
                got.as_ref().err().map(|f| f.code),
                code,
                "{command} {container} {interface}: {got:?}"
            );
        }
    }

    #[test]
    fn old_results_say_their_families() {
        let result = |version: &str| {
            worded(
                json!({"cniVersion": version, "ips": [{"address": "10.0.0.1/32"}, {"address": "fd00::1/128"}]}),
            )
        };
        assert_eq!(result("0.4.0")["ips"][1]["version"], "6");
        assert_eq!(result("0.3.1")["ips"][0]["version"], "4");
        assert!(result("1.0.0")["ips"][0].get("version").is_none());
    }
}

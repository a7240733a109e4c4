//! `--kubelet-arg`: upstream's kubelet, told as there.
//!
//! `NAME=VALUE` is a flag by its name there: one of `KubeletConfiguration`'s fields (the table in
//! `yare_node::config`), or one of those below. `config` and `config-dir` name files. Anything else is fields of
//! `KubeletConfiguration` as YAML: `evictionHard: {memory.available: 200Mi}`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use yare_node::config::{self, Configuration, Sources, table::ROWS};

use crate::cli::NodeArgs;

/// What the arguments say.
#[derive(Debug, Default)]
pub struct Arguments {
    sources: Sources,
    /// `--node-labels`
    pub labels: BTreeMap<String, String>,
    /// Where a runtime behind CRI looks for network plugins, where it does not say it itself.
    pub cni_bin_dir: Option<PathBuf>,
    /// And for network configurations.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where pods' volumes and the sockets of plugins are.
    root_dir: Option<PathBuf>,
    /// `CredentialProviderConfig`: a file, or a directory of them.
    pub credential_provider_config: Option<PathBuf>,
    /// Where those providers' programs are.
    pub credential_provider_bin_dir: Option<PathBuf>,
}

/// A flag that is no field: its name, and what its value changes.
struct Row {
    name: &'static str,
    set: fn(&mut Arguments, &str) -> anyhow::Result<()>,
}

/// Upstream's flags that are no fields, by name. Where Yare has a flag of its own for it, that is said.
const TABLE: &[Row] = &[
    Row { name: "cert-dir", set: |_, _| bail!("certificates are below --data-dir") },
    Row {
        name: "cni-bin-dir",
        set: |arguments, value| {
            arguments.cni_bin_dir = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
    Row {
        name: "cni-conf-dir",
        set: |arguments, value| {
            arguments.cni_conf_dir = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
    Row {
        name: "config",
        set: |arguments, value| {
            ensure!(
                arguments.sources.file.is_none(),
                "there is one already; further files go into config-dir"
            );
            arguments.sources.file = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
    Row {
        name: "config-dir",
        set: |arguments, value| {
            arguments.sources.directory = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
    Row { name: "hostname-override", set: |_, _| bail!("use --node-name") },
    Row {
        name: "image-credential-provider-bin-dir",
        set: |arguments, value| {
            arguments.credential_provider_bin_dir = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
    Row {
        name: "image-credential-provider-config",
        set: |arguments, value| {
            arguments.credential_provider_config = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
    Row { name: "node-ip", set: |_, _| bail!("use --node-ip") },
    Row {
        name: "node-labels",
        set: |arguments, value| {
            for pair in value.split(',').filter(|p| !p.is_empty()) {
                let Some((key, value)) = pair.split_once('=') else { bail!("{pair:?} is not KEY=VALUE") };
                arguments.labels.insert(key.to_owned(), value.to_owned());
            }
            Ok(())
        },
    },
    Row {
        name: "root-dir",
        set: |arguments, value| {
            ensure!(!value.is_empty(), "no directory");
            arguments.root_dir = Some(std::path::absolute(value)?);
            Ok(())
        },
    },
];

impl Arguments {
    /// Reads the arguments; files are read by [`Arguments::load`].
    pub fn parse(args: &[String]) -> anyhow::Result<Self> {
        let mut out = Self::default();
        for arg in args {
            let (equals, colon) = (arg.find('='), arg.find(':'));
            // No flag has a colon in its name, and no field an equals sign.
            if arg.trim_start().starts_with('{') || colon.is_some_and(|at| equals.is_none_or(|e| at < e)) {
                out.sources.inline.push(arg.clone());
                continue;
            }
            // As for upstream's own flags, leading dashes may be there.
            let Some((name, value)) = arg.trim_start_matches('-').split_once('=') else {
                bail!(
                    "--kubelet-arg {arg:?} is neither NAME=VALUE nor fields of KubeletConfiguration as YAML"
                );
            };
            if let Some(row) = TABLE.iter().find(|row| row.name == name) {
                (row.set)(&mut out, value).with_context(|| format!("--kubelet-arg {name}={value}"))?;
            } else if config::row_of_flag(name).is_some() {
                out.sources.flags.push((name.to_owned(), value.to_owned()));
            } else {
                let fields = ROWS.iter().map(|row| row.flag).filter(|flag| !flag.is_empty());
                let mut known: Vec<_> = TABLE.iter().map(|row| row.name).chain(fields).collect();
                known.sort_unstable();
                bail!("--kubelet-arg {name} is not known; known are {}", known.join(", "));
            }
        }
        Ok(out)
    }

    /// The node's directory. Drivers and plugins from elsewhere look for it where upstream's kubelet has it, in
    /// `/var/lib/kubelet`; by itself a node keeps to its data directory, so that several fit on one machine.
    pub fn root_dir(&self, data_dir: &Path) -> PathBuf {
        self.root_dir.clone().unwrap_or_else(|| data_dir.join("agent"))
    }

    /// The configuration of providers of logins, and where their programs are.
    pub fn credential_providers(&self) -> anyhow::Result<Option<(PathBuf, PathBuf)>> {
        match (&self.credential_provider_config, &self.credential_provider_bin_dir) {
            (Some(config), Some(bin_dir)) => Ok(Some((config.clone(), bin_dir.clone()))),
            (None, None) => Ok(None),
            _ => bail!(
                "--kubelet-arg image-credential-provider-config and image-credential-provider-bin-dir go together"
            ),
        }
    }

    /// The node's configuration: what `base` says, then files and flags on top.
    pub fn load(&self, gates: &str, base: Vec<(&'static str, Value)>) -> anyhow::Result<Configuration> {
        let sources = Sources { base, gates: gates.to_owned(), ..self.sources.clone() };
        sources.load().context("--kubelet-arg")
    }
}

/// What the program's own flags say of the node. `authority`: the file with the cluster's authority.
pub fn base(
    args: &NodeArgs,
    authority: &Path,
    cluster_dns: Option<std::net::IpAddr>,
    cluster_domain: &str,
) -> Vec<(&'static str, Value)> {
    let authority = std::path::absolute(authority).unwrap_or_else(|_| authority.to_owned());
    vec![
        ("address", json!(args.bind_address)),
        ("port", json!(args.kubelet_port)),
        ("authentication.x509.clientCAFile", json!(authority)),
        ("clusterDNS", json!(cluster_dns.into_iter().collect::<Vec<_>>())),
        ("clusterDomain", json!(cluster_domain)),
        ("maxPods", json!(args.max_pods)),
        ("resolvConf", json!(args.resolv_conf)),
    ]
}

/// What keeps this machine from being the node that the configuration wants, in upstream's words.
pub fn check_machine(configuration: &Configuration) -> anyhow::Result<()> {
    let settings = configuration.settings();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    // The first line is a heading.
    if settings.fail_swap_on && swaps.lines().count() > 1 {
        bail!(
            "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false. /proc/swaps contained: {:?}",
            swaps.lines().collect::<Vec<_>>()
        );
    }
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if settings.fail_cgroup_v1 && !unified {
        bail!(
            "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is unsupported and will be removed in a future release"
        );
    }
    if settings.protect_kernel_defaults {
        check_tunables(|name| std::fs::read_to_string(format!("/proc/sys/{name}")))?;
    }
    Ok(())
}

/// What upstream's kubelet sets, or with `protectKernelDefaults` finds set.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

fn check_tunables(read: impl Fn(&str) -> std::io::Result<String>) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (name, expected) in TUNABLES {
        match read(name) {
            Ok(actual) if actual.trim() == expected => {}
            Ok(actual) => wrong.push(format!(
                "invalid kernel flag: {name}, expected value: {expected}, actual value: {}",
                actual.trim()
            )),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    ensure!(wrong.is_empty(), "[{}]", wrong.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> anyhow::Result<Configuration> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        Arguments::parse(&args)?.load("", Vec::new())
    }

    #[test]
    fn flags_files_and_yaml() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.yaml");
        std::fs::write(
            &path,
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 3\nport: 4\n",
        )
        .unwrap();
        let config = load(&[
            &format!("config={}", path.display()),
            "--allowed-unsafe-sysctls=net.core.somaxconn,kernel.msg*",
            "register-with-taints=dedicated=web:NoSchedule,slow:NoExecute",
            "maxPods: 5",
            "{\"podPidsLimit\": 100}",
            "provider-id=a://b",
        ]);
        let config = config.unwrap();
        let s = config.settings();
        assert_eq!((s.max_pods, s.port, s.pod_pids_limit), (5, 4, 100));
        assert_eq!((s.provider_id.as_str(), s.register_with_taints.len()), ("a://b", 2));
        assert_eq!(s.allowed_unsafe_sysctls.len(), 2);
        let labels = Arguments::parse(&["node-labels=a=b,c=".to_owned()]).unwrap().labels;
        assert_eq!((labels["a"].as_str(), labels["c"].as_str()), ("b", ""));
    }

    #[test]
    fn the_nodes_directory_is_below_the_data_directory_unless_it_is_told() {
        let directory = |args: &[String]| Arguments::parse(args).unwrap().root_dir(Path::new("/data"));
        assert_eq!(directory(&[]), Path::new("/data/agent"));
        assert_eq!(directory(&["root-dir=/var/lib/kubelet".to_owned()]), Path::new("/var/lib/kubelet"));
        let beside = std::env::current_dir().unwrap().join("beside");
        assert_eq!(directory(&["--root-dir=beside".to_owned()]), beside);
    }

    #[test]
    fn tunables_must_be_as_upstream_has_them() {
        let set = |name: &str| Ok(TUNABLES.iter().find(|t| t.0 == name).unwrap().1.to_owned() + "\n");
        check_tunables(set).unwrap();
        let one = |name: &str| if name == "kernel/panic" { Ok("0\n".to_owned()) } else { set(name) };
        let error = check_tunables(one).unwrap_err().to_string();
        assert_eq!(error, "[invalid kernel flag: kernel/panic, expected value: 10, actual value: 0]");
        assert!(check_tunables(|_| Err(std::io::ErrorKind::NotFound.into())).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arg, part) in [
            ("pod-max-pids", "neither NAME=VALUE nor fields"),
            ("no-such=1", "known are address, allowed-unsafe-sysctls, anonymous-auth"),
            ("pod-max-pids=many", "invalid argument \"many\" for \"--pod-max-pids\" flag"),
            ("max-pods=-1", "must not be a negative number"),
            ("noSuch: 1", "unknown field \"noSuch\""),
            ("config=/no/such/file", "/no/such/file"),
            ("hostname-override=x", "use --node-name"),
            ("node-labels=x", "is not KEY=VALUE"),
            ("root-dir=", "no directory"),
            ("register-with-taints=:NoExecute", "there is no key"),
        ] {
            let error = format!("{:#}", load(&[arg]).unwrap_err());
            assert!(error.contains(part), "{arg}: {error}");
        }
    }
}

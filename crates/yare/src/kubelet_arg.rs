//! `--kubelet-arg NAME=VALUE`: flags of upstream's kubelet, by their names there. One table; what is not in it
//! is refused by name.

use anyhow::{Context as _, bail, ensure};
use yare_node::{NodeConfig, Taint};

/// What the flags say.
#[derive(Debug, Default, PartialEq)]
pub struct Settings {
    allowed_sysctls: Vec<String>,
    max_pods: Option<u32>,
    pids_limit: Option<i64>,
    provider_id: Option<String>,
    taints: Vec<Taint>,
}

/// A flag: its name, and what its value changes.
struct Row {
    name: &'static str,
    set: fn(&mut Settings, &str) -> anyhow::Result<()>,
}

/// The flags, by name.
const TABLE: &[Row] = &[
    Row {
        name: "allowed-unsafe-sysctls",
        set: |settings, value| {
            settings.allowed_sysctls.extend(value.split(',').map(str::to_owned));
            Ok(())
        },
    },
    Row {
        name: "max-pods",
        set: |settings, value| {
            settings.max_pods = Some(value.parse()?);
            Ok(())
        },
    },
    Row {
        name: "pod-max-pids",
        set: |settings, value| {
            // Upstream: anything negative is no limit of the pod's own.
            let limit: i64 = value.parse()?;
            ensure!(limit != 0, "a pod needs a process");
            settings.pids_limit = Some(limit).filter(|limit| *limit > 0);
            Ok(())
        },
    },
    Row {
        name: "provider-id",
        set: |settings, value| {
            settings.provider_id = Some(value.to_owned());
            Ok(())
        },
    },
    Row {
        name: "register-with-taints",
        set: |settings, value| {
            for text in value.split(',') {
                settings.taints.push(taint(text)?);
            }
            Ok(())
        },
    },
];

impl Settings {
    /// Reads the flags.
    pub fn parse(args: &[String]) -> anyhow::Result<Self> {
        let mut settings = Self::default();
        for arg in args {
            // As for upstream's own flags, leading dashes may be there.
            let Some((name, value)) = arg.trim_start_matches('-').split_once('=') else {
                bail!("--kubelet-arg {arg:?} is not NAME=VALUE");
            };
            let Some(row) = TABLE.iter().find(|row| row.name == name) else {
                let known: Vec<_> = TABLE.iter().map(|row| row.name).collect();
                bail!("--kubelet-arg {name} is not known; known are {}", known.join(", "));
            };
            (row.set)(&mut settings, value).with_context(|| format!("--kubelet-arg {name}={value}"))?;
        }
        Ok(settings)
    }

    /// Changes a node's configuration.
    pub fn apply(&self, config: &mut NodeConfig) {
        config.allowed_sysctls.clone_from(&self.allowed_sysctls);
        config.max_pods = self.max_pods.unwrap_or(config.max_pods);
        config.pids_limit = self.pids_limit;
        config.provider_id.clone_from(&self.provider_id);
        config.taints.clone_from(&self.taints);
    }
}

/// `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
fn taint(text: &str) -> anyhow::Result<Taint> {
    let Some((pair, effect)) = text.rsplit_once(':') else { bail!("{text:?} has no effect") };
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("{effect:?} is none of NoSchedule, PreferNoSchedule, NoExecute");
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    ensure!(!key.is_empty(), "{text:?} has no key");
    Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> anyhow::Result<Settings> {
        Settings::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_row_sets_its_field() {
        let got = parse(&[
            "--allowed-unsafe-sysctls=net.core.somaxconn,kernel.msg*",
            "max-pods=7",
            "pod-max-pids=100",
            "provider-id=a://b",
            "register-with-taints=dedicated=web:NoSchedule,slow:NoExecute",
        ]);
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.into(),
            value: value.into(),
            effect: effect.into(),
        };
        let want = Settings {
            allowed_sysctls: vec!["net.core.somaxconn".into(), "kernel.msg*".into()],
            max_pods: Some(7),
            pids_limit: Some(100),
            provider_id: Some("a://b".into()),
            taints: vec![taint("dedicated", "web", "NoSchedule"), taint("slow", "", "NoExecute")],
        };
        assert_eq!(got.unwrap(), want);
        assert_eq!(parse(&["pod-max-pids=-1"]).unwrap().pids_limit, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arg, part) in [
            ("pod-max-pids", "not NAME=VALUE"),
            ("no-such=1", "known are allowed-unsafe-sysctls, max-pods, pod-max-pids"),
            ("pod-max-pids=many", "--kubelet-arg pod-max-pids=many"),
            ("pod-max-pids=0", "a pod needs a process"),
            ("max-pods=-1", "--kubelet-arg max-pods=-1"),
            ("register-with-taints=a=b", "has no effect"),
            ("register-with-taints=a:Never", "none of NoSchedule"),
            ("register-with-taints=:NoExecute", "has no key"),
        ] {
            let error = format!("{:#}", parse(&[arg]).unwrap_err());
            assert!(error.contains(part), "{arg}: {error}");
        }
    }
}

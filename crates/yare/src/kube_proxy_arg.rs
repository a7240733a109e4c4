//! `--kube-proxy-arg`: upstream's service proxy, told as there: `NAME=VALUE`, where NAME is one of its flags about where
//! it is asked how it is, and about how many connections are tracked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail};
use yare_net::proxy::{Listen, Tracked};

/// Of load balancers and probes.
const HEALTHZ: u16 = 10256;
/// Of what only this machine asks.
const METRICS: u16 = 10249;

/// What the proxy is told.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    /// Where it is asked.
    pub listen: Listen,
    /// How many connections the machine tracks.
    pub tracked: Tracked,
}

/// What the proxy of a node with this address is told.
pub fn parse(given: &[String], node: IpAddr) -> anyhow::Result<Arguments> {
    let [all, here]: [IpAddr; 2] = if node.is_ipv4() {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()]
    } else {
        [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()]
    };
    let mut listen = Listen {
        healthz: Some(SocketAddr::new(all, HEALTHZ)),
        metrics: Some(SocketAddr::new(here, METRICS)),
    };
    let mut tracked = Tracked::default();
    for argument in given {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        match name.trim_start_matches('-') {
            "healthz-bind-address" => listen.healthz = address(argument, value, HEALTHZ)?,
            "metrics-bind-address" => listen.metrics = address(argument, value, METRICS)?,
            "conntrack-max-per-core" => tracked.per_core = number(argument, value)?,
            "conntrack-min" => tracked.min = number(argument, value)?,
            _ => bail!(
                "--kube-proxy-arg {argument:?}: there are conntrack-max-per-core, conntrack-min, \
                 healthz-bind-address and metrics-bind-address"
            ),
        }
    }
    Ok(Arguments { listen, tracked })
}

fn number(argument: &str, value: &str) -> anyhow::Result<u32> {
    value.parse().with_context(|| format!("--kube-proxy-arg {argument:?}: not a number of connections"))
}

/// An address with or without a port; none where it is empty.
fn address(argument: &str, value: &str, port: u16) -> anyhow::Result<Option<SocketAddr>> {
    if value.is_empty() {
        return Ok(None);
    }
    let whole = value.parse().or_else(|_| value.parse().map(|ip| SocketAddr::new(ip, port)));
    whole
        .map(Some)
        .with_context(|| format!("--kube-proxy-arg {argument:?}: not an address such as 0.0.0.0:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parsed = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|g| (*g).to_owned()).collect();
            let told = parse(&given, "192.0.2.1".parse().unwrap()).map_err(|e| e.to_string())?;
            let shown = |a: Option<SocketAddr>| a.map_or("-".to_owned(), |a| a.to_string());
            Ok::<_, String>(format!("{} {}", shown(told.listen.healthz), shown(told.listen.metrics)))
        };
        for (given, expected) in [
            (&[][..], "0.0.0.0:10256 127.0.0.1:10249"),
            (&["healthz-bind-address=[::]:1"], "[::]:1 127.0.0.1:10249"),
            (&["--metrics-bind-address=192.0.2.1"], "0.0.0.0:10256 192.0.2.1:10249"),
            (&["healthz-bind-address=", "metrics-bind-address="], "- -"),
        ] {
            assert_eq!(parsed(given).as_deref(), Ok(expected));
        }
        for given in
            ["healthz-bind-address=here", "proxy-mode=ipvs", "conntrack-min=-1", "conntrack-max-per-core"]
        {
            assert!(parsed(&[given]).unwrap_err().contains(given), "{given}");
        }
        assert_eq!(
            parse(&[], "fd00::1".parse().unwrap()).unwrap().listen.healthz.unwrap().to_string(),
            "[::]:10256"
        );
    }

    #[test]
    fn connections() {
        let given = ["conntrack-max-per-core=0".to_owned(), "--conntrack-min=7".to_owned()];
        let node = "192.0.2.1".parse().unwrap();
        assert_eq!(parse(&given, node).unwrap().tracked, Tracked { per_core: 0, min: 7 });
        assert_eq!(parse(&[], node).unwrap().tracked, Tracked { per_core: 32_768, min: 131_072 });
    }
}

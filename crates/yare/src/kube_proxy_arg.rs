//! `--kube-proxy-arg`: upstream's service proxy, told as there: `NAME=VALUE`, where NAME is one of its flags about where
//! it is asked how it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail};
use yare_net::proxy::Listen;

/// Of load balancers and probes.
const HEALTHZ: u16 = 10256;
/// Of what only this machine asks.
const METRICS: u16 = 10249;

/// Where the proxy of a node with this address is asked.
pub fn parse(given: &[String], node: IpAddr) -> anyhow::Result<Listen> {
    let [all, here]: [IpAddr; 2] = if node.is_ipv4() {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()]
    } else {
        [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()]
    };
    let mut listen = Listen {
        healthz: Some(SocketAddr::new(all, HEALTHZ)),
        metrics: Some(SocketAddr::new(here, METRICS)),
    };
    for argument in given {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        match name.trim_start_matches('-') {
            "healthz-bind-address" => listen.healthz = address(argument, value, HEALTHZ)?,
            "metrics-bind-address" => listen.metrics = address(argument, value, METRICS)?,
            _ => bail!(
                "--kube-proxy-arg {argument:?}: there are healthz-bind-address and metrics-bind-address"
            ),
        }
    }
    Ok(listen)
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
            let listen = parse(&given, "192.0.2.1".parse().unwrap()).map_err(|e| e.to_string())?;
            let shown = |a: Option<SocketAddr>| a.map_or("-".to_owned(), |a| a.to_string());
            Ok::<_, String>(format!("{} {}", shown(listen.healthz), shown(listen.metrics)))
        };
        for (given, expected) in [
            (&[][..], "0.0.0.0:10256 127.0.0.1:10249"),
            (&["healthz-bind-address=[::]:1"], "[::]:1 127.0.0.1:10249"),
            (&["--metrics-bind-address=192.0.2.1"], "0.0.0.0:10256 192.0.2.1:10249"),
            (&["healthz-bind-address=", "metrics-bind-address="], "- -"),
        ] {
            assert_eq!(parsed(given).as_deref(), Ok(expected));
        }
        for given in ["healthz-bind-address=here", "proxy-mode=ipvs"] {
            assert!(parsed(&[given]).unwrap_err().contains(given), "{given}");
        }
        assert_eq!(
            parse(&[], "fd00::1".parse().unwrap()).unwrap().healthz.unwrap().to_string(),
            "[::]:10256"
        );
    }
}

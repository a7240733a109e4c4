//! A pod's `resolv.conf`, from `dnsPolicy` and `dnsConfig`.

use std::path::Path;

use async_trait::async_trait;
use yare_client::EventKind;
use yare_runtime::DnsConfig;

use super::{PodFailure, PodHook, PodStart};
use crate::view::{DnsOption, Pod};

pub(crate) struct Dns;

/// glibc's limits, as the API server validates them.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

#[async_trait]
impl PodHook for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        if !start.fresh {
            return Ok(());
        }
        let kubelet = start.kubelet;
        let settings = kubelet.config.settings();
        let servers: Vec<String> = settings.cluster_dns.clone();
        let host = read_resolv_conf(Path::new(&settings.resolv_conf));
        let policy = policy(start.pod);
        if policy == "ClusterFirst" && servers.is_empty() {
            let text = format!(
                "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                start.pod.full_name()
            );
            kubelet.pod_event(start.pod, None, EventKind::Warning, "MissingClusterDNS", text);
        }
        let (dns, omitted) = configure(start.pod, host, &servers, &settings.cluster_domain);
        if let Some(text) = omitted {
            kubelet.pod_event(start.pod, None, EventKind::Warning, "DNSConfigForming", text);
        }
        start.sandbox.dns = dns;
        Ok(())
    }
}

fn policy(pod: &Pod) -> &str {
    match pod.spec.dns_policy.as_str() {
        "ClusterFirstWithHostNet" => "ClusterFirst",
        "ClusterFirst" | "" if pod.spec.host_network => "Default",
        "" => "ClusterFirst",
        policy => policy,
    }
}

/// The configuration, and what to tell when something had to be left out.
fn configure(pod: &Pod, host: DnsConfig, cluster: &[String], domain: &str) -> (DnsConfig, Option<String>) {
    let mut dns = match policy(pod) {
        "None" => DnsConfig::default(),
        "ClusterFirst" if !cluster.is_empty() => {
            let mut searches = vec![
                format!("{}.svc.{domain}", pod.metadata.namespace),
                format!("svc.{domain}"),
                domain.to_owned(),
            ];
            searches.extend(host.searches);
            DnsConfig { servers: cluster.to_vec(), searches, options: vec!["ndots:5".to_owned()] }
        }
        _ => host,
    };
    if let Some(extra) = &pod.spec.dns_config {
        dns.servers.extend(extra.nameservers.iter().cloned());
        dns.searches.extend(extra.searches.iter().cloned());
        dns.options = merge_options(&dns.options, &extra.options);
    }
    dedup(&mut dns.servers);
    dedup(&mut dns.searches);
    let mut omitted = None;
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        omitted = Some(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        ));
    }
    let mut chars = 0;
    let fitting = dns
        .searches
        .iter()
        .take(MAX_SEARCHES)
        .take_while(|s| {
            chars += s.len() + 1;
            chars <= MAX_SEARCH_CHARS + 1
        })
        .count();
    if fitting < dns.searches.len() {
        dns.searches.truncate(fitting);
        omitted = Some(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
    (dns, omitted)
}

fn merge_options(base: &[String], extra: &[DnsOption]) -> Vec<String> {
    let mut out: Vec<String> = base
        .iter()
        .filter(|o| {
            let name = o.split(':').next().unwrap_or(o);
            !extra.iter().any(|e| e.name == name)
        })
        .cloned()
        .collect();
    out.extend(extra.iter().map(|e| match &e.value {
        Some(value) if !value.is_empty() => format!("{}:{value}", e.name),
        _ => e.name.clone(),
    }));
    out
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

fn read_resolv_conf(path: &Path) -> DnsConfig {
    std::fs::read_to_string(path).map(|text| parse_resolv_conf(&text)).unwrap_or_default()
}

fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // The last search line wins; a dot alone searches nothing.
            Some("search") => dns.searches = words.filter(|w| *w != ".").map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let host = || parse_resolv_conf("# x\nnameserver 1.1.1.1\nsearch example.com\noptions edns0\n");
        let cluster = ["10.43.0.10".to_owned()];
        for (spec, servers, searches, options) in [
            (
                serde_json::json!({}),
                "10.43.0.10",
                "ns.svc.cluster.local svc.cluster.local cluster.local example.com",
                "ndots:5",
            ),
            (serde_json::json!({"dnsPolicy": "Default"}), "1.1.1.1", "example.com", "edns0"),
            (
                serde_json::json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
                "1.1.1.1",
                "example.com",
                "edns0",
            ),
            (
                serde_json::json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                "10.43.0.10",
                "ns.svc.cluster.local svc.cluster.local cluster.local example.com",
                "ndots:5",
            ),
            (
                serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "9.9.9.9",
                "a.b",
                "ndots:2 edns0",
            ),
            (
                serde_json::json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                "10.43.0.10",
                "ns.svc.cluster.local svc.cluster.local cluster.local example.com",
                "ndots:1",
            ),
        ] {
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"metadata": {"namespace": "ns"}, "spec": spec}))
                    .unwrap();
            let (dns, omitted) = configure(&pod, host(), &cluster, "cluster.local");
            assert_eq!(dns.servers.join(" "), servers, "{spec}");
            assert_eq!(dns.searches.join(" "), searches, "{spec}");
            assert_eq!(dns.options.join(" "), options, "{spec}");
            assert_eq!(omitted, None);
        }
    }
}

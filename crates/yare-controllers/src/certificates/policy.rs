//! What each of Kubernetes' own signers signs, and for how long
//! (<https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>).

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use yare_auth::pki::CertificateRequest;

use crate::views::after;

/// Signs certificates of clients.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs certificates of kubelets as servers.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs whatever it is asked for.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";
/// Signs certificates of kubelets as clients.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

type Check = fn(&CertificateRequest, &[String]) -> Result<(), String>;

/// A signer.
pub struct Signer {
    /// What requests call it.
    pub name: &'static str,
    /// Whether it signs the request for the usages. The error is for who asked.
    pub check: Check,
}

/// The signers.
pub const SIGNERS: &[Signer] = &[
    Signer { name: CLIENT, check: client },
    Signer { name: KUBELET_CLIENT, check: kubelet_client },
    Signer { name: KUBELET_SERVING, check: kubelet_serving },
    // Anything, for the sake of requests that are older than signers' names.
    Signer { name: LEGACY_UNKNOWN, check: |_, _| Ok(()) },
];

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const DIGITAL_SIGNATURE: &str = "digital signature";
/// Only RSA keys have a use for it.
const KEY_ENCIPHERMENT: &str = "key encipherment";
const CLIENT_AUTH: &str = "client auth";
const SERVER_AUTH: &str = "server auth";

fn refuse(why: &str) -> Result<(), String> {
    Err(why.to_owned())
}

fn client(_: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    let foreign = |u: &&String| ![DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, CLIENT_AUTH].contains(&u.as_str());
    if let Some(usage) = usages.iter().find(foreign) {
        return Err(format!("invalid usage for client certificate: {usage}"));
    }
    if !usages.iter().any(|u| u == CLIENT_AUTH) {
        return Err(format!("missing required usage for client certificate: {CLIENT_AUTH}"));
    }
    Ok(())
}

/// Exactly these usages, where `key encipherment` may be missing.
fn exactly(usages: &[String], main: &str) -> Result<(), String> {
    let has: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut wanted = BTreeSet::from([DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, main]);
    let all: Vec<&str> = wanted.iter().copied().collect();
    let with_rsa = has == wanted;
    wanted.remove(KEY_ENCIPHERMENT);
    if with_rsa || has == wanted { Ok(()) } else { Err(format!("usages did not match [{}]", all.join(" "))) }
}

fn of_nodes(request: &CertificateRequest) -> Result<(), String> {
    match request.subject.organizations() == [NODES] {
        true => Ok(()),
        false => refuse("subject organization is not system:nodes"),
    }
}

fn of_node(request: &CertificateRequest) -> Result<(), String> {
    match request.subject.common_name().starts_with(NODE_PREFIX) {
        true => Ok(()),
        false => refuse("subject common name does not begin with system:node:"),
    }
}

/// Whether a kubelet may have the certificate to show itself to the API server.
pub fn kubelet_client(request: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    of_nodes(request)?;
    for (present, kind) in [
        (!request.dns_names.is_empty(), "DNS"),
        (!request.emails.is_empty(), "Email"),
        (!request.addresses.is_empty(), "IP"),
        (!request.uris.is_empty(), "URI"),
    ] {
        if present {
            return Err(format!("{kind} subjectAltNames are not allowed"));
        }
    }
    of_node(request)?;
    exactly(usages, CLIENT_AUTH)
}

fn kubelet_serving(request: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    of_nodes(request)?;
    if request.dns_names.is_empty() && request.addresses.is_empty() {
        return refuse("DNS or IP subjectAltName is required");
    }
    if !request.emails.is_empty() {
        return refuse("Email subjectAltNames are not allowed");
    }
    if !request.uris.is_empty() {
        return refuse("URI subjectAltNames are not allowed");
    }
    exactly(usages, SERVER_AUTH)?;
    of_node(request)
}

/// How far certificates begin in the past, for clocks that run behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Certificates that live shorter than this do not lose at their end what they gain at their beginning.
const SHORT: Duration = Duration::from_secs(8 * 3600);
/// The shortest life, whatever is asked for.
const MIN_LIFE: Duration = Duration::from_secs(10 * 60);
/// From when until when the certificate is valid: as long as was asked for (seconds) and the signer gives
/// (`max`), and not longer than the authority itself (`end`, Unix seconds).
pub fn validity(
    wanted_s: Option<u64>,
    max: Duration,
    end: i64,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), String> {
    let life = match wanted_s.map(Duration::from_secs) {
        Some(wanted) if wanted <= max => wanted.max(MIN_LIFE),
        _ => max,
    };
    let from = now.saturating_sub(BACKDATE).unwrap_or(Timestamp::MIN);
    let to = if life < SHORT { after(now, life) } else { after(from, life) };
    let end = Timestamp::from_second(end).unwrap_or(Timestamp::MAX);
    if from >= end {
        return Err(format!("the signer has expired: NotAfter={end}"));
    }
    if now >= end {
        return Err(format!("refusing to sign a certificate that expired in the past: NotAfter={end}"));
    }
    Ok((from, to.min(end)))
}

#[cfg(test)]
mod tests {
    use yare_auth::pki::Name;

    use super::*;

    /// `signer | organizations / common name | alternative names | usages | what is wrong`
    const CASES: &str = "
kube-apiserver-client | / jane | | client auth |
kube-apiserver-client | dev,ops / jane | dns ip email uri | client auth,digital signature,key encipherment |
kube-apiserver-client | / jane | | digital signature,key encipherment | missing required usage for client certificate: client auth
kube-apiserver-client | / jane | | client auth,server auth | invalid usage for client certificate: server auth
kube-apiserver-client | / jane | | client auth,signing | invalid usage for client certificate: signing
kube-apiserver-client-kubelet | system:nodes / system:node:a | | client auth,digital signature,key encipherment |
kube-apiserver-client-kubelet | system:nodes / system:node:a | | digital signature,client auth |
kube-apiserver-client-kubelet | system:nodes / system:node:a | | client auth | usages did not match [client auth digital signature key encipherment]
kube-apiserver-client-kubelet | system:nodes / system:node:a | | client auth,digital signature,server auth | usages did not match [client auth digital signature key encipherment]
kube-apiserver-client-kubelet | system:nodes / jane | | client auth,digital signature | subject common name does not begin with system:node:
kube-apiserver-client-kubelet | system:nodes,dev / system:node:a | | client auth,digital signature | subject organization is not system:nodes
kube-apiserver-client-kubelet | / system:node:a | | client auth,digital signature | subject organization is not system:nodes
kube-apiserver-client-kubelet | system:nodes / system:node:a | dns ip email uri | client auth,digital signature | DNS subjectAltNames are not allowed
kube-apiserver-client-kubelet | system:nodes / system:node:a | ip email uri | client auth,digital signature | Email subjectAltNames are not allowed
kube-apiserver-client-kubelet | system:nodes / system:node:a | ip uri | client auth,digital signature | IP subjectAltNames are not allowed
kube-apiserver-client-kubelet | system:nodes / jane | uri | client auth | URI subjectAltNames are not allowed
kubelet-serving | system:nodes / system:node:a | dns | server auth,digital signature,key encipherment |
kubelet-serving | system:nodes / system:node:a | ip | server auth,digital signature |
kubelet-serving | system:nodes / system:node:a | | server auth,digital signature | DNS or IP subjectAltName is required
kubelet-serving | system:nodes / system:node:a | email uri | server auth,digital signature | DNS or IP subjectAltName is required
kubelet-serving | system:nodes / system:node:a | dns email uri | server auth,digital signature | Email subjectAltNames are not allowed
kubelet-serving | system:nodes / system:node:a | dns uri | server auth,digital signature | URI subjectAltNames are not allowed
kubelet-serving | system:nodes / jane | dns | server auth,client auth | usages did not match [digital signature key encipherment server auth]
kubelet-serving | system:nodes / jane | dns | server auth,digital signature | subject common name does not begin with system:node:
kubelet-serving | system:masters / system:node:a | dns | server auth,digital signature | subject organization is not system:nodes
legacy-unknown | system:masters / root | dns email ip uri | cert sign |
";

    #[test]
    fn what_is_signed() {
        for line in CASES.lines().filter(|l| !l.is_empty()) {
            let [signer, who, names, usages, error] =
                <[&str; 5]>::try_from(line.split('|').map(str::trim).collect::<Vec<_>>()).unwrap();
            let (organizations, user) = who.split_once('/').unwrap();
            let groups: Vec<&str> = organizations.trim().split(',').filter(|o| !o.is_empty()).collect();
            let has = |what: &str| names.split(' ').any(|n| n == what);
            let some = |what: &str| if has(what) { vec!["x".to_owned()] } else { Vec::new() };
            let mut request = CertificateRequest::of(Name::new(user.trim(), &groups));
            request.dns_names = some("dns");
            request.emails = some("email");
            request.uris = some("uri");
            request.addresses = if has("ip") { vec![[10, 0, 0, 1].into()] } else { Vec::new() };
            let usages: Vec<String> = usages.split(',').map(str::to_owned).collect();
            let row = SIGNERS.iter().find(|s| s.name.rsplit('/').next() == Some(signer)).unwrap();
            assert_eq!((row.check)(&request, &usages).err().unwrap_or_default(), error, "{line}");
        }
    }

    #[test]
    fn how_long() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let end: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        for (wanted_s, max_s, want) in [
            // What is asked for, counted from now where it is short and from five minutes ago otherwise.
            (Some(600), 86_400, "2026-01-01T12:10:00Z"),
            (Some(3600), 86_400, "2026-01-01T13:00:00Z"),
            (Some(28_799), 86_400, "2026-01-01T19:59:59Z"),
            (Some(28_800), 86_400, "2026-01-01T19:55:00Z"),
            // Never less than ten minutes, never more than the signer gives.
            (Some(1), 86_400, "2026-01-01T12:10:00Z"),
            (Some(86_401), 86_400, "2026-01-02T11:55:00Z"),
            (Some(u64::MAX), 86_400, "2026-01-02T11:55:00Z"),
            (None, 86_400, "2026-01-02T11:55:00Z"),
            (Some(1), 60, "2026-01-01T12:10:00Z"),
            (None, 60, "2026-01-01T12:01:00Z"),
            (None, 31_536_000, "2026-06-01T00:00:00Z"),
        ] {
            let (from, to) = validity(wanted_s, Duration::from_secs(max_s), end.as_second(), now).unwrap();
            assert_eq!(from.to_string(), "2026-01-01T11:55:00Z");
            assert_eq!(to.to_string(), want, "{wanted_s:?} of {max_s}");
        }
        let of = |end: &str| validity(None, SHORT, end.parse::<Timestamp>().unwrap().as_second(), now);
        assert!(of("2026-01-01T11:55:00Z").unwrap_err().starts_with("the signer has expired"));
        assert!(of("2026-01-01T12:00:00Z").unwrap_err().starts_with("refusing to sign"));
        assert!(of("2026-01-01T12:00:01Z").is_ok());
    }
}

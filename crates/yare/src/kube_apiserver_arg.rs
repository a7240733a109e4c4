//! `--kube-apiserver-arg`: upstream's API server, told as there: `NAME=VALUE`, where NAME is one of its flags.
//!
//! One table says what becomes of each flag of kube-apiserver 1.36. Most are flags of `yare server` themselves, by the
//! same name or another; what they take is said there alone. Some can say one thing only, some are read and change
//! nothing, which is said at start, and some are refused with a word on what to use.

use std::ffi::OsString;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, parser::ValueSource};

use crate::{cli::Cli, progress::say};

/// What becomes of a flag.
enum Reads {
    /// It is the flag of this name here.
    As(&'static str),
    /// It may say one of these things, which are so anyway; or else this is why not.
    Only(&'static [&'static str], &'static str),
    /// It changes nothing, and this is why.
    Unused(&'static str),
    /// It cannot be, and this is why, or what to use.
    Refused(&'static str),
}

use Reads::{As, Only, Refused, Unused};

/// A flag of kube-apiserver: its name there, and what becomes of it.
type Row = (&'static str, Reads);

/// Of the store.
const EMBEDDED: &str = "objects are in this server's own store, below --data-dir";
const IN_MEMORY: &str = "reads come from the store itself, which holds everything in memory";
/// Of profiles.
const NO_PROFILES: &str = "there are no profiles of Go's here";
/// Of the log.
const LOG: &str =
    "the environment variable YARE_LOG chooses what is logged (YARE_LOG=debug), as text on standard error";
const ONE_SERVER: &str =
    "there is one API server to a store, which holds elections without being elected for it";
const NO_PEERS: &str = "requests are not passed on to other API servers of the cluster";

/// A flag that is one here by the same name.
const fn same(name: &'static str) -> Row {
    (name, As(name))
}

const ROWS: &[Row] = &[
    ("admission-control", Refused("use --enable-admission-plugins and --disable-admission-plugins")),
    same("admission-control-config-file"),
    same("advertise-address"),
    (
        "aggregator-reject-forwarding-redirect",
        Only(&["true"], "redirects of other API servers never reach clients"),
    ),
    ("allow-metric-labels", Refused("the labels of metrics are upstream's")),
    ("allow-metric-labels-manifest", Refused("the labels of metrics are upstream's")),
    (
        "allow-privileged",
        Only(&["true"], "Pod Security admission decides who may have privileged containers"),
    ),
    same("anonymous-auth"),
    same("api-audiences"),
    ("apiserver-count", Unused("servers are known by their Leases")),
    same("audit-log-batch-buffer-size"),
    same("audit-log-batch-max-size"),
    same("audit-log-batch-max-wait"),
    same("audit-log-batch-throttle-burst"),
    same("audit-log-batch-throttle-enable"),
    same("audit-log-batch-throttle-qps"),
    same("audit-log-compress"),
    same("audit-log-format"),
    same("audit-log-maxage"),
    same("audit-log-maxbackup"),
    same("audit-log-maxsize"),
    same("audit-log-mode"),
    same("audit-log-path"),
    same("audit-log-truncate-enabled"),
    same("audit-log-truncate-max-batch-size"),
    same("audit-log-truncate-max-event-size"),
    same("audit-log-version"),
    same("audit-policy-file"),
    same("audit-webhook-batch-buffer-size"),
    ("audit-webhook-batch-initial-backoff", As("audit-webhook-initial-backoff")),
    same("audit-webhook-batch-max-size"),
    same("audit-webhook-batch-max-wait"),
    same("audit-webhook-batch-throttle-burst"),
    same("audit-webhook-batch-throttle-enable"),
    same("audit-webhook-batch-throttle-qps"),
    same("audit-webhook-config-file"),
    same("audit-webhook-initial-backoff"),
    same("audit-webhook-mode"),
    same("audit-webhook-truncate-enabled"),
    same("audit-webhook-truncate-max-batch-size"),
    same("audit-webhook-truncate-max-event-size"),
    same("audit-webhook-version"),
    same("authentication-config"),
    same("authentication-token-webhook-cache-ttl"),
    same("authentication-token-webhook-config-file"),
    same("authentication-token-webhook-version"),
    same("authorization-config"),
    same("authorization-mode"),
    same("authorization-policy-file"),
    same("authorization-webhook-cache-authorized-ttl"),
    same("authorization-webhook-cache-unauthorized-ttl"),
    same("authorization-webhook-config-file"),
    same("authorization-webhook-version"),
    same("bind-address"),
    (
        "cert-dir",
        Refused("certificates are below --data-dir; --tls-cert-file and --tls-private-key-file name others"),
    ),
    same("client-ca-file"),
    ("contention-profiling", Only(&["false"], NO_PROFILES)),
    ("coordinated-leadership-lease-duration", Unused(ONE_SERVER)),
    ("coordinated-leadership-renew-deadline", Unused(ONE_SERVER)),
    ("coordinated-leadership-retry-period", Unused(ONE_SERVER)),
    same("cors-allowed-origins"),
    ("debug-socket-path", Refused(NO_PROFILES)),
    same("default-not-ready-toleration-seconds"),
    same("default-unreachable-toleration-seconds"),
    ("default-watch-cache-size", Unused(IN_MEMORY)),
    ("delete-collection-workers", Unused("a collection is deleted in one go")),
    same("disable-admission-plugins"),
    same("disable-http2-serving"),
    ("disabled-metrics", Refused("no metric can be switched off")),
    same("egress-selector-config-file"),
    same("emulated-version"),
    same("emulation-forward-compatible"),
    same("enable-admission-plugins"),
    same("enable-aggregator-routing"),
    same("enable-bootstrap-token-auth"),
    (
        "enable-garbage-collector",
        Only(&["true"], "--disable=garbage-collector-controller stops the controller alone"),
    ),
    ("enable-logs-handler", Only(&["false"], "logs are not served")),
    same("enable-priority-and-fairness"),
    same("encryption-provider-config"),
    same("encryption-provider-config-automatic-reload"),
    same("endpoint-reconciler-type"),
    ("etcd-cafile", Refused(EMBEDDED)),
    ("etcd-certfile", Refused(EMBEDDED)),
    ("etcd-compaction-interval", Unused(EMBEDDED)),
    ("etcd-count-metric-poll-period", Unused(EMBEDDED)),
    ("etcd-db-metric-poll-interval", Unused(EMBEDDED)),
    ("etcd-healthcheck-timeout", Unused(EMBEDDED)),
    ("etcd-keyfile", Refused(EMBEDDED)),
    ("etcd-prefix", Refused(EMBEDDED)),
    ("etcd-readycheck-timeout", Unused(EMBEDDED)),
    ("etcd-servers", Refused(EMBEDDED)),
    ("etcd-servers-overrides", Refused(EMBEDDED)),
    same("event-ttl"),
    same("external-hostname"),
    same("feature-gates"),
    same("goaway-chance"),
    same("http2-max-streams-per-connection"),
    same("kubelet-certificate-authority"),
    same("kubelet-client-certificate"),
    same("kubelet-client-key"),
    // Not the flag of this name here, which is the port of this machine's own kubelet.
    ("kubelet-port", Unused("nodes say their port")),
    same("kubelet-preferred-address-types"),
    ("kubelet-read-only-port", Unused("nodes are not asked there")),
    ("kubelet-timeout", Unused("upstream does not heed it either")),
    same("kubernetes-service-node-port"),
    ("lease-reuse-duration-seconds", Unused(EMBEDDED)),
    same("livez-grace-period"),
    ("log-flush-frequency", Unused("the log is written at once")),
    ("log-json-info-buffer-size", Refused(LOG)),
    ("log-json-split-stream", Refused(LOG)),
    ("log-text-info-buffer-size", Refused(LOG)),
    ("log-text-split-stream", Refused(LOG)),
    ("logging-format", Only(&["text"], LOG)),
    ("max-connection-bytes-per-sec", Only(&["0"], "connections are not throttled")),
    same("max-mutating-requests-inflight"),
    same("max-requests-inflight"),
    same("min-compatibility-version"),
    same("min-request-timeout"),
    same("oidc-ca-file"),
    same("oidc-client-id"),
    same("oidc-groups-claim"),
    same("oidc-groups-prefix"),
    same("oidc-issuer-url"),
    same("oidc-required-claim"),
    same("oidc-signing-algs"),
    same("oidc-username-claim"),
    same("oidc-username-prefix"),
    ("peer-advertise-ip", Refused(NO_PEERS)),
    ("peer-advertise-port", Refused(NO_PEERS)),
    ("peer-ca-file", Refused(NO_PEERS)),
    (
        "permit-address-sharing",
        Unused("addresses are shared in any case, so that a server comes back at once"),
    ),
    same("permit-port-sharing"),
    ("profiling", Only(&["false"], NO_PROFILES)),
    same("proxy-client-cert-file"),
    same("proxy-client-key-file"),
    same("request-timeout"),
    same("requestheader-allowed-names"),
    same("requestheader-client-ca-file"),
    same("requestheader-extra-headers-prefix"),
    same("requestheader-group-headers"),
    same("requestheader-uid-headers"),
    same("requestheader-username-headers"),
    same("runtime-config"),
    same("runtime-config-emulation-forward-compatible"),
    ("secure-port", As("https-listen-port")),
    same("service-account-extend-token-expiration"),
    same("service-account-issuer"),
    same("service-account-jwks-uri"),
    same("service-account-key-file"),
    same("service-account-lookup"),
    same("service-account-max-token-expiration"),
    same("service-account-signing-endpoint"),
    same("service-account-signing-key-file"),
    ("service-cluster-ip-range", As("service-cidr")),
    same("service-node-port-range"),
    (
        "show-hidden-metrics-for-version",
        Only(
            &["", "1.35"],
            "Only the previous minor version is meaningful, other values will not be allowed",
        ),
    ),
    same("shutdown-delay-duration"),
    same("shutdown-send-retry-after"),
    same("shutdown-watch-termination-grace-period"),
    ("storage-backend", Refused(EMBEDDED)),
    ("storage-initialization-timeout", Unused("the store is open before the server listens")),
    ("storage-media-type", Unused("objects rest as JSON")),
    same("strict-transport-security-directives"),
    same("tls-cert-file"),
    same("tls-cipher-suites"),
    same("tls-curve-preferences"),
    same("tls-min-version"),
    same("tls-private-key-file"),
    same("tls-sni-cert-key"),
    same("token-auth-file"),
    same("tracing-config-file"),
    ("v", Refused(LOG)),
    ("vmodule", Refused(LOG)),
    ("watch-cache", Unused(IN_MEMORY)),
    ("watch-cache-sizes", Unused(IN_MEMORY)),
];

/// The arguments with what the flags of kube-apiserver among them come to; `None` where there are none.
pub fn expand(mut args: Vec<OsString>, matches: &ArgMatches) -> anyhow::Result<Option<Vec<OsString>>> {
    let Some(("server", server)) = matches.subcommand() else { return Ok(None) };
    let Some(given) = server.get_many::<String>("kube_apiserver_arg") else { return Ok(None) };
    let cli = Cli::command();
    let command = cli.find_subcommand("server").context("there is no command server")?;
    for argument in given {
        let flag =
            read(argument, command, server).with_context(|| format!("--kube-apiserver-arg {argument}"))?;
        args.extend(flag.map(OsString::from));
    }
    Ok(Some(args))
}

/// What one of them comes to as an argument, if it is any.
fn read(argument: &str, command: &Command, matches: &ArgMatches) -> anyhow::Result<Option<String>> {
    let (name, value) = match argument.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (argument, None),
    };
    // As upstream's flags are read.
    let name = name.trim_start_matches('-').replace('_', "-");
    let Some((name, reads)) = ROWS.iter().find(|row| row.0 == name) else {
        bail!("kube-apiserver 1.36 has no flag {name}");
    };
    match reads {
        As(here) => {
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(here));
            let arg = arg.with_context(|| format!("there is no flag --{here}"))?;
            let source = matches.value_source(arg.get_id().as_str());
            if source.is_some_and(|source| source != ValueSource::DefaultValue) {
                bail!(
                    "--{here} is given as well (as a flag, in the configuration file or as a variable): say it in one place"
                );
            }
            flag(here, arg, value)
        }
        Only(values, why) => {
            let value = match value {
                None => "true",
                Some(value) if values.iter().any(|v| boolean(v).is_some()) => {
                    boolean(value).map_or(value, |is| if is { "true" } else { "false" })
                }
                Some(value) => value,
            };
            if values.contains(&value) { Ok(None) } else { bail!("{why}") }
        }
        Unused(why) => {
            // Before there is a log.
            say(&format!("--kube-apiserver-arg {name} changes nothing: {why}"));
            Ok(None)
        }
        Refused(why) => bail!("{why}"),
    }
}

/// The flag with its value. What is true or false is read as Go reads it, and may be left out.
fn flag(name: &str, arg: &Arg, value: Option<&str>) -> anyhow::Result<Option<String>> {
    let values = arg.get_possible_values();
    let is_boolean = matches!(arg.get_action(), ArgAction::SetTrue)
        || (!values.is_empty() && values.iter().all(|v| matches!(v.get_name(), "true" | "false")));
    if !is_boolean {
        let value = value.with_context(|| format!("flag needs an argument: --{name}"))?;
        return Ok(Some(format!("--{name}={value}")));
    }
    let text = value.unwrap_or("true");
    let Some(is) = boolean(text) else {
        bail!(
            "invalid argument {text:?} for \"--{name}\" flag: strconv.ParseBool: parsing {text:?}: invalid syntax"
        );
    };
    Ok(match arg.get_action() {
        ArgAction::SetTrue => is.then(|| format!("--{name}")),
        _ => Some(format!("--{name}={is}")),
    })
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(args: &[&str]) -> Result<Vec<String>, String> {
        let args: Vec<OsString> = ["yare", "server"].iter().chain(args).map(OsString::from).collect();
        let matches = Cli::command().try_get_matches_from(&args).map_err(|e| e.to_string())?;
        let given = args.len();
        let all = expand(args.clone(), &matches).map_err(|e| format!("{e:#}"))?.unwrap_or(args);
        Cli::command().try_get_matches_from(&all).map_err(|e| e.to_string())?;
        Ok(all[given..].iter().map(|a| a.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn rows_are_in_order_and_lead_somewhere() {
        assert!(ROWS.windows(2).all(|two| two[0].0 < two[1].0));
        let cli = Cli::command();
        let server = cli.find_subcommand("server").unwrap();
        for (name, reads) in ROWS {
            let As(here) = reads else { continue };
            assert!(
                server.get_arguments().any(|arg| arg.get_long() == Some(here)),
                "{name}: no flag --{here}"
            );
        }
    }

    #[test]
    fn flags_here_and_there() {
        for (argument, flag) in [
            ("max-requests-inflight=800", "--max-requests-inflight=800"),
            ("--secure_port=7443", "--https-listen-port=7443"),
            ("anonymous-auth=F", "--anonymous-auth=false"),
            ("audit-log-compress", "--audit-log-compress"),
            ("feature-gates=A=true,B=false", "--feature-gates=A=true,B=false"),
            ("audit-webhook-batch-initial-backoff=1s", "--audit-webhook-initial-backoff=1s"),
            ("tls-sni-cert-key=a,b:c,d", "--tls-sni-cert-key=a,b:c,d"),
            ("audit-log-compress=0", ""),
            ("profiling=FALSE", ""),
            ("storage-media-type=application/vnd.kubernetes.protobuf", ""),
            ("emulated-version=kube=1.35", "--emulated-version=kube=1.35"),
            ("show-hidden-metrics-for-version=", ""),
        ] {
            let flags = expanded(&[&format!("--kube-apiserver-arg={argument}")]).unwrap();
            assert_eq!(flags.concat(), flag, "{argument}");
        }
        let many = ["--kube-apiserver-arg=event-ttl=2h;profiling=false", "--kube-apiserver-arg=event-ttl=3h"];
        assert_eq!(expanded(&many).unwrap(), ["--event-ttl=2h", "--event-ttl=3h"]);
        assert!(expanded(&["--event-ttl=1h"]).unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (args, part) in [
            (&["no-such=1"][..], "--kube-apiserver-arg no-such=1: kube-apiserver 1.36 has no flag no-such"),
            (&["event-ttl"], "flag needs an argument: --event-ttl"),
            (&["event-ttl=x"], "invalid value 'x' for '--event-ttl"),
            (&["audit-log-compress=maybe"], "strconv.ParseBool: parsing \"maybe\": invalid syntax"),
            (&["etcd-servers=http://127.0.0.1:2379"], "below --data-dir"),
            (&["v=4"], "YARE_LOG"),
            (&["profiling"], "there are no profiles"),
            (&["allow-privileged=false"], "Pod Security"),
            (&["tls-cert-file=a"], "--tls-private-key-file"),
            (&["event-ttl=1h", "--event-ttl=2h"], "--event-ttl is given as well"),
            (&["secure-port=1", "--https-listen-port=2"], "--https-listen-port is given as well"),
        ] {
            let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            args[0].insert_str(0, "--kube-apiserver-arg=");
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let error = expanded(&args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}

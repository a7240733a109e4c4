//! `yare agent`: this machine joins a cluster as a node.
//!
//! In: an address and a token. Out: a node. First it is found out whom to believe ([`discovery`]), then the token is
//! exchanged for a certificate of the node's own, which renews itself from then on. Both are kept below
//! `DATA_DIR/agent/pki`, so that a machine that comes back needs no token any more.

mod discovery;

use std::{
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use yare_auth::{
    pki::{KeyPairPem, Leaf, Subject, ask, file_pin, key_pins, write_private},
    tls::{Serving, Shown, Speaks, Trust, outside_client, showing_client},
};
use yare_client::{Backoff, Client, HangUp, get_bytes, remote};
use yare_net::ipam::Cidr;
use yare_node::certificates::{self, CertificateError, Held, Kind, Rotation, Store};

use crate::{
    agent::{self, Agent, ClusterPlan, Plan},
    cli::AgentArgs,
    joining::{self, Cluster},
    kubelet_arg,
    progress::{Progress, complain, say},
    server::{log_to_stderr, told_to_stop},
    token::Token,
};

/// Between attempts to reach the API server.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// What the node agent calls itself in its requests.
const KUBELET: &str = "kubelet";
/// The largest ConfigMap that is read.
const SHARED_MAX_BYTES: usize = 1 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Where what this machine keeps of its membership is.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }
}

/// Runs until SIGTERM or SIGINT. Containers go on afterwards.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    log_to_stderr();
    agent::check_machine(&args.node)?;
    let mut progress = Progress::new();
    let name = agent::node_name(&args.node)?;
    let files = Files { directory: args.node.data.data_dir.join("agent/pki") };
    let token = token(&args)?;
    let authority = known_authority(&args, &files, token.as_ref()).await?;
    progress.done("cluster", &args.server);

    let hang_up = HangUp::default();
    let shown = Arc::new(Shown::default());
    // Each under the name of upstream's component, all as the same node.
    let component = |name: &str| -> anyhow::Result<Client> {
        let tls = showing_client(&authority, shown.clone(), Speaks::Both)?;
        Ok(Client::new(remote(&args.server, tls, None, &hang_up, name)?))
    };
    let client = component(KUBELET)?;
    let (proxy, dns) = (component("kube-proxy")?, component("yare")?);
    let joiner = token.as_ref().map(|token| joiner(&args.server, &authority, token)).transpose()?;
    let store = Store::new(&files.directory, Kind::Client);
    let held = certificate(&store, &name, joiner.as_ref()).await?;
    shown.replace(&held.pair)?;
    write_kubeconfig(&args, &files, &store)?;
    progress.done("certificate", &format!("until {}", held.leaf.not_after));

    let plan = plan(&args, name, &files, &client).await?;
    kubelet_arg::check_machine(&plan.kubelet)?;
    let rotation = plan.kubelet.settings().rotate_certificates.then(|| {
        let (client, hang_up) = (client.clone(), hang_up.clone());
        let rotation = Rotation {
            store,
            held: Some(held),
            template: watch::channel(Some(certificates::template(&plan.name, &[], &[]))).1,
            // Who has missed the end of its certificate is let in once more by the token.
            client: {
                let client = client.clone();
                Box::new(move |good| match &joiner {
                    Some(joiner) if !good => joiner.clone(),
                    _ => client.clone(),
                })
            },
            seams: yare_node::machine_seams(),
            replaced: Box::new(move |held| match shown.replace(&held.pair) {
                Ok(()) => {
                    tracing::info!(until = %held.leaf.not_after, "the certificate was renewed");
                    // A connection stays what it was when it was made.
                    hang_up.all();
                }
                Err(error) => tracing::warn!(%error, "the renewed certificate cannot be shown"),
            }),
        };
        tokio::spawn(rotation.run())
    });
    let clients = agent::Clients { node: client, proxy, dns, hang_up: Some(hang_up) };
    let serving = Serving::new(&serving(&files, &plan)?)?;
    let agent = Agent::start(&args.node, &plan, clients, serving, &mut progress).await?;
    progress.total("joined");
    say("");

    told_to_stop().await?;
    if let Some(rotation) = rotation {
        rotation.abort();
    }
    agent.shutdown().await;
    Ok(())
}

fn token(args: &AgentArgs) -> anyhow::Result<Option<Token>> {
    let text = match (&args.token, &args.token_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?)
        }
        (None, None) => None,
    };
    text.map(|text| Token::parse(&text).context("--token")).transpose()
}

/// The authority that this machine has found before, where nothing that it is told speaks against it, or the one
/// that it finds now.
async fn known_authority(args: &AgentArgs, files: &Files, token: Option<&Token>) -> anyhow::Result<String> {
    let path = files.authority();
    let pins = &args.discovery_token_ca_cert_hash;
    let fits = |pem: &String| {
        let pinned = token.and_then(|token| token.pin.as_ref());
        pinned.is_none_or(|pin| *pin == file_pin(pem))
            && (pins.is_empty() || key_pins(pem).iter().any(|key| pins.contains(key)))
            && yare_auth::tls::check_authority(pem).is_ok()
    };
    if let Some(pem) = std::fs::read_to_string(&path).ok().filter(fits) {
        return Ok(pem);
    }
    let Some(token) = token else {
        bail!("{} is not there: this machine has not joined yet, and needs --token to do so", path.display());
    };
    let pem = discovery::authority(&args.server, token, pins).await?;
    std::fs::create_dir_all(&files.directory).with_context(|| files.directory.display().to_string())?;
    write_private(&path, &pem)?;
    Ok(pem)
}

/// A client that comes with the token.
fn joiner(server: &str, authority: &str, token: &Token) -> anyhow::Result<Client> {
    let tls = outside_client(Trust::Authority(authority), None, Speaks::Both)?;
    Ok(Client::new(remote(server, tls, Some(&token.bearer), &HangUp::default(), KUBELET)?))
}

/// The node's certificate: the one that is there, or its first.
async fn certificate(store: &Store, name: &str, joiner: Option<&Client>) -> anyhow::Result<Held> {
    let template = certificates::template(name, &[], &[]);
    match store.current() {
        Ok(Some(held)) if held.leaf.common_name == template.common_name => {
            // One whose time has not come is of a clock that runs behind, which is likely to be set soon.
            if Timestamp::now() < held.leaf.not_after {
                return Ok(held);
            }
            complain(&format!("the node's certificate was good until {}", held.leaf.not_after));
        }
        Ok(_) => {}
        Err(error) => complain(&format!("the node's certificate: {error}")),
    }
    let Some(joiner) = joiner else {
        bail!("the node {name:?} has no certificate that is good, and needs --token to get one");
    };
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        match certificates::bootstrap(joiner, store, name, Timestamp::now).await {
            Ok(held) => return Ok(held),
            Err(error @ (CertificateError::Denied { .. } | CertificateError::Failed { .. })) => {
                return Err(error).context("the first certificate of the node");
            }
            Err(error) => complain(&format!("the first certificate of the node: {error}; will retry")),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// A kubeconfig with the node's own rights, for people at this machine.
fn write_kubeconfig(args: &AgentArgs, files: &Files, store: &Store) -> anyhow::Result<()> {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path).display().to_string();
    let (authority, pair) = (absolute(files.authority()), absolute(store.current_path()));
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "clusters": [{"name": "default", "cluster": {
            "server": args.server, "certificate-authority": authority}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "users": [{"name": "default", "user": {"client-certificate": pair, "client-key": pair}}],
    });
    let path = args.node.data.data_dir.join("agent/kubelet.kubeconfig");
    crate::kubeconfig::write(&path, &format!("{text:#}\n"), 0o600)
}

/// What the node is told: by flags, and where they say nothing, by the cluster.
async fn plan(args: &AgentArgs, name: String, files: &Files, client: &Client) -> anyhow::Result<Plan> {
    let shared = shared(client).await;
    let ranges = |flag: &str, given: &Option<String>, shared: &str| -> anyhow::Result<Vec<Cidr>> {
        let text = given.as_deref().unwrap_or(shared);
        text.split(',')
            .filter(|range| !range.is_empty())
            .map(|range| range.parse().map_err(|e| anyhow::anyhow!("--{flag}: {e}")))
            .collect()
    };
    let cluster = ClusterPlan {
        cluster_cidrs: ranges("cluster-cidr", &args.cluster_cidr, &shared.cluster_cidr)?,
        service_cidrs: ranges("service-cidr", &args.service_cidr, &shared.service_cidr)?,
        cluster_dns: args.cluster_dns.or(shared.cluster_dns),
        cluster_domain: args.cluster_domain.clone().unwrap_or(shared.cluster_domain),
    };
    let ip = agent::node_ip(&args.node, || towards(&args.server)).with_context(|| {
        format!("this machine has no address towards {}; give it one with --node-ip", args.server)
    })?;
    // As kubeadm has it: nobody renews certificates by hand.
    let further = [("rotateCertificates", json!(true))];
    Plan::new(&args.node, name, ip, &files.authority(), cluster, &further)
}

/// What the nodes of the cluster share. A cluster of another making says nothing.
async fn shared(client: &Client) -> Cluster {
    let (namespace, map) = joining::SHARED;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{map}");
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let kube = client.kube();
        let answer = tokio::time::timeout(TIMEOUT, get_bytes(&kube, &path, SHARED_MAX_BYTES)).await;
        let why = match answer {
            Ok(Ok(bytes)) => {
                return Cluster::read(&serde_json::from_slice::<Value>(&bytes).unwrap_or_default());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if why.starts_with("404") || why.starts_with("403") {
            complain(&format!("this cluster does not say what its nodes share ({why}): flags must"));
            return Cluster::default();
        }
        complain(&format!("what nodes share: {why}; will retry"));
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// The address of this machine on the way to a server. Nothing is sent.
fn towards(server: &str) -> Option<IpAddr> {
    let uri: http::Uri = server.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let target = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port)).ok()?.next()?;
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// What the node's own API shows, unless the configuration says something else: a certificate that nobody vouches
/// for, kept over restarts, as upstream has it.
fn serving(files: &Files, plan: &Plan) -> anyhow::Result<KeyPairPem> {
    let path = |name: &str| files.directory.join(name);
    let (certificate, key) = (path("kubelet.crt"), path("kubelet.key"));
    let read = |path: &Path| std::fs::read_to_string(path);
    if let (Ok(certificate), Ok(key)) = (read(&certificate), read(&key)) {
        let pair = KeyPairPem { certificate, key };
        let leaf = Leaf::read(&pair.certificate);
        let fits = leaf.is_ok_and(|leaf| {
            leaf.is_good_at(Timestamp::now())
                && leaf.dns_names.contains(&plan.name)
                && leaf.addresses.contains(&plan.ip)
        });
        if fits && Serving::new(&pair).is_ok() {
            return Ok(pair);
        }
    }
    let names = [plan.name.clone(), plan.ip.to_string()];
    let subject = Subject { common_name: &plan.name, alternative_names: &names, ..Subject::default() };
    let pair = ask::self_signed(&subject)?;
    write_private(&key, &pair.key)?;
    write_private(&certificate, &pair.certificate)?;
    Ok(pair)
}

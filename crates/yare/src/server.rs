//! `yare server`: the components in the order in which they need each other.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use yare_apiserver::{
    ApiServer, Config,
    admission::Settings,
    aggregation::{FrontProxy, resolve::Routing},
    identity,
    runtime_config::{Forward, RuntimeConfig},
};
use yare_auth::{
    User, bootstrap,
    pki::{Pki, Subject, Usage},
    tls::Serving,
};
use yare_client::Client;
use yare_controllers::Controllers;
use yare_net::ipam::Cidr;
use yare_scheduler::Scheduler;
use yare_schema::{features::Gates, release::Emulation};
use yare_store::{Options, Store};

use crate::{
    agent::{self, Agent},
    auth::FRONT_PROXY_CLIENT,
    cli::ServerArgs,
    joining, kubeconfig, kubelet_arg, local_storage,
    progress::{Progress, say},
};

/// Certificates of clients inside this machine, by file name.
const ADMIN: &str = "admin";
const KUBELET_CLIENT: &str = "apiserver-kubelet-client";
/// What controllers call themselves in their requests.
const MANAGER: &str = "kube-controller-manager";

/// What is worked out from the flags before anything starts.
struct Plan {
    /// This machine as a node.
    node: agent::Plan,
    /// Where the cluster reaches the API server.
    advertised: IpAddr,
    /// Pod range.
    cluster_cidr: Cidr,
    /// Service ranges: one, or one of each family. The first is the usual one.
    service_cidrs: Vec<Cidr>,
    /// Cluster DNS.
    cluster_dns: IpAddr,
    /// Where volumes of the StorageClass local-path are.
    local_storage_path: String,
}

impl Plan {
    fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        let range =
            |text: &str, flag: &str| text.parse::<Cidr>().map_err(|e| anyhow::anyhow!("--{flag}: {e}"));
        let cluster_cidr = range(&args.cluster_cidr, "cluster-cidr")?;
        let service_cidrs = service_cidrs(&args.service_cidr)?;
        let service_cidr = service_cidrs[0];
        if let Some(size) = args.node_cidr_mask_size
            && !(cluster_cidr.prefix..=cluster_cidr.prefix.saturating_add(16)).contains(&size)
        {
            bail!(
                "--node-cidr-mask-size {size}: --cluster-cidr {cluster_cidr} cannot be cut into such parts"
            );
        }
        let cluster_dns = match args.cluster_dns {
            Some(ip) if service_cidrs.iter().any(|range| range.contains(ip)) => ip,
            Some(ip) => bail!("--cluster-dns {ip} is not in --service-cidr {}", args.service_cidr),
            None => {
                service_cidr.at(10).with_context(|| format!("--service-cidr {service_cidr} is too small"))?
            }
        };
        // Without a way to the outside, pods still reach the node's own address in the pod range.
        let outside = || yare_net::pods::outside_address().ok().flatten().or_else(|| cluster_cidr.at(1));
        let node_ip = agent::node_ip(&args.node, outside)
            .with_context(|| format!("--cluster-cidr {cluster_cidr} is too small"))?;
        let authority = args.node.data.data_dir.join("tls/ca.crt");
        let node = agent::Plan::new(
            &args.node,
            agent::node_name(&args.node)?,
            node_ip,
            &authority,
            agent::ClusterPlan {
                cluster_cidrs: vec![cluster_cidr],
                service_cidrs: service_cidrs.clone(),
                cluster_dns: Some(cluster_dns),
                cluster_domain: args.cluster_domain.clone(),
            },
            &[],
        )?;
        let local_storage_path = args
            .default_local_storage_path
            .clone()
            .unwrap_or_else(|| args.node.data.data_dir.join("storage"));
        let local_storage_path = std::path::absolute(&local_storage_path)
            .ok()
            .filter(|path| !path.components().any(|c| c == std::path::Component::ParentDir))
            .and_then(|path| path.to_str().map(str::to_owned))
            .with_context(|| {
                format!("--default-local-storage-path {}: not a plain path", local_storage_path.display())
            })?;
        let advertised = args.serving.advertised(node.ip, service_cidr.base)?;
        Ok(Self { node, advertised, cluster_cidr, service_cidrs, cluster_dns, local_storage_path })
    }
}

/// Least number of addresses of the first range.
const MIN_SERVICE_ADDRESSES: u64 = 8;

/// The ranges of `--service-cidr`, with upstream's errors about `--service-cluster-ip-range`.
fn service_cidrs(text: &str) -> anyhow::Result<Vec<Cidr>> {
    let ranges: Vec<Cidr> = text
        .split(',')
        .map(|range| range.trim().parse().map_err(|error| anyhow::anyhow!("--service-cidr: {error}")))
        .collect::<anyhow::Result<_>>()?;
    let is_six = |range: &Cidr| range.base.is_ipv6();
    match ranges.as_slice() {
        [first, ..] if first.size() < MIN_SERVICE_ADDRESSES => bail!(
            "--service-cidr {first}: the service cluster IP range must be at least {MIN_SERVICE_ADDRESSES} IP addresses"
        ),
        [_, _, _, ..] => bail!("--service-cidr must not contain more than two entries"),
        [first, second] if is_six(first) == is_six(second) => {
            bail!("--service-cidr[0] and --service-cidr[1] must be of different IP family")
        }
        _ => {}
    }
    if let Some(wide) = ranges.iter().find(|range| is_six(range) && range.prefix < 64) {
        bail!(
            "--service-cidr {wide}: shortest allowed prefix length for service CIDR is 64, got {}",
            wide.prefix
        );
    }
    Ok(ranges)
}

/// As which version of Kubernetes the API behaves.
fn emulation(args: &ServerArgs) -> anyhow::Result<Emulation> {
    let emulation = Emulation::parse(&args.emulated_version, &args.min_compatibility_version)
        .map_err(anyhow::Error::msg)
        .context("--emulated-version, --min-compatibility-version")?;
    for (flag, given) in [
        ("emulation-forward-compatible", args.emulation_forward_compatible),
        ("runtime-config-emulation-forward-compatible", args.runtime_config_emulation_forward_compatible),
    ] {
        if given && !emulation.is_other() {
            bail!(
                "--{flag} cannot be set to true if the emulation version is the same as the binary version"
            );
        }
    }
    Ok(emulation)
}

fn admission(args: &ServerArgs) -> anyhow::Result<Settings> {
    let mut settings = Settings::load(
        &args.enable_admission_plugins,
        &args.disable_admission_plugins,
        args.admission_control_config_file.as_deref(),
    )?;
    settings.not_ready_toleration_s = args.default_not_ready_toleration_seconds;
    settings.unreachable_toleration_s = args.default_unreachable_toleration_seconds;
    Ok(settings)
}

/// What keeps the data directory from being used, and what to do about it.
fn unusable(data_dir: &Path, error: anyhow::Error) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| {
            use std::io::ErrorKind::{QuotaExceeded, StorageFull};
            matches!(e.kind(), StorageFull | QuotaExceeded)
        })
    });
    let data_dir = data_dir.display();
    error.context(if full {
        format!("the disk of the data directory {data_dir} is full (free some space on it, or choose another with --data-dir)")
    } else {
        format!("cannot use the data directory {data_dir} (choose another with --data-dir)")
    })
}

/// Begins to write the log, as `YARE_LOG` chooses.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("YARE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Returns at SIGTERM or SIGINT.
pub async fn told_to_stop() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    say("stopping; containers go on");
    Ok(())
}

/// Runs until SIGTERM or SIGINT. Containers go on afterwards.
pub async fn run(args: ServerArgs, flags: BTreeMap<String, String>) -> anyhow::Result<()> {
    log_to_stderr();
    if !args.disable_agent {
        agent::check_machine(&args.node)?;
    }
    let mut progress = Progress::new();
    let plan = Plan::new(&args)?;
    if !args.disable_agent {
        kubelet_arg::check_machine(&plan.node.kubelet)?;
    }
    let admission = admission(&args)?;
    let spoken = args.serving.read()?;
    // Taken first: a port in use should be said before anything is written.
    let address = SocketAddr::new(args.node.bind_address, args.https_listen_port);
    let listener = match args.serving.permit_port_sharing {
        true => ApiServer::bind_shared(address)?,
        false => ApiServer::bind(address).await?,
    };
    let port = listener.local_addr()?.port();

    let data_dir = &args.node.data.data_dir;
    let emulation = emulation(&args)?;
    let gates = Gates::emulating(emulation, &args.node.feature_gates.join(",")).context("--feature-gates")?;
    let forward = Forward {
        better: args.emulation_forward_compatible,
        asked: args.runtime_config_emulation_forward_compatible,
    };
    let runtime_config = RuntimeConfig::parse(&args.runtime_config.join(","))
        .and_then(|config| config.emulating(emulation, forward))
        .context("--runtime-config")?;
    let pki = Pki::open(&data_dir.join("tls")).map_err(|error| unusable(data_dir, error.into()))?;
    let egress = args.requests.egress()?;
    let auth = args.auth.open(&pki, args.token.as_deref(), egress.as_deref()).await?;
    let signing = args.signing.config(&pki)?;
    let (front_proxy_authority, front_proxy_names) = args.auth.front_proxy(&pki)?;
    let names = server_names(&args, &plan);
    let serving = pki.keep(
        "apiserver",
        Usage::Server,
        &Subject { common_name: "kube-apiserver", alternative_names: &names, ..Subject::default() },
    )?;
    let admin = pki.keep(ADMIN, Usage::Client, &client("kubernetes-admin", &["system:masters"]))?;
    let kubelet_client =
        pki.keep(KUBELET_CLIENT, Usage::Client, &client(agent::KUBELET_CLIENT_USER, &["kubelet-api-admin"]))?;
    let front_proxy = pki.keep_front_proxy(FRONT_PROXY_CLIENT, &client(FRONT_PROXY_CLIENT, &[]))?;
    progress.done("certificates", &args.node.data.data_dir.join("tls").display().to_string());

    let store_dir = args.node.data.data_dir.join("store");
    let encryption = args.encryption.open(&gates, identity::id()).await?;
    let mut options = Options::new(&store_dir);
    if let Some(encryption) = &encryption {
        options.sealer = encryption.clone();
    }
    let store = Store::open(options, yare_apiserver::indexer())
        .await
        .map_err(|error| unusable(data_dir, error.into()))?;
    progress.done("store", &format!("revision {}", store.revision()));

    let mut config = Config::new(store.clone());
    config.admission = admission;
    config.external = args.serving.external(port);
    let here = config.external.clone().unwrap_or_else(|| SocketAddr::new(plan.advertised, port).to_string());
    let own = || format!("https://{here}/openid/v1/jwks");
    config.openid = Some(args.auth.accounts.service_account_jwks_uri.clone().unwrap_or_else(own));
    config.auth = auth;
    args.outgoing.apply(&mut config, &pki, kubelet_client)?;
    config.front_proxy = Some(FrontProxy {
        pair: Arc::new(args.outgoing.proxy_client(front_proxy)?),
        authority: front_proxy_authority,
        client_authority: args.auth.client_authority(&pki)?,
        allowed_names: front_proxy_names,
    });
    config.aggregator_routing =
        if args.outgoing.enable_aggregator_routing { Routing::Endpoints } else { Routing::ClusterIp };
    config.service_cidrs = plan.service_cidrs.iter().map(Cidr::to_string).collect();
    config.node_ports = args.service_node_port_range;
    config.advertise = Some((plan.advertised, port));
    args.serving.apply(&mut config, spoken, serving, &pki.cluster.certificate)?;
    config.identity = Some(identity::Timing::default());
    config.gates = gates;
    config.runtime_config = runtime_config;
    config.objects = bootstrap::objects(&config.gates);
    config.objects.extend(agent::bootstrap_objects());
    config.objects.extend(local_storage::bootstrap_objects());
    let controller_metrics = Arc::<yare_controllers::Metrics>::default();
    let scheduler_metrics = Arc::<yare_scheduler::Metrics>::default();
    config.flags = flags;
    config.metrics = vec![
        Arc::new({
            let metrics = controller_metrics.clone();
            move |page| metrics.expose(page)
        }),
        Arc::new({
            let metrics = scheduler_metrics.clone();
            move |page| metrics.expose(page)
        }),
    ];
    config.tracer = args.requests.tracer(identity::id(), egress.as_deref())?;
    config.egress = egress;
    config.objects.extend(joining::bootstrap_objects());
    args.requests.apply(&mut config);
    config.encryption = encryption;
    config.audit = args.audit.open(&config)?;
    let api = ApiServer::start(config).await?;
    let serve = tokio::spawn({
        let api = api.clone();
        async move { api.serve(listener).await }
    });
    progress.done("api server", &format!("https://{}", SocketAddr::new(local(args.node.bind_address), port)));

    let url = format!("https://{}", SocketAddr::new(local(args.node.bind_address), port));
    let text = kubeconfig::text(&url, &pki.cluster.certificate, &admin);
    // The commands of this machine look below the data directory, wherever else people want it.
    let own = args.node.data.data_dir.join(kubeconfig::FILE);
    let mode = args.write_kubeconfig_mode.0;
    let written = kubeconfig::write(&own, &text, if args.write_kubeconfig.is_some() { 0o600 } else { mode });
    match written {
        // On a full disk that of the last start does as well.
        Err(error) if own.exists() => tracing::warn!("{error:#}"),
        written => written?,
    }
    if let Some(path) = &args.write_kubeconfig {
        kubeconfig::write(path, &text, mode)?;
    }
    let path = args.write_kubeconfig.as_ref().unwrap_or(&own);

    // Each component comes in under its own name and may do what that name may.
    let component = |agent: &str, name: &str, groups: &[&str]| {
        Client::new(yare_client::in_process_as(api.service(User::new(name, groups)), agent))
    };
    let controllers = Controllers::start(
        &component(MANAGER, "system:kube-controller-manager", &[]),
        yare_controllers::Config {
            disabled: disabled_controllers(&args),
            local_storage_path: plan.local_storage_path.clone(),
            root_ca: pki.cluster.certificate.clone(),
            token_signer: api.core().config.auth.own_signer().cloned(),
            gates: api.core().config.gates.clone(),
            metrics: controller_metrics,
            cluster_cidrs: vec![plan.cluster_cidr.to_string()],
            node_cidr_mask_size_ipv4: args.node_cidr_mask_size.unwrap_or(24),
            node_cidr_mask_size_ipv6: args.node_cidr_mask_size.unwrap_or(64),
            writers: Some(Arc::new({
                let api = api.clone();
                move |account| {
                    let user = User::service_account("kube-system", account, "");
                    yare_client::in_process_as(api.service(user), MANAGER)
                }
            })),
            ..signing
        },
    );
    progress.done("controllers", "");
    let scheduler = (!args.node.disable.iter().any(|d| d == "scheduler")).then(|| {
        let client = component("kube-scheduler", "system:kube-scheduler", &[]);
        let config = yare_scheduler::Config {
            gates: api.core().config.gates.clone(),
            metrics: scheduler_metrics,
            ..Default::default()
        };
        Scheduler::start(client, config)
    });
    let dns_disabled = args.node.disable.iter().any(|d| d == "dns");
    progress.done("scheduler", if scheduler.is_some() { "" } else { "disabled" });

    let own =
        yare_controllers::api::Api::new(component("yare", "system:apiserver", &["system:masters"]).kube());
    let joining = tokio::spawn(joining::keep(
        own.clone(),
        joining::Published {
            server: format!("https://{}", SocketAddr::new(plan.advertised, port)),
            authority: pki.cluster.certificate.clone(),
            cluster: joining::Cluster {
                cluster_cidr: plan.cluster_cidr.to_string(),
                service_cidr: plan.service_cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>().join(","),
                cluster_dns: (!dns_disabled).then_some(plan.cluster_dns),
                cluster_domain: args.cluster_domain.clone(),
            },
        },
    ));
    let dns = (!dns_disabled).then(|| {
        tokio::spawn(yare_net::dns::publish(component("yare", agent::DNS_USER, &[]), plan.cluster_dns))
    });
    let no_local_storage = args.node.disable.iter().any(|d| d == local_storage::COMPONENT);
    let addons = tokio::spawn(local_storage::keep(own, no_local_storage));

    let agent = if args.disable_agent {
        None
    } else {
        let kubelet = pki.keep(
            "kubelet",
            Usage::Server,
            &Subject {
                common_name: &format!("system:node:{}", plan.node.name),
                organizations: &["system:nodes"],
                alternative_names: &[plan.node.name.clone(), plan.node.ip.to_string(), "127.0.0.1".into()],
            },
        )?;
        let clients = agent::Clients {
            node: component("kubelet", &format!("system:node:{}", plan.node.name), &["system:nodes"]),
            proxy: component("kube-proxy", "system:kube-proxy", &[]),
            dns: component("yare", agent::DNS_USER, &[]),
            hang_up: None,
        };
        let serving = Serving::new(&kubelet)?;
        Some(Agent::start(&args.node, &plan.node, clients, serving, &mut progress).await?)
    };
    progress.total("ready");
    say("");
    say(&format!("  export KUBECONFIG={}", path.display()));
    say("  kubectl get nodes");
    say("");

    told_to_stop().await?;
    if let Some(agent) = agent {
        agent.shutdown().await;
    }
    for task in [addons, joining].into_iter().chain(dns) {
        task.abort();
    }
    drop(scheduler);
    controllers.shutdown().await;
    api.shutdown().await;
    serve.abort();
    store.close().await;
    Ok(())
}

/// Names of controllers that do not run: what is disabled may be a component that has one.
fn disabled_controllers(args: &ServerArgs) -> Vec<String> {
    let name = |name: &String| match name.as_str() {
        local_storage::COMPONENT => local_storage::CONTROLLER.to_owned(),
        _ => name.clone(),
    };
    args.node.disable.iter().map(name).collect()
}

fn client<'a>(common_name: &'a str, organizations: &'a [&'a str]) -> Subject<'a> {
    Subject { common_name, organizations, alternative_names: &[] }
}

/// Where a client on this machine reaches a server that listens on `bind`.
fn local(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(ip) if ip.is_unspecified() => [127, 0, 0, 1].into(),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    }
}

/// The names under which clients know the API server.
fn server_names(args: &ServerArgs, plan: &Plan) -> Vec<String> {
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "::1"]
            .map(str::to_owned)
            .into();
    names.push(format!("kubernetes.default.svc.{}", args.cluster_domain));
    names.extend(plan.service_cidrs.iter().filter_map(|range| range.at(1)).map(|ip| ip.to_string()));
    names.push(plan.node.ip.to_string());
    names.push(plan.node.name.clone());
    if !args.node.bind_address.is_unspecified() {
        names.push(args.node.bind_address.to_string());
    }
    names.extend(args.tls_san.iter().cloned().chain(args.serving.names()));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_services() {
        let ranges = |text: &str| {
            service_cidrs(text).map(|all| all.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" "))
        };
        for (text, expected) in [
            ("10.43.0.0/16", "10.43.0.0/16"),
            ("10.43.0.0/16,fd00:43::/112", "10.43.0.0/16 fd00:43::/112"),
            ("fd00:43::/112, 10.43.7.9/16", "fd00:43::/112 10.43.0.0/16"),
        ] {
            assert_eq!(ranges(text).unwrap(), expected);
        }
        for (text, part) in [
            ("", "is not an address range"),
            ("10.43.0.0/16,10.44.0.0/16", "must be of different IP family"),
            ("10.43.0.0/16,fd00::/112,fd01::/112", "must not contain more than two entries"),
            ("10.43.0.0/30", "must be at least 8 IP addresses"),
            ("10.43.0.0/16,fd00::/48", "shortest allowed prefix length for service CIDR is 64, got 48"),
        ] {
            let error = ranges(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn every_controller_has_a_role_of_its_own() {
        let gates: Vec<String> =
            yare_controllers::table::GATED.iter().map(|(_, gate)| format!("{gate}=true")).collect();
        let mut objects = bootstrap::objects(&Gates::parse(&gates.join(",")).unwrap());
        objects.extend(local_storage::bootstrap_objects());
        for row in yare_controllers::table::CONTROLLERS.iter().filter(|row| !row.account.is_empty()) {
            let role = format!("system:controller:{}", row.account);
            let found = objects.iter().any(|o| {
                (o["kind"] == "ClusterRole" || o["kind"] == "Role") && o["metadata"]["name"] == role.as_str()
            });
            assert!(found, "{}: no role {role}", row.name);
        }
    }
}

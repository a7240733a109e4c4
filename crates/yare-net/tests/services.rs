//! Services on real kernel objects: what is sent to a Service reaches its endpoints.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use support::{Pod, on_a_node};
use yare_net::{
    PodNetwork, nft,
    proxy::{Config, HealthServers, Plan, Rules, Tracked, remove_rules},
};

const SERVICE: &str = "10.43.0.5";

struct Node {
    _dir: tempfile::TempDir,
    network: PodNetwork,
    rules: Rules,
    applied: Option<Plan>,
    pods: Vec<(Pod, IpAddr)>,
}

impl Node {
    fn new(pods: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let network = PodNetwork::new(dir.path());
        network.configure("10.42.0.0/24".parse().unwrap(), |_| true).unwrap();
        let rules = Rules::new(Config {
            node_name: "n1".into(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            tracked: Tracked::default(),
        })
        .unwrap();
        let pods = (0..pods)
            .map(|i| {
                let pod = Pod::new();
                let ip = network.attach(&format!("pod{i}"), &pod.namespace, &[]).unwrap();
                (pod, ip)
            })
            .collect();
        Self { _dir: dir, network, rules, applied: None, pods }
    }

    /// Sets the service to these pods of this node as endpoints.
    fn expose(&mut self, spec: &Value, pods: &[usize]) {
        let here: Vec<(usize, &str)> = pods.iter().map(|i| (*i, "n1")).collect();
        self.expose_on(spec, &json!({}), &here);
    }

    /// Sets the service to these pods, each said to run on a node.
    fn expose_on(&mut self, spec: &Value, status: &Value, pods: &[(usize, &str)]) {
        let mut service = json!({"spec": {"type": "ClusterIP", "clusterIPs": [SERVICE],
            "ports": [{"name": "p", "protocol": "TCP", "port": 80}]}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        let protocol = service["spec"]["ports"][0]["protocol"].clone();
        service["status"] = status.clone();
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|(i, node)| {
                json!({"addresses": [self.pods[*i].1], "nodeName": node, "conditions": {"ready": true}})
            })
            .collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "p", "protocol": protocol, "port": 8080}]});
        let service = serde_json::from_value(service).unwrap();
        let slices = [serde_json::from_value(slice).unwrap()];
        let plan = self.rules.plan(&service, &slices);
        self.rules.apply(self.applied.as_ref(), Some(&plan)).unwrap();
        self.applied = Some(plan);
    }

    /// Each pod answers every connection with its own address and the client's.
    fn serve(&self) {
        for (pod, ip) in &self.pods {
            let (ip, (ready, started)) = (*ip, mpsc::channel());
            pod.run(move || {
                let listener = TcpListener::bind((ip, 8080)).unwrap();
                ready.send(()).unwrap();
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { continue };
                    let from = stream.peer_addr().unwrap().ip();
                    let _ = write!(stream, "{ip} {from}");
                }
            });
            started.recv().unwrap();
        }
    }
}

/// Which pod answered, and whom it saw.
fn ask(address: &str) -> Result<(String, String), std::io::ErrorKind> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).map_err(|e| e.kind())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
    let (pod, client) = answer.split_once(' ').unwrap();
    Ok((pod.into(), client.into()))
}

fn ask_many(address: &str) -> BTreeSet<String> {
    (0..60).map(|_| ask(address).unwrap().0).collect()
}

#[test]
fn a_cluster_ip_reaches_every_endpoint_from_node_and_pods() {
    on_a_node(|| {
        let mut node = Node::new(3);
        node.serve();
        node.expose(&json!({}), &[0, 1]);
        let expected: BTreeSet<String> = node.pods[..2].iter().map(|(_, ip)| ip.to_string()).collect();
        assert_eq!(ask_many("10.43.0.5:80"), expected);
        let from_pod = node.pods[2].0.run(|| ask_many("10.43.0.5:80")).join().unwrap();
        assert_eq!(from_pod, expected);
        // The endpoint sees the pod's own address.
        let seen = node.pods[2].0.run(|| ask("10.43.0.5:80").unwrap().1).join().unwrap();
        assert_eq!(seen, node.pods[2].1.to_string());
        // Endpoints change: only the new ones answer.
        node.expose(&json!({}), &[2]);
        assert_eq!(ask_many("10.43.0.5:80"), BTreeSet::from([node.pods[2].1.to_string()]));
        // A pod reaches itself through its service.
        let own = node.pods[2].0.run(|| ask("10.43.0.5:80").unwrap()).join().unwrap();
        assert_eq!(own, (node.pods[2].1.to_string(), node.network.gateway().unwrap().to_string()));
    });
}

#[test]
fn without_endpoints_connections_are_refused_at_once() {
    on_a_node(|| {
        let mut node = Node::new(1);
        node.serve();
        node.expose(&json!({}), &[]);
        assert_eq!(ask("10.43.0.5:80"), Err(std::io::ErrorKind::ConnectionRefused));
        let from_pod = node.pods[0].0.run(|| ask("10.43.0.5:80")).join().unwrap();
        assert_eq!(from_pod, Err(std::io::ErrorKind::ConnectionRefused));
        node.expose(&json!({}), &[0]);
        assert!(ask("10.43.0.5:80").is_ok());
    });
}

#[test]
fn a_node_port_answers_on_the_nodes_addresses() {
    on_a_node(|| {
        let mut node = Node::new(2);
        node.serve();
        let port = |policy: &str| {
            json!({"type": "NodePort", "externalTrafficPolicy": policy,
                "ports": [{"name": "p", "protocol": "TCP", "port": 80, "nodePort": 30080}]})
        };
        node.expose(&port("Cluster"), &[0, 1]);
        let gateway = node.network.gateway().unwrap();
        let address = format!("{gateway}:30080");
        assert_eq!(ask_many(&address).len(), 2);
        let there = address.clone();
        let from_pod = node.pods[0].0.run(move || ask(&there).unwrap()).join().unwrap();
        assert_eq!(from_pod.1, gateway.to_string(), "the client is hidden");
        node.expose(&port("Local"), &[1]);
        let there = address.clone();
        let from_pod = node.pods[0].0.run(move || ask(&there).unwrap()).join().unwrap();
        assert_eq!(from_pod, (node.pods[1].1.to_string(), node.pods[0].1.to_string()), "the client is seen");
        node.expose(&port("Cluster"), &[]);
        assert_eq!(ask(&address), Err(std::io::ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_client_sticks_to_its_endpoint_until_it_is_gone() {
    on_a_node(|| {
        let mut node = Node::new(3);
        node.serve();
        let sticky = json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}}});
        node.expose(&sticky, &[0, 1, 2]);
        let first = ask_many("10.43.0.5:80");
        assert_eq!(first.len(), 1);
        let gone = node.pods.iter().position(|(_, ip)| first.contains(&ip.to_string())).unwrap();
        let rest: Vec<usize> = (0..3).filter(|i| *i != gone).collect();
        node.expose(&sticky, &rest);
        let second = ask_many("10.43.0.5:80");
        assert_eq!(second.len(), 1);
        assert_ne!(first, second);
    });
}

#[test]
fn udp_flows_move_when_their_endpoint_goes() {
    on_a_node(|| {
        let mut node = Node::new(2);
        for (pod, ip) in &node.pods {
            let (ip, (ready, started)) = (*ip, mpsc::channel());
            pod.run(move || {
                let socket = UdpSocket::bind((ip, 8080)).unwrap();
                ready.send(()).unwrap();
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(ip.to_string().as_bytes(), from);
                }
            });
            started.recv().unwrap();
        }
        let udp = json!({"type": "NodePort",
            "ports": [{"name": "p", "protocol": "UDP", "port": 53, "nodePort": 30053}]});
        node.expose(&udp, &[0]);
        let node_port = format!("{}:30053", node.network.gateway().unwrap());
        let sockets = ["10.43.0.5:53", &node_port].map(|address| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            socket
        });
        let ask = |socket: &UdpSocket| {
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        for pod in [0, 1] {
            node.expose(&udp, &[pod]);
            for socket in &sockets {
                assert_eq!(ask(socket), node.pods[pod].1.to_string());
            }
        }
    });
}

#[test]
fn tcp_connections_that_wait_are_kept_in_mind() {
    on_a_node(|| {
        let _node = Node::new(0);
        for (name, seconds) in [("established", "86400"), ("close_wait", "3600")] {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}");
            assert_eq!(std::fs::read_to_string(path).unwrap().trim(), seconds, "{name}");
        }
    });
}

#[test]
fn a_large_rule_set_is_one_transaction() {
    on_a_node(|| {
        let plain = nft::Set {
            name: "numbers",
            key: &[nft::Part::Number],
            leads: nft::Leads::Nowhere,
            dynamic: false,
            ranges: false,
        };
        let element =
            |n: u32| nft::Element { set: plain.name, key: n.to_ne_bytes().to_vec(), data: nft::Data::None };
        let mut socket = nft::socket().unwrap();
        let mut batch = nft::Batch::new(nft::Family::V4, "large");
        batch.reset_table();
        batch.add_set(&plain);
        batch.commit(&mut socket).unwrap();
        // Some 16 MB: more than a socket takes at once unless it is told to.
        let all: Vec<_> = (0..200_000).map(element).collect();
        let add = |last: Option<&nft::Element>| {
            let mut batch = nft::Batch::new(nft::Family::V4, "large");
            batch.add_elements(&all);
            batch.delete_elements(last);
            batch
        };
        let absent = element(u32::MAX);
        let error = add(Some(&absent)).commit(&mut socket).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT), "{error}");
        let there =
            |socket: &mut _| nft::elements(socket, nft::Family::V4, "large", plain.name).unwrap().len();
        assert_eq!(there(&mut socket), 0, "a refused transaction leaves nothing");
        add(None).commit(&mut socket).unwrap();
        assert_eq!(there(&mut socket), all.len());
    });
}

#[test]
fn rules_are_made_anew_and_removed_whole() {
    on_a_node(|| {
        let mut node = Node::new(1);
        node.serve();
        node.expose(&json!({}), &[0]);
        let config = Config {
            node_name: "n1".into(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            tracked: Tracked::default(),
        };
        // A new agent starts from nothing and fills in again.
        node.rules = Rules::new(config).unwrap();
        node.applied = None;
        node.expose(&json!({}), &[0]);
        assert!(ask("10.43.0.5:80").is_ok());
        assert!(node.rules.are_there().unwrap());
        remove_rules().unwrap();
        remove_rules().unwrap();
        assert!(!node.rules.are_there().unwrap());
        let removed = thread::spawn(|| ask("10.43.0.5:80"));
        // This thread is in the node's namespace, the other inherits it.
        assert!(removed.join().unwrap().is_err());
    });
}

const BALANCED: &str = "203.0.113.9";

/// A client that is not in the cluster, though its packets come through this node.
struct Outside {
    _dir: tempfile::TempDir,
    network: PodNetwork,
}

impl Outside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let network = PodNetwork::new(dir.path());
        network.configure("192.168.7.0/24".parse().unwrap(), |_| true).unwrap();
        Self { _dir: dir, network }
    }

    fn client(&self, id: &str) -> (Pod, IpAddr) {
        let pod = Pod::new();
        let ip = self.network.attach(id, &pod.namespace, &[]).unwrap();
        (pod, ip)
    }
}

fn from(client: &Pod, address: &str) -> Result<(String, String), std::io::ErrorKind> {
    let address = address.to_owned();
    client.run(move || ask(&address)).join().unwrap()
}

fn many_from(client: &Pod, address: &str) -> BTreeSet<String> {
    let address = address.to_owned();
    client.run(move || ask_many(&address)).join().unwrap()
}

#[test]
fn with_policy_local_the_outside_reaches_only_this_nodes_endpoints_and_is_seen() {
    on_a_node(|| {
        let mut node = Node::new(4);
        node.serve();
        let outside = Outside::new();
        let (client, client_ip) = outside.client("stranger");
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "ports": [{"name": "p", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": BALANCED}]}});
        let balanced = format!("{BALANCED}:80");
        let node_port = format!("{}:30080", node.network.gateway().unwrap());
        let ips = |node: &Node, which: &[usize]| -> BTreeSet<String> {
            which.iter().map(|i| node.pods[*i].1.to_string()).collect()
        };
        // One endpoint of three is here.
        node.expose_on(&spec, &status, &[(0, "n2"), (1, "n1"), (2, "n3")]);
        for address in [&balanced, &node_port] {
            assert_eq!(many_from(&client, address), ips(&node, &[1]), "{address}");
            assert_eq!(from(&client, address).unwrap().1, client_ip.to_string(), "{address}");
            assert_eq!(many_from(&node.pods[3].0, address), ips(&node, &[0, 1, 2]), "inside, {address}");
        }
        assert_eq!(ask_many(&node_port), ips(&node, &[0, 1, 2]), "the node itself");
        // None is here: dropped, so that the balancer asks another node; inside goes on.
        node.expose_on(&spec, &status, &[(0, "n2")]);
        for address in [&balanced, &node_port] {
            assert_eq!(from(&client, address), Err(std::io::ErrorKind::TimedOut), "{address}");
            assert_eq!(many_from(&node.pods[3].0, address), ips(&node, &[0]), "inside, {address}");
        }
        assert_eq!(ask_many(&node_port), ips(&node, &[0]), "the node itself");
        // None is anywhere.
        node.expose_on(&spec, &status, &[]);
        assert_eq!(from(&client, &node_port), Err(std::io::ErrorKind::ConnectionRefused));
        assert!(from(&client, &balanced).is_err());
    });
}

#[test]
fn source_ranges_close_the_load_balancers_address_to_strangers() {
    on_a_node(|| {
        let mut node = Node::new(1);
        node.serve();
        let outside = Outside::new();
        let (friend, _) = outside.client("friend");
        let (stranger, stranger_ip) = outside.client("stranger");
        assert_eq!(stranger_ip.to_string(), "192.168.7.3");
        let spec = |ranges: Value| {
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges,
                "ports": [{"name": "p", "protocol": "TCP", "port": 80, "nodePort": 30080}]})
        };
        let status = json!({"loadBalancer": {"ingress": [{"ip": BALANCED}]}});
        let balanced = format!("{BALANCED}:80");
        let expose = |node: &mut Node, ranges: Value| {
            node.expose_on(&spec(ranges), &status, &[(0, "n1")]);
        };
        expose(&mut node, json!(["172.16.0.0/12", "192.168.7.2/32", "fd00::/8"]));
        assert!(from(&friend, &balanced).is_ok());
        assert_eq!(from(&stranger, &balanced), Err(std::io::ErrorKind::TimedOut));
        // Other ways to the service are not restricted.
        let node_port = format!("{}:30080", node.network.gateway().unwrap());
        assert!(from(&stranger, &format!("{SERVICE}:80")).is_ok());
        assert!(from(&stranger, &node_port).is_ok());
        // A wider range lets it in, a list of the other family nobody, and no list everybody.
        expose(&mut node, json!(["192.168.7.0/24"]));
        assert!(from(&stranger, &balanced).is_ok());
        expose(&mut node, json!(["fd00::/8"]));
        assert_eq!(from(&friend, &balanced), Err(std::io::ErrorKind::TimedOut));
        expose(&mut node, json!([]));
        assert!(from(&stranger, &balanced).is_ok());
    });
}

#[test]
fn the_health_check_port_tells_how_many_endpoints_are_here() {
    on_a_node(|| {
        let mut node = Node::new(2);
        let spec =
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999});
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut servers = HealthServers::new(Arc::default());
            let key = yare_client::ObjectKey::new("ns", "web");
            let address = format!("{}:30999", node.network.gateway().unwrap());
            for (pods, status) in [
                (vec![(0, "n1"), (1, "n2")], "HTTP/1.1 200 OK"),
                (vec![(1, "n2")], "HTTP/1.1 503 Service Unavailable"),
            ] {
                node.expose_on(&spec, &json!({}), &pods);
                servers.set(&key, node.applied.as_ref().unwrap().health);
                let answer = http_get(&address).await;
                assert!(answer.starts_with(status), "{answer}");
                let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
                assert_eq!(body["localEndpoints"], pods.len() - 1);
                assert_eq!(body["service"], json!({"namespace": "ns", "name": "web"}));
            }
            servers.set(&key, None);
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            assert!(tokio::net::TcpStream::connect(&address).await.is_err());
        });
    });
}

async fn http_get(address: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    // The server starts listening in a task of its own.
    let mut stream = loop {
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

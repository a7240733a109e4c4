//! Services on real kernel objects: what is sent to a Service reaches its endpoints.

mod support;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use support::{Pod, on_a_node};
use yare_net::{
    PodNetwork,
    proxy::{Config, Plan, Rules, remove_rules},
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
        network.configure("10.42.0.0/24".parse().unwrap()).unwrap();
        let rules = Rules::new(Config {
            node_name: "n1".into(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
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

    /// Sets the service to these pods as endpoints.
    fn expose(&mut self, spec: &Value, pods: &[usize]) {
        let mut service = json!({"spec": {"type": "ClusterIP", "clusterIPs": [SERVICE],
            "ports": [{"name": "p", "protocol": "TCP", "port": 80}]}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        let protocol = service["spec"]["ports"][0]["protocol"].clone();
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|i| json!({"addresses": [self.pods[*i].1], "nodeName": "n1", "conditions": {"ready": true}}))
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
        let udp = json!({"ports": [{"name": "p", "protocol": "UDP", "port": 53}]});
        node.expose(&udp, &[0]);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.43.0.5:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let ask = || {
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert_eq!(ask(), node.pods[0].1.to_string());
        node.expose(&udp, &[1]);
        assert_eq!(ask(), node.pods[1].1.to_string());
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
        };
        // A new agent starts from nothing and fills in again.
        node.rules = Rules::new(config).unwrap();
        node.applied = None;
        node.expose(&json!({}), &[0]);
        assert!(ask("10.43.0.5:80").is_ok());
        remove_rules().unwrap();
        remove_rules().unwrap();
        let removed = thread::spawn(|| ask("10.43.0.5:80"));
        // This thread is in the node's namespace, the other inherits it.
        assert!(removed.join().unwrap().is_err());
    });
}

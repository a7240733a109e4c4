//! Pods on real kernel objects, in network namespaces that each test makes and that end with it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use support::{Pod, ask, echo, links, on_a_node};
use yare_net::{HostPort, PodNetwork, Protocol};

fn network(directory: &Path, range: &str) -> PodNetwork {
    let network = PodNetwork::new(directory);
    network.configure(range.parse().unwrap(), |_| true).unwrap();
    network
}

#[test]
fn pods_reach_each_other_and_the_node() {
    for range in ["10.42.0.0/24", "fd00:42::/64"] {
        on_a_node(move || {
            let dir = tempfile::tempdir().unwrap();
            let network = network(dir.path(), range);
            let (a, b) = (Pod::new(), Pod::new());
            let a_ip = network.attach("aaaa", &a.namespace, &[]).unwrap();
            let b_ip = network.attach("bbbb", &b.namespace, &[]).unwrap();
            assert_ne!(a_ip, b_ip);
            // Pod to pod: the source is the pod's own address.
            let (address, server) = echo(&b, b_ip);
            let from_a = a.run(move || ask(address)).join().unwrap();
            assert_eq!(from_a, a_ip.to_string());
            server.join().unwrap();
            // Node to pod: from the node's address in the range.
            let (address, server) = echo(&a, a_ip);
            assert_eq!(ask(address), network.gateway().unwrap().to_string());
            server.join().unwrap();
            // Pod to node.
            let listener = TcpListener::bind((network.gateway().unwrap(), 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let client = a.run(move || ask(address));
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), a_ip);
            stream.write_all(b"x").unwrap();
            drop(stream);
            assert_eq!(client.join().unwrap(), "x");
        });
    }
}

#[test]
fn attach_and_detach_repeat_and_leave_nothing() {
    on_a_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = network(dir.path(), "10.42.0.0/24");
        let before = links();
        let pod = Pod::new();
        let ip = network.attach("aaaa", &pod.namespace, &[]).unwrap();
        assert_eq!(network.attach("aaaa", &pod.namespace, &[]).unwrap(), ip);
        assert_eq!(links().len(), before.len() + 1);
        network.detach("aaaa").unwrap();
        network.detach("aaaa").unwrap();
        network.detach("never").unwrap();
        assert_eq!(links(), before);
    });
}

#[test]
fn addresses_outlive_the_agent_and_leftovers_are_taken_back() {
    on_a_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Pod::new(), Pod::new());
        let first = network(dir.path(), "10.42.0.0/24");
        let a_ip = first.attach("aaaa", &a.namespace, &[]).unwrap();
        first.attach("bbbb", &b.namespace, &[]).unwrap();
        drop(first);
        let again = PodNetwork::new(dir.path());
        again.configure("10.42.0.0/24".parse().unwrap(), |id| id == "aaaa").unwrap();
        assert!(links().contains(&"yareaaaa".to_owned()));
        assert!(!links().contains(&"yarebbbb".to_owned()));
        let (address, server) = echo(&a, a_ip);
        assert_eq!(ask(address), again.gateway().unwrap().to_string());
        server.join().unwrap();
    });
}

#[test]
fn a_missing_namespace_is_named_and_costs_no_address() {
    on_a_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = PodNetwork::new(dir.path());
        let pod = Pod::new();
        let error = network.attach("aaaa", &pod.namespace, &[]).unwrap_err().to_string();
        assert!(error.contains("podCIDR"), "{error}");
        network.configure("10.42.0.0/24".parse().unwrap(), |_| true).unwrap();
        let error = network.attach("aaaa", Path::new("/no/such/netns"), &[]).unwrap_err().to_string();
        assert!(error.contains("/no/such/netns"), "{error}");
        assert_eq!(network.attach("bbbb", &pod.namespace, &[]).unwrap().to_string(), "10.42.0.2");
    });
}

fn port(protocol: Protocol, ip: Option<&str>, port: u16, pod_port: u16) -> HostPort {
    HostPort { protocol, ip: ip.map(|ip| ip.parse().unwrap()), port, pod_port }
}

/// Answers every connection and datagram on port 8080 with `name` and the client's address.
fn serve(pod: &Pod, ip: IpAddr, name: &'static str) {
    let (ready, started) = mpsc::channel();
    pod.run(move || {
        let tcp = TcpListener::bind((ip, 8080)).unwrap();
        let udp = UdpSocket::bind((ip, 8080)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(name.as_bytes(), from);
            }
        });
        ready.send(()).unwrap();
        for mut stream in tcp.incoming().flatten() {
            let from = stream.peer_addr().unwrap().ip();
            let _ = write!(stream, "{name} {from}");
        }
    });
    started.recv().unwrap();
}

fn try_ask(address: &str) -> Option<String> {
    let address = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(700)).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn ask_udp(address: &str) -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    socket.send_to(b"?", address).ok()?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
}

#[test]
fn host_ports_lead_to_their_pods_by_address_and_protocol() {
    on_a_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = network(dir.path(), "10.42.0.0/24");
        let gateway = network.gateway().unwrap().to_string();
        let (a, b, c) = (Pod::new(), Pod::new(), Pod::new());
        // The same number three times: told apart by address and by protocol.
        let on_loopback = port(Protocol::Tcp, Some("127.0.0.1"), 5000, 8080);
        let a_ip = network.attach("aaaa", &a.namespace, &[on_loopback]).unwrap();
        let on_address = port(Protocol::Tcp, Some(&gateway), 5000, 8080);
        let everywhere = port(Protocol::Tcp, None, 5001, 8080);
        let b_ip = network.attach("bbbb", &b.namespace, &[on_address, everywhere]).unwrap();
        let udp = port(Protocol::Udp, Some(&gateway), 5000, 8080);
        let c_ip = network.attach("cccc", &c.namespace, &[udp]).unwrap();
        for (pod, ip, name) in [(&a, a_ip, "a"), (&b, b_ip, "b"), (&c, c_ip, "c")] {
            serve(pod, ip, name);
        }
        let name = |answer: Option<String>| answer.and_then(|a| a.chars().next());
        assert_eq!(name(try_ask("127.0.0.1:5000")), Some('a'));
        assert_eq!(name(try_ask(&format!("{gateway}:5000"))), Some('b'));
        assert_eq!(name(try_ask(&format!("{gateway}:5001"))), Some('b'));
        assert_eq!(name(try_ask("127.0.0.1:5001")), Some('b'));
        assert_eq!(ask_udp(&format!("{gateway}:5000")).as_deref(), Some("c"));
        assert_eq!(ask_udp(&format!("{gateway}:5001")), None);
        // Another pod is seen with its own address; the pod itself through the node's.
        let there = format!("{gateway}:5001");
        let from_a = a.run(move || try_ask(&there)).join().unwrap();
        assert_eq!(from_a, Some(format!("b {a_ip}")));
        let there = format!("{gateway}:5001");
        let from_b = b.run(move || try_ask(&there)).join().unwrap();
        assert_eq!(from_b, Some(format!("b {gateway}")));
    });
}

#[test]
fn an_open_loopback_port_does_not_let_pods_at_the_nodes_loopback_services() {
    on_a_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = network(dir.path(), "10.42.0.0/24");
        let pod = Pod::new();
        let ports = [port(Protocol::Tcp, None, 5000, 8080)];
        network.attach("aaaa", &pod.namespace, &ports).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        thread::spawn(move || listener.incoming().flatten().for_each(drop));
        assert!(try_ask(&format!("127.0.0.1:{number}")).is_some());
        // A pod that rules its own network can route loopback addresses to the node.
        let from_pod = pod.run(move || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            let run = |args: &[&str]| std::process::Command::new("ip").args(args).status().unwrap();
            run(&["addr", "del", "127.0.0.1/8", "dev", "lo"]);
            run(&["route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local"]);
            run(&["route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local"]);
            run(&["route", "add", "127.0.0.0/8", "via", "169.254.1.1", "dev", "eth0"]);
            try_ask(&format!("127.0.0.1:{number}"))
        });
        assert_eq!(from_pod.join().unwrap(), None);
    });
}

#[test]
fn host_ports_outlive_the_agent_move_and_end_with_their_pod() {
    on_a_node(|| {
        let dir = tempfile::tempdir().unwrap();
        let first = network(dir.path(), "10.42.0.0/24");
        let gateway = first.gateway().unwrap();
        let (a, b) = (Pod::new(), Pod::new());
        let ports = [port(Protocol::Tcp, None, 5000, 8080), port(Protocol::Udp, None, 5000, 8080)];
        let a_ip = first.attach("aaaa", &a.namespace, &ports).unwrap();
        serve(&a, a_ip, "a");
        let (tcp, udp) = (format!("{gateway}:5000"), format!("{gateway}:5000"));
        assert_eq!(ask_udp(&udp).as_deref(), Some("a"));
        drop(first);
        assert!(try_ask(&tcp).is_some(), "the agent is away");
        let again = network(dir.path(), "10.42.0.0/24");
        assert!(try_ask(&tcp).is_some(), "the next agent took over");
        // The next pod with the port takes it, and the old one's end does not take it away.
        let b_ip = again.attach("bbbb", &b.namespace, &ports).unwrap();
        serve(&b, b_ip, "b");
        again.detach("aaaa").unwrap();
        assert!(try_ask(&tcp).unwrap().starts_with('b'));
        assert_eq!(ask_udp(&udp).as_deref(), Some("b"));
        again.detach("bbbb").unwrap();
        assert_eq!(try_ask(&tcp), None);
        assert_eq!(ask_udp(&udp), None);
    });
}

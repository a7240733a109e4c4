//! Pods on real kernel objects, in network namespaces that each test makes and that end with it.

mod support;

use std::{io::Write as _, net::TcpListener, path::Path};

use support::{Pod, ask, echo, links, on_a_node};
use yare_net::PodNetwork;

fn network(directory: &Path, range: &str) -> PodNetwork {
    let network = PodNetwork::new(directory);
    network.configure(range.parse().unwrap()).unwrap();
    network
}

#[test]
fn pods_reach_each_other_and_the_node() {
    for range in ["10.42.0.0/24", "fd00:42::/64"] {
        on_a_node(move || {
            let dir = tempfile::tempdir().unwrap();
            let network = network(dir.path(), range);
            let (a, b) = (Pod::new(), Pod::new());
            let a_ip = network.attach("aaaa", &a.namespace).unwrap();
            let b_ip = network.attach("bbbb", &b.namespace).unwrap();
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
        let ip = network.attach("aaaa", &pod.namespace).unwrap();
        assert_eq!(network.attach("aaaa", &pod.namespace).unwrap(), ip);
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
        let a_ip = first.attach("aaaa", &a.namespace).unwrap();
        first.attach("bbbb", &b.namespace).unwrap();
        drop(first);
        let again = network(dir.path(), "10.42.0.0/24");
        again.retain(|id| id == "aaaa").unwrap();
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
        let error = network.attach("aaaa", &pod.namespace).unwrap_err().to_string();
        assert!(error.contains("podCIDR"), "{error}");
        network.configure("10.42.0.0/24".parse().unwrap()).unwrap();
        let error = network.attach("aaaa", Path::new("/no/such/netns")).unwrap_err().to_string();
        assert!(error.contains("/no/such/netns"), "{error}");
        assert_eq!(network.attach("bbbb", &pod.namespace).unwrap().to_string(), "10.42.0.2");
    });
}

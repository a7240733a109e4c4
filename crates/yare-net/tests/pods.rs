//! Pods on real kernel objects, in network namespaces that each test makes and that end with it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use yare_net::PodNetwork;

/// Runs `test` as the node: in a thread with a network namespace of its own.
fn on_a_node(test: impl FnOnce() + Send + 'static) {
    let node = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        test();
    });
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A namespace that lives as long as its thread, and a way to run code in it.
struct Pod {
    namespace: PathBuf,
    _alive: mpsc::Sender<()>,
}

impl Pod {
    fn new() -> Self {
        let (send, receive) = mpsc::channel();
        let (alive, end) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            // SAFETY-free way to this thread's namespace: its own entry under /proc.
            let path =
                PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()));
            send.send(path).unwrap();
            let _ = end.recv();
        });
        Self { namespace: receive.recv().unwrap(), _alive: alive }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = File::open(&self.namespace).unwrap();
        thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

/// Answers one connection with the address of whoever connects.
fn echo(pod: &Pod, ip: IpAddr) -> (SocketAddr, thread::JoinHandle<()>) {
    let (send, receive) = mpsc::channel();
    let server = pod.run(move || {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        send.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(from.ip().to_string().as_bytes()).unwrap();
    });
    (receive.recv().unwrap(), server)
}

fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn links() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|l| l.split(':').next()).map(|n| n.trim().to_owned()).collect()
}

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

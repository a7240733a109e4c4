//! Nodes and pods as network namespaces that live as long as the threads that made them.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, missing_docs)]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

/// Runs `test` as the node: in a thread with a network namespace of its own.
pub fn on_a_node(test: impl FnOnce() + Send + 'static) {
    let node = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        test();
    });
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A namespace that lives as long as its thread, and a way to run code in it.
pub struct Pod {
    pub namespace: PathBuf,
    _alive: mpsc::Sender<()>,
}

impl Pod {
    pub fn new() -> Self {
        let (send, receive) = mpsc::channel();
        let (alive, end) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let path =
                PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()));
            send.send(path).unwrap();
            let _ = end.recv();
        });
        Self { namespace: receive.recv().unwrap(), _alive: alive }
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = File::open(&self.namespace).unwrap();
        thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

/// Answers one connection with the address of whoever connects.
pub fn echo(pod: &Pod, ip: IpAddr) -> (SocketAddr, thread::JoinHandle<()>) {
    let (send, receive) = mpsc::channel();
    let server = pod.run(move || {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        send.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(from.ip().to_string().as_bytes()).unwrap();
    });
    (receive.recv().unwrap(), server)
}

pub fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub fn links() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|l| l.split(':').next()).map(|n| n.trim().to_owned()).collect()
}

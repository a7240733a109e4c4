//! A message bus with nothing behind it but logind, and a machine that shuts down when the test says so.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

#[derive(Default)]
struct State {
    stream: Option<UnixStream>,
    /// The reading ends of the locks that were given.
    locks: Vec<OwnedFd>,
    calls: Vec<String>,
    delay_us: u64,
    serial: u32,
}

/// See the module. Its directory holds the bus's socket and logind's configuration.
#[derive(Clone)]
pub struct FakeLogind {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

impl FakeLogind {
    /// Below `directory`; a shutdown waits five seconds, as logind has it.
    pub fn start(directory: &Path) -> Self {
        let state = State { delay_us: 5_000_000, ..State::default() };
        let fake = Self { directory: directory.to_owned(), state: Arc::new(Mutex::new(state)) };
        let listener = UnixListener::bind(fake.bus()).unwrap();
        let server = fake.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream.unwrap()));
            }
        });
        fake
    }

    pub fn bus(&self) -> PathBuf {
        self.directory.join("bus")
    }

    pub fn configuration(&self) -> PathBuf {
        self.directory.join("logind.conf.d")
    }

    /// The methods that were called.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Locks that somebody still holds.
    pub fn held(&self) -> usize {
        let state = self.state.lock().unwrap();
        let open = |lock: &&OwnedFd| {
            let mut ends = [PollFd::new(lock.as_fd(), PollFlags::POLLIN)];
            poll(&mut ends, PollTimeout::ZERO).unwrap() == 0
        };
        state.locks.iter().filter(open).count()
    }

    /// Tells of a shutdown, or that it was called off.
    pub fn prepare(&self, begins: bool) {
        let mut fields = Vec::new();
        field(&mut fields, 1, 'o', "/org/freedesktop/login1");
        field(&mut fields, 2, 's', "org.freedesktop.login1.Manager");
        field(&mut fields, 3, 's', "PrepareForShutdown");
        self.send(4, fields, "b", &u32::from(begins).to_le_bytes(), None);
    }

    /// Ends the connection, as a bus does that is started anew.
    pub fn hang_up(&self) {
        let stream = self.state.lock().unwrap().stream.take().unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn send(&self, kind: u8, mut fields: Vec<u8>, signature: &str, body: &[u8], descriptor: Option<OwnedFd>) {
        if !signature.is_empty() {
            field(&mut fields, 8, 'g', signature);
        }
        if descriptor.is_some() {
            pad(&mut fields, 8);
            fields.extend([9, 1, b'u', 0]);
            fields.extend(1_u32.to_le_bytes());
        }
        let mut state = self.state.lock().unwrap();
        state.serial += 1;
        let mut out = vec![b'l', kind, 1, 1];
        for number in [body.len(), state.serial as usize, fields.len()] {
            out.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        out.extend(fields);
        pad(&mut out, 8);
        out.extend(body);
        let Some(stream) = &mut state.stream else { return };
        match descriptor {
            None => stream.write_all(&out).unwrap(),
            Some(descriptor) => {
                let fds = [descriptor.as_raw_fd()];
                let parts = [std::io::IoSlice::new(&out)];
                let control = [ControlMessage::ScmRights(&fds)];
                let sent =
                    sendmsg::<()>(stream.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
                assert_eq!(sent, out.len());
            }
        }
    }

    fn serve(&self, mut stream: UnixStream) {
        self.state.lock().unwrap().stream = Some(stream.try_clone().unwrap());
        let mut byte = [0];
        let mut line = String::new();
        loop {
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            line.push(char::from(byte[0]));
            if !line.ends_with("\r\n") {
                continue;
            }
            let said = std::mem::take(&mut line);
            match said.trim_start_matches('\0').trim_end() {
                "BEGIN" => break,
                "NEGOTIATE_UNIX_FD" => stream.write_all(b"AGREE_UNIX_FD\r\n").unwrap(),
                auth => {
                    assert!(auth.starts_with("AUTH EXTERNAL "), "{auth}");
                    stream.write_all(b"OK 1234deadbeef\r\n").unwrap();
                }
            }
        }
        loop {
            let mut head = [0; 16];
            if stream.read_exact(&mut head).is_err() {
                return;
            }
            let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
            let (body, serial, fields) = (number(4), number(8), number(12));
            let mut rest = vec![0; fields.next_multiple_of(8) + body];
            stream.read_exact(&mut rest).unwrap();
            let text = String::from_utf8_lossy(&rest).into_owned();
            self.answer(u32::try_from(serial).unwrap(), &text);
        }
    }

    fn answer(&self, serial: u32, message: &str) {
        let names = ["Hello", "InhibitDelayMaxUSec", "KillUnit", "Inhibit", "AddMatch"];
        let name = names.into_iter().find(|name| message.contains(&format!("{name}\0"))).unwrap();
        self.state.lock().unwrap().calls.push(name.to_owned());
        let mut fields = vec![5, 1, b'u', 0];
        fields.extend(serial.to_le_bytes());
        match name {
            "Hello" => self.send(2, fields, "s", b"\x04\0\0\0:1.1\0", None),
            "InhibitDelayMaxUSec" => {
                let mut body = vec![1, b't', 0, 0, 0, 0, 0, 0];
                body.extend(self.state.lock().unwrap().delay_us.to_le_bytes());
                self.send(2, fields, "v", &body, None);
            }
            "KillUnit" => {
                let text = std::fs::read_to_string(self.configuration().join("99-kubelet.conf")).unwrap();
                let seconds = text.lines().find_map(|l| l.strip_prefix("InhibitDelayMaxSec=")).unwrap();
                self.state.lock().unwrap().delay_us = seconds.parse::<u64>().unwrap() * 1_000_000;
                self.send(2, fields, "", &[], None);
            }
            "Inhibit" => {
                let (read, write) = nix::unistd::pipe().unwrap();
                self.state.lock().unwrap().locks.push(read);
                self.send(2, fields, "h", &0_u32.to_le_bytes(), Some(write));
            }
            _ => self.send(2, fields, "", &[], None),
        }
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn field(out: &mut Vec<u8>, code: u8, kind: char, text: &str) {
    pad(out, 8);
    out.extend([code, 1, kind as u8, 0]);
    match kind {
        'g' => out.push(u8::try_from(text.len()).unwrap()),
        _ => out.extend(u32::try_from(text.len()).unwrap().to_le_bytes()),
    }
    out.extend(text.as_bytes());
    out.push(0);
}

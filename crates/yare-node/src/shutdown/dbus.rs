//! As much of D-Bus as it takes to ask logind for time and to hear of a shutdown (D-Bus Specification 0.43):
//! method calls with text and numbers, their answers, signals, and descriptors that come with them.
//!
//! A crate for all of D-Bus brings an executor, a type system and macros for the six messages that are sent here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// The largest message that is read; those of interest have a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The longest line of the greeting.
const LINE_BYTES_MAX: usize = 1024;
/// Signals that wait while an answer is awaited.
const SIGNALS_MAX: usize = 64;
/// Descriptors that wait for their message.
const DESCRIPTORS_MAX: usize = 16;
/// Header, with its fields' length.
const FIXED_BYTES: usize = 16;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call = 1,
    Answer = 2,
    Error = 3,
    Signal = 4,
}

/// Fields of a header by their codes.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;
const DESCRIPTORS: u8 = 9;

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Int(i32),
}

/// Where a method is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) name: &'a str,
}

/// A message that came.
#[derive(Debug, Default)]
pub(super) struct Message {
    kind: u8,
    reply_to: u32,
    error: String,
    pub(super) interface: String,
    pub(super) member: String,
    signature: String,
    body: Vec<u8>,
    descriptors: Vec<Descriptor>,
}

/// A descriptor that came with a message; closed when dropped.
#[derive(Debug)]
pub(super) struct Descriptor(RawFd);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // It is nobody else's: the kernel made it for this process when the message was read.
        let _ = nix::unistd::close(self.0);
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("D-Bus: {what}"))
}

impl Message {
    /// The only value, a yes or no.
    pub(super) fn boolean(&self) -> io::Result<bool> {
        let mut reader = self.reader("b")?;
        match reader.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(invalid("a boolean that is neither 0 nor 1")),
        }
    }

    /// The only value, a variant with a number of 64 bits.
    pub(super) fn number_in_variant(&self) -> io::Result<u64> {
        let mut reader = self.reader("v")?;
        if reader.signature()? != "t" {
            return Err(invalid("a property that is no 64-bit number"));
        }
        reader.align(8)?;
        let bytes = reader.take(8)?;
        // Eight bytes were taken.
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| invalid("too short"))?))
    }

    /// The only value, a descriptor.
    pub(super) fn descriptor(mut self) -> io::Result<Descriptor> {
        let index = self.reader("h")?.u32()? as usize;
        if index >= self.descriptors.len() {
            return Err(invalid("a descriptor that did not come"));
        }
        Ok(self.descriptors.swap_remove(index))
    }

    fn reader(&self, signature: &str) -> io::Result<Reader<'_>> {
        if self.signature != signature {
            return Err(invalid(&format!("{:?} where {signature:?} is expected", self.signature)));
        }
        Ok(Reader { bytes: &self.body, at: 0 })
    }

    /// The first text of an error's body.
    fn text(&self) -> String {
        match self.signature.starts_with('s') {
            true => Reader { bytes: &self.body, at: 0 }.text().unwrap_or_default(),
            false => String::new(),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) -> io::Result<()> {
        let at = self.at.next_multiple_of(to);
        if at > self.bytes.len() {
            return Err(invalid("too short"));
        }
        self.at = at;
        Ok(())
    }

    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| invalid("too short"))?;
        let out = &self.bytes[self.at..end];
        self.at = end;
        Ok(out)
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| invalid("too short"))?))
    }

    fn words(&mut self, count: usize) -> io::Result<String> {
        let text = self.take(count)?.to_vec();
        if self.u8()? != 0 {
            return Err(invalid("a text without its end"));
        }
        String::from_utf8(text).map_err(|_| invalid("a text that is not UTF-8"))
    }

    fn text(&mut self) -> io::Result<String> {
        let count = self.u32()? as usize;
        self.words(count)
    }

    fn signature(&mut self) -> io::Result<String> {
        let count = self.u8()?.into();
        self.words(count)
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        // Nothing here is longer than a line.
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn field(&mut self, code: u8, kind: &str, text: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(kind);
        match kind {
            "g" => self.signature(text),
            _ => self.text(text),
        }
    }
}

/// The bytes of a call.
fn call(serial: u32, method: &Method<'_>, arguments: &[Argument<'_>]) -> Vec<u8> {
    let (mut body, mut signature) = (Writer::default(), String::new());
    for argument in arguments {
        match argument {
            Argument::Text(text) => {
                signature.push('s');
                body.text(text);
            }
            Argument::Int(value) => {
                signature.push('i');
                body.u32(value.cast_unsigned());
            }
        }
    }
    let mut out = Writer(vec![b'l', Kind::Call as u8, 0, 1]);
    out.u32(u32::try_from(body.0.len()).unwrap_or(u32::MAX));
    out.u32(serial);
    let mut fields = Writer::default();
    fields.field(PATH, "o", method.path);
    fields.field(INTERFACE, "s", method.interface);
    fields.field(MEMBER, "s", method.name);
    fields.field(DESTINATION, "s", method.destination);
    if !signature.is_empty() {
        fields.field(SIGNATURE, "g", &signature);
    }
    // Fields begin at a multiple of eight, so that their own alignment holds.
    out.u32(u32::try_from(fields.0.len()).unwrap_or(u32::MAX));
    out.0.extend(fields.0);
    out.align(8);
    out.0.extend(body.0);
    out.0
}

/// How long the message is that begins here, once that can be told.
fn length(bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.len() < FIXED_BYTES {
        return Ok(None);
    }
    if bytes[0] != b'l' || bytes[3] != 1 {
        return Err(invalid("a message of another byte order or version"));
    }
    let mut reader = Reader { bytes, at: 4 };
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    if body > MESSAGE_BYTES_MAX || fields > MESSAGE_BYTES_MAX {
        return Err(invalid("a message that is too long"));
    }
    Ok(Some((FIXED_BYTES + fields).next_multiple_of(8) + body))
}

/// Reads a whole message; the number of descriptors that belong to it.
fn parse(bytes: &[u8]) -> io::Result<(Message, usize)> {
    let mut reader = Reader { bytes, at: 12 };
    let end = FIXED_BYTES + reader.u32()? as usize;
    let (mut out, mut descriptors) = (Message { kind: bytes[1], ..Message::default() }, 0);
    while reader.at < end {
        reader.align(8)?;
        let code = reader.u8()?;
        match (code, reader.signature()?.as_str()) {
            (INTERFACE, "s") => out.interface = reader.text()?,
            (MEMBER, "s") => out.member = reader.text()?,
            (ERROR_NAME, "s") => out.error = reader.text()?,
            (REPLY_SERIAL, "u") => out.reply_to = reader.u32()?,
            (SIGNATURE, "g") => out.signature = reader.signature()?,
            (DESCRIPTORS, "u") => descriptors = reader.u32()? as usize,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            (_, other) => return Err(invalid(&format!("a header field of type {other:?}"))),
        }
    }
    reader.at = end;
    reader.align(8)?;
    out.body = bytes[reader.at..].to_vec();
    Ok((out, descriptors))
}

/// A connection to a message bus.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    bytes: Vec<u8>,
    descriptors: VecDeque<Descriptor>,
    /// Signals that came while an answer was awaited.
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects to the bus at a socket, as this process's user.
    pub(super) async fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let mut bus = Self {
            stream,
            serial: 0,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
            signals: VecDeque::new(),
        };
        let user: String =
            nix::unistd::geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        bus.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).await?;
        bus.expect("OK ").await?;
        bus.stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
        bus.expect("AGREE_UNIX_FD").await?;
        bus.stream.write_all(b"BEGIN\r\n").await?;
        let name = "org.freedesktop.DBus";
        let hello =
            Method { destination: name, path: "/org/freedesktop/DBus", interface: name, name: "Hello" };
        bus.call(&hello, &[]).await?;
        Ok(bus)
    }

    /// Reads a line of the greeting, which must begin so.
    async fn expect(&mut self, start: &str) -> io::Result<()> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.bytes.drain(..end + 2).take(end).collect();
                if line.starts_with(start.as_bytes()) {
                    return Ok(());
                }
                return Err(invalid(&format!("the bus answers {:?}", String::from_utf8_lossy(&line))));
            }
            if self.bytes.len() > LINE_BYTES_MAX {
                return Err(invalid("a greeting that does not end"));
            }
            self.read().await?;
        }
    }

    /// Calls a method and waits for its answer. Signals that come meanwhile are kept.
    pub(super) async fn call(
        &mut self,
        method: &Method<'_>,
        arguments: &[Argument<'_>],
    ) -> io::Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.stream.write_all(&call(serial, method, arguments)).await?;
        loop {
            let message = self.next().await?;
            match message.kind {
                kind if kind == Kind::Signal as u8 => {
                    if self.signals.len() == SIGNALS_MAX {
                        return Err(invalid("too many signals"));
                    }
                    self.signals.push_back(message);
                }
                kind if message.reply_to == serial && kind == Kind::Answer as u8 => return Ok(message),
                kind if message.reply_to == serial && kind == Kind::Error as u8 => {
                    let text = message.text();
                    return Err(io::Error::other(format!("{}: {}: {text}", method.name, message.error)));
                }
                // Nobody else is answered here, and nobody calls.
                _ => {}
            }
        }
    }

    /// The next signal.
    pub(super) async fn signal(&mut self) -> io::Result<Message> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.next().await?;
            if message.kind == Kind::Signal as u8 {
                return Ok(message);
            }
        }
    }

    async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(length) = length(&self.bytes)?
                && self.bytes.len() >= length
            {
                let bytes: Vec<u8> = self.bytes.drain(..length).collect();
                let (mut message, count) = parse(&bytes)?;
                if count > self.descriptors.len() {
                    return Err(invalid("a message without its descriptors"));
                }
                message.descriptors = self.descriptors.drain(..count).collect();
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// Reads what is there, descriptors too.
    async fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let (stream, descriptors) = (&self.stream, &mut self.descriptors);
        let count = stream
            .async_io(Interest::READABLE, || {
                let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
                let mut parts = [io::IoSliceMut::new(&mut buffer)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
                let received = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
                for message in received.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(came) = message {
                        descriptors.extend(came.into_iter().map(Descriptor));
                    }
                }
                Ok(received.bytes)
            })
            .await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(invalid("too many descriptors"));
        }
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn a_call_byte_for_byte() {
        let method = Method { destination: "a.b", path: "/a", interface: "c.d", name: "E" };
        let bytes = call(7, &method, &[Argument::Text("hi"), Argument::Int(-2)]);
        // By the specification, by hand.
        let expect = hex("6c 01 00 01  0c000000  07000000  48000000
             01 01 6f 00  02000000 2f61 00 0000000000
             02 01 73 00  03000000 632e64 00 00000000
             03 01 73 00  01000000 45 00 000000000000
             06 01 73 00  03000000 612e62 00 00000000
             08 01 67 00  02 7369 00
             02000000 6869 00 00 feffffff");
        assert_eq!(length(&bytes).unwrap(), Some(bytes.len()));
        assert_eq!(bytes, expect);
    }

    /// `PrepareForShutdown(true)`, as a bus passes it on.
    const SIGNAL: &str = "6c 04 01 01  04000000  09000000  67000000
        01 01 6f 00  17000000 2f6f72672f667265656465736b746f702f6c6f67696e31 00
        02 01 73 00  03000000 632e64 00 00000000
        03 01 73 00  12000000 50726570617265466f7253687574646f776e 00 0000000000
        07 01 73 00  04000000 3a312e35 00 000000
        08 01 67 00  01 62 00 00
        01000000";

    #[test]
    fn a_signal_is_read() {
        let bytes = hex(SIGNAL);
        assert_eq!(length(&bytes).unwrap(), Some(bytes.len()));
        let (message, descriptors) = parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str(), descriptors), (4, "PrepareForShutdown", 0));
        assert_eq!(message.interface, "c.d");
        assert!(message.boolean().unwrap());
        assert!(message.number_in_variant().is_err() && message.descriptor().is_err());
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error_and_never_more() {
        let whole = hex(SIGNAL);
        for cut in FIXED_BYTES..whole.len() {
            let _ = parse(&whole[..cut]);
        }
        for at in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[at] = 0xff;
            if length(&spoilt).is_ok_and(|length| length.is_some_and(|l| l <= spoilt.len())) {
                let _ = parse(&spoilt).map(|(message, _)| message.boolean());
            }
        }
        assert!(length(b"B\x04\x01\x01000000000000").is_err());
        assert!(length(b"l\x04\x01\x01\xff\xff\xff\xff00000000").is_err());
        assert_eq!(length(b"l\x04").unwrap(), None);
    }
}

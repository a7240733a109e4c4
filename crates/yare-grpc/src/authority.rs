//! Clients of a unix socket name it as the authority of their requests: `%2Frun%2Fkubelet.sock`, or the path as it is,
//! or nothing. Go's servers take any; ours refuses what no URI has, and with it every plugin that dials by a path.
//!
//! In: the bytes of an HTTP/2 connection from its client. Out: the same, with each authority that is written out replaced
//! by a plain one. Only blocks of headers are looked into, and of them only the frame of their fields (RFC 7541): what a
//! field says is neither decoded nor compressed anew. The plain authority is as short as can be, so that the table
//! of fields that both sides keep never holds less here than the client believes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What begins every connection.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Before the payload of each frame.
const FRAME_HEAD: usize = 9;
/// A block of headers, in all its frames; the most that fits into one frame.
const BLOCK_MAX: usize = 16_384;
/// What is read at a time.
const READ: usize = 8 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The place of `:authority` in the table that every connection begins with.
const AUTHORITY: usize = 1;
/// What stands in for it: a string of one byte, as it is.
const PLAIN: [u8; 2] = [1, b'u'];

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed HTTP/2: {what}"))
}

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Expect {
    /// So many that nobody looks at.
    Skip(usize),
    /// The head of a frame.
    Head,
    /// The payload of a frame with headers.
    Headers { head: [u8; FRAME_HEAD], length: usize },
}

/// Follows one connection.
#[derive(Debug)]
pub struct Rewriter {
    expect: Expect,
    /// Bytes of what is expected, until all of them have come.
    input: BytesMut,
    /// A block whose last frame has not come: the head of its first one, its priority, its fields.
    open: Option<Block>,
}

#[derive(Debug)]
struct Block {
    head: [u8; FRAME_HEAD],
    priority: BytesMut,
    fields: BytesMut,
}

impl Default for Rewriter {
    fn default() -> Self {
        Self { expect: Expect::Skip(PREFACE), input: BytesMut::new(), open: None }
    }
}

impl Rewriter {
    /// A connection begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they come and appends what the server is to read.
    ///
    /// # Errors
    /// Headers that are malformed or too large; the connection cannot go on.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut BytesMut) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = match self.expect {
                Expect::Skip(left) => {
                    let now = left.min(bytes.len());
                    out.extend_from_slice(&bytes[..now]);
                    bytes.advance(now);
                    self.expect = if now < left { Expect::Skip(left - now) } else { Expect::Head };
                    continue;
                }
                Expect::Head => FRAME_HEAD,
                Expect::Headers { length, .. } => length,
            };
            let now = (wanted - self.input.len()).min(bytes.len());
            self.input.extend_from_slice(&bytes[..now]);
            bytes.advance(now);
            if self.input.len() == wanted {
                let whole = self.input.split();
                self.whole(whole, out)?;
            }
        }
        Ok(())
    }

    /// All that was expected is there.
    fn whole(&mut self, bytes: BytesMut, out: &mut BytesMut) -> io::Result<()> {
        if let Expect::Headers { head, .. } = self.expect {
            self.expect = Expect::Head;
            return self.headers(head, bytes, out);
        }
        let mut head = [0; FRAME_HEAD];
        head.copy_from_slice(&bytes);
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let kind = head[3];
        if self.open.is_some() && kind != CONTINUATION {
            return Err(malformed("a frame within a block of headers"));
        }
        // Of a frame that continues nothing the server complains itself.
        if !(kind == HEADERS || kind == CONTINUATION && self.open.is_some()) {
            out.extend_from_slice(&head);
            self.expect = if length == 0 { Expect::Head } else { Expect::Skip(length) };
            return Ok(());
        }
        if length > BLOCK_MAX {
            return Err(malformed("a frame is too large"));
        }
        if length == 0 {
            return self.headers(head, BytesMut::new(), out);
        }
        self.expect = Expect::Headers { head, length };
        Ok(())
    }

    fn headers(&mut self, head: [u8; FRAME_HEAD], payload: BytesMut, out: &mut BytesMut) -> io::Result<()> {
        let mut block = match self.open.take() {
            Some(mut block) => {
                block.fields.extend_from_slice(&payload);
                block
            }
            None => Block::begin(head, payload)?,
        };
        if block.fields.len() > BLOCK_MAX {
            return Err(malformed("a block of headers is too large"));
        }
        if head[4] & END_HEADERS == 0 {
            self.open = Some(block);
            return Ok(());
        }
        let fields = plain(&block.fields)?;
        let length = block.priority.len() + fields.len();
        let [_, high, middle, low] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        block.head[..3].copy_from_slice(&[high, middle, low]);
        block.head[4] = block.head[4] & !PADDED | END_HEADERS;
        out.extend_from_slice(&block.head);
        out.extend_from_slice(&block.priority);
        out.extend_from_slice(&fields);
        Ok(())
    }
}

impl Block {
    /// From the payload of a HEADERS frame (RFC 9113, 6.2).
    fn begin(head: [u8; FRAME_HEAD], mut payload: BytesMut) -> io::Result<Self> {
        if head[4] & PADDED != 0 {
            if payload.is_empty() {
                return Err(malformed("no length of padding"));
            }
            let padding = usize::from(payload.get_u8());
            let kept = payload.len().checked_sub(padding).ok_or_else(|| malformed("too much padding"))?;
            payload.truncate(kept);
        }
        let priority = if head[4] & PRIORITY == 0 { 0 } else { 5 };
        if payload.len() < priority {
            return Err(malformed("no priority"));
        }
        let priority = payload.split_to(priority);
        Ok(Self { head, priority, fields: payload })
    }
}

/// The fields of a block with a plain authority (RFC 7541, 6).
fn plain(fields: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(fields.len() + PLAIN.len());
    let mut rest = fields;
    while let Some(&first) = rest.first() {
        let begin = rest;
        // Indexed; literal with indexing; a new size of the table; literal without.
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let number = integer(&mut rest, prefix)?;
        if is_literal {
            if number == 0 {
                skip_string(&mut rest)?;
            }
            let before_value = rest;
            skip_string(&mut rest)?;
            if number == AUTHORITY {
                out.extend_from_slice(&begin[..begin.len() - before_value.len()]);
                out.extend_from_slice(&PLAIN);
                continue;
            }
        }
        out.extend_from_slice(&begin[..begin.len() - rest.len()]);
    }
    Ok(out)
}

/// A number whose first `prefix` bits are in the first byte (RFC 7541, 5.1).
fn integer(bytes: &mut &[u8], prefix: u32) -> io::Result<usize> {
    let cut = || malformed("a field ends early");
    let (first, mut rest) = bytes.split_first().ok_or_else(cut)?;
    let most = (1_usize << prefix) - 1;
    let mut number = usize::from(*first) & most;
    if number == most {
        for shift in [0, 7, 14, 21] {
            let (next, after) = rest.split_first().ok_or_else(cut)?;
            rest = after;
            number += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *bytes = rest;
                return Ok(number);
            }
        }
        return Err(malformed("a number is too large"));
    }
    *bytes = rest;
    Ok(number)
}

fn skip_string(bytes: &mut &[u8]) -> io::Result<()> {
    let length = integer(bytes, 7)?;
    *bytes = bytes.get(length..).ok_or_else(|| malformed("a field ends early"))?;
    Ok(())
}

/// A connection whose client may say any authority.
pub(crate) struct AnyAuthority<S> {
    stream: S,
    rewriter: Rewriter,
    ready: BytesMut,
}

impl<S> AnyAuthority<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, rewriter: Rewriter::new(), ready: BytesMut::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            let mut bytes = [0; READ];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.feed(read.filled(), &mut this.ready)?;
        }
        let now = this.ready.len().min(buffer.remaining());
        buffer.put_slice(&this.ready.split_to(now));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat()
    }

    fn rewritten(bytes: &[u8], at_once: usize) -> io::Result<Vec<u8>> {
        let (mut rewriter, mut out) = (Rewriter::new(), BytesMut::new());
        for chunk in bytes.chunks(at_once) {
            rewriter.feed(chunk, &mut out)?;
        }
        Ok(out.to_vec())
    }

    /// `:method: POST`, the authority as said, `x: y` as new names.
    fn fields(authority: &[u8]) -> Vec<u8> {
        let length = u8::try_from(authority.len()).unwrap();
        [&[0x83, 0x41, length], authority, &[0x00, 1, b'x', 1, b'y']].concat()
    }

    #[test]
    fn authorities_become_plain_however_they_come() {
        let path = b"%2Frun%2Fkubelet.sock";
        let plain = frame(HEADERS, END_HEADERS, &[0x83, 0x41, 1, b'u', 0x00, 1, b'x', 1, b'y']);
        let whole = fields(path);
        let settings = frame(4, 0, &[0; 6]);
        let data = frame(0, 1, &[0x41, 3, b'a', b'b', b'c']);
        let padded = [&[3], &whole[..], &[0; 3]].concat();
        let (first, second) = whole.split_at(9);
        for (name, frames, want) in [
            ("one frame", vec![frame(HEADERS, END_HEADERS, &whole)], plain.clone()),
            ("empty", vec![frame(HEADERS, END_HEADERS, &fields(b""))], plain.clone()),
            ("padded", vec![frame(HEADERS, END_HEADERS | PADDED, &padded)], plain.clone()),
            (
                "in pieces",
                vec![
                    frame(HEADERS, 0, first),
                    frame(CONTINUATION, 0, b""),
                    frame(CONTINUATION, END_HEADERS, second),
                ],
                plain.clone(),
            ),
            (
                "with a priority, never indexed",
                vec![frame(HEADERS, END_HEADERS | PRIORITY, &[0, 0, 0, 0, 16, 0x11, 2, b'/', b'a'])],
                frame(HEADERS, END_HEADERS | PRIORITY, &[0, 0, 0, 0, 16, 0x11, 1, b'u']),
            ),
            (
                "of the table, with a new size of it",
                vec![frame(HEADERS, END_HEADERS, &[0x3f, 0xe1, 0x1f, 0xbe, 0x44, 1, b'/'])],
                frame(HEADERS, END_HEADERS, &[0x3f, 0xe1, 0x1f, 0xbe, 0x44, 1, b'/']),
            ),
        ] {
            let sent = connection(&[settings.clone(), frames.concat(), data.clone()]);
            let want = connection(&[settings.clone(), want, data.clone()]);
            for at_once in [1, 2, 3, 7, sent.len()] {
                assert_eq!(rewritten(&sent, at_once).unwrap(), want, "{name}, {at_once} at once");
            }
        }
    }

    #[test]
    fn what_is_malformed_ends_the_connection() {
        for (name, sent) in [
            ("a value that is cut", frame(HEADERS, END_HEADERS, &[0x41, 9, b'a'])),
            ("a number that is cut", frame(HEADERS, END_HEADERS, &[0x41, 0x7f])),
            (
                "a number that never ends",
                frame(HEADERS, END_HEADERS, &[0x41, 0x7f, 255, 255, 255, 255, 255, 1]),
            ),
            ("more padding than payload", frame(HEADERS, END_HEADERS | PADDED, &[9, 0x83])),
            ("no padding", frame(HEADERS, END_HEADERS | PADDED, &[])),
            ("no priority", frame(HEADERS, END_HEADERS | PRIORITY, &[0, 0])),
            ("another frame within a block", [frame(HEADERS, 0, &[0x83]), frame(6, 0, &[0; 8])].concat()),
            ("a frame without bounds", frame(HEADERS, 0, &vec![0x83; BLOCK_MAX + 1])),
            (
                "a block without bounds",
                [frame(HEADERS, 0, &vec![0x83; BLOCK_MAX]), frame(CONTINUATION, 0, &[0x83])].concat(),
            ),
        ] {
            let error = rewritten(&connection(&[sent]), 1000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}");
        }
    }

    #[test]
    fn frames_that_nobody_looks_into_pass() {
        let lost = frame(CONTINUATION, END_HEADERS, &[0x41, 9]);
        assert_eq!(rewritten(&connection(std::slice::from_ref(&lost)), 5).unwrap(), connection(&[lost]));
    }
}

//! Frames: bytes to structures and back.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::dictionary;

/// Largest frame that is taken.
const FRAME_MAX_BYTES: usize = 1 << 20;
/// Largest header block, uncompressed.
const HEADERS_MAX_BYTES: usize = 64 << 10;
const VERSION: u16 = 3;
pub(crate) const FLAG_FIN: u8 = 1;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed.
    #[error("spdy connection: {0}")]
    Io(#[from] std::io::Error),
    /// The peer does not speak SPDY/3.
    #[error("spdy: {0}")]
    Protocol(&'static str),
}

/// Name and values (several are separated by NUL on the wire) of a stream's headers.
pub(crate) type Headers = Vec<(String, String)>;

/// A frame that this side understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        headers: Headers,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    /// The initial window, if the peer sets one.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_stream: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// Something newer; ignored.
    Unknown,
}

/// Reads frames; one per connection, because header compression has state.
pub(crate) struct Decoder {
    inflate: Decompress,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Decoder { inflate: Decompress::new(true) }
    }

    /// The next frame, `None` at a clean end.
    pub(crate) async fn read<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
    ) -> Result<Option<Frame>, FrameError> {
        let mut head = [0; 8];
        match from.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let length =
            usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).unwrap_or(usize::MAX);
        if length > FRAME_MAX_BYTES {
            return Err(FrameError::Protocol("a frame is too large"));
        }
        let mut body = BytesMut::zeroed(length);
        from.read_exact(&mut body).await?;
        self.decode(head, body.freeze()).map(Some)
    }

    fn decode(&mut self, head: [u8; 8], mut body: Bytes) -> Result<Frame, FrameError> {
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let fin = head[4] & FLAG_FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Frame::Data { stream: first, fin, bytes: body });
        }
        if (first >> 16) & 0x7fff != u32::from(VERSION) {
            return Err(FrameError::Protocol("a control frame of another version"));
        }
        let kind = first & 0xffff;
        let need = match kind {
            1 => 10,
            2 | 4 | 6 | 8 => 4,
            3 | 7 | 9 => 8,
            _ => 0,
        };
        if body.len() < need {
            return Err(FrameError::Protocol("a control frame is too short"));
        }
        let id = |body: &mut Bytes| body.get_u32() & 0x7fff_ffff;
        Ok(match kind {
            1 => {
                let stream = id(&mut body);
                body.advance(6);
                Frame::SynStream { stream, fin, headers: self.headers(&body)? }
            }
            2 => {
                let stream = id(&mut body);
                Frame::SynReply { stream, headers: self.headers(&body)? }
            }
            3 => Frame::RstStream { stream: id(&mut body), status: body.get_u32() },
            4 => {
                let count = body.get_u32();
                let mut initial_window = None;
                for _ in 0..count {
                    if body.len() < 8 {
                        return Err(FrameError::Protocol("a settings frame is too short"));
                    }
                    let (setting, value) = (body.get_u32() & 0x00ff_ffff, body.get_u32());
                    if setting == 7 {
                        initial_window = Some(value);
                    }
                }
                Frame::Settings { initial_window }
            }
            6 => Frame::Ping { id: body.get_u32() },
            7 => Frame::GoAway { last_stream: id(&mut body), status: body.get_u32() },
            8 => {
                let stream = id(&mut body);
                // Read for the sake of the compressor's state.
                self.headers(&body)?;
                Frame::Headers { stream, fin }
            }
            9 => Frame::WindowUpdate { stream: id(&mut body), delta: body.get_u32() & 0x7fff_ffff },
            _ => Frame::Unknown,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        let plain = self.inflate(block)?;
        let mut plain = plain.as_slice();
        let mut word = |size: &mut usize| -> Result<String, FrameError> {
            if plain.len() < 4 {
                return Err(FrameError::Protocol("a header block is too short"));
            }
            let n = usize::try_from(plain.get_u32()).unwrap_or(usize::MAX);
            if *size == usize::MAX {
                // The count of headers comes first.
                *size = n;
                return Ok(String::new());
            }
            if plain.len() < n {
                return Err(FrameError::Protocol("a header block is too short"));
            }
            let text = String::from_utf8_lossy(&plain[..n]).into_owned();
            plain.advance(n);
            Ok(text)
        };
        let mut count = usize::MAX;
        word(&mut count)?;
        if count > HEADERS_MAX_BYTES / 8 {
            return Err(FrameError::Protocol("too many headers"));
        }
        let mut headers = Vec::with_capacity(count);
        let mut unused = 0;
        for _ in 0..count {
            let name = word(&mut unused)?;
            headers.push((name, word(&mut unused)?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, FrameError> {
        let bad = FrameError::Protocol("a header block is not compressed as it should be");
        let mut out = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            let before = self.inflate.total_in();
            let status = self.inflate.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let used = usize::try_from(self.inflate.total_in() - before).unwrap_or(0);
            rest = rest.get(used..).unwrap_or_default();
            match status {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    if self.inflate.set_dictionary(dictionary::bytes()).is_err() {
                        return Err(bad);
                    }
                    continue;
                }
                Err(_) => return Err(bad),
            }
            if out.len() > HEADERS_MAX_BYTES {
                return Err(FrameError::Protocol("a header block is too large"));
            }
            if rest.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            if out.len() == out.capacity() {
                out.reserve(1024);
            } else if used == 0 {
                return Err(bad);
            }
        }
    }
}

/// Writes frames; one per connection.
pub(crate) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        let mut deflate = Compress::new(Compression::new(6), true);
        // Cannot fail on a fresh compressor; without it the peer could still read, it only costs size.
        let _ = deflate.set_dictionary(dictionary::bytes());
        Encoder { deflate }
    }

    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Data { stream, fin, bytes } => {
                out.put_u32(*stream & 0x7fff_ffff);
                put_length(out, if *fin { FLAG_FIN } else { 0 }, bytes.len());
                out.extend_from_slice(bytes);
            }
            Frame::SynStream { stream, fin, headers } => {
                let block = self.block(headers);
                control(out, 1, if *fin { FLAG_FIN } else { 0 }, 10 + block.len());
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.extend_from_slice(&block);
            }
            Frame::SynReply { stream, headers } => {
                let block = self.block(headers);
                control(out, 2, 0, 4 + block.len());
                out.put_u32(*stream);
                out.extend_from_slice(&block);
            }
            Frame::RstStream { stream, status } => pair(out, 3, *stream, *status),
            Frame::Ping { id } => {
                control(out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last_stream, status } => pair(out, 7, *last_stream, *status),
            Frame::WindowUpdate { stream, delta } => pair(out, 9, *stream, *delta),
            // Never sent by this side.
            Frame::Settings { .. } | Frame::Headers { .. } | Frame::Unknown => {}
        }
    }

    fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = BytesMut::new();
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        plain.put_u32(length(headers.len()));
        for (name, value) in headers {
            plain.put_u32(length(name.len()));
            plain.extend_from_slice(name.as_bytes());
            plain.put_u32(length(value.len()));
            plain.extend_from_slice(value.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let before = self.deflate.total_in();
            let done = self.deflate.compress_vec(rest, &mut out, FlushCompress::Sync);
            let used = usize::try_from(self.deflate.total_in() - before).unwrap_or(0);
            rest = rest.get(used..).unwrap_or_default();
            if done.is_err() || (rest.is_empty() && out.len() < out.capacity()) {
                return out;
            }
            out.reserve(256);
        }
    }
}

fn put_length(out: &mut BytesMut, flags: u8, length: usize) {
    out.put_u32(u32::from(flags) << 24 | u32::try_from(length).unwrap_or(0) & 0x00ff_ffff);
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_length(out, flags, length);
}

fn pair(out: &mut BytesMut, kind: u16, a: u32, b: u32) {
    control(out, kind, 0, 8);
    out.put_u32(a);
    out.put_u32(b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn round_trip() {
        let headers = |n: usize| {
            vec![("streamtype".to_owned(), "error".to_owned()), ("port".to_owned(), "8".repeat(n))]
        };
        let frames = [
            Frame::SynStream { stream: 1, fin: false, headers: headers(4) },
            Frame::SynReply { stream: 1, headers: vec![] },
            Frame::SynStream { stream: 3, fin: true, headers: headers(5000) },
            Frame::Data { stream: 1, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { stream: 1, fin: true, bytes: Bytes::new() },
            Frame::Ping { id: 7 },
            Frame::RstStream { stream: 1, status: 5 },
            Frame::WindowUpdate { stream: 1, delta: 9 },
            Frame::GoAway { last_stream: 3, status: 0 },
        ];
        let mut encoder = Encoder::new();
        let mut bytes = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame, &mut bytes);
        }
        let mut decoder = Decoder::new();
        let mut reader = &bytes[..];
        for frame in &frames {
            assert_eq!(decoder.read(&mut reader).await.unwrap().as_ref(), Some(frame));
        }
        assert_eq!(decoder.read(&mut reader).await.unwrap(), None);
    }

    #[tokio::test]
    async fn refuses_nonsense() {
        for bytes in [
            &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0][..],
            &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
            &[0, 0, 0, 1, 0, 0xff, 0xff, 0xff],
            &[0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4],
        ] {
            assert!(Decoder::new().read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
    }
}

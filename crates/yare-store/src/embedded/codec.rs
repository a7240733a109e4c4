//! The bytes on disk. Every file is a 32-byte file header followed by frames; every frame is a 32-byte header
//! and a payload, both checksummed (CRC-32). All numbers are little-endian.
//!
//! File header: magic 8, version u32, flags u32 (0), revision u64, reserved u32 (0), CRC u32.
//! Frame header: magic 4, payload length u32, revision u64, count u32, payload CRC u32, reserved u32 (0),
//! header CRC u32.
//!
//! In the log a frame is one group commit: `count` transactions at consecutive revisions from `revision` on; a
//! frame is only written when the one before it is on disk. An empty frame marks a clean shutdown. Zeros behind
//! the last frame are room that the next ones are written over. In a checkpoint a frame is `count` objects of
//! one kind.
//!
//! An object's value is the place of its resourceVersion (u32) and a block: the JSON, or, where the highest bit
//! of the place is set, what a sealer made of the JSON with an empty resourceVersion.

use crate::sealer::Stored;

/// Length of a file header.
pub(crate) const FILE_HEADER: usize = 32;
/// Length of a frame header.
pub(crate) const FRAME_HEADER: usize = 32;
/// The newest format that this program writes and reads.
pub(crate) const VERSION: u32 = 1;
/// Largest payload a reader believes.
const MAX_PAYLOAD: usize = 1 << 30;
/// Starts every frame. No UTF-8 text contains it, so stored JSON can never look like a frame.
const FRAME_MAGIC: [u8; 4] = [0xFE, b'y', b'f', 0xFF];

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Log,
    Checkpoint,
}

impl FileKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            FileKind::Log => b"YARELOG\xFF",
            FileKind::Checkpoint => b"YARECKP\xFF",
        }
    }
}

/// Why a header is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    Damaged(&'static str),
    Version(u32),
}

pub(crate) fn file_header(kind: FileKind, revision: u64) -> [u8; FILE_HEADER] {
    let mut out = [0; FILE_HEADER];
    out[..8].copy_from_slice(kind.magic());
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&revision.to_le_bytes());
    let crc = crc32fast::hash(&out[..28]);
    out[28..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The revision in a file header.
pub(crate) fn read_file_header(kind: FileKind, bytes: &[u8]) -> Result<u64, BadHeader> {
    let header = bytes.get(..FILE_HEADER).ok_or(BadHeader::Damaged("the file is shorter than its header"))?;
    if header[..8] != *kind.magic() {
        return Err(BadHeader::Damaged("the file does not start as it should"));
    }
    if crc32fast::hash(&header[..28]) != u32_at(header, 28) {
        return Err(BadHeader::Damaged("the file header's checksum does not match"));
    }
    match u32_at(header, 8) {
        1..=VERSION => Ok(u64_at(header, 16)),
        newer => Err(BadHeader::Version(newer)),
    }
}

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub len: usize,
    pub revision: u64,
    pub count: u32,
    crc: u32,
}

impl Frame {
    /// Reads the header at the start of `bytes`.
    pub fn read(bytes: &[u8]) -> Result<Frame, &'static str> {
        let header = bytes.get(..FRAME_HEADER).ok_or("the file ends within a record's header")?;
        if header[..4] != FRAME_MAGIC {
            return Err("a record does not start as it should");
        }
        if crc32fast::hash(&header[..28]) != u32_at(header, 28) {
            return Err("the checksum of a record's header does not match");
        }
        let len = u32_at(header, 4) as usize;
        if len > MAX_PAYLOAD {
            return Err("a record's length is out of bounds");
        }
        Ok(Frame { len, revision: u64_at(header, 8), count: u32_at(header, 16), crc: u32_at(header, 20) })
    }

    /// Reads header and payload at the start of `bytes` and verifies both.
    pub fn read_whole(bytes: &[u8]) -> Result<Frame, &'static str> {
        let frame = Frame::read(bytes)?;
        let payload = bytes.get(FRAME_HEADER..FRAME_HEADER + frame.len);
        frame.verify(payload.ok_or("the file ends within a record")?)?;
        Ok(frame)
    }

    pub fn verify(&self, payload: &[u8]) -> Result<(), &'static str> {
        if crc32fast::hash(payload) == self.crc { Ok(()) } else { Err("a record's checksum does not match") }
    }
}

/// Whether an intact frame of a later revision than `after` starts anywhere in `bytes`, and where.
pub(crate) fn find_frame(bytes: &[u8], after: u64) -> Option<usize> {
    (0..bytes.len().saturating_sub(FRAME_HEADER - 1)).find(|&at| {
        bytes[at] == FRAME_MAGIC[0] && Frame::read_whole(&bytes[at..]).is_ok_and(|f| f.revision > after)
    })
}

/// Builds one frame.
pub(crate) struct FrameWriter {
    bytes: Vec<u8>,
    revision: u64,
    count: u32,
}

impl FrameWriter {
    pub fn new() -> Self {
        FrameWriter { bytes: vec![0; FRAME_HEADER], revision: 0, count: 0 }
    }

    /// Starts over; a buffer that a large batch has grown is not kept.
    pub fn reset(&mut self, revision: u64) {
        if self.bytes.capacity() > 1 << 20 {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.bytes.resize(FRAME_HEADER, 0);
        self.revision = revision;
        self.count = 0;
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn payload_len(&self) -> usize {
        self.bytes.len() - FRAME_HEADER
    }

    /// Counts one transaction or object.
    pub fn add(&mut self) {
        self.count += 1;
    }

    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A length and that many bytes.
    pub fn block(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes.extend_from_slice(bytes);
    }

    /// A value: where its resourceVersion is, and its bytes.
    pub fn stored(&mut self, stored: Stored<'_>) {
        let (rv_at, bytes) = stored.parts();
        self.u32(rv_at);
        self.block(bytes);
    }

    /// The finished frame.
    pub fn finish(&mut self) -> &[u8] {
        let len = self.payload_len() as u32;
        let crc = crc32fast::hash(&self.bytes[FRAME_HEADER..]);
        let header = &mut self.bytes[..FRAME_HEADER];
        header[..4].copy_from_slice(&FRAME_MAGIC);
        header[4..8].copy_from_slice(&len.to_le_bytes());
        header[8..16].copy_from_slice(&self.revision.to_le_bytes());
        header[16..20].copy_from_slice(&self.count.to_le_bytes());
        header[20..24].copy_from_slice(&crc.to_le_bytes());
        header[24..28].fill(0);
        let crc = crc32fast::hash(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        &self.bytes
    }
}

/// Reads a payload front to back. `None` means that it does not hold what it should.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(len)?;
        self.bytes = tail;
        Some(head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32_at(b, 0))
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|b| u64_at(b, 0))
    }

    pub fn block(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.block()?).ok()
    }

    /// What lies on disk of an object.
    pub fn stored(&mut self, revision: u64) -> Option<Stored<'a>> {
        let rv_at = self.u32()?;
        Stored::new(rv_at, self.block()?, revision)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_bit_flip_in_a_frame_is_noticed() {
        let mut writer = FrameWriter::new();
        writer.reset(7);
        writer.add();
        writer.u8(1);
        writer.block("{\"a\":1}".as_bytes());
        writer.u64(9);
        let good = writer.finish().to_vec();
        let frame = Frame::read_whole(&good).unwrap();
        assert_eq!((frame.revision, frame.count, frame.len), (7, 1, good.len() - FRAME_HEADER));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::read_whole(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Frame::read_whole(&good[..len]).is_err());
        }
        let mut padded = vec![0xFE; 100];
        padded.extend_from_slice(&good);
        assert_eq!(find_frame(&padded, 6), Some(100));
        assert_eq!(find_frame(&padded, 7), None);
    }

    #[test]
    fn file_headers_tell_damage_from_a_newer_format() {
        let good = file_header(FileKind::Log, 42);
        assert_eq!(read_file_header(FileKind::Log, &good), Ok(42));
        assert!(matches!(read_file_header(FileKind::Checkpoint, &good), Err(BadHeader::Damaged(_))));
        assert!(matches!(read_file_header(FileKind::Log, &good[..31]), Err(BadHeader::Damaged(_))));
        let mut newer = good;
        newer[8] = 2;
        assert!(matches!(read_file_header(FileKind::Log, &newer), Err(BadHeader::Damaged(_))));
        let crc = crc32fast::hash(&newer[..28]);
        newer[28..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read_file_header(FileKind::Log, &newer), Err(BadHeader::Version(2)));
    }
}

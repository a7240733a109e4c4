//! The watch stream, frame by frame.
//!
//! In flow the data frames of a watch response, cut wherever the transport cut them; out flow events with
//! the object's JSON. An API server in this process sends an event as three frames: a static prefix, the
//! object's shared `Bytes`, a static suffix. Then the object is passed on as that very `Bytes`. Anything
//! else is gathered into lines and the object copied to an allocation of its own size, so that a small
//! object never keeps a large network buffer alive.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The most one event may take; objects are at most 3 MiB at rest.
const MAX_LINE_BYTES: usize = 16 << 20;

/// `type` of a watch event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

const TYPES: [(EventType, &str, &[u8]); 5] = [
    (EventType::Added, "ADDED", br#"{"type":"ADDED","object":"#),
    (EventType::Modified, "MODIFIED", br#"{"type":"MODIFIED","object":"#),
    (EventType::Deleted, "DELETED", br#"{"type":"DELETED","object":"#),
    (EventType::Bookmark, "BOOKMARK", br#"{"type":"BOOKMARK","object":"#),
    (EventType::Error, "ERROR", br#"{"type":"ERROR","object":"#),
];
const SUFFIX: &[u8] = b"}\n";

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a watch event is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("a watch event is not JSON of the expected form: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a watch event has the unknown type {0:?}")]
    Type(String),
}

/// Cuts frames into events.
#[derive(Default)]
pub(crate) struct Framer {
    state: State,
    line: Vec<u8>,
}

#[derive(Default)]
enum State {
    /// At the start of a line, or within one that is being gathered in `line`.
    #[default]
    Line,
    /// The last frame was exactly a known prefix.
    Prefix(usize),
    /// Prefix and one more frame have come; if the suffix follows alone, that frame was the object.
    Object(usize, Bytes),
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Framer {
    /// Takes a frame and hands every event it completes to `out`.
    pub(crate) fn push(
        &mut self,
        frame: Bytes,
        out: &mut impl FnMut(EventType, Bytes),
    ) -> Result<(), FrameError> {
        match std::mem::take(&mut self.state) {
            State::Line if self.line.is_empty() => {
                if let Some(i) = TYPES.iter().position(|t| t.2 == &frame[..]) {
                    self.state = State::Prefix(i);
                    return Ok(());
                }
                self.gather(&frame, out)
            }
            State::Line => self.gather(&frame, out),
            State::Prefix(i) if frame.is_empty() => {
                self.state = State::Prefix(i);
                Ok(())
            }
            State::Prefix(i) => {
                if frame.contains(&b'\n') {
                    self.line.extend_from_slice(TYPES[i].2);
                    return self.gather(&frame, out);
                }
                self.state = State::Object(i, frame);
                Ok(())
            }
            State::Object(i, object) if frame == SUFFIX => {
                out(TYPES[i].0, object);
                Ok(())
            }
            State::Object(i, object) => {
                self.line.extend_from_slice(TYPES[i].2);
                self.line.extend_from_slice(&object);
                self.gather(&frame, out)
            }
        }
    }

    fn gather(&mut self, mut rest: &[u8], out: &mut impl FnMut(EventType, Bytes)) -> Result<(), FrameError> {
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let (head, tail) = rest.split_at(end);
            rest = &tail[1..];
            if self.line.is_empty() {
                parse(head, out)?;
            } else {
                self.bounded(head.len())?;
                self.line.extend_from_slice(head);
                let line = std::mem::take(&mut self.line);
                parse(&line, out)?;
            }
        }
        self.bounded(rest.len())?;
        self.line.extend_from_slice(rest);
        Ok(())
    }

    fn bounded(&self, more: usize) -> Result<(), FrameError> {
        if self.line.len() + more > MAX_LINE_BYTES { Err(FrameError::TooLong) } else { Ok(()) }
    }
}

fn parse(line: &[u8], out: &mut impl FnMut(EventType, Bytes)) -> Result<(), FrameError> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let parsed: Line<'_> = serde_json::from_slice(line)?;
    let known = TYPES.iter().find(|t| t.1 == parsed.kind);
    let kind = known.ok_or_else(|| FrameError::Type(parsed.kind.to_string()))?.0;
    out(kind, Bytes::copy_from_slice(parsed.object.get().as_bytes()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(frames: Vec<Bytes>) -> Vec<(EventType, Bytes)> {
        let mut framer = Framer::default();
        let mut events = Vec::new();
        for frame in frames {
            framer.push(frame, &mut |t, b| events.push((t, b))).unwrap();
        }
        assert!(framer.line.is_empty());
        events
    }

    #[test]
    fn three_frames_are_passed_on_without_a_copy() {
        let object = Bytes::from(br#"{"metadata":{"name":"a"}}"#.to_vec());
        let prefix = Bytes::from_static(TYPES[1].2);
        let suffix = Bytes::from_static(SUFFIX);
        let events = run(vec![prefix, object.clone(), suffix]);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].0, EventType::Modified);
        assert_eq!(events[0].1.as_ptr(), object.as_ptr());
    }

    #[test]
    fn every_way_to_cut_the_stream_gives_the_same_events() {
        let objects: [&[u8]; 3] = [br#"{"a":{"b":{}}}"#, br#"{"s":"}\n{\"type\""}"#, br#"{}"#];
        let mut stream = Vec::new();
        for (i, object) in objects.iter().enumerate() {
            stream.extend_from_slice(TYPES[i].2);
            stream.extend_from_slice(object);
            stream.extend_from_slice(SUFFIX);
        }
        let expected: Vec<_> =
            objects.iter().enumerate().map(|(i, o)| (TYPES[i].0, Bytes::copy_from_slice(o))).collect();
        let whole = Bytes::from(stream);
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let frames = vec![whole.slice(..first), whole.slice(first..second), whole.slice(second..)];
                assert_eq!(run(frames), expected, "cut at {first} and {second}");
            }
        }
        for size in 1..40 {
            let frames = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            assert_eq!(run(frames), expected, "cut into pieces of {size}");
        }
    }

    #[test]
    fn other_spellings_are_read_too() {
        let events = run(vec![Bytes::from_static(b"\n{\"object\": {\"x\": 1}, \"type\": \"BOOKMARK\"}\n")]);
        assert_eq!(events, [(EventType::Bookmark, Bytes::from_static(b"{\"x\": 1}"))]);
    }
}

//! HTTP/2 connections whose clients name a socket as the authority.

use std::io;

use yare_grpc::Rewriter;

/// The rewritten bytes as far as they are well-formed, and whether all are.
fn rewritten(bytes: &[u8], at_once: usize) -> (Vec<u8>, io::Result<()>) {
    let (mut rewriter, mut out) = (Rewriter::new(), bytes::BytesMut::new());
    let outcome = bytes.chunks(at_once).try_for_each(|chunk| rewriter.feed(chunk, &mut out));
    (out.to_vec(), outcome)
}

pub fn authority(bytes: &[u8]) {
    let (whole, outcome) = rewritten(bytes, bytes.len().max(1));
    for at_once in [1, 3, 10] {
        let (pieces, again) = rewritten(bytes, at_once);
        assert_eq!(pieces, whole, "{at_once} at once");
        assert_eq!(again.is_ok(), outcome.is_ok(), "{at_once} at once");
    }
    // An authority of no bytes becomes one of one.
    assert!(whole.len() <= 2 * bytes.len(), "{} bytes of {}", whole.len(), bytes.len());
    if let (again, Ok(())) = rewritten(&whole, whole.len().max(1)) {
        assert!(whole.starts_with(&again), "what is plain is changed");
        assert!(outcome.is_err() || again == whole, "what is plain is kept back");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = frame(4, 0, &[]);
    let fields = b"\x83\x41\x07/a.sock\x00\x01x\x01y";
    let (first, second) = fields.split_at(5);
    let padded = [&[2], &fields[..], &[0, 0]].concat();
    let with_priority = [&[0, 0, 0, 0, 16], &fields[..]].concat();
    [
        vec![frame(1, 4, fields), frame(0, 1, b"data")],
        vec![frame(1, 0, first), frame(9, 4, second)],
        vec![frame(1, 4 | 8, &padded), frame(1, 4 | 0x20, &with_priority)],
        vec![frame(1, 4, b"\x3f\xe1\x1f\xbe\x11\x00"), frame(6, 0, &[0; 8])],
    ]
    .into_iter()
    .map(|frames| [preface.clone(), settings.clone(), frames.concat()].concat())
    .collect()
}

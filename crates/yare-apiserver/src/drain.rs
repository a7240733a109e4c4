//! Bodies that nobody reads to their end: an answer that is ready early (405, 413) must not cut the client off
//! while it still sends. HTTP/2 would reset the stream, and some clients then lose the answer; so what is left
//! is read and thrown away, within bounds.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::runtime::Handle;

/// What is thrown away of one body at most; after that the client is cut off.
const MAX_BYTES: usize = 16 << 20;
/// How long that may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A body of which what is left is read when it is dropped.
pub struct Drained<B>(Option<B>)
where
    B: Body<Data = Bytes> + Unpin + Send + 'static;

impl<B> Drained<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    /// Around a connection's body.
    pub fn new(body: B) -> Self {
        Self(Some(body))
    }
}

impl<B> Body for Drained<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            // Ended or broken: nothing is left.
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> Drop for Drained<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|b| !b.is_end_stream()) else { return };
        if body.size_hint().lower() > MAX_BYTES as u64 {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(tokio::time::timeout(TIMEOUT, drain(body)));
        }
    }
}

async fn drain<B>(mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = MAX_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Buf::remaining);
        let Some(rest) = left.checked_sub(size) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    fn body(
        capacity: usize,
    ) -> (mpsc::Sender<Bytes>, impl Body<Data = Bytes, Error = Infallible> + Unpin + Send) {
        let (sender, mut receiver) = mpsc::channel(capacity);
        let stream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        (sender, StreamBody::new(futures::StreamExt::map(stream, |b| Ok(Frame::data(b)))))
    }

    #[tokio::test]
    async fn what_is_left_is_read() {
        let (sender, body) = body(1);
        let mut drained = Drained::new(body);
        sender.send(Bytes::from_static(b"head")).await.unwrap();
        assert!(drained.frame().await.is_some());
        drop(drained);
        for _ in 0..10 {
            sender.send(Bytes::from_static(b"more")).await.expect("somebody reads");
        }
    }

    #[tokio::test]
    async fn within_bounds() {
        let (sender, body) = body(1);
        drop(Drained::new(body));
        let piece = Bytes::from(vec![0; 1 << 20]);
        let mut taken = 0;
        while sender.send(piece.clone()).await.is_ok() {
            taken += 1;
            assert!(taken <= MAX_BYTES / piece.len() + 2, "no end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn not_for_ever() {
        let (sender, body) = body(1);
        drop(Drained::new(body));
        sender.closed().await;
    }
}

//! Work that comes to its end, also when nobody waits for it any more.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{body::Reply, status::ApiResult};

type Work = Pin<Box<dyn Future<Output = ApiResult<Reply>> + Send>>;

/// Work that goes on by itself where it is dropped before its end.
pub(crate) struct ToTheEnd(Option<Work>);

impl ToTheEnd {
    /// Begins nothing yet.
    pub(crate) fn new(work: impl Future<Output = ApiResult<Reply>> + Send + 'static) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl Future for ToTheEnd {
    type Output = ApiResult<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        // Taken out meanwhile, so that one that panics is not polled again.
        let polled = work.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let (Some(work), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

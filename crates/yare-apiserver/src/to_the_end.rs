//! Work that comes to its end, also when nobody waits for it any more.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::FutureExt as _;

use crate::{body::Reply, core::Core, metrics::seldom::POST_TIMEOUT, status::ApiResult};

type Work = Pin<Box<dyn Future<Output = ApiResult<Reply>> + Send>>;

/// Work that goes on by itself where it is dropped before its end, which is counted then.
pub(crate) struct ToTheEnd {
    core: Arc<Core>,
    work: Option<Work>,
}

impl ToTheEnd {
    /// Begins nothing yet.
    pub(crate) fn new(
        core: Arc<Core>,
        work: impl Future<Output = ApiResult<Reply>> + Send + 'static,
    ) -> Self {
        Self { core, work: Some(Box::pin(work)) }
    }
}

impl Future for ToTheEnd {
    type Output = ApiResult<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        // Taken out meanwhile, so that one that panics is not polled again.
        let polled = work.as_mut().poll(cx);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let (Some(work), Ok(runtime)) = (self.work.take(), tokio::runtime::Handle::try_current()) {
            let core = self.core.clone();
            runtime.spawn(async move {
                let status = match AssertUnwindSafe(work).catch_unwind().await {
                    Ok(Ok(_)) => "ok",
                    Ok(Err(_)) => "error",
                    Err(_) => "panic",
                };
                core.metrics.seldom.count(&POST_TIMEOUT, &["rest-handler", status]);
            });
        }
    }
}

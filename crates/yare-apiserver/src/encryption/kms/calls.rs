//! Calls of one plugin, counted. A call waits for the plugin to come up, as long as its timeout allows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message;
use yare_grpc::{Client, Code, code_name, describe};

use crate::{
    encryption::{chain::Failure, metrics::Metrics},
    outbound::USER_AGENT,
};

pub(super) struct Calls {
    provider: String,
    client: Client,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Calls {
    /// `socket`: a path, or a name in the abstract namespace after `@`.
    pub fn new(provider: &str, socket: &str, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        let client = Client::unix(socket).waiting().user_agent(USER_AGENT);
        Self { provider: provider.to_owned(), client, timeout, metrics }
    }

    /// Calls a method.
    pub async fn call<Q, R>(&self, method: &'static str, message: Q) -> Result<R, Failure>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let started = Instant::now();
        let outcome = self.client.call(method, message, self.timeout).await;
        let code = outcome.as_ref().map_or_else(|status| status.code(), |_| Code::Ok);
        self.metrics.called(&self.provider, method, code_name(code), started.elapsed());
        outcome.map_err(|status| Failure { message: describe(&status), code: code_name(status.code()) })
    }
}

/// Whether the plugin could not be reached, or not in time.
pub(super) fn is_unreachable(failure: &Failure) -> bool {
    [Code::Unavailable, Code::DeadlineExceeded].map(code_name).contains(&failure.code)
}

//! The webhook backend: lists of events posted to the server that a kubeconfig names.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    core::Random,
    outbound::{Backoff, Calls, Client, egress::Route, kubeconfig},
};

/// How long one post may take.
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;

/// Where events are posted, and as whom.
pub struct Receiver {
    client: Client,
    random: Arc<dyn Random>,
}

impl Receiver {
    /// Reads a kubeconfig. The error is one line that names the file.
    /// `out`: the way to the receiver.
    pub fn read(path: &Path, out: Option<Arc<Route>>, random: Arc<dyn Random>) -> Result<Self, String> {
        Ok(Self { client: kubeconfig::client(path)?.through(out), random })
    }

    /// Counts its calls there.
    #[must_use]
    pub fn counted(mut self, calls: Arc<Calls>) -> Self {
        self.client = self.client.counted(calls);
        self
    }

    /// Posts a list of events (JSON), again and again with growing pauses, whatever goes wrong.
    pub async fn deliver(&self, body: Bytes, first_pause: Duration) -> Result<(), String> {
        let mut backoff = Backoff { first: first_pause, attempts: ATTEMPTS };
        loop {
            match self.client.post(None, "timeout=30s", body.clone(), TIMEOUT).await {
                Ok(_) => return Ok(()),
                Err(failure) => {
                    if !backoff.wait(&*self.random).await {
                        return Err(format!("{}: {}", self.client.url(), failure.message));
                    }
                }
            }
        }
    }
}

//! Changes of the file while the server runs. A new configuration takes effect once all of its plugins are
//! well; until then, and where it is wrong, the old one stays.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Encryption, Loaded, locked};
use crate::{core::Core, files::Changes};

/// Changes within this time are one.
const SETTLE: Duration = Duration::from_millis(50);
/// How long new plugins have to become well at least, and how often they are asked meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(100);
/// Pauses between attempts with a file that was not accepted: what it lacks may be elsewhere.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Watches the file until the server stops.
pub(super) fn start(core: &Arc<Core>, encryption: &Arc<Encryption>) {
    let (core, encryption) = (core.clone(), encryption.clone());
    tokio::spawn(async move {
        let path = &encryption.settings.file;
        let changes = match Changes::of(path) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "changes of this file will not be seen");
                return;
            }
        };
        let mut retry = None;
        // What changed between the first reading and now is found by the first round.
        let mut first = true;
        loop {
            if !std::mem::take(&mut first) {
                tokio::select! {
                    seen = changes.next() => match seen {
                        Ok(()) => retry = None,
                        Err(_) => return,
                    },
                    () = sleep(retry.unwrap_or_default()), if retry.is_some() => {}
                    () = core.stop.cancelled() => return,
                }
                sleep(SETTLE).await;
            }
            retry = match encryption.reload().await {
                Ok(true) => {
                    tracing::info!(file = %path.display(), "reloaded");
                    locked::recheck(&core).await;
                    None
                }
                Ok(false) => None,
                Err(why) => {
                    encryption.seat.metrics.reloaded("failure", encryption.seat.now_s());
                    tracing::error!(file = %path.display(), why, "error processing encryption config file");
                    Some(retry.map_or(RETRY, |pause: Duration| (pause * 2).min(MAX_RETRY)))
                }
            };
        }
    });
}

impl Encryption {
    /// Takes in what the file says now; false where it says what it said.
    async fn reload(&self) -> Result<bool, String> {
        let known = self.now.load().hash.clone();
        let Some(loaded) = Loaded::read(&self.settings, &self.seat, Some(&known)).await? else {
            return Ok(false);
        };
        let until = Instant::now() + loaded.grace.max(PATIENCE);
        while let Err(why) = loaded.check().await {
            if Instant::now() >= until {
                let why = format!(
                    "health check for new transformers failed, polling error timed out waiting for the condition: {why}"
                );
                return Err(why);
            }
            sleep(STEP).await;
        }
        self.seat.metrics.configured(&loaded.hash);
        self.seat.metrics.reloaded("success", self.seat.now_s());
        let old = self.now.swap(Arc::new(loaded));
        // Calls of its plugins may be under way.
        tokio::spawn(async move {
            sleep(old.grace).await;
            drop(old);
        });
        Ok(true)
    }
}

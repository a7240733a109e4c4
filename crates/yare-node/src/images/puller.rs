//! Pulls: how many at once (`serializeImagePulls`, `maxParallelImagePulls`), how many a second (`registryPullQPS`,
//! `registryBurst`), and with which of several logins.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use yare_runtime::{ImageStatus, Runtime};

use super::keyring::Login;
use crate::config::Settings;

/// Tokens that come back with time.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = now;
        let is_there = self.tokens >= 1.0;
        if is_there {
            self.tokens -= 1.0;
        }
        is_there
    }
}

/// Pulls images for one node.
#[derive(Debug)]
pub(crate) struct Puller {
    /// First come, first served. None: any number at once.
    slots: Option<Arc<Semaphore>>,
    /// None: any number a second.
    rate: Option<Mutex<Bucket>>,
}

/// One of the pulls that run at once, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _slot: Option<OwnedSemaphorePermit>,
}

/// A pull that came to an end.
pub(crate) struct Pulled {
    /// The image, and the login that opened it.
    pub(crate) outcome: Result<(ImageStatus, Option<Login>), String>,
    /// How long it took once it was its turn.
    pub(crate) took: Duration,
}

impl Puller {
    pub(crate) fn new(settings: &Settings) -> Self {
        let slots = match (settings.serialize_image_pulls, settings.max_parallel_image_pulls) {
            (true, _) => Some(1),
            (false, Some(many)) => usize::try_from(many).ok().filter(|many| *many > 0),
            (false, None) => None,
        };
        let rate = (settings.registry_pull_qps > 0).then(|| {
            let burst = f64::from(settings.registry_burst.max(1));
            let per_second = f64::from(settings.registry_pull_qps);
            Mutex::new(Bucket { per_second, burst, tokens: burst, at: Instant::now() })
        });
        // More slots than a semaphore has are no limit.
        let slots = slots.filter(|many| *many <= Semaphore::MAX_PERMITS);
        Puller { slots: slots.map(|many| Arc::new(Semaphore::new(many))), rate }
    }

    /// Waits for its turn.
    pub(crate) async fn turn(&self) -> Turn {
        match &self.slots {
            // The semaphore is never closed.
            Some(slots) => Turn { _slot: slots.clone().acquire_owned().await.ok() },
            None => Turn { _slot: None },
        }
    }

    /// Pulls; each login that fits is tried, and without any nobody says who he is.
    pub(crate) async fn pull(
        &self,
        _turn: Turn,
        runtime: &Arc<dyn Runtime>,
        image: &str,
        logins: Vec<Login>,
    ) -> Pulled {
        let began = Instant::now();
        let outcome = self.pull_now(runtime, image, logins).await;
        Pulled { outcome, took: began.elapsed() }
    }

    async fn pull_now(
        &self,
        runtime: &Arc<dyn Runtime>,
        image: &str,
        logins: Vec<Login>,
    ) -> Result<(ImageStatus, Option<Login>), String> {
        let logins = if logins.is_empty() { vec![None] } else { logins.into_iter().map(Some).collect() };
        let mut errors: Vec<String> = Vec::new();
        for login in logins {
            let is_free = self.rate.as_ref().is_none_or(|rate| rate.lock().take(Instant::now()));
            let pulled = match is_free {
                true => {
                    let auth = login.as_ref().map(|login| login.auth.clone());
                    runtime.pull_image(image, auth, None).await.map_err(|e| e.to_string())
                }
                false => Err("pull QPS exceeded".to_owned()),
            };
            match pulled {
                Ok(id) => {
                    return match runtime.image(&id).await {
                        Ok(Some(status)) => Ok((status, login)),
                        Ok(None) => Err(format!("image {image:?} vanished after it was pulled")),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Err(error) if errors.contains(&error) => {}
                Err(error) => errors.push(error),
            }
        }
        match errors.len() {
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_configuration() {
        for (serialize, parallel, want) in
            [(true, None, Some(1)), (true, Some(1), Some(1)), (false, None, None), (false, Some(3), Some(3))]
        {
            let settings = Settings {
                serialize_image_pulls: serialize,
                max_parallel_image_pulls: parallel,
                ..Settings::default()
            };
            let puller = Puller::new(&settings);
            assert_eq!(puller.slots.map(|s| s.available_permits()), want, "{serialize} {parallel:?}");
            assert!(puller.rate.is_none(), "0 is no limit");
        }
    }

    #[test]
    fn tokens_come_back() {
        let start = Instant::now();
        let mut bucket = Bucket { per_second: 5.0, burst: 2.0, tokens: 2.0, at: start };
        let taken: Vec<bool> = [0, 0, 0, 100, 200, 250, 5000, 5000, 5000]
            .into_iter()
            .map(|ms| bucket.take(start + Duration::from_millis(ms)))
            .collect();
        assert_eq!(taken, [true, true, false, false, true, false, true, true, false]);
    }
}

//! When a call that failed is made again.

use std::time::Duration;

use crate::core::Random;

/// Of each pause, the part that is left to chance, so that servers which lost the same peer do not come back to it
/// at the same moment.
const JITTER: f64 = 0.2;
const GROWTH: f64 = 1.5;

/// How often, and after what growing pauses (`k8s.io/apiserver/pkg/util/webhook`).
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The pause before the next repetition.
    pub first: Duration,
    /// Attempts that are left.
    pub attempts: u32,
}

impl Backoff {
    /// Of webhooks that requests wait for.
    pub const WEBHOOK: Self = Self { first: Duration::from_millis(500), attempts: 5 };

    /// Waits before the next attempt; `false` where there is to be none.
    pub async fn wait(&mut self, random: &dyn Random) -> bool {
        if self.attempts <= 1 {
            return false;
        }
        let mut byte = [0u8];
        random.fill(&mut byte);
        tokio::time::sleep(self.first.mul_f64(1.0 + JITTER * f64::from(byte[0]) / 255.0)).await;
        self.first = self.first.mul_f64(GROWTH);
        self.attempts -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end() {
        let mut backoff = Backoff { first: Duration::from_secs(10), attempts: 3 };
        let mut pauses = Vec::new();
        loop {
            let began = tokio::time::Instant::now();
            if !backoff.wait(&crate::SystemRandom).await {
                break;
            }
            pauses.push(began.elapsed().as_secs_f64());
        }
        assert_eq!(pauses.len(), 2);
        assert!((10.0..12.1).contains(&pauses[0]) && (15.0..18.1).contains(&pauses[1]), "{pauses:?}");
    }
}

//! What `Retry-After` says: longer while many requests are refused, shorter again when few are.

use std::collections::VecDeque;

const MAX_S: u64 = 32;

/// The refusals of one priority level, by second.
#[derive(Debug)]
pub struct RetryAfter {
    /// Seconds and their refusals, the present one last.
    seconds: VecDeque<(u64, u64)>,
    after_s: u64,
    raised_s: u64,
}

impl Default for RetryAfter {
    fn default() -> Self {
        Self { seconds: VecDeque::new(), after_s: 1, raised_s: 0 }
    }
}

impl RetryAfter {
    /// A request is refused in the second `now_s`; what its client should be told, in seconds.
    pub fn refuse(&mut self, now_s: u64) -> u64 {
        match self.seconds.back_mut() {
            Some((second, count)) if *second == now_s => *count += 1,
            _ => {
                self.adjust(now_s);
                self.seconds.push_back((now_s, 1));
            }
        }
        self.after_s
    }

    /// Looks back once a second: doubled where refusals are thrice the wait and the last raise is a wait ago,
    /// one less where they are fewer than the wait.
    fn adjust(&mut self, now_s: u64) {
        let keep_s = (2 * self.after_s).min(MAX_S);
        while self.seconds.front().is_some_and(|(second, _)| now_s.saturating_sub(*second) > keep_s) {
            self.seconds.pop_front();
        }
        let recent = self.seconds.iter().filter(|(second, _)| now_s.saturating_sub(*second) <= self.after_s);
        let refused: u64 = recent.map(|(_, count)| count).sum();
        if refused >= 3 * self.after_s && now_s.saturating_sub(self.raised_s) >= self.after_s {
            self.after_s = (2 * self.after_s).min(MAX_S);
            self.raised_s = now_s;
        } else if refused < self.after_s && self.after_s > 1 {
            self.after_s -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_under_load_and_shrinks_after() {
        let mut retry = RetryAfter::default();
        let mut told = Vec::new();
        for second in 100..140 {
            for _ in 0..200 {
                retry.refuse(second);
            }
            told.push(retry.refuse(second));
        }
        assert_eq!(told[0], 1);
        assert_eq!(told[1], 2);
        assert!(told.is_sorted() && told.last() == Some(&MAX_S), "{told:?}");
        for second in (1000..3000).step_by(50) {
            retry.refuse(second);
        }
        assert_eq!(retry.refuse(3000), 1);
    }
}

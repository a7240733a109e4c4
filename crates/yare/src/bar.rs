//! A bar that shows how far something has come, on a terminal; elsewhere nothing is shown.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use yare_runtime::{ProgressFn, PullProgress};

/// The bar's own width.
const WIDTH: u64 = 30;
/// It is drawn anew this often at most.
const PERIOD: Duration = Duration::from_millis(100);

/// A bar under way. Dropping it takes it away.
pub struct Bar {
    drawn: Arc<Mutex<Option<Instant>>>,
}

impl Bar {
    /// A bar on standard error, where that is a terminal.
    pub fn new() -> Option<Self> {
        io::stderr().is_terminal().then(|| Self { drawn: Arc::default() })
    }

    /// What draws it.
    pub fn callback(&self) -> ProgressFn {
        let drawn = self.drawn.clone();
        Arc::new(move |progress| {
            let mut last = drawn.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| at.elapsed() < PERIOD) && progress.layers_done < progress.layers {
                return;
            }
            *last = Some(Instant::now());
            // A terminal that is gone needs no bar.
            let _ = write!(io::stderr(), "\r\x1b[K{}", line(progress));
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.drawn.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(progress: PullProgress) -> String {
    let PullProgress { layers, layers_done, bytes, total_bytes } = progress;
    let total = total_bytes.max(1);
    let done = bytes.min(total);
    let filled = usize::try_from(done * WIDTH / total).unwrap_or(0);
    let rest = usize::try_from(WIDTH).unwrap_or(0) - filled;
    format!(
        "[{}{}] {:>3} %  {} of {}  layers {layers_done} of {layers}",
        "#".repeat(filled),
        ".".repeat(rest),
        done * 100 / total,
        crate::image::human(bytes),
        crate::image::human(total_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_full_as_they_should() {
        let at = |bytes| line(PullProgress { layers: 2, layers_done: 1, bytes, total_bytes: 3 << 20 });
        assert_eq!(at(0), "[..............................]   0 %  0.0 B of 3.0 MiB  layers 1 of 2");
        assert_eq!(at(1 << 20), "[##########....................]  33 %  1.0 MiB of 3.0 MiB  layers 1 of 2");
        assert_eq!(at(3 << 20), "[##############################] 100 %  3.0 MiB of 3.0 MiB  layers 1 of 2");
        assert!(line(PullProgress::default()).contains("0 %"), "nothing is known yet");
    }
}

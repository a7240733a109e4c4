//! A client that calls a service all the time while a test does something to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Cluster, get};

/// Between two calls.
const PAUSE: Duration = Duration::from_millis(10);

/// What the calls saw.
#[derive(Debug, Default)]
pub struct Report {
    /// How many calls succeeded.
    pub succeeded: usize,
    /// Seconds since the start and the reason, for each call that failed.
    pub failed: Vec<String>,
    /// Answers with their number, in which digits behind "request " are left out.
    pub answers: BTreeMap<String, usize>,
}

/// Calls under way, each on a connection of its own.
#[derive(Debug)]
pub struct Calls {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Report>>,
}

impl Calls {
    /// Starts to call `http://address/path` from the cluster's machine.
    pub fn start(cluster: &Cluster, address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (stop.clone(), path.to_owned());
        let thread = cluster.namespace().spawn(move || {
            let (start, mut report) = (Instant::now(), Report::default());
            while !stopped.load(Ordering::Relaxed) {
                let failure = match get(address, &path) {
                    Ok(answer) if answer.code == 200 => {
                        report.succeeded += 1;
                        let text = answer.body.split(", request ").next().unwrap_or_default().to_owned();
                        *report.answers.entry(text).or_default() += 1;
                        None
                    }
                    Ok(answer) => Some(format!("{} {}", answer.code, answer.body)),
                    Err(error) => Some(format!("{error:#}")),
                };
                report
                    .failed
                    .extend(failure.map(|f| format!("at {:.2} s: {f}", start.elapsed().as_secs_f32())));
                thread::sleep(PAUSE);
            }
            report
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops, and says what happened.
    pub fn finish(self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?
    }

    /// Stops; that a call failed, or that there was none, is an error.
    pub fn all_succeeded(self) -> anyhow::Result<Report> {
        let report = self.finish()?;
        anyhow::ensure!(report.failed.is_empty() && report.succeeded > 0, "calls failed: {report:#?}");
        Ok(report)
    }
}

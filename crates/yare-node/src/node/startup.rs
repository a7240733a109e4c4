//! How long it takes until a machine is a node: from its start to the agent's, to the first attempt to register, to
//! the node's object, to a node that is ready. Told once, and only by the agent that made the object, as upstream has
//! it.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{Metrics, table};

/// The steps so far.
pub(crate) struct Startup {
    /// How long the machine ran before; `None` where it does not say.
    machine: Option<Duration>,
    agent: Instant,
    attempt: Option<Instant>,
    registered: Option<Instant>,
    is_told: bool,
}

impl Startup {
    /// The agent starts.
    pub(crate) fn begin() -> Self {
        let machine = fs::read_to_string("/proc/uptime").ok().and_then(|text| uptime(&text));
        Self { machine, agent: Instant::now(), attempt: None, registered: None, is_told: false }
    }

    /// It tries to register, maybe not for the first time.
    pub(crate) fn attempt(&mut self) {
        self.attempt.get_or_insert_with(Instant::now);
    }

    /// The node's object was made.
    pub(crate) fn registered(&mut self, metrics: &Metrics) {
        let (Some(attempt), None) = (self.attempt, self.registered) else { return };
        let now = Instant::now();
        self.registered = Some(now);
        if let Some(machine) = self.machine {
            metrics.set(&table::STARTUP_PRE_KUBELET, &[], machine.as_secs_f64());
        }
        metrics.set(&table::STARTUP_PRE_REGISTRATION, &[], (attempt - self.agent).as_secs_f64());
        metrics.set(&table::STARTUP_REGISTRATION, &[], (now - attempt).as_secs_f64());
    }

    /// The node is ready, maybe not for the first time.
    pub(crate) fn ready(&mut self, metrics: &Metrics) {
        let Some(registered) = self.registered.filter(|_| !self.is_told) else { return };
        self.is_told = true;
        metrics.set(&table::STARTUP_POST_REGISTRATION, &[], registered.elapsed().as_secs_f64());
        if let Some(machine) = self.machine {
            metrics.set(&table::STARTUP, &[], (machine + self.agent.elapsed()).as_secs_f64());
        }
    }
}

/// Reads `/proc/uptime`: seconds since the start, seconds idle.
fn uptime(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use yare_metrics::table::Counts;

    #[test]
    fn uptimes() {
        assert_eq!(uptime("12.34 5.6\n"), Some(Duration::from_millis(12_340)));
        for text in ["", "soon", "-1 2"] {
            assert_eq!(uptime(text), None, "{text}");
        }
    }

    /// What was told, without the word for a start.
    fn told(metrics: &Metrics) -> Vec<(String, f64)> {
        let mut page = yare_metrics::text::Page::new();
        let gates = crate::config::Configuration::default();
        metrics.expose(&Counts::default(), &gates, &mut page);
        let page = page.finish();
        let lines =
            page.lines().filter_map(|line| line.strip_prefix("kubelet_node_startup_")?.split_once(' '));
        lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_step_has_its_time() {
        let metrics = Metrics::default();
        let mut startup = Startup { machine: Some(Duration::from_secs(100)), ..Startup::begin() };
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        pass(1).await;
        startup.attempt();
        pass(2).await;
        startup.attempt();
        startup.registered(&metrics);
        pass(4).await;
        startup.ready(&metrics);
        pass(8).await;
        startup.registered(&metrics);
        startup.ready(&metrics);
        let expected = [
            ("duration_seconds", 107.0),
            ("post_registration_duration_seconds", 4.0),
            ("pre_kubelet_duration_seconds", 100.0),
            ("pre_registration_duration_seconds", 1.0),
            ("registration_duration_seconds", 2.0),
        ];
        assert_eq!(told(&metrics), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_the_object_there_tells_nothing() {
        let metrics = Metrics::default();
        let mut startup = Startup::begin();
        startup.attempt();
        startup.ready(&metrics);
        assert_eq!(told(&metrics).iter().map(|(_, value)| value).sum::<f64>(), 0.0);
    }
}

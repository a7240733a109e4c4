//! Flags about requests: how many, how long, how they are spread out and told of the end.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{ArgAction, Args};
use yare_apiserver::{
    Config, Egress, SystemClock, SystemRandom, shutdown,
    trace::{self, Tracer},
};
use yare_auth::config::tracing::TracingConfiguration;

/// Flags of `yare server` under kube-apiserver's names.
#[derive(Args, Debug, Clone)]
pub struct RequestArgs {
    /// With --max-mutating-requests-inflight: the seats that priority levels share. Without priority and
    /// fairness: requests that read at a time, 0 for any number.
    #[arg(long, default_value_t = 400, env = "YARE_MAX_REQUESTS_INFLIGHT")]
    pub max_requests_inflight: usize,
    /// The same for requests that write.
    #[arg(long, default_value_t = 200, env = "YARE_MAX_MUTATING_REQUESTS_INFLIGHT")]
    pub max_mutating_requests_inflight: usize,
    /// Queue requests fairly by FlowSchemas and PriorityLevelConfigurations.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_ENABLE_PRIORITY_AND_FAIRNESS")]
    pub enable_priority_and_fairness: bool,
    /// How long a request may take that is no watch or stream.
    #[arg(long, default_value = "1m0s", value_parser = positive, env = "YARE_REQUEST_TIMEOUT")]
    pub request_timeout: Duration,
    /// Chance that a request over HTTP/2 is the last one of its connection, 0 to 0.02: clients then connect
    /// again, perhaps to another server behind the same balancer.
    #[arg(long, default_value_t = 0.0, value_parser = chance, env = "YARE_GOAWAY_CHANCE")]
    pub goaway_chance: f64,
    /// Watches that name no time of their own end after this many seconds, plus up to as much again.
    #[arg(long, default_value_t = 1800, env = "YARE_MIN_REQUEST_TIMEOUT")]
    pub min_request_timeout: u32,
    /// For how long /livez takes it that what begins with the server will come to its end.
    #[arg(long, default_value = "0s", value_parser = duration, env = "YARE_LIVEZ_GRACE_PERIOD")]
    pub livez_grace_period: Duration,
    /// How long requests are still taken after /readyz has begun to fail at the end.
    #[arg(long, default_value = "0s", value_parser = duration, env = "YARE_SHUTDOWN_DELAY_DURATION")]
    pub shutdown_delay_duration: Duration,
    /// After that, while requests in flight finish, who comes is told to try again later (429); otherwise nobody
    /// listens any more.
    #[arg(long, env = "YARE_SHUTDOWN_SEND_RETRY_AFTER")]
    pub shutdown_send_retry_after: bool,
    /// Over what time watches end then; 0s: all at once.
    #[arg(long, default_value = "0s", value_parser = duration, env = "YARE_SHUTDOWN_WATCH_TERMINATION_GRACE_PERIOD")]
    pub shutdown_watch_termination_grace_period: Duration,
    /// How long events are kept after they were written last; 0s: for ever.
    #[arg(long, default_value = "1h0m0s", value_parser = duration, env = "YARE_EVENT_TTL")]
    pub event_ttl: Duration,
    /// File with an EgressSelectorConfiguration: proxies on the way to the cluster and to the control plane's servers.
    #[arg(long, env = "YARE_EGRESS_SELECTOR_CONFIG_FILE")]
    pub egress_selector_config_file: Option<PathBuf>,
    /// File with a TracingConfiguration: where traces of requests go, and how many there are.
    #[arg(long, env = "YARE_TRACING_CONFIG_FILE")]
    pub tracing_config_file: Option<PathBuf>,
}

impl RequestArgs {
    /// Reads the file about ways out, where there is one.
    pub fn egress(&self) -> anyhow::Result<Option<Arc<Egress>>> {
        let Some(path) = &self.egress_selector_config_file else { return Ok(None) };
        let named = || format!("--egress-selector-config-file {}", path.display());
        let text = std::fs::read(path).with_context(named)?;
        Ok(Some(Arc::new(Egress::parse(&text).map_err(anyhow::Error::msg).with_context(named)?)))
    }

    /// Begins to send traces where a file says so. `server`: which server this is.
    pub fn tracer(&self, server: &str, egress: Option<&Egress>) -> anyhow::Result<Option<Tracer>> {
        let Some(path) = &self.tracing_config_file else { return Ok(None) };
        let named = || format!("--tracing-config-file {}", path.display());
        let text = std::fs::read(path).with_context(named)?;
        let configuration = TracingConfiguration::parse(&text).with_context(named)?;
        let (clock, random) = (Arc::new(SystemClock), Arc::new(SystemRandom));
        Ok(Some(trace::start(&configuration, server, egress, clock, random, None)))
    }

    /// Sets up the API server.
    pub fn apply(&self, config: &mut Config) {
        config.flow.fair = self.enable_priority_and_fairness;
        config.flow.readonly = self.max_requests_inflight;
        config.flow.mutating = self.max_mutating_requests_inflight;
        config.flow.request_timeout = self.request_timeout;
        config.goaway_chance = self.goaway_chance;
        config.shutdown = shutdown::Settings {
            delay: self.shutdown_delay_duration,
            retry_after: self.shutdown_send_retry_after,
            watches: self.shutdown_watch_termination_grace_period,
        };
        config.min_request_timeout = Duration::from_secs(self.min_request_timeout.into());
        config.livez_grace = self.livez_grace_period;
        config.event_ttl = self.event_ttl;
    }
}

/// A duration such as 1m30s.
pub fn duration(text: &str) -> Result<Duration, String> {
    yare_apiserver::deadline::parse(text)?.ok_or_else(|| format!("{text} is negative"))
}

/// A duration that is more than zero.
pub fn positive(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|d| if d.is_zero() { Err("must be more than zero".into()) } else { Ok(d) })
}

fn chance(text: &str) -> Result<f64, String> {
    let chance: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=0.02).contains(&chance) { Ok(chance) } else { Err("must be from 0 to 0.02".into()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        requests: RequestArgs,
    }

    #[test]
    fn flags() {
        let parse = |args: &[&str]| {
            Flags::try_parse_from([&["x"], args].concat()).map(|f| f.requests).map_err(|e| e.to_string())
        };
        let all = parse(&[]).unwrap();
        assert!(all.enable_priority_and_fairness);
        assert_eq!(all.request_timeout, Duration::from_secs(60));
        let set = parse(&["--enable-priority-and-fairness=false", "--request-timeout=5s"]).unwrap();
        assert!(!set.enable_priority_and_fairness);
        assert_eq!(set.request_timeout, Duration::from_secs(5));
        for bad in ["--request-timeout=0s", "--goaway-chance=0.5", "--shutdown-delay-duration=x"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}

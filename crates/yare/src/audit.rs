//! Flags about audit, under kube-apiserver's names.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::bail;
use clap::{ArgAction, Args, ValueEnum};
use yare_apiserver::{
    Config,
    audit::{Audit, Batching, LogSettings, Mode, Settings, Target, Truncate, WebhookSettings},
};

use crate::requests::duration;

const MIB: u64 = 1024 * 1024;

/// Whether requests wait for their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Buffered, and written when there is time.
    Batch,
    /// Written before the answer.
    Blocking,
    /// As blocking, and a request whose first event cannot be written is refused.
    BlockingStrict,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// audit.k8s.io/v1 as JSON.
    Json,
    /// One line of text.
    Legacy,
}

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
pub struct AuditArgs {
    /// File with the audit policy; without one nothing is written down.
    #[arg(long, env = "YARE_AUDIT_POLICY_FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// File for audit events; - for standard output.
    #[arg(long, env = "YARE_AUDIT_LOG_PATH")]
    pub audit_log_path: Option<PathBuf>,
    /// Days after which old audit logs are removed; 0 for never.
    #[arg(long, default_value_t = 366, env = "YARE_AUDIT_LOG_MAXAGE")]
    pub audit_log_maxage: u32,
    /// Old audit logs that are kept; 0 for all.
    #[arg(long, default_value_t = 100, env = "YARE_AUDIT_LOG_MAXBACKUP")]
    pub audit_log_maxbackup: usize,
    /// Megabytes at which an audit log is turned over; 0 for never.
    #[arg(long, default_value_t = 100, env = "YARE_AUDIT_LOG_MAXSIZE")]
    pub audit_log_maxsize: u64,
    /// Form of the audit log.
    #[arg(long, default_value = "json", env = "YARE_AUDIT_LOG_FORMAT")]
    pub audit_log_format: FormatArg,
    /// Compress old audit logs.
    #[arg(long, env = "YARE_AUDIT_LOG_COMPRESS")]
    pub audit_log_compress: bool,
    /// Version of events in the log.
    #[arg(long, default_value = "audit.k8s.io/v1", value_parser = ["audit.k8s.io/v1"], env = "YARE_AUDIT_LOG_VERSION")]
    pub audit_log_version: String,
    /// Whether requests wait for the log.
    #[arg(long, default_value = "blocking", env = "YARE_AUDIT_LOG_MODE")]
    pub audit_log_mode: ModeArg,
    /// Events that are buffered for the log, in batch mode.
    #[arg(long, default_value_t = 10_000, env = "YARE_AUDIT_LOG_BATCH_BUFFER_SIZE")]
    pub audit_log_batch_buffer_size: usize,
    /// Events that are written to the log together at most, in batch mode.
    #[arg(long, default_value_t = 1, env = "YARE_AUDIT_LOG_BATCH_MAX_SIZE")]
    pub audit_log_batch_max_size: usize,
    /// How long an event waits for others to be written with, in batch mode.
    #[arg(long, default_value = "0s", value_parser = duration, env = "YARE_AUDIT_LOG_BATCH_MAX_WAIT")]
    pub audit_log_batch_max_wait: Duration,
    /// Limit the rate of writes, in batch mode.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_AUDIT_LOG_BATCH_THROTTLE_ENABLE")]
    pub audit_log_batch_throttle_enable: bool,
    /// Writes a second, in batch mode.
    #[arg(long, default_value_t = 0.0, env = "YARE_AUDIT_LOG_BATCH_THROTTLE_QPS")]
    pub audit_log_batch_throttle_qps: f64,
    /// Writes at once after a pause, in batch mode.
    #[arg(long, default_value_t = 0, env = "YARE_AUDIT_LOG_BATCH_THROTTLE_BURST")]
    pub audit_log_batch_throttle_burst: u32,
    /// Cut events for the log down that are too large.
    #[arg(long, env = "YARE_AUDIT_LOG_TRUNCATE_ENABLED")]
    pub audit_log_truncate_enabled: bool,
    /// Largest event for the log, in bytes.
    #[arg(long, default_value_t = 100 * 1024, env = "YARE_AUDIT_LOG_TRUNCATE_MAX_EVENT_SIZE")]
    pub audit_log_truncate_max_event_size: usize,
    /// Largest batch for the log, in bytes.
    #[arg(long, default_value_t = 10 * 1024 * 1024, env = "YARE_AUDIT_LOG_TRUNCATE_MAX_BATCH_SIZE")]
    pub audit_log_truncate_max_batch_size: usize,
    /// Kubeconfig of a server that audit events are posted to.
    #[arg(long, env = "YARE_AUDIT_WEBHOOK_CONFIG_FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Pause before a post is tried again for the first time.
    #[arg(long, alias = "audit-webhook-batch-initial-backoff", default_value = "10s", value_parser = duration, env = "YARE_AUDIT_WEBHOOK_INITIAL_BACKOFF")]
    pub audit_webhook_initial_backoff: Duration,
    /// Version of events in posts.
    #[arg(long, default_value = "audit.k8s.io/v1", value_parser = ["audit.k8s.io/v1"], env = "YARE_AUDIT_WEBHOOK_VERSION")]
    pub audit_webhook_version: String,
    /// Whether requests wait for the webhook.
    #[arg(long, default_value = "batch", env = "YARE_AUDIT_WEBHOOK_MODE")]
    pub audit_webhook_mode: ModeArg,
    /// Events that are buffered for the webhook, in batch mode.
    #[arg(long, default_value_t = 10_000, env = "YARE_AUDIT_WEBHOOK_BATCH_BUFFER_SIZE")]
    pub audit_webhook_batch_buffer_size: usize,
    /// Events in one post at most, in batch mode.
    #[arg(long, default_value_t = 400, env = "YARE_AUDIT_WEBHOOK_BATCH_MAX_SIZE")]
    pub audit_webhook_batch_max_size: usize,
    /// How long an event waits for others to be posted with, in batch mode.
    #[arg(long, default_value = "30s", value_parser = duration, env = "YARE_AUDIT_WEBHOOK_BATCH_MAX_WAIT")]
    pub audit_webhook_batch_max_wait: Duration,
    /// Limit the rate of posts, in batch mode.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "YARE_AUDIT_WEBHOOK_BATCH_THROTTLE_ENABLE")]
    pub audit_webhook_batch_throttle_enable: bool,
    /// Posts a second, in batch mode.
    #[arg(long, default_value_t = 10.0, env = "YARE_AUDIT_WEBHOOK_BATCH_THROTTLE_QPS")]
    pub audit_webhook_batch_throttle_qps: f64,
    /// Posts at once after a pause, in batch mode.
    #[arg(long, default_value_t = 15, env = "YARE_AUDIT_WEBHOOK_BATCH_THROTTLE_BURST")]
    pub audit_webhook_batch_throttle_burst: u32,
    /// Cut events for the webhook down that are too large.
    #[arg(long, env = "YARE_AUDIT_WEBHOOK_TRUNCATE_ENABLED")]
    pub audit_webhook_truncate_enabled: bool,
    /// Largest event for the webhook, in bytes.
    #[arg(long, default_value_t = 100 * 1024, env = "YARE_AUDIT_WEBHOOK_TRUNCATE_MAX_EVENT_SIZE")]
    pub audit_webhook_truncate_max_event_size: usize,
    /// Largest batch for the webhook, in bytes.
    #[arg(long, default_value_t = 10 * 1024 * 1024, env = "YARE_AUDIT_WEBHOOK_TRUNCATE_MAX_BATCH_SIZE")]
    pub audit_webhook_truncate_max_batch_size: usize,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Batch => Self::Batch,
            ModeArg::Blocking => Self::Blocking,
            ModeArg::BlockingStrict => Self::BlockingStrict,
        }
    }
}

impl AuditArgs {
    /// Opens what the flags name.
    pub fn open(&self, config: &Config) -> anyhow::Result<Option<Arc<Audit>>> {
        let (egress, calls) = (config.egress.clone(), config.calls.clone());
        let settings = Settings { egress, calls, ..self.settings()? };
        Audit::open(&settings, config.clock.clone(), config.random.clone()).map_err(anyhow::Error::msg)
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let log = match &self.audit_log_path {
            None => None,
            Some(path) => Some(LogSettings {
                target: Target {
                    path: path.clone(),
                    max_age_days: self.audit_log_maxage,
                    max_backups: self.audit_log_maxbackup,
                    max_size_bytes: self.audit_log_maxsize * MIB,
                    compress: self.audit_log_compress,
                },
                text: self.audit_log_format == FormatArg::Legacy,
                mode: self.audit_log_mode.into(),
                batching: batching(
                    "log",
                    self.audit_log_mode,
                    Batching {
                        buffer: self.audit_log_batch_buffer_size,
                        max_size: self.audit_log_batch_max_size,
                        max_wait: self.audit_log_batch_max_wait,
                        throttle: self.audit_log_batch_throttle_enable.then_some((
                            self.audit_log_batch_throttle_qps,
                            self.audit_log_batch_throttle_burst,
                        )),
                    },
                )?,
                truncate: truncate(
                    "log",
                    self.audit_log_truncate_enabled,
                    self.audit_log_truncate_max_event_size,
                    self.audit_log_truncate_max_batch_size,
                )?,
            }),
        };
        let throttle = (self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst);
        let webhook = match &self.audit_webhook_config_file {
            None => None,
            Some(path) => Some(WebhookSettings {
                config: path.clone(),
                initial_backoff: self.audit_webhook_initial_backoff,
                mode: self.audit_webhook_mode.into(),
                batching: batching(
                    "webhook",
                    self.audit_webhook_mode,
                    Batching {
                        buffer: self.audit_webhook_batch_buffer_size,
                        max_size: self.audit_webhook_batch_max_size,
                        max_wait: self.audit_webhook_batch_max_wait,
                        throttle: self.audit_webhook_batch_throttle_enable.then_some(throttle),
                    },
                )?,
                truncate: truncate(
                    "webhook",
                    self.audit_webhook_truncate_enabled,
                    self.audit_webhook_truncate_max_event_size,
                    self.audit_webhook_truncate_max_batch_size,
                )?,
            }),
        };
        Ok(Settings {
            policy: self.audit_policy_file.clone(),
            log,
            webhook,
            egress: None,
            calls: Arc::default(),
        })
    }
}

fn batching(of: &str, mode: ModeArg, batching: Batching) -> anyhow::Result<Batching> {
    if mode != ModeArg::Batch {
        return Ok(batching);
    }
    let wrong = |what: &str, value: String| {
        format!("invalid audit batch {of} {what} {value}, must be a positive number")
    };
    if batching.buffer == 0 {
        bail!(wrong("buffer size", "0".into()));
    }
    if batching.max_size == 0 {
        bail!(wrong("max batch size", "0".into()));
    }
    match batching.throttle {
        Some((qps, _)) if !(qps > 0.0 && qps.is_finite()) => bail!(wrong("throttle QPS", qps.to_string())),
        Some((_, 0)) => bail!(wrong("throttle burst", "0".into())),
        _ => Ok(batching),
    }
}

fn truncate(
    of: &str,
    enabled: bool,
    event_bytes: usize,
    batch_bytes: usize,
) -> anyhow::Result<Option<Truncate>> {
    if event_bytes == 0 {
        bail!("invalid audit truncate {of} max event size 0, must be a positive number");
    }
    if batch_bytes < event_bytes {
        bail!(
            "invalid audit truncate {of} max batch size {batch_bytes}, must be greater than max event size ({event_bytes})"
        );
    }
    Ok(enabled.then_some(Truncate { event_bytes, batch_bytes }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        audit: AuditArgs,
    }

    #[test]
    fn flags() {
        let parse = |args: &[&str]| Flags::try_parse_from([&["x"], args].concat()).unwrap().audit.settings();
        let none = parse(&[]).unwrap();
        assert!(none.policy.is_none() && none.log.is_none() && none.webhook.is_none());
        let both = parse(&["--audit-log-path=-", "--audit-webhook-config-file=k"]).unwrap();
        let (log, webhook) = (both.log.unwrap(), both.webhook.unwrap());
        assert_eq!((log.mode, webhook.mode), (Mode::Blocking, Mode::Batch));
        assert_eq!((log.target.max_size_bytes, webhook.batching.throttle), (100 * MIB, Some((10.0, 15))));
        let old =
            parse(&["--audit-webhook-config-file=k", "--audit-webhook-batch-initial-backoff=3s"]).unwrap();
        assert_eq!(old.webhook.unwrap().initial_backoff, Duration::from_secs(3));
        for (args, why) in [
            (
                &["--audit-log-path=x", "--audit-log-mode=batch", "--audit-log-batch-buffer-size=0"][..],
                "log buffer size 0",
            ),
            (
                &["--audit-webhook-config-file=k", "--audit-webhook-batch-throttle-qps=0"],
                "webhook throttle QPS 0",
            ),
            (&["--audit-log-path=x", "--audit-log-truncate-max-batch-size=5"], "log max batch size 5"),
            (
                &["--audit-log-path=x", "--audit-log-mode=batch", "--audit-log-batch-throttle-enable"],
                "log throttle QPS 0",
            ),
            (
                &["--audit-log-path=x", "--audit-log-mode=batch", "--audit-log-batch-max-size=0"],
                "log max batch size 0",
            ),
        ] {
            assert!(parse(args).unwrap_err().to_string().contains(why), "{args:?}");
        }
    }
}

//! Strategies of the kinds of `batch`.

use super::{Flags, Strategy};

/// `CronJob`
pub const CRON_JOB: &dyn Strategy = &Flags::new().status().generation();

/// `Job`
pub const JOB: &dyn Strategy = &Flags::new().status().generation();

//! Strategies of the kinds of `batch`.

use super::Strategy;

mod cron_job;
mod indexes;
mod job;
mod job_spec;
mod job_status;
#[cfg(test)]
mod tests;

/// `CronJob`
pub const CRON_JOB: &dyn Strategy = &cron_job::CronJob;

/// `Job`
pub const JOB: &dyn Strategy = &job::Job;

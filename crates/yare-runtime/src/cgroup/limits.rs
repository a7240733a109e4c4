//! Limits of a group, written where its hierarchies keep them.
//!
//! In: [`Resources`] in v1's units, as CRI has them. Out: v1's files, or v2's with what counts differently there
//! converted: shares are a weight, the limit of swap is without memory.

use std::io;
use std::path::Path;

use super::{Cgroups, make_v1, read_u64, write};
use crate::api::Resources;

/// v1 shares (2..=262144) as v2 weight (1..=10000): the curve that runc, crun and the kubelet agree on, which
/// maps 1024 to 100.
fn shares_to_weight(shares: u64) -> u64 {
    if shares == 0 {
        return 0;
    }
    let shares = shares.clamp(2, 262_144);
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Ten digits of tolerance: the curve hits 100 at 1024 exactly only in real arithmetic.
    ((10f64.powf(exponent) * 1e9).round() / 1e9).ceil().clamp(1.0, 10_000.0) as u64
}

impl Cgroups {
    /// Sets limits; what is absent stays.
    pub fn apply(&self, group: &Path, r: &Resources) -> io::Result<()> {
        if let Some(dir) = self.v1_dir("cpu", group) {
            if let Some(shares) = r.cpu_shares.filter(|s| *s > 0) {
                write(&dir.join("cpu.shares"), &shares.to_string())?;
            }
            if let Some(period) = r.cpu_period_us.filter(|p| *p > 0) {
                // A quota below the kernel's minimum for the new period is refused: quota off, period, quota.
                if r.cpu_quota_us.is_some() {
                    write(&dir.join("cpu.cfs_quota_us"), "-1")?;
                }
                write(&dir.join("cpu.cfs_period_us"), &period.to_string())?;
            }
            if let Some(quota) = r.cpu_quota_us.filter(|q| *q != 0) {
                write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())?;
            }
        } else if self.has_v2("cpu") {
            let dir = self.v2_dir(group).unwrap_or_default();
            if let Some(shares) = r.cpu_shares.filter(|s| *s > 0) {
                write(&dir.join("cpu.weight"), &shares_to_weight(shares).to_string())?;
            }
            if let Some(quota) = r.cpu_quota_us.filter(|q| *q != 0) {
                let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
                write(&dir.join("cpu.max"), &format!("{quota} {}", r.cpu_period_us.unwrap_or(100_000)))?;
            }
        }
        self.apply_memory(group, r)?;
        if let Some(limit) = r.pids_limit.filter(|l| *l != 0) {
            let value = if limit < 0 { "max".to_owned() } else { limit.to_string() };
            if let Some(dir) = self.v1_dir("pids", group) {
                write(&dir.join("pids.max"), &value)?;
            } else if self.has_v2("pids") {
                write(&self.v2_dir(group).unwrap_or_default().join("pids.max"), &value)?;
            }
        }
        for (value, file) in [(&r.cpuset_cpus, "cpuset.cpus"), (&r.cpuset_mems, "cpuset.mems")] {
            let Some(value) = value.as_deref().filter(|v| !v.is_empty()) else { continue };
            if let Some(dir) = self.v1_dir("cpuset", group) {
                if make_v1("cpuset", &self.v1["cpuset"], &dir)? {
                    // The container runs already, and now gets a cpuset of its own.
                    for pid in self.pids(group) {
                        let _ = write(&dir.join("cgroup.procs"), &pid.to_string());
                    }
                }
                write(&dir.join(file), value)?;
            } else if self.has_v2("cpuset") {
                write(&self.v2_dir(group).unwrap_or_default().join(file), value)?;
            }
        }
        for (size, bytes) in &r.hugepages {
            if let Some(dir) = self.v1_dir("hugetlb", group) {
                write(&dir.join(format!("hugetlb.{size}.limit_in_bytes")), &bytes.to_string())?;
            } else if self.has_v2("hugetlb") {
                write(
                    &self.v2_dir(group).unwrap_or_default().join(format!("hugetlb.{size}.max")),
                    &bytes.to_string(),
                )?;
            }
        }
        if self.unified() {
            let dir = self.v2_dir(group).unwrap_or_default();
            for (file, value) in &r.unified {
                if file.contains('/') {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cgroup file {file:?}")));
                }
                write(&dir.join(file), value)?;
            }
        }
        Ok(())
    }

    fn apply_memory(&self, group: &Path, r: &Resources) -> io::Result<()> {
        let limit = r.memory_limit_bytes.filter(|l| *l != 0);
        let swap = r.memory_swap_limit_bytes.filter(|l| *l != 0);
        if let Some(dir) = self.v1_dir("memory", group) {
            let memory = dir.join("memory.limit_in_bytes");
            let total = dir.join("memory.memsw.limit_in_bytes");
            let both = swap.filter(|_| total.exists());
            // The sum may never be below the memory limit, so raise it first, or lower it last.
            let raise = both.is_some_and(|b| b < 0 || read_u64(&total).is_some_and(|now| b as u64 > now));
            let files =
                if raise { [(&total, both), (&memory, limit)] } else { [(&memory, limit), (&total, both)] };
            for (file, value) in files {
                if let Some(value) = value {
                    write(file, &value.max(-1).to_string())?;
                }
            }
        } else if self.has_v2("memory") {
            let dir = self.v2_dir(group).unwrap_or_default();
            let text = |v: i64| if v < 0 { "max".to_owned() } else { v.to_string() };
            if let Some(limit) = limit {
                write(&dir.join("memory.max"), &text(limit))?;
            }
            if let Some(swap) = swap {
                // v2 counts swap alone; v1's number is the sum.
                let alone = if swap < 0 { -1 } else { (swap - limit.unwrap_or(0).max(0)).max(0) };
                let file = dir.join("memory.swap.max");
                if file.exists() {
                    write(&file, &text(alone))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_the_weights_everybody_agrees_on() {
        for (shares, weight) in
            [(0, 0), (2, 1), (1024, 100), (262_144, 10_000), (1_000_000, 10_000), (102, 17)]
        {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
    }
}

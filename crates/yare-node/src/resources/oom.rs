//! The machine itself out of memory: the kernel's log says so, and the node's event tells people.
//!
//! A container over its own limit is no such case: its status says `OOMKilled`.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use yare_client::EventKind;

use crate::kubelet::Kubelet;

/// The longest record that the kernel hands out.
const RECORD_BYTES: usize = 8192;

/// Who was killed: name and process id.
#[derive(Debug, PartialEq, Eq)]
struct Victim<'a> {
    process: &'a str,
    pid: u32,
}

/// Reads a record of `/dev/kmsg`; `None` where it tells of anything else.
fn victim(record: &str) -> Option<Victim<'_>> {
    // `priority,sequence,time,flags;text`, and perhaps further lines about devices.
    let text = record.split_once(';')?.1.lines().next()?;
    let facts = text.strip_prefix("oom-kill:")?;
    if !facts.split(',').any(|fact| fact == "global_oom") {
        return None;
    }
    let fact = |name: &str| facts.split(',').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
    Some(Victim { process: fact("task")?, pid: fact("pid")?.parse().ok()? })
}

/// Follows the kernel's log for as long as the node runs.
pub(crate) async fn watch(kubelet: Arc<Kubelet>) {
    let log = match open() {
        Ok(log) => log,
        Err(error) => {
            tracing::info!(%error, "the kernel's log cannot be read; a machine out of memory is not reported");
            return;
        }
    };
    let mut buffer = vec![0; RECORD_BYTES];
    loop {
        let Ok(mut ready) = log.readable().await else { return };
        match ready.try_io(|log| log.get_ref().read(&mut buffer)) {
            // The kernel needs no log any more.
            Ok(Ok(0)) => return,
            Ok(Ok(n)) => {
                let record = String::from_utf8_lossy(&buffer[..n]);
                if let Some(victim) = victim(&record) {
                    let text = format!(
                        "System OOM encountered, victim process: {}, pid: {}",
                        victim.process, victim.pid
                    );
                    kubelet.node_event(EventKind::Warning, "SystemOOM", text);
                }
            }
            // Records were overwritten before they were read: the next one is there.
            Ok(Err(error)) if error.raw_os_error() == Some(nix::Error::EPIPE as i32) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "reading the kernel's log");
                return;
            }
            Err(_) => {}
        }
    }
}

fn open() -> io::Result<AsyncFd<File>> {
    let mut file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
    // What was before this node is not its news.
    file.seek(SeekFrom::End(0))?;
    #[expect(
        deprecated,
        reason = "its successor is an unsafe function; a file keeps its descriptor open as it asks"
    )]
    AsyncFd::with_interest(file, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let record = |text: &str| format!("6,1234,99,-;{text}\n SUBSYSTEM=memory\n");
        for (text, want) in [
            (
                "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
                 task_memcg=/kubepods/besteffort/pod1/c,task=stress,pid=4711,uid=0",
                Some(Victim { process: "stress", pid: 4711 }),
            ),
            // A group over its own limit.
            (
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                 oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c,task=stress,pid=4711,uid=0",
                None,
            ),
            ("stress invoked oom-killer: gfp_mask=0xcc0, order=0, oom_score_adj=1000", None),
            ("oom-kill:global_oom,task=x,pid=many", None),
            ("eth0: link up", None),
        ] {
            assert_eq!(victim(&record(text)), want, "{text}");
        }
        assert_eq!(victim("no record at all"), None);
    }
}

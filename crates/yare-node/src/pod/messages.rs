//! What an exited container wanted to say: its termination message file, or the end of its log.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use yare_runtime::ContainerStatus;

use super::dirs::PodDirs;
use crate::hooks::MESSAGE_POLICY;

/// Longest message, upstream's limits.
const MESSAGE_MAX_BYTES: u64 = 4096;
const LOG_MAX_BYTES: u64 = 2048;
const LOG_MAX_LINES: usize = 80;

/// The message of an exited container.
pub(crate) fn read(dirs: &PodDirs, container: &ContainerStatus) -> String {
    let file = dirs.termination_message(&container.name, container.attempt);
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.take(MESSAGE_MAX_BYTES).read_to_end(&mut bytes);
    }
    if !bytes.is_empty() {
        return String::from_utf8_lossy(&bytes).into_owned();
    }
    let policy = container.annotations.get(MESSAGE_POLICY).map(String::as_str);
    if policy == Some("FallbackToLogsOnError") && container.exit_code != 0 {
        return tail(&container.log_path);
    }
    String::new()
}

/// The last lines of a CRI log, without their prefixes.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let len = file.metadata()?.len();
        // Prefixes take about 45 bytes of a line: read enough for all lines that may count.
        let window = LOG_MAX_BYTES + LOG_MAX_LINES as u64 * 64;
        file.seek(SeekFrom::Start(len.saturating_sub(window)))?;
        let mut bytes = Vec::new();
        file.take(window).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(4, ' ');
            let (_time, _stream, tag, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            Some(if tag == "P" { content.to_owned() } else { format!("{content}\n") })
        })
        .collect();
    let from = lines.len().saturating_sub(LOG_MAX_LINES);
    let joined = lines[from..].concat();
    let mut cut = joined.len().saturating_sub(usize::try_from(LOG_MAX_BYTES).unwrap_or(usize::MAX));
    while !joined.is_char_boundary(cut) {
        cut += 1;
    }
    joined[cut..].to_owned()
}

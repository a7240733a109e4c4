//! The process that takes a cluster away.
//!
//! It waits for the end of its standard input, which the kernel closes however the test ends, so a test that
//! is killed leaves as little as one that passes.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::bail;
use std::os::unix::process::CommandExt as _;

use crate::Namespace;

/// Arguments: pid file, program, directories. A container runtime of the cluster's own is told by its configuration
/// and its socket, which are in the second directory, and is ended last.
const SCRIPT: &str = r#"
trap '' INT TERM HUP PIPE
cat >/dev/null
if [ -s "$1" ]; then
  kill -KILL "$(cat "$1")" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done
fi
status=0
if [ -n "$YARE_CONTAINER_RUNTIME_ENDPOINT" ]; then
  "$2" cleanup || status=$?
  for process in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$process/cmdline"; } 2>/dev/null | grep -q "^$4/"; then
      kill -KILL "${process#/proc/}" 2>/dev/null
    fi
  done
  while mount=$(grep -o " $4/c/[^ ]*" /proc/self/mountinfo | tail -n 1) && [ -n "$mount" ]; do
    umount -l "${mount# }" || break
    echo "still mounted: $mount"
    status=1
  done
elif [ -d "$YARE_DATA_DIR/runtime" ]; then
  echo "sandboxes: $(ls "$YARE_DATA_DIR/runtime/sandboxes" | tr '\n' ' ')"
  "$2" cleanup || status=$?
fi
rm -rf "$3" "$4" || status=$?
exit $status
"#;

/// A waiting warden.
#[derive(Debug)]
pub(crate) struct Warden(Option<Child>);

impl Warden {
    /// Starts one inside the cluster's network.
    pub(crate) fn start(
        namespace: &Namespace,
        binary: &Path,
        pid_file: &Path,
        directory: &Path,
        run_directory: &Path,
        containerd: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .args([pid_file, binary, directory, run_directory])
            .env("YARE_DATA_DIR", directory.join("data"))
            .env("YARE_RUN_DIR", run_directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal to the test's group is no signal to it.
            .process_group(0);
        if let Some(socket) = containerd {
            command.env("YARE_CONTAINER_RUNTIME_ENDPOINT", socket);
        }
        Ok(Self(Some(namespace.run(|| command.spawn())??)))
    }

    /// Has everything taken away and waits for it. Answers what the cleanup said.
    pub(crate) fn finish(&mut self) -> anyhow::Result<String> {
        let Some(mut child) = self.0.take() else { return Ok(String::new()) };
        drop(child.stdin.take());
        let output = child.wait_with_output()?;
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        if !output.status.success() {
            bail!("cleanup: {}\n{said}", output.status);
        }
        Ok(said)
    }
}

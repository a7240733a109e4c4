//! The process that takes a cluster away.
//!
//! It waits for the end of its standard input, which the kernel closes however the test ends, so a test that
//! is killed leaves as little as one that passes.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::bail;
use std::os::unix::process::CommandExt as _;

use crate::Namespace;

/// Arguments: pid file, program, directories.
const SCRIPT: &str = r#"
trap '' INT TERM HUP PIPE
cat >/dev/null
if [ -s "$1" ]; then
  kill -KILL "$(cat "$1")" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$(cat "$1")" 2>/dev/null || break; sleep 0.1; done
fi
if [ -d "$YARE_DATA_DIR/runtime" ]; then
  echo "sandboxes: $(ls "$YARE_DATA_DIR/runtime/sandboxes" | tr '\n' ' ')"
  "$2" cleanup
fi
status=$?
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

//! `kubectl` as a test calls it.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Cluster, Terminal};

/// How long a test waits for what should come soon.
const PATIENCE: Duration = Duration::from_secs(30);

/// The machine's `kubectl`, or the one that the project's script finds.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/kubectl");
    let output = Command::new(&script).output().with_context(|| script.display().to_string())?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

impl Cluster {
    /// Runs `kubectl` and returns what it printed; a failure is an error with both outputs.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let (status, out, err) = self.kubectl_with(args, "")?;
        ensure!(status.success(), "kubectl {}: {status}\n{out}{err}", args.join(" "));
        Ok(out)
    }

    /// Runs `kubectl`, which must fail; what it wrote to its standard error.
    pub fn kubectl_fails(&self, args: &[&str]) -> anyhow::Result<String> {
        let (status, out, err) = self.kubectl_with(args, "")?;
        ensure!(!status.success(), "kubectl {} succeeds:\n{out}{err}", args.join(" "));
        Ok(err)
    }

    /// Runs `kubectl` with `input` on its standard input; success or not, both outputs.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> anyhow::Result<(ExitStatus, String, String)> {
        let mut command = self.command(self.kubectl_path());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.namespace().run(|| command.spawn())??;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read its input closes it early.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status, text(output.stdout), text(output.stderr)))
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        let (status, out, err) = self.kubectl_with(&["apply", "-f", "-"], manifest)?;
        ensure!(status.success(), "kubectl apply: {status}\n{out}{err}");
        Ok(out)
    }

    /// Starts `kubectl` in the background.
    pub fn kubectl_spawn(&self, args: &[&str]) -> anyhow::Result<Running> {
        let mut command = self.command(self.kubectl_path());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Running::new(self.namespace().run(|| command.spawn())??))
    }

    /// Starts `kubectl` on a terminal of 37 rows and 101 columns.
    pub fn kubectl_terminal(&self, args: &[&str]) -> anyhow::Result<Terminal> {
        let mut command = self.command(self.kubectl_path());
        command.args(args).env("TERM", "xterm");
        Terminal::start(self.namespace(), &mut command, (37, 101))
    }

    /// One field of an object, by JSONPath without the braces.
    pub fn field(&self, object: &str, path: &str) -> anyhow::Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Waits until a field of an object is `want`.
    pub fn becomes(&self, object: &str, path: &str, want: &str) -> anyhow::Result<()> {
        self.soon(|| {
            let got = self.field(object, path)?;
            ensure!(got == want, "{object} {path} is {got:?}, not {want:?}");
            Ok(())
        })
        .with_context(|| format!("{object}: {}", self.kubectl(&["describe", object]).unwrap_or_default()))
    }

    /// Waits until the pods are Ready.
    pub fn ready(&self, pods: &[&str]) -> anyhow::Result<()> {
        let names = pods.iter().map(|p| format!("pod/{p}")).collect::<Vec<_>>();
        let mut args = vec!["wait", "--for=condition=Ready", "--timeout=30s"];
        args.extend(names.iter().map(String::as_str));
        self.kubectl(&args).map(drop).with_context(|| self.kubectl(&["describe", "pods"]).unwrap_or_default())
    }

    /// What a shell line prints inside a pod's first container.
    pub fn shell(&self, pod: &str, line: &str) -> anyhow::Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", line])
    }

    /// Waits until events about an object say `text` under `reason`.
    pub fn event(&self, object: &str, reason: &str, text: &str) -> anyhow::Result<()> {
        self.soon(|| {
            let selector = format!("involvedObject.name={object},reason={reason}");
            let path = "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
            let messages = self.kubectl(&["get", "events", "--field-selector", &selector, "-o", path])?;
            ensure!(messages.contains(text), "no {reason} event of {object} says {text:?}:\n{messages}");
            Ok(())
        })
    }

    /// Calls `check` until it succeeds, for as long as a test should wait at all.
    pub fn soon<T>(&self, check: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.eventually(PATIENCE, check)
    }
}

/// A command in the background; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let (sender, output) = channel();
        let pipes: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>),
            child.stderr.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>),
        ];
        for mut pipe in pipes.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                    if sender.send(bytes[..count].to_vec()).is_err() {
                        return;
                    }
                }
            });
        }
        Self { child, output, seen: String::new() }
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("its input is closed")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until its output, of both kinds, has `text`; all of the output so far.
    pub fn says(&mut self, text: &str) -> anyhow::Result<&str> {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("it does not say {text:?} but {:?}", self.seen)
                }
            }
        }
        Ok(&self.seen)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits for its end; the status and all of its output.
    pub fn finish(mut self) -> anyhow::Result<(ExitStatus, String)> {
        self.close_input();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("it does not end; it said {:?}", self.seen);
            }
            while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(20)) {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_secs(1)) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok((status, std::mem::take(&mut self.seen)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

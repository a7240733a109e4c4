//! Programs that say who this server is (`client.authentication.k8s.io`, KEP-541): they are told what for in an
//! environment variable, and print an `ExecCredential` with a token, a certificate and key, or all of it.

use std::{
    io::{ErrorKind, IsTerminal as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, process::Command, sync::Mutex, time::timeout};
use yare_auth::pki::KeyPairPem;
use yare_kinds::view::View;

use super::{
    identity::{Peer, Shown, secret},
    metrics::{Calls, Program},
};

const GROUP: &str = "client.authentication.k8s.io/";
const EXTENSION: &str = "client.authentication.k8s.io/exec";
const INFO: &str = "KUBERNETES_EXEC_INFO";
/// How long a program may take, and how much it may print.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// Whether a program may ask whoever sits before the terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Interactive {
    Never,
    IfAvailable,
    Always,
}

/// A program and what it said last.
pub struct Plugin {
    command: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    api_version: String,
    interactive: Interactive,
    hint: String,
    cluster: Option<Value>,
    peer: Option<Peer>,
    /// One run at a time; whoever comes meanwhile waits for what it says.
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    said: Option<Said>,
    /// How many certificates it has shown.
    certificates: u64,
}

struct Said {
    shown: Arc<Shown>,
    pair: Option<KeyPairPem>,
    until: Option<Timestamp>,
}

impl Plugin {
    /// The `exec` of the user `name`.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    pub fn of(
        name: &str,
        exec: &Value,
        directory: &Path,
        peer: Option<&Peer>,
        cluster: &Value,
    ) -> Result<Self, String> {
        let (command, api_version) = (exec.str_at("command"), exec.str_at("apiVersion"));
        let needs = |what: &str| {
            Err(format!(
                "invalid configuration: {what} must be specified for {name} to use exec authentication plugin"
            ))
        };
        if command.is_empty() {
            return needs("command");
        }
        if api_version.is_empty() {
            return needs("apiVersion");
        }
        let env: Vec<(String, String)> = exec
            .items("env")
            .iter()
            .map(|e| (e.str_at("name").to_owned(), e.str_at("value").to_owned()))
            .collect();
        if env.iter().any(|(name, _)| name.is_empty()) {
            return needs("env variable name");
        }
        let interactive = match (exec.str_at("interactiveMode"), api_version.strip_prefix(GROUP)) {
            ("Never", _) => Interactive::Never,
            ("IfAvailable", _) | ("", Some("v1beta1")) => Interactive::IfAvailable,
            ("Always", _) => Interactive::Always,
            ("", _) => return needs("interactiveMode"),
            (mode, _) => {
                return Err(format!("invalid configuration: invalid interactiveMode for {name}: {mode:?}"));
            }
        };
        if !matches!(api_version.strip_prefix(GROUP), Some("v1" | "v1beta1")) {
            return Err(format!("exec plugin: invalid apiVersion {api_version:?}"));
        }
        // Only what is not looked for in PATH is a file beside the kubeconfig.
        let command = if command.contains('/') { directory.join(command) } else { command.into() };
        Ok(Self {
            command,
            args: exec.strings("args").iter().map(|arg| (*arg).to_owned()).collect(),
            env,
            api_version: api_version.to_owned(),
            interactive,
            hint: exec.str_at("installHint").to_owned(),
            cluster: exec.bool_at("provideClusterInfo").then(|| described(cluster)),
            peer: peer.cloned(),
            kept: Arc::default(),
        })
    }

    /// What it says, or said and is still so. `calls`: where it is counted that it runs.
    ///
    /// # Errors
    /// Why it says nothing.
    pub async fn now(self: &Arc<Self>, calls: Option<&Arc<Calls>>) -> Result<Arc<Shown>, String> {
        let mut kept = self.kept.clone().lock_owned().await;
        if let Some(said) = &kept.said
            && said.until.is_none_or(|until| Timestamp::now() <= until)
        {
            return Ok(said.shown.clone());
        }
        // Whoever asks may give up before it is done; the next one then has what it said.
        let (this, calls) = (self.clone(), calls.cloned());
        let run = tokio::spawn(async move {
            let shown = this.refresh(&mut kept, calls.as_deref()).await;
            drop(kept);
            shown
        });
        run.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Runs it again when it is asked next, unless it was since.
    pub async fn forget(&self, shown: &Arc<Shown>) {
        let mut kept = self.kept.lock().await;
        if let Some(said) = &mut kept.said
            && Arc::ptr_eq(&said.shown, shown)
        {
            said.until = Some(Timestamp::MIN);
        }
    }

    async fn refresh(&self, kept: &mut Kept, calls: Option<&Calls>) -> Result<Arc<Shown>, String> {
        let status = self.ask(calls).await?;
        let (token, certificate, key) =
            (status.str_at("token"), status.str_at("clientCertificateData"), status.str_at("clientKeyData"));
        let pair = match (certificate, key) {
            ("", "") if token.is_empty() => {
                return Err("exec plugin didn't return a token or cert/key pair".into());
            }
            ("", "") => None,
            (_, "") | ("", _) => {
                return Err("exec plugin returned only certificate or key, not both".into());
            }
            (certificate, key) => {
                Some(KeyPairPem { certificate: certificate.to_owned(), key: key.to_owned() })
            }
        };
        let until = match status.str_at("expirationTimestamp") {
            "" => None,
            text => Some(text.parse().map_err(|e| format!("decoding stdout: expirationTimestamp: {e}"))?),
        };
        let before = kept.said.as_ref().and_then(|said| Some((said.pair.as_ref()?, &said.shown)));
        let same = before.filter(|(old, _)| {
            pair.as_ref().is_some_and(|new| (&new.certificate, &new.key) == (&old.certificate, &old.key))
        });
        let dialer = match (same, &pair, &self.peer) {
            (Some((_, shown)), ..) => shown.dialer.clone(),
            (None, Some(pair), Some(peer)) => {
                let dialer = peer.dialer(Some(pair));
                let dialer = dialer.map_err(|e| format!("failed parsing client key/certificate: {e}"))?;
                kept.certificates += 1;
                Some((kept.certificates, dialer))
            }
            _ => None,
        };
        let authorization = if token.is_empty() { None } else { Some(secret(&format!("Bearer {token}"))?) };
        let shown = Arc::new(Shown { authorization, dialer });
        kept.said = Some(Said { shown: shown.clone(), pair, until });
        Ok(shown)
    }

    /// Runs it. Gives the status that it prints.
    async fn ask(&self, calls: Option<&Calls>) -> Result<Value, String> {
        let terminal = std::io::stdin().is_terminal();
        let interactive = match self.interactive {
            Interactive::Never => false,
            Interactive::IfAvailable => terminal,
            Interactive::Always if !terminal => {
                return Err(
                    "exec plugin cannot support interactive mode: standard input is not a terminal".into()
                );
            }
            Interactive::Always => true,
        };
        let mut spec = json!({ "interactive": interactive });
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        let info = json!({ "kind": "ExecCredential", "apiVersion": self.api_version, "spec": spec });
        let mut command = Command::new(&self.command);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env(INFO, info.to_string())
            .stdin(if interactive { Stdio::inherit() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let name = self.command.display();
        let ran = |program: Program| calls.into_iter().for_each(|calls| calls.ran(program));
        let mut child = command.spawn().map_err(|error| {
            let missing = error.kind() == ErrorKind::NotFound;
            ran(if missing { Program::NotFound } else { Program::Failed });
            match (missing, self.hint.as_str()) {
                (true, "") => format!("exec: executable {name} not found"),
                (true, hint) => format!("exec: executable {name} not found\n\n{hint}"),
                (false, _) => format!("exec: {error}"),
            }
        })?;
        let mut printed = Vec::new();
        let running = async {
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_OUTPUT_BYTES + 1).read_to_end(&mut printed).await?;
            }
            child.wait().await
        };
        let ended = timeout(PATIENCE, running).await;
        ran(match &ended {
            Ok(Ok(status)) => Program::Ended(status.code().unwrap_or(-1)),
            _ => Program::Failed,
        });
        let status = match ended {
            Ok(status) => status.map_err(|error| format!("exec: {error}"))?,
            Err(_) => {
                return Err(format!("exec: executable {name} did not end within {} s", PATIENCE.as_secs()));
            }
        };
        if printed.len() as u64 > MAX_OUTPUT_BYTES {
            return Err(format!("decoding stdout: more than {MAX_OUTPUT_BYTES} bytes"));
        }
        if !status.success() {
            let code = status.code().unwrap_or(-1);
            return Err(format!("exec: executable {name} failed with exit code {code}"));
        }
        self.read(&printed)
    }

    fn read(&self, printed: &[u8]) -> Result<Value, String> {
        let decoding = |why: String| format!("decoding stdout: {why}");
        let (json, _) = yare_schema::decode::yaml_to_json(printed).map_err(|e| decoding(e.to_string()))?;
        let said: Value = serde_json::from_slice(&json).map_err(|e| decoding(e.to_string()))?;
        let (kind, version) = (said.str_at("kind"), said.str_at("apiVersion"));
        if kind != "ExecCredential" {
            return Err(decoding(format!("no kind {kind:?} is registered for version {version:?}")));
        }
        if version != self.api_version {
            return Err(format!(
                "exec plugin is configured to use API version {}, plugin returned version {version}",
                self.api_version
            ));
        }
        match said.at("status") {
            Value::Null => Err("exec plugin didn't return a status field".into()),
            status => Ok(status.clone()),
        }
    }
}

/// What a plugin is told of the cluster that it is for.
fn described(cluster: &Value) -> Value {
    let mut out = json!({ "server": cluster.str_at("server"), "config": null });
    for field in [
        "tls-server-name",
        "insecure-skip-tls-verify",
        "certificate-authority-data",
        "proxy-url",
        "disable-compression",
    ] {
        if cluster.is_set(field) {
            out[field] = cluster.at(field).clone();
        }
    }
    if let Some(own) = cluster.items("extensions").iter().find(|e| e.str_at("name") == EXTENSION) {
        out["config"] = own.at("extension").clone();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(script: &str, more: Value) -> Result<Arc<Plugin>, String> {
        let mut exec = json!({
            "command": "sh", "args": ["-c", script], "apiVersion": "client.authentication.k8s.io/v1",
            "interactiveMode": "Never",
        });
        for (field, value) in more.entries("") {
            exec[field] = value.clone();
        }
        let cluster = json!({
            "server": "https://a", "tls-server-name": "b",
            "extensions": [{"name": EXTENSION, "extension": {"audience": "x"}}],
        });
        Plugin::of("u", &exec, Path::new("/nowhere"), None, &cluster).map(Arc::new)
    }

    fn saying(status: &str) -> String {
        format!(
            r#"echo '{{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {status}}}'"#
        )
    }

    async fn token(plugin: &Arc<Plugin>) -> Result<String, String> {
        let shown = plugin.now(None).await?;
        Ok(shown.authorization.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned())
    }

    #[tokio::test]
    async fn what_is_said_is_kept_until_it_expires_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let script = |until: &str| {
            format!(
                "echo x >> {0}; N=$(wc -l < {0}); {1}",
                count.display(),
                saying(&format!(r#"{{"token": "t'$N'"{until}}}"#))
            )
        };
        let kept = plugin(&script(""), json!({})).unwrap();
        assert_eq!(token(&kept).await.unwrap(), "Bearer t1");
        let shown = kept.now(None).await.unwrap();
        assert_eq!(token(&kept).await.unwrap(), "Bearer t1");
        kept.forget(&shown).await;
        assert_eq!(token(&kept).await.unwrap(), "Bearer t2");
        // Whoever was refused with the first one has been overtaken.
        kept.forget(&shown).await;
        assert_eq!(token(&kept).await.unwrap(), "Bearer t2");
        let expired =
            plugin(&script(r#", "expirationTimestamp": "2020-01-01T00:00:00Z""#), json!({})).unwrap();
        assert_eq!(token(&expired).await.unwrap(), "Bearer t3");
        assert_eq!(token(&expired).await.unwrap(), "Bearer t4");
    }

    #[tokio::test]
    async fn what_a_program_is_told() {
        let script = r#"echo "{kind: ExecCredential, apiVersion: client.authentication.k8s.io/v1, status: {token: '$(echo $KUBERNETES_EXEC_INFO | tr -d '"' | tr ' ' _) $EXTRA'}}""#;
        let told =
            plugin(script, json!({"env": [{"name": "EXTRA", "value": "more"}], "provideClusterInfo": true}))
                .unwrap();
        let said = token(&told).await.unwrap();
        for part in
            ["interactive:false", "server:https://a", "tls-server-name:b", "config:{audience:x}", " more"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said() {
        for (script, part) in [
            ("exit 3".to_owned(), "exec: executable sh failed with exit code 3"),
            ("echo '{'".to_owned(), "decoding stdout: "),
            ("echo '{}'".to_owned(), "no kind \"\" is registered"),
            ("echo '{kind: ExecCredential, apiVersion: v2}'".to_owned(), "plugin returned version v2"),
            (saying("null"), "didn't return a status field"),
            (saying("{}"), "didn't return a token or cert/key pair"),
            (saying(r#"{"clientKeyData": "x"}"#), "only certificate or key, not both"),
            (saying(r#"{"token": "a", "expirationTimestamp": "soon"}"#), "expirationTimestamp"),
            ("head -c 2000000 /dev/zero".to_owned(), "more than 1048576 bytes"),
        ] {
            let error = token(&plugin(&script, json!({})).unwrap()).await.unwrap_err();
            assert!(error.contains(part), "{script}: {error}");
        }
        let calls = Arc::<Calls>::default();
        let absent = plugin("", json!({"command": "no-such-program", "installHint": "get it"})).unwrap();
        let error = absent.now(Some(&calls)).await.err().unwrap();
        assert_eq!(error, "exec: executable no-such-program not found\n\nget it");
        for script in ["exit 3".to_owned(), saying(r#"{"token": "t"}"#)] {
            let _ = plugin(&script, json!({})).unwrap().now(Some(&calls)).await;
        }
        let mut page = yare_metrics::text::Page::new();
        calls.expose(&mut page);
        let page = page.finish();
        for (status, code) in [("plugin_not_found_error", 1), ("plugin_execution_error", 3), ("no_error", 0)]
        {
            let line = format!(r#"call_total{{call_status="{status}",code="{code}"}} 1"#);
            assert!(page.contains(&line), "{line}\n{page}");
        }
        for (more, part) in [
            (json!({"command": ""}), "command must be specified for u to use exec authentication plugin"),
            (json!({"apiVersion": ""}), "apiVersion must be specified"),
            (json!({"interactiveMode": ""}), "interactiveMode must be specified"),
            (json!({"interactiveMode": "Some"}), "invalid interactiveMode for u: \"Some\""),
            (json!({"apiVersion": "v1"}), "exec plugin: invalid apiVersion \"v1\""),
            (json!({"env": [{"value": "x"}]}), "env variable name must be specified"),
        ] {
            let error = plugin("", more).err().unwrap();
            assert!(error.contains(part), "{error}");
        }
    }
}

//! One question to a provider: a request on its standard input, an answer on its standard output.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::Account;
use super::config::Provider;
use super::lifetime;

/// How long a provider may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a provider may say.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const KIND: &str = "CredentialProviderResponse";

/// What a provider answered.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) cache_key_type: String,
    /// None: the configured one.
    pub(super) cache_duration: Option<Duration>,
    pub(super) auth: BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Auth {
    pub(super) username: String,
    pub(super) password: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: BTreeMap<String, Auth>,
}

/// Asks. No error has anything of an answer in it: there are passwords in there.
pub(super) async fn ask(
    provider: &Provider,
    program: &Path,
    image: &str,
    account: Option<&Account>,
) -> Result<Answer, String> {
    let mut request = json!({
        "kind": "CredentialProviderRequest",
        "apiVersion": provider.api_version,
        "image": image,
    });
    if let Some(account) = account {
        request["serviceAccountToken"] = json!(account.token);
        if !account.annotations.is_empty() {
            request["serviceAccountAnnotations"] = json!(account.annotations);
        }
    }
    let name = &provider.name;
    let about =
        |why: String| format!("error execing credential provider plugin {name} for image {image}: {why}");
    let asked = tokio::time::timeout(PATIENCE, run(provider, program, request.to_string())).await;
    let (ended, said, complained) = asked
        .map_err(|_| about("context deadline exceeded".to_owned()))?
        .map_err(|e| about(e.to_string()))?;
    if !ended.success() {
        let why = match ended.code() {
            Some(code) => format!("exit status {code}"),
            None => "it was killed".to_owned(),
        };
        return Err(format!("{}: {}", about(why), String::from_utf8_lossy(&complained)));
    }
    parse(&said, &provider.api_version)
}

async fn run(
    provider: &Provider,
    program: &Path,
    request: String,
) -> std::io::Result<(std::process::ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut child = Command::new(program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(input) = &mut input {
            // A provider that does not want to know has closed it.
            let _ = input.write_all(request.as_bytes()).await;
        }
        drop(input.take());
    };
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let read = async {
        if let Some(output) = output {
            output.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut said).await?;
        }
        std::io::Result::Ok(())
    };
    let read_errors = async {
        if let Some(errors) = errors {
            errors.take(ANSWER_BYTES_MAX).read_to_end(&mut complained).await?;
        }
        std::io::Result::Ok(())
    };
    let ((), read, read_errors) = tokio::join!(write, read, read_errors);
    read?;
    read_errors?;
    if said.len() as u64 > ANSWER_BYTES_MAX {
        return Err(std::io::Error::other(format!("it answers more than {ANSWER_BYTES_MAX} bytes")));
    }
    Ok((child.wait().await?, said, complained))
}

fn parse(said: &[u8], protocol: &str) -> Result<Answer, String> {
    let wrong = || "error decoding credential provider plugin response from stdout".to_owned();
    let written: Written = serde_json::from_slice(said).map_err(|_| wrong())?;
    if written.api_version != protocol {
        return Err(format!(
            "apiVersion from credential plugin response did not match expected apiVersion:{protocol}, actual apiVersion:{}",
            written.api_version
        ));
    }
    if written.kind != KIND {
        return Err(wrong());
    }
    let cache_duration = match &written.cache_duration {
        None => None,
        Some(text) => Some(lifetime(text).ok_or_else(wrong)?),
    };
    Ok(Answer { cache_key_type: written.cache_key_type, cache_duration, auth: written.auth })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::super::keyring::Coordinates;
    use super::super::config::Variable;
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn provider(dir: &Path, script: &str) -> (Provider, std::path::PathBuf) {
        let program = dir.join("provider");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let provider = Provider {
            name: "provider".into(),
            api_version: V1.into(),
            args: vec!["get".into()],
            env: vec![Variable { name: "WHO".into(), value: "me".into() }],
            ..Provider::default()
        };
        (provider, program)
    }

    #[tokio::test]
    async fn providers_are_asked_and_answer() {
        let dir = tempfile::tempdir().unwrap();
        let request = dir.path().join("request");
        let script = format!(
            "cat > {}\n[ \"$1\" = get ] || exit 9\ncat <<END\n{{\"kind\":\"{KIND}\",\"apiVersion\":\"{V1}\",\"cacheKeyType\":\"Registry\",\"cacheDuration\":\"5m\",\"auth\":{{\"r.io\":{{\"username\":\"$WHO\",\"password\":\"secret\"}}}}}}\nEND",
            request.display()
        );
        let (provider, program) = provider(dir.path(), &script);
        let account = Account {
            at: Coordinates::default(),
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            token: "token".into(),
        };
        let answer = ask(&provider, &program, "r.io/x", Some(&account)).await.unwrap();
        assert_eq!(
            (answer.cache_key_type.as_str(), answer.cache_duration),
            ("Registry", Some(Duration::from_secs(300)))
        );
        assert_eq!(
            (answer.auth["r.io"].username.as_str(), answer.auth["r.io"].password.as_str()),
            ("me", "secret")
        );
        let asked: serde_json::Value = serde_json::from_slice(&std::fs::read(request).unwrap()).unwrap();
        assert_eq!(
            asked,
            json!({
                "kind": "CredentialProviderRequest", "apiVersion": V1, "image": "r.io/x",
                "serviceAccountToken": "token", "serviceAccountAnnotations": {"a": "b"},
            })
        );
    }

    #[tokio::test]
    async fn what_providers_do_wrong_is_said_without_their_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let answer = |version: &str, rest: &str| {
            format!(
                "echo '{{\"kind\":\"{KIND}\",\"apiVersion\":\"{version}\",\"auth\":{{\"r.io\":{{\"username\":\"u\",\"password\":\"secret\"}}}}{rest}}}'"
            )
        };
        for (script, part) in [
            ("echo sorry >&2; exit 3".to_owned(), "exit status 3: sorry"),
            ("echo secret".to_owned(), "error decoding credential provider plugin response"),
            (answer("other/v1", ""), "did not match expected apiVersion"),
            (
                answer(V1, ",\"cacheDuration\":\"secret\""),
                "error decoding credential provider plugin response",
            ),
            ("head -c 1100000 /dev/zero".to_owned(), "it answers more than 1048576 bytes"),
            ("kill -9 $$".to_owned(), "it was killed"),
        ] {
            let (provider, program) = provider(dir.path(), &script);
            let error = ask(&provider, &program, "r.io/x", None).await.map(|_| ()).unwrap_err();
            assert!(error.contains(part) && !error.contains("secret"), "{script}: {error}");
        }
    }
}

//! `yare token`: bootstrap tokens, with which machines join.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use yare_auth::{
    bootstrap_token::{self, BootstrapToken},
    pki,
};
use yare_client::{CONFIG_MAPS, ObjectKey, SECRETS};
use yare_controllers::api::{Api, Deletion};

use crate::{cli::TokenCommand, joining, kubeconfig, progress::say};

/// What a token begins with that names the cluster's authority, as k3s has it.
const PIN: &str = "K10";

/// A token as it is given to `yare agent`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The hash of the file of the cluster's authority.
    pub pin: Option<String>,
    /// What the API server takes as a bearer token.
    pub bearer: String,
}

impl Token {
    /// `K10HASH::TOKEN` or `TOKEN`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let (pin, bearer) = match text.strip_prefix(PIN).and_then(|rest| rest.split_once("::")) {
            None => (None, text),
            Some((pin, bearer)) => {
                if pin.len() != 64 || !pin.bytes().all(|b| b.is_ascii_hexdigit()) {
                    bail!("the token's hash of the authority is not 64 hexadecimal digits");
                }
                (Some(pin.to_ascii_lowercase()), bearer)
            }
        };
        if bearer.is_empty() || !bearer.bytes().all(|b| b.is_ascii_graphic()) {
            bail!("the token is empty or has characters that no header can carry");
        }
        Ok(Self { pin, bearer: bearer.to_owned() })
    }
}

/// How long a token is to be good: a duration as Go writes it, `0` for ever.
pub fn ttl(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed: jiff::SignedDuration = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
    Duration::try_from(parsed).map_err(|_| format!("{text:?} is negative"))
}

/// `yare token`
pub async fn run(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { ttl, description, data } => {
            let api = api(&data.data_dir).await?;
            say(&create(&api, ttl, &description).await?);
        }
        TokenCommand::Ls { data } => list(&api(&data.data_dir).await?).await?,
        TokenCommand::Rm { tokens, data } => {
            let api = api(&data.data_dir).await?;
            for token in &tokens {
                remove(&api, token).await?;
            }
        }
    }
    Ok(())
}

/// By the kubeconfig that `KUBECONFIG` names, or the one that the server wrote below its data directory.
async fn api(data_dir: &Path) -> anyhow::Result<Api> {
    let path = std::env::var_os("KUBECONFIG").map_or_else(|| data_dir.join(kubeconfig::FILE), Into::into);
    Ok(Api::new(yare_client::from_kubeconfig(path).await?))
}

async fn create(api: &Api, ttl: Duration, description: &str) -> anyhow::Result<String> {
    let (id, secret) = bootstrap_token::generate().context("no randomness for a token")?;
    let mut data = json!({
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "auth-extra-groups": joining::JOINERS,
    });
    if !description.is_empty() {
        data["description"] = description.into();
    }
    if !ttl.is_zero() {
        let end = Timestamp::now().checked_add(ttl).context("--ttl is too long")?;
        data["expiration"] = Timestamp::from_second(end.as_second())?.to_string().into();
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": bootstrap_token::SECRET_TYPE,
        "metadata": {"name": format!("{}{id}", bootstrap_token::SECRET_PREFIX)},
        "stringData": data,
    });
    api.create(&SECRETS, bootstrap_token::NAMESPACE, &object).await?;
    let (namespace, name) = joining::INFO;
    let info = api.get(&CONFIG_MAPS, &ObjectKey::new(namespace, name)).await?;
    let info: Value = info.map(|map| serde_json::from_slice(map.bytes())).transpose()?.unwrap_or_default();
    // Without it, who joins can still tell by the signature whom to believe.
    let authority = info["data"]["kubeconfig"].as_str().and_then(|text| joining::authority_of(text).ok());
    let pin = authority.map_or_else(String::new, |pem| format!("{PIN}{}::", pki::file_pin(&pem)));
    Ok(format!("{pin}{id}.{secret}"))
}

async fn list(api: &Api) -> anyhow::Result<()> {
    say(&format!("{:<10} {:<22} {:<32} {}", "TOKEN", "EXPIRES", "USAGES", "DESCRIPTION"));
    for secret in api.list(&SECRETS, bootstrap_token::NAMESPACE).await? {
        let Some(token) = BootstrapToken::from_secret(secret.bytes()) else { continue };
        let expires = match token.expiration() {
            Ok(None) => "<never>".to_owned(),
            Ok(Some(end)) => end.to_string(),
            Err(_) => "<invalid>".to_owned(),
        };
        let object: Value = serde_json::from_slice(secret.bytes())?;
        let text = |key: &str| {
            let bytes = STANDARD.decode(object["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let usages: Vec<&str> = ["authentication", "signing"]
            .into_iter()
            .filter(|usage| text(&format!("usage-bootstrap-{usage}")) == "true")
            .collect();
        let line =
            format!("{:<10} {expires:<22} {:<32} {}", token.id(), usages.join(","), text("description"));
        say(line.trim_end());
    }
    Ok(())
}

async fn remove(api: &Api, token: &str) -> anyhow::Result<()> {
    let token = Token::parse(token)?.bearer;
    let id = token.split_once('.').map_or(token.as_str(), |(id, _)| id);
    let name = format!("{}{id}", bootstrap_token::SECRET_PREFIX);
    let key = ObjectKey::new(bootstrap_token::NAMESPACE, &name);
    let Some(secret) = api.get(&SECRETS, &key).await? else { bail!("there is no token {id:?}") };
    api.delete(&SECRETS, &key, Deletion::of(&secret)).await?;
    say(&format!("token {id} removed"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_tokens() {
        let bearer = "abcdef.0123456789abcdef";
        let pin = "0123456789abcdefABCDEF0123456789abcdef0123456789abcdef0123456789";
        let parse = |text: &str| Token::parse(text).map(|t| (t.pin, t.bearer)).map_err(|e| e.to_string());
        assert_eq!(parse(&format!(" {bearer}\n")), Ok((None, bearer.into())));
        let pinned = parse(&format!("K10{pin}::{bearer}"));
        assert_eq!(pinned, Ok((Some(pin.to_ascii_lowercase()), bearer.into())));
        for bad in ["", "a b", "K10::x", &format!("K10{pin}::"), &format!("K10{}::x", &pin[1..])] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        // Other tokens may begin as they like.
        assert_eq!(parse("K10x"), Ok((None, "K10x".into())));
    }

    #[test]
    fn forms_of_times() {
        assert_eq!(ttl("0"), Ok(Duration::ZERO));
        assert_eq!(ttl("24h0m0s"), Ok(Duration::from_secs(24 * 3600)));
        assert!(ttl("-1h").is_err() && ttl("soon").is_err());
    }
}

//! Who this server is to another: what the user of a kubeconfig is. A certificate, a header, or a program that says
//! both.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde_json::Value;
use yare_auth::{
    pki::KeyPairPem,
    tls::{Speaks, Trust, outside_client},
};
use yare_kinds::view::View;

use super::{Dialer, exec::Plugin, metrics::Calls};

/// How old a token may be that was read from a file.
const TOKEN_FILE_AGE: Duration = Duration::from_secs(10);

/// Whom a client believes, and what the server must prove to be.
#[derive(Clone)]
pub struct Peer {
    /// The server's name.
    pub name: String,
    /// Who vouches for it.
    pub trust: Believed,
}

/// [`Trust`] that is kept.
#[derive(Clone)]
pub enum Believed {
    /// The authorities that this machine trusts.
    System,
    /// These (PEM).
    Authority(String),
    /// Every server.
    Anybody,
}

impl Peer {
    /// Connections to it that show `pair`, if there is one.
    ///
    /// # Errors
    /// What is wrong with the certificates or the name.
    pub fn dialer(&self, pair: Option<&KeyPairPem>) -> Result<Dialer, String> {
        let trust = match &self.trust {
            Believed::System => Trust::System,
            Believed::Authority(pem) => Trust::Authority(pem),
            Believed::Anybody => Trust::Anybody,
        };
        let tls = outside_client(trust, pair, Speaks::Http1).map_err(|e| e.to_string())?;
        Dialer::tls(tls, &self.name)
    }
}

/// What is sent in the `Authorization` header.
pub enum Credentials {
    /// Always this.
    Fixed(HeaderValue),
    /// A bearer token in a file, which somebody renews.
    File {
        /// The file.
        path: PathBuf,
        /// What was in it, and when.
        last: Mutex<(Instant, HeaderValue)>,
    },
}

impl Credentials {
    /// The bearer token in a file that may change.
    pub fn file(path: PathBuf) -> Result<Self, String> {
        let last = Mutex::new((Instant::now(), bearer(&path)?));
        Ok(Self::File { path, last })
    }

    /// A bearer token.
    pub fn token(token: &str) -> Result<Self, String> {
        secret(&format!("Bearer {token}")).map(Self::Fixed)
    }

    fn now(&self) -> HeaderValue {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::File { path, last } => {
                let mut last = last.lock();
                if last.0.elapsed() > TOKEN_FILE_AGE {
                    // A file that cannot be read now had something good in it before.
                    match bearer(path) {
                        Ok(value) => *last = (Instant::now(), value),
                        Err(why) => tracing::warn!(why, "the token for a server elsewhere is not renewed"),
                    }
                }
                last.1.clone()
            }
        }
    }
}

fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let named = |why: String| format!("{}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    match text.trim() {
        "" => Err(named("the file holds no token".into())),
        token => secret(&format!("Bearer {token}")).map_err(named),
    }
}

/// A header's value that is kept out of logs.
pub fn secret(value: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(value).map_err(|_| "credentials cannot stand in a header")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Who the server is to another.
#[derive(Default)]
pub struct Identity {
    /// Shown by connections.
    pub pair: Option<KeyPairPem>,
    credentials: Option<Credentials>,
    /// In whose name requests are made.
    headers: Vec<(HeaderName, HeaderValue)>,
    plugin: Option<Arc<Plugin>>,
}

/// What a call shows.
#[derive(Default)]
pub struct Shown {
    /// `Authorization`
    pub authorization: Option<HeaderValue>,
    /// Where connections are to show what others do not: how they are made. Those of another number are not for
    /// this call.
    pub dialer: Option<(u64, Dialer)>,
}

impl Identity {
    /// With these credentials.
    pub fn with(credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..Self::default() }
    }

    /// The `user` of a kubeconfig, of that name. `peer`: whom it is shown to; `cluster`: what a plugin is told of
    /// that.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn of(
        name: &str,
        user: &Value,
        source: &Source<'_>,
        peer: Option<&Peer>,
        cluster: &Value,
    ) -> Result<Self, String> {
        let pair = match (source.text(user, "client-certificate")?, source.text(user, "client-key")?) {
            (Some(certificate), Some(key)) => Some(KeyPairPem { certificate, key }),
            (None, None) => None,
            _ => return Err("client-certificate and client-key must be given together".into()),
        };
        if user.has("auth-provider") {
            let provider = user.str_at("auth-provider.name");
            return Err(format!("no Auth Provider found for name {provider:?}"));
        }
        let (file, token, user_name) =
            (user.str_at("tokenFile"), user.str_at("token"), user.str_at("username"));
        let credentials = match (token, file, user_name) {
            ("", "", "") => None,
            ("", "", name) => {
                let pair = STANDARD.encode(format!("{name}:{}", user.str_at("password")));
                Some(Credentials::Fixed(secret(&format!("Basic {pair}"))?))
            }
            (token, "", _) => Some(Credentials::token(token)?),
            (_, file, _) => Some(Credentials::file(source.directory.join(file))?),
        };
        let plugin = match user.at("exec") {
            Value::Null => None,
            exec => Some(Arc::new(Plugin::of(name, exec, source.directory, peer, cluster)?)),
        };
        // Whoever has credentials needs no program that says some.
        let plugin = plugin.filter(|_| pair.is_none() && credentials.is_none());
        Ok(Self { pair, credentials, headers: impersonation(user)?, plugin })
    }

    /// Headers of every request.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// What a call shows now. `calls`: where runs of a program for it are counted.
    ///
    /// # Errors
    /// Why there is nothing to be shown.
    pub async fn now(&self, calls: Option<&Arc<Calls>>) -> Result<Arc<Shown>, String> {
        match (&self.plugin, &self.credentials) {
            (Some(plugin), _) => plugin.now(calls).await.map_err(|why| format!("getting credentials: {why}")),
            (None, credentials) => {
                let authorization = credentials.as_ref().map(Credentials::now);
                Ok(Arc::new(Shown { authorization, dialer: None }))
            }
        }
    }

    /// The other side does not know who that is: there may be something newer to show.
    pub async fn refused(&self, shown: &Arc<Shown>) {
        if let Some(plugin) = &self.plugin {
            plugin.forget(shown).await;
        }
    }
}

/// In whose name a user's requests are made.
fn impersonation(user: &Value) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut out = Vec::new();
    let mut add = |name: &str, value: &str| -> Result<(), String> {
        let name = HeaderName::try_from(name).map_err(|_| format!("{name:?} cannot be a header"))?;
        let value =
            HeaderValue::try_from(value).map_err(|_| format!("{value:?} cannot stand in a header"))?;
        out.push((name, value));
        Ok(())
    };
    for (field, header) in [("as", "impersonate-user"), ("as-uid", "impersonate-uid")] {
        if let Some(value) = user.str_opt(field).filter(|value| !value.is_empty()) {
            add(header, value)?;
        }
    }
    for group in user.strings("as-groups") {
        add("impersonate-group", group)?;
    }
    for (key, values) in user.entries("as-user-extra") {
        for value in values.strings("") {
            add(&format!("impersonate-extra-{}", key.to_lowercase()), value)?;
        }
    }
    Ok(out)
}

/// Where the files of a kubeconfig are.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Relative to what their names are.
    pub directory: &'a Path,
}

impl Source<'_> {
    /// What `field`-data holds, or the file that `field` names.
    pub fn text(&self, object: &Value, field: &str) -> Result<Option<String>, String> {
        let data = object.str_at(&format!("{field}-data"));
        if !data.is_empty() {
            let bytes = STANDARD.decode(data).map_err(|e| format!("{field}-data: {e}"))?;
            return String::from_utf8(bytes).map(Some).map_err(|e| format!("{field}-data: {e}"));
        }
        match object.str_at(field) {
            "" => Ok(None),
            file => self.file(file).map(Some),
        }
    }

    fn file(&self, name: &str) -> Result<String, String> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    }
}

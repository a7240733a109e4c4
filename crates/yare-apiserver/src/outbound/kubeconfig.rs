//! The kubeconfig files that say where a webhook is and how to speak to it: the current context's cluster and
//! user.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use yare_kinds::view::View;

use super::{
    Client,
    identity::{Believed, Identity, Peer, Source},
};

/// Reads the file and makes a client of it. The error is one line that names the file.
pub fn client(path: &Path) -> Result<Client, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read(path).map_err(|e| named(&e))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    parse(&text, directory).map_err(|e| named(&e))
}

fn read(text: &[u8]) -> Result<Value, String> {
    let (json, _) = yare_schema::decode::yaml_to_json(text).map_err(|e| e.to_string())?;
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

fn named<'a>(config: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    config.items(list).iter().find(|item| item.str_at("name") == name)
}

fn parse(text: &[u8], directory: &Path) -> Result<Client, String> {
    let config = read(text)?;
    let current = config.str_at("current-context");
    // A file with one cluster and one user needs no context.
    let context = named(&config, "contexts", current).map_or(&Value::Null, |c| c.at("context"));
    let pick = |list: &str, name: &str, member: &str| match (named(&config, list, name), config.items(list)) {
        (Some(item), _) => (item.str_at("name").to_owned(), item.at(member).clone()),
        (None, [only]) if context.is_null() => (only.str_at("name").to_owned(), only.at(member).clone()),
        _ => (String::new(), Value::Null),
    };
    let (_, cluster) = pick("clusters", context.str_at("cluster"), "cluster");
    let (user_name, user) = pick("users", context.str_at("user"), "user");
    let server = cluster.str_at("server");
    if server.is_empty() {
        return Err("invalid configuration: no server of the current context's cluster".into());
    }
    let source = Source { directory };
    let authority = source.text(&cluster, "certificate-authority")?;
    let trust = match (authority, cluster.bool_at("insecure-skip-tls-verify")) {
        (Some(_), true) => {
            return Err("specifying a root certificates file with the insecure flag is not allowed".into());
        }
        (None, true) => Believed::Anybody,
        (Some(authority), false) => Believed::Authority(authority),
        (None, false) => Believed::System,
    };
    let uri: http::Uri = server.parse().map_err(|e| format!("url {server:?}: {e}"))?;
    let given = cluster.str_opt("tls-server-name").filter(|name| !name.is_empty());
    let name = given.or(uri.host()).unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let peer = Peer { name, trust };
    let identity = Identity::of(&user_name, &user, &source, Some(&peer), &cluster)?;
    Ok(Client::of_server(server, &peer, identity.pair.as_ref())?.identified(identity))
}

/// Who this server is to webhooks of admission: the users of a kubeconfig, named by host, port and wildcards
/// (`webhook.ns.svc:8443`, `*.ns.svc`, `*`).
#[derive(Clone, Debug)]
pub struct Users {
    config: Arc<Value>,
    directory: PathBuf,
}

impl Users {
    /// Reads the file. The error is one line that names the file.
    pub fn open(path: &Path) -> Result<Self, String> {
        let shown = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read(path).map_err(|e| shown(&e))?;
        let config = Arc::new(read(&text).map_err(|e| shown(&e))?);
        let directory = path.parent().unwrap_or(Path::new(".")).to_owned();
        let users = Self { config, directory };
        // What is wrong with a user is found now, not when somebody waits for a webhook.
        for user in users.config.items("users") {
            users.of(user, None).map_err(|e| shown(&e))?;
        }
        Ok(users)
    }

    /// Who it is to the webhook at that port of `peer`.
    ///
    /// # Errors
    /// What is wrong with the user.
    pub fn identity(&self, peer: &Peer, port: i64) -> Result<Identity, String> {
        match self.find(&peer.name, port) {
            Some(user) => self.of(user, Some(peer)),
            None => Ok(Identity::default()),
        }
    }

    fn of(&self, user: &Value, peer: Option<&Peer>) -> Result<Identity, String> {
        let source = Source { directory: &self.directory };
        Identity::of(user.str_at("name"), user.at("user"), &source, peer, &Value::Null)
    }

    fn find(&self, host: &str, port: i64) -> Option<&Value> {
        let config = &*self.config;
        let by_name = |target: &str| {
            let exact = named(config, "users", target);
            let steps = target.match_indices('.').map(|(at, _)| &target[at..]);
            exact.or_else(|| steps.into_iter().find_map(|rest| named(config, "users", &format!("*{rest}"))))
        };
        let of_context = || {
            let context = named(config, "contexts", config.str_at("current-context"))?;
            named(config, "users", context.str_at("context.user"))
        };
        by_name(&crate::outbound::authority(host, u16::try_from(port).unwrap_or_default()))
            .or_else(|| if port == 443 { by_name(host) } else { None })
            .or_else(|| named(config, "users", "*"))
            .or_else(of_context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let check = |text: &str| parse(text.as_bytes(), Path::new("/nowhere")).err();
        let one = |cluster: &str, user: &str| {
            check(&format!(
                "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]"
            ))
        };
        for (error, part) in [
            (check("a: ["), ""),
            (check(""), "no server"),
            (one("server: 'ftp://a'", ""), "must begin with https"),
            (one("server: 'https://a', certificate-authority: ca.crt", ""), "/nowhere/ca.crt"),
            (one("server: 'https://a', certificate-authority-data: '!'", ""), "certificate-authority-data"),
            (
                one(
                    "server: 'https://a', insecure-skip-tls-verify: true, certificate-authority-data: YQ==",
                    "",
                ),
                "insecure flag",
            ),
            (one("server: 'https://a'", "tokenFile: none"), "/nowhere/none"),
            (one("server: 'https://a'", "client-certificate-data: YQ=="), "together"),
            (
                one("server: 'https://a'", "auth-provider: {name: gcp}"),
                "no Auth Provider found for name \"gcp\"",
            ),
            (one("server: 'https://a'", "exec: {apiVersion: v1}"), "command must be specified for u to use"),
            (
                check("current-context: x\nclusters: [{name: a, cluster: {server: 'https://a'}}, {name: b}]"),
                "no server",
            ),
        ] {
            let error = error.unwrap();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn users_of_webhooks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let users = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Users::open(&path)
        };
        let known = users(
            "users: [{name: 'a.n.svc:8443'}, {name: 'a.n.svc'}, {name: '*.n.svc'}, {name: '*.n.svc:99'}, {name: '*.svc'}]",
        )
        .unwrap();
        for (host, port, found) in [
            ("a.n.svc", 8443, "a.n.svc:8443"),
            ("a.n.svc", 443, "a.n.svc"),
            ("a.n.svc", 99, "*.n.svc:99"),
            ("b.n.svc", 443, "*.n.svc"),
            ("b.m.svc", 443, "*.svc"),
            ("b.m.svc", 80, ""),
            ("example.com", 443, ""),
        ] {
            assert_eq!(known.find(host, port).map_or("", |u| u.str_at("name")), found, "{host}:{port}");
        }
        let others = "current-context: c\ncontexts: [{name: c, context: {user: u}}]\nusers: [{name: u}]";
        assert_eq!(users(others).unwrap().find("x", 1).unwrap().str_at("name"), "u");
        let all =
            "current-context: c\ncontexts: [{name: c, context: {user: u}}]\nusers: [{name: u}, {name: '*'}]";
        assert_eq!(users(all).unwrap().find("x", 1).unwrap().str_at("name"), "*");
        let error = users("users: [{name: u, user: {tokenFile: none}}]").unwrap_err();
        assert!(error.contains("none"), "{error}");
        assert!(Users::open(Path::new("/no/such")).unwrap_err().starts_with("/no/such: "));
    }
}

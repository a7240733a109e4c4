//! The kubeconfig files that say where a webhook is and how to speak to it: the current context's cluster and
//! user.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use yare_auth::{
    pki::KeyPairPem,
    tls::{Speaks, Trust, outside_client},
};
use yare_kinds::view::View;

use super::Client;

/// Reads the file and makes a client of it. The error is one line that names the file.
pub fn client(path: &Path) -> Result<Client, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read(path).map_err(|e| named(&e))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    parse(&text, directory).map_err(|e| named(&e))
}

fn parse(text: &[u8], directory: &Path) -> Result<Client, String> {
    let (json, _) = yare_schema::decode::yaml_to_json(text).map_err(|e| e.to_string())?;
    let config: Value = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
    let find = |list: &str, name: &str| config.items(list).iter().find(|i| i.str_at("name") == name);
    let current = config.str_at("current-context");
    // A file with one cluster and one user needs no context.
    let context = find("contexts", current).map_or(&Value::Null, |c| c.at("context"));
    let pick = |list: &str, named: &str, member: &str| match (find(list, named), config.items(list)) {
        (Some(item), _) => item.at(member).clone(),
        (None, [only]) if context.is_null() => only.at(member).clone(),
        _ => Value::Null,
    };
    let cluster = pick("clusters", context.str_at("cluster"), "cluster");
    let user = pick("users", context.str_at("user"), "user");
    let server = cluster.str_at("server");
    if server.is_empty() {
        return Err("invalid configuration: no server of the current context's cluster".into());
    }
    let source = Source { directory };
    let authority = source.text(&cluster, "certificate-authority")?;
    let trust = match (&authority, cluster.bool_at("insecure-skip-tls-verify")) {
        (Some(_), true) => {
            return Err("specifying a root certificates file with the insecure flag is not allowed".into());
        }
        (None, true) => Trust::Anybody,
        (Some(authority), false) => Trust::Authority(authority),
        (None, false) => Trust::System,
    };
    let pair = match (source.text(&user, "client-certificate")?, source.text(&user, "client-key")?) {
        (Some(certificate), Some(key)) => Some(KeyPairPem { certificate, key }),
        (None, None) => None,
        _ => return Err("client-certificate and client-key must be given together".into()),
    };
    let tls = outside_client(trust, pair.as_ref(), Speaks::Http1).map_err(|e| e.to_string())?;
    let name = cluster.str_opt("tls-server-name").filter(|name| !name.is_empty());
    let client = Client::of_url(server, name, &tls)?;
    match (user.str_at("tokenFile"), user.str_at("token"), user.str_at("username")) {
        ("", "", "") => Ok(client),
        ("", "", name) => {
            let pair = STANDARD.encode(format!("{name}:{}", user.str_at("password")));
            client.authorized(&format!("Basic {pair}"))
        }
        ("", token, _) => client.authorized(&format!("Bearer {token}")),
        (file, ..) => client.authorized_by(directory.join(file)),
    }
}

struct Source<'a> {
    directory: &'a Path,
}

impl Source<'_> {
    /// What `field`-data holds, or the file that `field` names.
    fn text(&self, object: &Value, field: &str) -> Result<Option<String>, String> {
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
                check("current-context: x\nclusters: [{name: a, cluster: {server: 'https://a'}}, {name: b}]"),
                "no server",
            ),
        ] {
            let error = error.unwrap();
            assert!(error.contains(part), "{error}");
        }
    }
}

//! Proxies that authenticate callers themselves and say in headers who they are (`--requestheader-*`). A
//! proxy proves itself with a client certificate of an authority of its own.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderMap;
use yare_auth::{User, tls::ClientAuthority, user::AUTHENTICATED};

use super::{Credentials, Verdict};
use crate::{core::Core, path::percent_decode};

/// Which proxies are believed, and the headers they use. Names of headers are in lower case.
pub struct FrontProxy {
    /// Vouches for their certificates.
    pub authority: ClientAuthority,
    /// Common names that they may have; none: all.
    pub allowed_names: Vec<String>,
    /// The first of these that is there is the user's name.
    pub username_headers: Vec<String>,
    /// The first of these that is there is the user's UID.
    pub uid_headers: Vec<String>,
    /// All values of these are groups.
    pub group_headers: Vec<String>,
    /// What follows these prefixes is the key of an extra attribute.
    pub extra_prefixes: Vec<String>,
}

/// What upstream's own proxies use. These headers are taken off requests, whoever sent them.
const STANDARD_PREFIX: &str = "x-remote-";

pub(super) fn authenticate(core: &Arc<Core>, credentials: &Credentials<'_>) -> Verdict {
    let Some(peer) = credentials.certificate else { return Verdict::Unknown };
    let authorities = core.config.auth.authorities.load();
    let Some(proxy) = &authorities.front_proxy else { return Verdict::Unknown };
    let reading = peer.reading(&authorities, core.now().as_second());
    match &reading.proxy {
        Err(why) => Verdict::Wrong(why.clone()),
        Ok(name) if !proxy.allowed_names.is_empty() && !proxy.allowed_names.contains(name) => {
            Verdict::Wrong(format!("x509: subject with cn={name} is not in the allowed list"))
        }
        Ok(_) => match proxy.user(credentials.headers) {
            Some(user) => Verdict::Known(Arc::new(user).into()),
            None => Verdict::Unknown,
        },
    }
}

impl FrontProxy {
    /// Proxies that `authority` vouches for and that use upstream's own headers.
    pub fn new(authority: ClientAuthority, allowed_names: Vec<String>) -> Self {
        let standard = |rest: &str| vec![format!("{STANDARD_PREFIX}{rest}")];
        Self {
            authority,
            allowed_names,
            username_headers: standard("user"),
            uid_headers: standard("uid"),
            group_headers: standard("group"),
            extra_prefixes: standard("extra-"),
        }
    }

    /// Whom the headers name.
    fn user(&self, headers: &HeaderMap) -> Option<User> {
        let first = |names: &[String]| {
            names
                .iter()
                .filter_map(|n| headers.get(n)?.to_str().ok())
                .find(|v| !v.is_empty())
                .map(str::to_owned)
        };
        let name = first(&self.username_headers)?;
        let mut groups: Vec<String> = self
            .group_headers
            .iter()
            .flat_map(|n| headers.get_all(n))
            .filter_map(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .collect();
        if name != "system:anonymous"
            && !groups.iter().any(|g| g == AUTHENTICATED || g == "system:unauthenticated")
        {
            groups.push(AUTHENTICATED.into());
        }
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for prefix in &self.extra_prefixes {
            for (header, value) in headers {
                if let Some(key) = header.as_str().strip_prefix(prefix.as_str())
                    && let Ok(value) = value.to_str()
                {
                    let key = percent_decode(key, false).to_lowercase();
                    extra.entry(key).or_default().push(value.to_owned());
                }
            }
        }
        Some(User { name, uid: first(&self.uid_headers).unwrap_or_default(), groups, extra })
    }

    fn is_own(&self, header: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|n| n == header);
        named(&self.username_headers)
            || named(&self.uid_headers)
            || named(&self.group_headers)
            || self.extra_prefixes.iter().any(|p| header.starts_with(p.as_str()))
    }
}

/// Takes off what a proxy may have said, so that nothing behind this believes it once more.
pub fn clear(proxy: Option<&FrontProxy>, headers: &mut HeaderMap) {
    let standard = |name: &str| {
        name.strip_prefix(STANDARD_PREFIX)
            .is_some_and(|rest| matches!(rest, "user" | "uid" | "group") || rest.starts_with("extra-"))
    };
    let is_proxys = |name: &str| standard(name) || proxy.is_some_and(|p| p.is_own(name));
    while let Some(name) = headers.keys().find(|n| is_proxys(n.as_str())).cloned() {
        headers.remove(name);
    }
}

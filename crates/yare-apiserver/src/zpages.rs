//! `/statusz` and `/flagz` of this server: whether they are on, what the client wants, and what is on them.

use std::collections::BTreeSet;

use http::{HeaderMap, StatusCode, header};
pub use yare_metrics::zpages::{FLAGZ, Page, STATUSZ};
use yare_metrics::zpages::{GROUP, Shown, Status, TEXT};
use yare_schema::features::Gates;

use crate::{
    body::{self, Reply},
    core::Call,
    encodings::{Encoding, Form, Named, TABLE},
    health,
    negotiate::clauses,
    status::{ApiError, ApiResult},
};

/// What stands for values that nobody should see.
pub const CLASSIFIED: &str = "CLASSIFIED";

const COMPONENT: &str = "apiserver";
/// Folders that are not for debugging.
const NOT_LISTED: [&str; 5] = ["/.well-known", "/api", "/apis", "/openapi", "/openid"];

/// What a client takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Text,
    /// The object in this version and encoding.
    Object(&'static str, Encoding),
}

/// Picks what the client likes best: an object must be asked for by group, version and kind.
fn negotiate(page: Page, headers: &HeaderMap, gates: &Gates) -> Option<Wanted> {
    if headers.get(header::ACCEPT).is_none_or(|value| value.as_bytes().trim_ascii().is_empty()) {
        return Some(Wanted::Text);
    }
    let objects = || TABLE.iter().filter(|f| f.encoding != Encoding::Protobuf && f.is_on(Some(gates)));
    for clause in &clauses(headers) {
        // Neither can be streamed, and the server's version is not asked for.
        if ["stream", "sv"].iter().any(|name| clause.param(name).is_some_and(|value| !value.is_empty())) {
            continue;
        }
        let named = ["as", "g", "v"].map(|name| clause.param(name));
        if named == [None; 3] {
            if clause.covers(TEXT) {
                return Some(Wanted::Text);
            }
            continue;
        }
        let [kind, group, version] = named.map(Option::unwrap_or_default);
        let Some(version) = page.version(kind, group, version) else { continue };
        if let Some(format) = objects().find(|f| clause.covers(f.media_type)) {
            return Some(Wanted::Object(version, format.encoding));
        }
    }
    None
}

/// Answers a request for a page; `None` where its feature is off. `listed`: the paths that `/` lists.
pub fn handle(call: &Call, page: Page, listed: &[String]) -> Option<ApiResult<Reply>> {
    let gates = &call.core.config.gates;
    gates.is_on(page.gate).then(|| {
        let wanted = negotiate(page, &call.headers, gates).ok_or_else(|| {
            let mut known: Vec<&str> = vec!["application/json", "application/yaml", TEXT];
            known.extend(gates.is_on("CBORServingAndStorage").then_some("application/cbor"));
            ApiError::not_acceptable(&known)
        })?;
        let shown = if page == FLAGZ {
            Shown::Flags(call.core.config.flags.iter().map(|(name, value)| (&**name, &**value)).collect())
        } else {
            let version = health::version(&call.core);
            let part = |name: &str| version[name].as_str().unwrap_or_default();
            let own = format!("{}.{}", part("major"), part("minor"));
            let emulated = format!("{}.{}", part("emulationMajor"), part("emulationMinor"));
            let versions = [own.as_str(), emulated.as_str()];
            Shown::Status(Status::now(call.core.now(), part("goVersion"), versions, folders(listed)))
        };
        let (version, encoding) = match wanted {
            Wanted::Text => {
                let mut draw = [0];
                call.core.config.random.fill(&mut draw);
                return Ok(body::text_reply(StatusCode::OK, page.text(COMPONENT, &shown, draw[0])));
            }
            Wanted::Object(version, encoding) => (version, encoding),
        };
        page.warning(version).into_iter().for_each(|warning| call.warn(warning));
        let object = page.object(COMPONENT, version, &shown);
        let format = encoding.format();
        let named = Named { ty: None, api_version: &format!("{GROUP}/{version}"), kind: page.kind };
        let bytes = (format.document)(&named, Form::Made(&object), false)?;
        Ok(body::reply(StatusCode::OK, format.media_type, bytes))
    })
}

fn folders(listed: &[String]) -> Vec<String> {
    let all: BTreeSet<String> = listed
        .iter()
        .filter_map(|path| path.split('/').nth(1).filter(|first| !first.is_empty()))
        .map(|first| format!("/{first}"))
        .filter(|folder| !NOT_LISTED.contains(&folder.as_str()) && folder != "/statusz")
        .collect();
    all.into_iter().collect()
}

/// The pages' paths, as far as they are there.
pub fn paths(gates: &Gates) -> impl Iterator<Item = String> {
    [FLAGZ, STATUSZ].into_iter().filter(|page| gates.is_on(page.gate)).map(|page| format!("/{}", page.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_asked_for_by_name() {
        let (off, on) = (Gates::default(), Gates::parse("CBORServingAndStorage=true").unwrap());
        let object = |version, encoding| Some(Wanted::Object(version, encoding));
        for (accept, expected) in [
            ("", Some(Wanted::Text)),
            ("text/plain", Some(Wanted::Text)),
            ("text/*", Some(Wanted::Text)),
            ("*/*", Some(Wanted::Text)),
            ("application/json", None),
            ("application/xml", None),
            ("application/json;v=v1beta1;g=config.k8s.io", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", object("v1beta1", Encoding::Json)),
            ("application/yaml;v=v1alpha1;g=config.k8s.io;as=Statusz", object("v1alpha1", Encoding::Yaml)),
            ("application/json;v=foo;g=config.k8s.io;as=Statusz,*/*", Some(Wanted::Text)),
            ("application/vnd.kubernetes.protobuf;v=v1beta1;g=config.k8s.io;as=Statusz", None),
            ("application/cbor;v=v1beta1;g=config.k8s.io;as=Statusz", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(negotiate(STATUSZ, &headers, &off), expected, "{accept}");
        }
        let mut headers = HeaderMap::new();
        headers
            .insert(header::ACCEPT, "application/cbor;v=v1beta1;g=config.k8s.io;as=Statusz".parse().unwrap());
        assert_eq!(negotiate(STATUSZ, &headers, &on), object("v1beta1", Encoding::Cbor));
        assert_eq!(negotiate(STATUSZ, &HeaderMap::new(), &on), Some(Wanted::Text));
    }

    #[test]
    fn folders_of_paths() {
        let paths =
            ["/", "/api", "/apis/apps", "/livez", "/metrics", "/metrics/slis", "/statusz", "/version"];
        assert_eq!(folders(&paths.map(str::to_owned)), ["/livez", "/metrics", "/version"]);
    }
}

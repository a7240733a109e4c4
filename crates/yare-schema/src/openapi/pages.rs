//! Pages that are not about objects: where groups and resources are listed, the version, the issuer of tokens.

use serde_json::{Map, Value, json};

use super::{
    Dialect, Server, Source,
    docs::Docs,
    operation::{Item, OK, Operation, camel, group_name},
    paths::encodings,
};

/// Definition of what `/version` answers, which is no kind.
pub(super) const VERSION_INFO: &str = "io.k8s.apimachinery.pkg.version.Info";

/// Its fields, and whether they are always there.
const VERSION_FIELDS: &[(&str, bool)] = &[
    ("major", true),
    ("minor", true),
    ("emulationMajor", false),
    ("emulationMinor", false),
    ("minCompatibilityMajor", false),
    ("minCompatibilityMinor", false),
    ("gitVersion", true),
    ("gitCommit", true),
    ("gitTreeState", true),
    ("buildDate", true),
    ("goVersion", true),
    ("compiler", true),
    ("platform", true),
];

/// The schema of [`VERSION_INFO`].
pub(super) fn version_info(dialect: Dialect, docs: &Docs) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, always) in VERSION_FIELDS {
        let mut property = json!({"type": "string"});
        if let Some(doc) = docs.field(VERSION_INFO, name) {
            property["description"] = doc.into();
        }
        if *always {
            required.push(*name);
            if dialect == Dialect::V3 {
                property["default"] = "".into();
            }
        }
        properties.insert((*name).to_owned(), property);
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn page(path: String, tag: &str, id: &str, description: &str, answer: Option<&str>) -> Item {
    let answer = answer.map(|name| match name {
        VERSION_INFO => name.to_owned(),
        kind => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"),
    });
    let operation = Operation {
        method: "get",
        id: id.to_owned(),
        action: "",
        description: description.to_owned(),
        parameters: Vec::new(),
        body: None,
        answer,
        codes: OK,
        consumes: Vec::new(),
        produces: Vec::new(),
    };
    Item { path, tag: tag.to_owned(), gvk: None, operations: vec![operation] }
}

fn in_types(mut item: Item, consumes: &[&'static str], produces: &[&'static str]) -> Item {
    for operation in &mut item.operations {
        operation.consumes = consumes.to_vec();
        operation.produces = produces.to_vec();
    }
    item
}

/// Every page of the server. Each is a document of its own in v3, but for the list of a version's resources, which
/// is in the document of that version.
pub(super) fn pages(server: &Server<'_>) -> Vec<Item> {
    let lists = encodings(false);
    let resources = encodings(server.cbor);
    let in_lists = |item| in_types(item, &lists, &lists);
    let mut all = vec![
        in_types(
            page(
                "/version/".into(),
                "version",
                "getCodeVersion",
                "get the version information for this server",
                Some(VERSION_INFO),
            ),
            &["application/json"],
            &["application/json"],
        ),
        in_lists(page(
            "/api/".into(),
            "core",
            "getCoreAPIVersions",
            "get available API versions",
            Some("APIVersions"),
        )),
        in_lists(page(
            "/apis/".into(),
            "apis",
            "getAPIVersions",
            "get available API versions",
            Some("APIGroupList"),
        )),
    ];
    if server.openid {
        all.push(in_types(
            page(
                "/.well-known/openid-configuration/".into(),
                "WellKnown",
                "getServiceAccountIssuerOpenIDConfiguration",
                "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
                None,
            ),
            &[],
            &["application/json"],
        ));
        all.push(in_types(
            page(
                "/openid/v1/jwks/".into(),
                "openid",
                "getServiceAccountIssuerOpenIDKeyset",
                "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
                None,
            ),
            &[],
            &["application/jwk-set+json"],
        ));
    }
    let mut versions: Vec<(&str, &str)> = server
        .resources
        .iter()
        .filter(|r| matches!(r.source, Source::Builtin))
        .map(|r| (r.group, r.version))
        .collect();
    versions.sort_unstable();
    versions.dedup();
    let mut before = "";
    for (group, version) in versions {
        let (name, tag) = (group_name(group, true), group_name(group, false));
        let path = if group.is_empty() { "/api/".to_owned() } else { format!("/apis/{group}/") };
        if group != before {
            let id = format!("get{name}APIGroup");
            let text = "get information of a group";
            all.push(in_lists(page(path.clone(), &tag, &id, text, Some("APIGroup"))));
        }
        before = group;
        let list = page(
            format!("{path}{version}/"),
            &format!("{tag}_{}", camel(version, false)),
            &format!("get{name}{}APIResources", camel(version, true)),
            "get available resources",
            Some("APIResourceList"),
        );
        all.push(in_types(list, &resources, &resources));
    }
    all
}

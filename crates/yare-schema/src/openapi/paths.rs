//! Paths of resources: what can be asked of each, and in which words.

use super::{
    Resource, Server, Source, Subresource, definition_of,
    operation::{
        ALL, Codes, DELETE_OPTIONS, Item, OK, OK_ACCEPTED, OK_CREATED, Operation, PATCH_BODY, camel,
        group_name,
    },
    parameters::{Parameter, in_path, of_options, pretty},
};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";

/// What a stream may be opened with, and with what a proxy passes on: method, and its part of the operation's name.
const STREAM: &[(&str, &str)] = &[("get", "Get"), ("post", "Post")];
const PROXY: &[(&str, &str)] = &[
    ("get", "Get"),
    ("put", "Put"),
    ("post", "Post"),
    ("delete", "Delete"),
    ("options", "Options"),
    ("head", "Head"),
    ("patch", "Patch"),
];

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CBOR: &str = "application/cbor";

/// The encodings of answers that are no streams.
pub(super) fn encodings(cbor: bool) -> Vec<&'static str> {
    let mut all = vec![JSON, YAML, PROTOBUF];
    all.extend(cbor.then_some(CBOR));
    all
}

/// Sends the paths of one resource to `emit`.
pub(super) fn paths(server: &Server<'_>, resource: &Resource<'_>, emit: &mut dyn FnMut(Item)) {
    let maker = Maker::new(server, resource);
    maker.collection(emit);
    maker.object(emit);
    if !maker.custom && resource.verbs.contains(&"watch") {
        maker.watches(emit);
    }
    for sub in &resource.subresources {
        maker.subresource(sub, emit);
    }
}

struct Maker<'a> {
    server: &'a Server<'a>,
    resource: &'a Resource<'a>,
    /// A CustomResourceDefinition's: said in fewer words, and in fewer encodings.
    custom: bool,
    /// `AppsV1`
    group_version: String,
    /// `/apis/apps/v1`
    root: String,
    /// `/namespaces/{namespace}/deployments`
    below: String,
    /// `NamespacedDeployment`
    name: String,
    /// Its definition.
    object: String,
}

impl<'a> Maker<'a> {
    fn new(server: &'a Server<'a>, resource: &'a Resource<'a>) -> Self {
        let root = match resource.group {
            "" => format!("/api/{}", resource.version),
            group => format!("/apis/{group}/{}", resource.version),
        };
        let (space, scope) =
            if resource.namespaced { ("/namespaces/{namespace}", "Namespaced") } else { ("", "") };
        Self {
            server,
            resource,
            custom: matches!(resource.source, Source::Custom(_)),
            group_version: format!("{}{}", group_name(resource.group, true), camel(resource.version, true)),
            root,
            below: format!("{space}/{}", resource.plural),
            name: format!("{scope}{}", resource.kind),
            object: resource.definition(),
        }
    }

    /// An operation that takes what the fields of `options` and the path say, and answers with `answer`.
    fn operation(
        &self,
        (method, verb, action): (&'static str, &str, &'static str),
        name: &str,
        description: String,
        options: &str,
        answer: Option<&str>,
        codes: Codes,
    ) -> Operation {
        let mut parameters = of_options(options, self.server.docs);
        if action != "connect" {
            parameters.push(pretty());
        }
        Operation {
            method,
            id: format!("{verb}{}{name}", self.group_version),
            action,
            description,
            parameters,
            body: None,
            answer: answer.map(str::to_owned),
            codes,
            consumes: self.consumes(action),
            produces: self.produces(action, answer.is_some()),
        }
    }

    fn consumes(&self, action: &str) -> Vec<&'static str> {
        match (action, self.custom) {
            ("patch", _) => {
                let mut types = vec!["application/json-patch+json", "application/merge-patch+json"];
                types.extend((!self.custom).then_some("application/strategic-merge-patch+json"));
                types.push("application/apply-patch+yaml");
                types.extend((!self.custom && self.server.cbor).then_some("application/apply-patch+cbor"));
                types
            }
            (_, true) => vec![JSON, YAML],
            (_, false) => vec!["*/*"],
        }
    }

    fn produces(&self, action: &str, objects: bool) -> Vec<&'static str> {
        if self.custom {
            return vec![JSON, YAML];
        }
        if action == "connect" {
            return vec!["*/*"];
        }
        let mut types = encodings(self.server.cbor);
        if !objects {
            types.insert(0, "text/plain");
        }
        if matches!(action, "list" | "watch" | "watchlist") {
            types.push("application/json;stream=watch");
            types.push("application/vnd.kubernetes.protobuf;stream=watch");
            types.extend(self.server.cbor.then_some("application/cbor-seq"));
        }
        types
    }

    fn item(
        &self,
        path: String,
        gvk: (&str, &str, &str),
        operations: Vec<Operation>,
        emit: &mut dyn FnMut(Item),
    ) {
        if operations.is_empty() {
            return;
        }
        let mut of_path: Vec<Parameter> = Vec::new();
        if path.contains("{name}") {
            of_path.push(in_path("name", format!("name of the {}", gvk.2)));
        }
        if path.contains("{namespace}") {
            of_path.push(in_path("namespace", "object name and auth scope, such as for teams and projects"));
        }
        if path.contains("{path}") {
            of_path.push(in_path("path", "path to the resource"));
        }
        let operations = operations
            .into_iter()
            .map(|mut operation| {
                operation.parameters.extend(of_path.iter().cloned());
                operation
            })
            .collect();
        let (group, version, kind) = gvk;
        let tag =
            format!("{}_{}", group_name(self.resource.group, false), camel(self.resource.version, false));
        let gvk = Some([group, version, kind].map(str::to_owned));
        emit(Item { path, tag, gvk, operations });
    }

    fn gvk(&self) -> (&'a str, &'a str, &'a str) {
        (self.resource.group, self.resource.version, self.resource.kind)
    }

    fn has(&self, verb: &str) -> bool {
        self.resource.verbs.contains(&verb)
    }

    fn list(&self, name: &str) -> Operation {
        let how = if self.has("watch") && !self.custom { "list or watch" } else { "list" };
        let answer = self.resource.list_definition();
        self.operation(
            ("get", "list", "list"),
            name,
            format!("{how} objects of kind {}", self.resource.kind),
            "ListOptions",
            Some(&answer),
            OK,
        )
    }

    fn collection(&self, emit: &mut dyn FnMut(Item)) {
        let kind = self.resource.kind;
        if self.resource.namespaced && self.has("list") {
            let list = self.list(&format!("{kind}ForAllNamespaces"));
            self.item(format!("{}/{}", self.root, self.resource.plural), self.gvk(), vec![list], emit);
        }
        let mut operations = Vec::new();
        if self.has("list") {
            operations.push(self.list(&self.name));
        }
        if self.has("create") {
            operations.push(self.create(&self.name, "", &self.object));
        }
        if self.has("deletecollection") {
            let mut delete = self.operation(
                ("delete", "delete", "deletecollection"),
                &format!("Collection{}", self.name),
                format!("delete collection of {kind}"),
                "ListOptions",
                Some(STATUS),
                OK,
            );
            if !self.custom {
                delete.parameters.retain(|p| !matches!(&*p.name, "watch" | "allowWatchBookmarks"));
                delete.parameters.extend(of_options("DeleteOptions", self.server.docs));
                delete.body = Some(DELETE_OPTIONS.to_owned());
            }
            operations.push(delete);
        }
        self.item(format!("{}{}", self.root, self.below), self.gvk(), operations, emit);
    }

    /// `sub`: of which subresource, if of one.
    fn create(&self, name: &str, sub: &str, body: &str) -> Operation {
        let noun = format!("{}{}", article(self.resource.kind), self.resource.kind);
        let description =
            if sub.is_empty() { format!("create{noun}") } else { format!("create {sub} of{noun}") };
        let head = ("post", "create", "post");
        let operation = self.operation(head, name, description, "CreateOptions", Some(body), ALL);
        Operation { body: Some(body.to_owned()), ..operation }
    }

    fn object(&self, emit: &mut dyn FnMut(Item)) {
        let mut operations = self.of_one(&self.name, "", &self.object, &|verb| self.has(verb));
        if self.has("delete") {
            let kind = self.resource.kind;
            let answer = if self.resource.returns_deleted { &self.object } else { STATUS };
            let delete = self.operation(
                ("delete", "delete", "delete"),
                &self.name,
                format!("delete{}{kind}", article(kind)),
                "DeleteOptions",
                Some(answer),
                OK_ACCEPTED,
            );
            operations.push(Operation { body: Some(DELETE_OPTIONS.to_owned()), ..delete });
        }
        self.item(format!("{}{}/{{name}}", self.root, self.below), self.gvk(), operations, emit);
    }

    /// What is done to one object, or to a subresource of it.
    fn of_one(&self, name: &str, sub: &str, body: &str, has: &dyn Fn(&str) -> bool) -> Vec<Operation> {
        let kind = self.resource.kind;
        let of = if sub.is_empty() { String::new() } else { format!("{sub} of ") };
        let mut operations = Vec::new();
        if has("get") {
            let text = format!("read {of}the specified {kind}");
            let options = if self.custom { "GetOptions" } else { "" };
            operations.push(self.operation(("get", "read", "get"), name, text, options, Some(body), OK));
        }
        if has("update") {
            let text = format!("replace {of}the specified {kind}");
            let head = ("put", "replace", "put");
            let put = self.operation(head, name, text, "UpdateOptions", Some(body), OK_CREATED);
            operations.push(Operation { body: Some(body.to_owned()), ..put });
        }
        if has("patch") {
            let text = format!("partially update {of}the specified {kind}");
            let head = ("patch", "patch", "patch");
            let codes = if self.custom { OK } else { OK_CREATED };
            let patch = self.operation(head, name, text, "PatchOptions", Some(body), codes);
            operations.push(Operation { body: Some(PATCH_BODY.to_owned()), ..patch });
        }
        operations
    }

    /// The paths from the time before the parameter `watch`.
    fn watches(&self, emit: &mut dyn FnMut(Item)) {
        let kind = self.resource.kind;
        let watch = |action: &'static str, name: &str| {
            let description = match action {
                "watch" => format!(
                    "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
                ),
                _ => format!(
                    "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
                ),
            };
            let head = ("get", "watch", action);
            vec![self.operation(head, name, description, "ListOptions", Some(WATCH_EVENT), OK)]
        };
        let root = format!("{}/watch", self.root);
        if self.resource.namespaced {
            let all = watch("watchlist", &format!("{kind}ListForAllNamespaces"));
            self.item(format!("{root}/{}", self.resource.plural), self.gvk(), all, emit);
        }
        let list = watch("watchlist", &format!("{}List", self.name));
        self.item(format!("{root}{}", self.below), self.gvk(), list, emit);
        if self.has("get") {
            let one = watch("watch", &self.name);
            self.item(format!("{root}{}/{{name}}", self.below), self.gvk(), one, emit);
        }
    }

    fn subresource(&self, sub: &Subresource<'_>, emit: &mut dyn FnMut(Item)) {
        let has = |verb: &str| sub.verbs.contains(&verb);
        let gvk = if self.custom { self.gvk() } else { (sub.group, sub.version, sub.kind) };
        let name = format!("{}{}", self.name, camel(sub.name, true));
        let path = format!("{}{}/{{name}}/{}", self.root, self.below, sub.name);
        if sub.connects() {
            let of_it = |name: &str| -> Vec<Operation> {
                let methods = if sub.name == "proxy" { PROXY } else { STREAM };
                methods.iter().map(|method| self.connect(sub, name, *method)).collect()
            };
            self.item(path.clone(), gvk, of_it(&name), emit);
            if sub.name == "proxy" {
                self.item(format!("{path}/{{path}}"), gvk, of_it(&format!("{name}WithPath")), emit);
            }
            return;
        }
        if sub.name == "log" {
            let text = format!("read log of the specified {}", self.resource.kind);
            let read = self.operation(("get", "read", "get"), &name, text, "PodLogOptions", None, OK);
            return self.item(path, gvk, vec![read], emit);
        }
        let is_object = self.custom && (sub.group, sub.version, sub.kind) == self.gvk();
        let body = definition_of(sub.group, sub.version, sub.kind).filter(|_| !is_object);
        let body = body.unwrap_or_else(|| self.object.clone());
        let mut operations = self.of_one(&name, sub.name, &body, &has);
        if has("create") {
            operations.push(self.create(&name, sub.name, &body));
        }
        self.item(path, gvk, operations, emit);
    }

    fn connect(
        &self,
        sub: &Subresource<'_>,
        name: &str,
        (method, part): (&'static str, &'static str),
    ) -> Operation {
        let kind = self.resource.kind;
        let text = format!("connect {} requests to {} of {kind}", method.to_uppercase(), sub.name);
        self.operation((method, "connect", "connect"), &format!("{part}{name}"), text, sub.kind, None, OK)
    }
}

/// What stands before a kind, with the spaces around it. Plurals have no article.
fn article(kind: &str) -> &'static str {
    if kind.ends_with('s') && !kind.ends_with("ss") {
        " "
    } else if kind.starts_with(['A', 'E', 'I', 'O', 'U', 'a', 'e', 'i', 'o', 'u']) {
        " an "
    } else {
        " a "
    }
}

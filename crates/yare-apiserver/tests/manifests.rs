//! Webhooks and policies of admission from files (KEP-5793).
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/outside.rs"]
mod outside;
#[path = "common/secure.rs"]
mod secure;

use std::{path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{Server, open};
use outside::{Outside, outside};
use serde_json::{Value, json};
use tempfile::TempDir;
use yare_apiserver::{ApiServer, Config, admission::Settings};
use yare_schema::features::Gates;

const GATE: &str = "ManifestBasedAdmissionControlConfig=true";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// A directory for each plugin, and the file that names those that there are.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self, plugin: &str) -> std::path::PathBuf {
        self.0.path().join(plugin)
    }

    /// Writes a file of a plugin, by renaming as editors do.
    fn write(&self, plugin: &str, file: &str, text: &str) {
        let directory = self.directory(plugin);
        std::fs::create_dir_all(&directory).unwrap();
        let temporary = self.0.path().join("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, directory.join(file)).unwrap();
    }

    fn settings(&self) -> Result<Settings, String> {
        let plugins: Vec<Value> = [
            ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyConfiguration"),
            ("MutatingAdmissionWebhook", "WebhookAdmissionConfiguration"),
            ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyConfiguration"),
            ("ValidatingAdmissionWebhook", "WebhookAdmissionConfiguration"),
        ]
        .iter()
        .filter(|(name, _)| self.directory(name).exists())
        .map(|(name, kind)| {
            json!({"name": name, "configuration": {"apiVersion": "apiserver.config.k8s.io/v1", "kind": kind,
                "staticManifestsDir": self.directory(name)}})
        })
        .collect();
        settings(self.0.path(), &plugins)
    }

    async fn start(&self) -> Server {
        let settings = self.settings().unwrap();
        Server::with(|config| {
            config.gates = Gates::parse(GATE).unwrap();
            config.admission = settings;
        })
        .await
    }

    /// Why a server does not start.
    async fn refused(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(open(&dir.path().join("store")).await);
        config.gates = Gates::parse(GATE).unwrap();
        config.admission = self.settings().unwrap();
        match ApiServer::start(config).await {
            Ok(_) => panic!("it starts"),
            Err(error) => error.to_string(),
        }
    }
}

fn settings(dir: &Path, plugins: &[Value]) -> Result<Settings, String> {
    let file = dir.join("admission.yaml");
    let text = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins});
    std::fs::write(&file, text.to_string()).unwrap();
    Settings::load(&[], &[], Some(&file)).map_err(|e| e.to_string())
}

fn rules(group: &str, resource: &str) -> Value {
    json!([{"operations": ["*"], "apiGroups": [group], "apiVersions": ["*"], "resources": [resource]}])
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A validating policy that lets nothing be called `name`, and its binding.
fn forbids(name: &str, group: &str, resource: &str) -> [Value; 2] {
    let full = format!("{name}.static.k8s.io");
    let spec = json!({"matchConstraints": {"resourceRules": rules(group, resource)},
        "validations": [{"expression": format!("object == null || object.metadata.name != '{name}'"), "message": format!("no {name}")}]});
    let binding = json!({"policyName": full, "validationActions": ["Deny"]});
    [
        object("ValidatingAdmissionPolicy", &full, &spec),
        object("ValidatingAdmissionPolicyBinding", &full, &binding),
    ]
}

fn documents(all: &[Value]) -> String {
    all.iter().map(|one| format!("---\n# one\n{one}\n")).collect()
}

fn hook(outside: &Outside, path: &str, group: &str, resource: &str) -> Value {
    json!({
        "name": "hook.example.com", "rules": rules(group, resource), "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": outside.url(path), "caBundle": STANDARD.encode(&outside.authority)},
    })
}

fn hooks(kind: &str, name: &str, hooks: &[Value]) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": hooks})
}

/// A webhook: `/deny` refuses, `/LABEL` labels what it sees so.
async fn webhook() -> Outside {
    outside(|path, body| {
        let mut response = json!({"uid": body["request"]["uid"], "allowed": path != "/deny"});
        if path == "/deny" {
            response["status"] = json!({"message": "not this one"});
        } else {
            let patch = json!([{"op": "add", "path": "/data", "value": {"by": path}}]);
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(patch.to_string()).into();
        }
        Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    })
    .await
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

async fn until(server: &Server, name: &str, code: u16) {
    let path = format!("{CONFIG_MAPS}?dryRun=All");
    for _ in 0..400 {
        if server.post(&path, &named(name)).await.code == code {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{name} is never answered with {code}");
}

#[tokio::test]
async fn policies_of_files_are_in_force_and_follow_their_files() {
    let files = Files::new();
    let plugin = "ValidatingAdmissionPolicy";
    files.write(plugin, "a.yaml", &documents(&forbids("a", "", "configmaps")));
    files.write(plugin, "ignored.txt", "{");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": forbids("b", "", "configmaps")});
    files.write(plugin, "b.json", &list.to_string());
    let server = files.start().await;
    for name in ["a", "b"] {
        let answer = server.post(CONFIG_MAPS, &named(name)).await;
        let expect = format!(
            "ValidatingAdmissionPolicy '{name}.static.k8s.io' with binding '{name}.static.k8s.io' denied request: no {name}"
        );
        assert!(answer.text().contains(&expect), "{}", answer.text());
    }
    until(&server, "c", 201).await;
    // The API knows nothing of them, and nobody makes such.
    let all = server.get(&format!("{GROUP}/validatingadmissionpolicies")).await.expect(200);
    assert_eq!(all["items"], json!([]));
    let [policy, _] = forbids("mine", "", "configmaps");
    let message = server
        .post(&format!("{GROUP}/validatingadmissionpolicies"), &policy)
        .await
        .expect_reason(422, "Invalid");
    assert!(message.contains("names ending with \".static.k8s.io\" are reserved"), "{message}");

    // What changes takes effect; what is wrong does not.
    files.write(plugin, "a.yaml", &documents(&forbids("c", "", "configmaps")));
    until(&server, "a", 201).await;
    until(&server, "c", 422).await;
    let metrics = || async { server.get("/metrics").await.text() };
    let count = |text: &str, status: &str| {
        let line = format!(
            "apiserver_manifest_admission_config_controller_automatic_reloads_total{{status=\"{status}\",plugin=\"{plugin}\""
        );
        let found = text.lines().find(|l| l.starts_with(&line)).map(str::to_owned);
        found.map_or(0, |l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    let page = metrics().await;
    assert_eq!((count(&page, "success"), count(&page, "failure")), (2, 0), "{page}");
    assert!(page.contains("apiserver_manifest_admission_config_controller_last_config_info{plugin=\"ValidatingAdmissionPolicy\",apiserver_id_hash=\"sha256:"), "{page}");
    assert!(page.contains("apiserver_manifest_admission_config_controller_automatic_reload_last_timestamp_seconds{status=\"success\""));
    files.write(plugin, "a.yaml", "{kind: Pod}");
    for _ in 0..400 {
        if count(&metrics().await, "failure") > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(count(&metrics().await, "failure"), 1);
    until(&server, "c", 422).await;
    std::fs::remove_file(files.directory(plugin).join("a.yaml")).unwrap();
    until(&server, "c", 201).await;
    until(&server, "b", 422).await;
}

#[tokio::test]
async fn policies_of_files_guard_what_configures_admission() {
    let files = Files::new();
    let mut reviews = forbids("review", "authorization.k8s.io", "*");
    reviews[0]["spec"]["validations"][0]["expression"] = "false".into();
    let all = [forbids("guarded", "admissionregistration.k8s.io", "*"), reviews];
    files.write("ValidatingAdmissionPolicy", "a.yaml", &documents(&all.concat()));
    let server = files.start().await;
    // A policy of the API about all of it has no say in policies; in webhooks it has.
    let [mut policy, mut binding] = forbids("other", "*", "*");
    for one in [&mut policy, &mut binding] {
        one["metadata"]["name"] = "p".into();
    }
    binding["spec"]["policyName"] = "p".into();
    server.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy).await.expect(201);
    server.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.expect(201);
    for (plural, kind, name, code) in [
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy", "guarded", 422),
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy", "other", 201),
        ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration", "guarded", 422),
        ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration", "other", 422),
    ] {
        let mut one = policy.clone();
        one["kind"] = kind.into();
        one["metadata"]["name"] = name.into();
        if kind == "ValidatingWebhookConfiguration" {
            one.as_object_mut().unwrap().remove("spec");
        }
        let answer = server.post(&format!("{GROUP}/{plural}"), &one).await;
        assert_eq!(answer.code, code, "{kind} {name}: {}", answer.text());
    }
    // Reviews are nobody's to refuse.
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"nonResourceAttributes": {"verb": "get", "path": "/"}}});
    server.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await.expect(201);
}

#[tokio::test]
async fn mutations_of_files_come_first() {
    let files = Files::new();
    let label = |name: &str, value: &str| {
        let expression = format!(
            "Object{{metadata: Object.metadata{{annotations: {{'last': '{value}', 'by-{value}': 'yes'}}}}}}"
        );
        let spec = json!({"matchConstraints": {"resourceRules": rules("", "configmaps")}, "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
        [
            object("MutatingAdmissionPolicy", name, &spec),
            object("MutatingAdmissionPolicyBinding", name, &json!({"policyName": name})),
        ]
    };
    files.write("MutatingAdmissionPolicy", "m.yml", &documents(&label("z.static.k8s.io", "file")));
    let server = files.start().await;
    for one in label("a", "api") {
        let plural = if one["kind"] == "MutatingAdmissionPolicy" {
            "mutatingadmissionpolicies"
        } else {
            "mutatingadmissionpolicybindings"
        };
        server.post(&format!("{GROUP}/{plural}"), &one).await.expect(201);
    }
    let made = server.post(CONFIG_MAPS, &named("x")).await.expect(201);
    let expect = json!({"last": "api", "by-file": "yes", "by-api": "yes"});
    assert_eq!(made["metadata"]["annotations"], expect);
}

#[tokio::test]
async fn webhooks_of_files_are_called_first_and_for_what_configures_admission() {
    let (files, outside) = (Files::new(), webhook().await);
    let mutating = hooks(
        "MutatingWebhookConfiguration",
        "z.static.k8s.io",
        &[hook(&outside, "/file", "", "configmaps")],
    );
    files.write("MutatingAdmissionWebhook", "a.yaml", &mutating.to_string());
    let denying = hook(&outside, "/deny", "admissionregistration.k8s.io", "validatingwebhookconfigurations");
    let list = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfigurationList",
        "items": [{"metadata": {"name": "d.static.k8s.io"}, "webhooks": [denying]}]});
    files.write("ValidatingAdmissionWebhook", "a.yaml", &list.to_string());
    let server = files.start().await;
    let made = server.post(CONFIG_MAPS, &named("x")).await.expect(201);
    assert_eq!(made["data"], json!({"by": "/file"}));
    let later = hooks("MutatingWebhookConfiguration", "a", &[hook(&outside, "/api", "", "configmaps")]);
    server.post(&format!("{GROUP}/mutatingwebhookconfigurations"), &later).await.expect(201);
    let made = server.post(CONFIG_MAPS, &named("y")).await.expect(201);
    assert_eq!(made["data"], json!({"by": "/api"}));
    assert_eq!((outside.count("/file"), outside.count("/api")), (2, 1));
    let own = hooks("ValidatingWebhookConfiguration", "mine", &[]);
    let message =
        server.post(&format!("{GROUP}/validatingwebhookconfigurations"), &own).await.expect(400)["message"]
            .to_string();
    assert!(message.contains("not this one"), "{message}");
}

#[tokio::test]
async fn what_is_wrong_with_files_keeps_the_server_from_starting() {
    let outside = webhook().await;
    let validating = "ValidatingAdmissionPolicy";
    let hooks_of = "ValidatingAdmissionWebhook";
    let [policy, binding] = forbids("a", "", "configmaps");
    let changed = |of: &Value, pointer: &str, value: Value| {
        let mut of = of.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        of.pointer_mut(parent).unwrap()[field] = value;
        of
    };
    let of_service = {
        let mut hook = hook(&outside, "/x", "", "pods");
        hook["clientConfig"] = json!({"service": {"namespace": "a", "name": "b"}});
        hooks("ValidatingWebhookConfiguration", "a.static.k8s.io", &[hook])
    };
    for (plugin, text, part) in [
        (
            validating,
            documents(&[changed(&policy, "/metadata/name", json!("plain"))]),
            "\"plain\" in file \"FILE\" must have a name ending with \".static.k8s.io\"",
        ),
        (
            validating,
            documents(&[policy.clone(), policy.clone()]),
            "duplicate name \"a.static.k8s.io\" found in file \"FILE\" (previously seen in \"FILE\")",
        ),
        (
            validating,
            documents(&[changed(
                &policy,
                "/spec/paramKind",
                json!({"apiVersion": "v1", "kind": "ConfigMap"}),
            )]),
            "ValidatingAdmissionPolicy \"a.static.k8s.io\": spec.paramKind is not supported for static manifests",
        ),
        (
            validating,
            documents(&[policy.clone(), changed(&binding, "/spec/policyName", json!("other"))]),
            "binding \"a.static.k8s.io\": spec.policyName \"other\" must end with \".static.k8s.io\"",
        ),
        (
            validating,
            documents(std::slice::from_ref(&binding)),
            "binding \"a.static.k8s.io\" references policy \"a.static.k8s.io\" which does not exist in the manifest directory",
        ),
        (
            validating,
            documents(&[
                policy.clone(),
                changed(&binding, "/spec/paramRef", json!({"name": "x", "parameterNotFoundAction": "Deny"})),
            ]),
            "binding \"a.static.k8s.io\": spec.paramRef is not supported for static manifests",
        ),
        (
            validating,
            documents(&[changed(&policy, "/spec/validations/0/expression", json!("object."))]),
            "ValidatingAdmissionPolicy \"a.static.k8s.io\": spec.validations[0].expression: Invalid value: \"object.\": compilation failed",
        ),
        (
            validating,
            documents(&[changed(&policy, "/spec/colour", json!("red"))]),
            "strict decoding error: unknown field \"spec.colour\"",
        ),
        (validating, of_service.to_string(), "unsupported resource type *v1.ValidatingWebhookConfiguration"),
        (
            validating,
            "{apiVersion: v1, kind: Pod}".into(),
            "no kind \"Pod\" is registered for version \"v1\"",
        ),
        (validating, "# nothing\n---\n".into(), "error loading FILE: Object 'Kind' is missing in 'null'"),
        (
            validating,
            "{apiVersion: v1, kind: List, items: [{kind: Pod}]}".into(),
            "error loading FILE: failed to decode list item: no kind \"Pod\" is registered for version \"\"",
        ),
        (validating, "a: [".into(), "error loading FILE: "),
        (
            hooks_of,
            of_service.to_string(),
            "webhook \"hook.example.com\" in \"a.static.k8s.io\" (file \"FILE\"): clientConfig.service is not supported for static manifests; use clientConfig.url instead",
        ),
        (
            hooks_of,
            hooks(
                "ValidatingWebhookConfiguration",
                "a.static.k8s.io",
                &[json!({"name": "hook.example.com"})],
            )
            .to_string(),
            "ValidatingWebhookConfiguration \"a.static.k8s.io\": [",
        ),
    ] {
        let files = Files::new();
        files.write(plugin, "a.yaml", &text);
        let error = files.refused().await;
        let (directory, file) = (files.directory(plugin), files.directory(plugin).join("a.yaml"));
        let part = part.replace("FILE", &file.display().to_string());
        assert!(error.contains(&part), "{error}\n{part}");
        let what = if plugin == hooks_of { "webhook" } else { "policy" };
        let start = format!(
            "failed to initialize admission: failed to load static {what} manifests from {directory:?}: "
        );
        assert!(error.starts_with(&start), "{error}");
    }
    // The feature has to be on, and the directory there.
    let files = Files::new();
    files.write(validating, "a.yaml", &documents(&[policy, binding]));
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(open(&dir.path().join("store")).await);
    config.admission = files.settings().unwrap();
    let error = ApiServer::start(config).await.err().unwrap().to_string();
    assert!(
        error.contains("requires the ManifestBasedAdmissionControlConfig feature gate to be enabled"),
        "{error}"
    );
    for (directory, why) in [
        (json!("relative"), "must be an absolute file path"),
        (json!("/no/such"), "unable to read"),
        (json!("/proc/self/status"), "must be a directory"),
    ] {
        let plugin = json!({"name": validating, "configuration": {"apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyConfiguration", "staticManifestsDir": directory}});
        let error = settings(files.0.path(), &[plugin]).unwrap_err();
        assert!(error.contains("staticManifestsDir: Invalid value: ") && error.contains(why), "{error}");
    }
}

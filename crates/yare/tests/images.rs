//! Images that not everybody may have: logins from secrets and from credential providers, and who may use what is on
//! the node already.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::ensure;
use yare_testkit::{
    Cluster, Options,
    registry::{self, Layer},
};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const PORT: u16 = 5077;
/// `user:password`
const LOGIN: &str = "dXNlcjpwYXNzd29yZA==";

fn pod(name: &str, image: &str, secret: Option<&str>) -> String {
    let secrets = secret.map_or_else(String::new, |s| format!("  imagePullSecrets: [{{name: {s}}}]\n"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{secrets}  \
         containers: [{{name: main, image: \"127.0.0.1:{PORT}/{image}:1\", command: [sleep, \"1000\"]}}]\n"
    )
}

/// A pod that runs the node's own image, and mounts another.
fn mounts(name: &str, image: &str, secret: Option<&str>) -> String {
    pod(name, image, secret).replace(
        &format!("image: \"127.0.0.1:{PORT}/{image}:1\", command: [sleep, \"1000\"]"),
        "image: yare.local/hello, volumeMounts: [{name: v, mountPath: /v}]",
    ) + &format!("  volumes: [{{name: v, image: {{reference: \"127.0.0.1:{PORT}/{image}:1\"}}}}]\n")
}

#[test]
fn images_are_for_those_who_can_pull_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let (config, program) = (directory.path().join("providers.yaml"), directory.path().join("provider"));
    let answer = format!(
        "{{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\
         \"cacheKeyType\":\"Registry\",\"cacheDuration\":\"1h\",\"auth\":{{\"127.0.0.1:{PORT}\":\
         {{\"username\":\"user\",\"password\":\"password\"}}}}}}"
    );
    let setup = || {
        fs::write(&program, format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(
            &config,
            format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
                 - name: provider\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
                 matchImages: ['127.0.0.1:{PORT}/provided']\n  defaultCacheDuration: 1m\n"
            ),
        )
    };
    setup().expect("a provider");
    let options = Options::with(&[
        &format!("--kubelet-arg=image-credential-provider-config={}", config.display()),
        &format!("--kubelet-arg=image-credential-provider-bin-dir={}", directory.path().display()),
    ]);
    Cluster::test(YARE, options, |cluster| {
        let images = [("private", Layer::Whole), ("provided", Layer::Whole)];
        registry::serve_private(cluster.namespace(), PORT, LOGIN, &images)?;
        for name in ["one", "same"] {
            let server = format!("--docker-server=127.0.0.1:{PORT}");
            let login = ["--docker-username=user", "--docker-password=password"];
            cluster.kubectl(&["create", "secret", "docker-registry", name, &server, login[0], login[1]])?;
        }
        let (image, pulled) = (format!("127.0.0.1:{PORT}/private:1"), "Successfully pulled image");
        cluster.apply(&pod("first", "private", Some("one")))?;
        cluster.ready(&["first"])?;
        cluster.event("first", "Pulling", &format!("Pulling image \"{image}\""))?;
        cluster.event("first", "Pulled", &format!("{pulled} \"{image}\" in "))?;
        cluster.event("first", "Pulled", " including waiting). Image size: ")?;

        // It is there now, and still nobody's who cannot pull it; another secret with the same login can.
        cluster.apply(&pod("stranger", "private", None))?;
        cluster.event("stranger", "Failed", "Failed to pull image")?;
        cluster.apply(&pod("friend", "private", Some("same")))?;
        cluster.ready(&["friend"])?;
        cluster.event("friend", "Pulled", "already present on machine and can be accessed by the pod")?;

        // So it is with images that are mounted.
        cluster.apply(&mounts("mounts", "private", Some("one")))?;
        cluster.apply(&mounts("cannot", "private", None))?;
        cluster.ready(&["mounts"])?;
        cluster.event(
            "mounts",
            "Pulled",
            &format!("Container image \"{image}\" already present on machine"),
        )?;
        cluster.event("cannot", "Failed", "Error: ErrImagePull")?;
        let waiting = ".status.containerStatuses[0].state.waiting.reason";
        cluster.becomes("pod/cannot", waiting, "ImagePullBackOff")?;
        let started = r#".status.conditions[?(@.type=="PodReadyToStartContainers")].status"#;
        ensure!(cluster.field("pod/cannot", started)? == "True", "the pod itself is ready for it");

        // A provider knows the login, and what it opens is open to the node's pods.
        cluster.apply(&pod("provided", "provided", None))?;
        cluster.ready(&["provided"])?;
        let waiting = ".status.containerStatuses[0].state.waiting.reason";
        let reason = cluster.field("pod/stranger", waiting)?;
        ensure!(matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff"), "{reason}");
        let records = cluster.path("data/agent/image_manager/pulled");
        let records: Vec<_> = fs::read_dir(&records)?.flatten().collect();
        ensure!(!records.is_empty(), "nothing is remembered");
        for record in &records {
            ensure!(!fs::read_to_string(record.path())?.contains("\"password\""), "a password lies around");
        }
        Ok(())
    });
}

//! Server-side apply with several managers.

use anyhow::ensure;
use serde_json::{Value, json};
use yare_testkit::Cluster;

use crate::{YARE, control_plane};

#[test]
fn server_side_apply_tells_conflicts_and_can_be_forced() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let apply = |manager: &str, data: &str, flags: &[&str]| {
            let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {data}\n");
            let manager = format!("--field-manager={manager}");
            let args = [&["apply", "--server-side", "-f", "-", &manager][..], flags].concat();
            cluster.kubectl_with(&args, &text)
        };
        let data = || cluster.field("configmap/shared", ".data");
        ensure!(apply("one", "{owner: first, one: a}", &[])?.0.success());
        let (status, _, err) = apply("two", "{owner: second, two: b}", &[])?;
        let want = "Apply failed with 1 conflict: conflict with \"one\": .data.owner";
        ensure!(!status.success() && err.contains(want), "{err}");
        // The same value is no conflict, and makes two owners.
        ensure!(apply("two", "{owner: first, two: b}", &[])?.0.success());
        ensure!(data()? == r#"{"one":"a","owner":"first","two":"b"}"#, "{}", data()?);
        let (status, _, err) = apply("two", "{owner: second, two: b}", &["--force-conflicts"])?;
        ensure!(status.success(), "{err}");
        ensure!(data()? == r#"{"one":"a","owner":"second","two":"b"}"#, "{}", data()?);

        let managers = cluster.field("configmap/shared", ".metadata.managedFields")?;
        let managers: Value = serde_json::from_str(&managers)?;
        let owned = |name: &str| {
            let found = managers.as_array().into_iter().flatten().find(|m| m["manager"] == name);
            found.map(|m| m["fieldsV1"]["f:data"].clone()).unwrap_or_default()
        };
        ensure!(owned("one") == json!({"f:one": {}}), "{managers:#}");
        ensure!(owned("two") == json!({"f:owner": {}, "f:two": {}}), "{managers:#}");

        // What its only owner leaves out goes; what another changed by other means is a conflict too.
        ensure!(apply("two", "{owner: second}", &[])?.0.success());
        ensure!(data()? == r#"{"one":"a","owner":"second"}"#, "{}", data()?);
        cluster.kubectl(&["patch", "configmap", "shared", "-p", r#"{"data": {"owner": "third"}}"#])?;
        let (_, _, err) = apply("two", "{owner: second}", &[])?;
        ensure!(err.contains(r#"conflict with "kubectl-patch" using v1: .data.owner"#), "{err}");
        // Client-side apply of old goes over to server-side apply.
        cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: moved}\ndata: {a: b, c: d}\n")?;
        let moved = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: moved}\ndata: {a: e}\n";
        let (status, _, err) = cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], moved)?;
        ensure!(status.success(), "{err}");
        ensure!(cluster.field("configmap/moved", ".data")? == r#"{"a":"e"}"#);
        Ok(())
    });
}

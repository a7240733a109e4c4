//! Custom resources by `kubectl`: defined, used, changed, validated, taken away.

use anyhow::ensure;
use serde_json::{Value, json};
use yare_testkit::Cluster;

use crate::{WIDGETS, YARE, control_plane};

/// Specs of a Widget that are refused, and what is said.
const BAD_WIDGETS: &[(&str, &str)] = &[
    ("{size: 30}", "spec.size: Invalid value: 30: spec.size in body should be less than or equal to 10"),
    (
        "{size: large}",
        "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
    ),
    ("{color: red}", "spec.size: Required value"),
    ("{size: 1, color: green}", "spec.color: Unsupported value: \"green\": supported values: "),
    ("{size: 1, colour: red}", "strict decoding error: unknown field \"spec.colour\""),
];

#[test]
fn a_custom_resource_is_defined_used_and_taken_away() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let widget = |name: &str, spec: &str| {
            format!(
                "apiVersion: test.yare.local/v1\nkind: Widget\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            )
        };
        cluster.apply(WIDGETS)?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.yare.local"])?;
        cluster.apply(&(widget("one", "{size: 3}") + "status: {ready: 7}\n"))?;

        // A default came in; the status has an endpoint of its own.
        let table = cluster.kubectl(&["get", "wd"])?;
        let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        ensure!(rows == [vec!["NAME", "SIZE", "COLOR", "READY"], vec!["one", "3", "red"]], "{table}");
        ensure!(cluster.kubectl(&["get", "all", "-o", "name"])?.contains("widget.test.yare.local/one"));

        let resources = cluster.kubectl(&["api-resources", "--api-group=test.yare.local", "--no-headers"])?;
        let row: Vec<&str> = resources.split_whitespace().collect();
        ensure!(row == ["widgets", "wd", "test.yare.local/v1", "true", "Widget"], "{resources}");
        let explained = cluster.kubectl(&["explain", "widget.spec.color"])?;
        for part in ["test.yare.local", "Widget", "What it looks like.", "red", "blue"] {
            ensure!(explained.contains(part), "no {part:?} in {explained}");
        }

        for (spec, want) in BAD_WIDGETS {
            let (status, out, err) = cluster.kubectl_with(&["create", "-f", "-"], &widget("two", spec))?;
            ensure!(!status.success() && err.contains(want), "{spec}: {out}{err}");
        }
        // Without validation, what is unknown is pruned.
        let (status, _, err) = cluster.kubectl_with(
            &["create", "--validate=false", "-f", "-"],
            &widget("two", "{size: 1, colour: red}"),
        )?;
        ensure!(status.success(), "{err}");
        ensure!(cluster.field("wd/two", ".spec")? == r#"{"color":"red","size":1}"#);

        let patch = r#"{"spec": {"size": 9}, "status": {"ready": 2, "selector": "a=b"}}"#;
        cluster.kubectl(&["patch", "wd", "one", "--subresource=status", "--type=merge", "-p", patch])?;
        ensure!(cluster.field("wd/one", ".spec.size")? == "3");
        cluster.kubectl(&["scale", "wd/one", "--replicas=5"])?;
        ensure!(cluster.field("wd/one", ".spec.size")? == "5");
        let scale = cluster.kubectl(&[
            "get",
            "--raw",
            "/apis/test.yare.local/v1/namespaces/default/widgets/one/scale",
        ])?;
        let scale: Value = serde_json::from_str(&scale)?;
        ensure!(scale["spec"] == json!({"replicas": 5}), "{scale}");
        ensure!(scale["status"] == json!({"replicas": 2, "selector": "a=b"}), "{scale}");
        ensure!(
            cluster
                .kubectl_fails(&["scale", "wd/one", "--replicas=50"])?
                .contains("less than or equal to 10")
        );

        // A new column, and a field that the next definition knows.
        let wider = WIDGETS
            .replace("name: Color, type", "name: Paint, type")
            .replace("{type: integer, minimum", "{type: integer, default: 1, minimum")
            .replace("required: [size]", "nullable: false");
        cluster.apply(&wider)?;
        cluster.soon(|| {
            let table = cluster.kubectl(&["get", "wd"])?;
            ensure!(table.contains("PAINT"), "{table}");
            Ok(())
        })?;
        cluster.soon(|| cluster.apply(&widget("three", "{color: blue}")))?;
        ensure!(cluster.field("wd/three", ".spec.size")? == "1");

        cluster.kubectl(&["delete", "crd", "widgets.test.yare.local", "--timeout=20s"])?;
        let error = cluster.kubectl_fails(&["get", "widgets.test.yare.local"])?;
        ensure!(
            error.contains("the server doesn't have a resource type") || error.contains("NotFound"),
            "{error}"
        );
        // A definition of the same name begins with nothing.
        cluster.apply(WIDGETS)?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.yare.local"])?;
        ensure!(cluster.soon(|| cluster.kubectl(&["get", "wd", "-o", "name"]))?.is_empty());
        Ok(())
    });
}

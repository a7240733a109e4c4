//! A crate imports only from floors below its own (ARCHITECTURE.md draws them).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Every crate and its floor; those beside the house may be on top of anything and under nothing.
const FLOORS: &[(&str, i8)] = &[
    ("yare-regexp", -1),
    ("yare-cel", 0),
    ("yare-grpc", 0),
    ("yare-metrics", 0),
    ("yare-schema", 0),
    ("yare-spdy", 0),
    ("yare-auth", 1),
    ("yare-kinds", 1),
    ("yare-runtime", 1),
    ("yare-store", 1),
    ("yare-trace", 1),
    ("yare-apiserver", 2),
    ("yare-client", 2),
    ("yare-controllers", 3),
    ("yare-net", 3),
    ("yare-node", 3),
    ("yare-scheduler", 3),
    ("yare", 5),
];
const BESIDE: &[&str] = &["xtask", "yare-bench", "yare-fuzz", "yare-testkit"];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn imports_go_down_only() {
    let floors: BTreeMap<&str, i8> = FLOORS.iter().copied().collect();
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if BESIDE.contains(&name) {
            continue;
        }
        let Some(own) = floors.get(name) else {
            wrong.push(format!("{name} stands on no floor: give it one here and in ARCHITECTURE.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            // Tests may climb: they check a crate from above.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            if BESIDE.contains(&other) {
                wrong.push(format!("{name} imports {other}, which stands beside the floors"));
            } else if let Some(floor) = floors.get(other)
                && floor >= own
            {
                wrong.push(format!("{name} (floor {own}) imports {other} (floor {floor})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}", package["name"]);
    }
}

//! Which processors belong to whom, and upstream's checkpoint of it, `cpu_manager_state`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::set::CpuSet;
use crate::managers::checkpoint::{self, Field, Keys, Shape, Unusable};

/// Assignments, written down at every change.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    policy: &'static str,
    /// The shared pool.
    pub(crate) shared: CpuSet,
    /// Pod uid → container → its own processors.
    pub(crate) assigned: BTreeMap<String, BTreeMap<String, CpuSet>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(rename = "defaultCpuSet", alias = "defaultCPUSet")]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    checksum: u64,
}

const SHAPE: Shape = Shape::Struct(&[
    Field { name: "PolicyName", json: "policyName", kind: "string", shape: Shape::Text },
    Field { name: "DefaultCPUSet", json: "defaultCpuSet", kind: "string", shape: Shape::Text },
    Field {
        name: "Entries",
        json: "entries",
        kind: "map[string]map[string]string",
        shape: Shape::Map(Keys::Text, &Shape::Map(Keys::Text, &Shape::Text)),
    },
    // It is nothing while it is computed.
    Field { name: "Checksum", json: "none", kind: "checksum.Checksum", shape: Shape::Number },
]);

fn checksum(value: &Value) -> u64 {
    checkpoint::checksum("*state.CPUManagerCheckpoint", &SHAPE, value)
}

impl State {
    /// Takes over a checkpoint, or begins one.
    pub(crate) fn open(path: PathBuf, policy: &'static str) -> Result<Self, String> {
        let mut state =
            State { path: path.clone(), policy, shared: CpuSet::default(), assigned: BTreeMap::new() };
        match state.load(&path) {
            Ok(()) => Ok(state),
            Err(Unusable::NotFound) => {
                state.save();
                Ok(state)
            }
            Err(error) => Err(format!(
                "could not restore state from checkpoint: {error}, please drain this node and delete the CPU manager \
                 checkpoint file {:?} before restarting Kubelet",
                path.display()
            )),
        }
    }

    fn load(&mut self, path: &Path) -> Result<(), Unusable> {
        let value = checkpoint::read(path)?;
        let sum = checksum(&value);
        let file: File = serde_json::from_value(value).map_err(|e| Unusable::Broken(e.to_string()))?;
        // Files of the oldest kubelets have no checksum.
        if file.checksum != 0 && file.checksum != sum {
            return Err(Unusable::Corrupt);
        }
        if file.policy_name != self.policy {
            return Err(Unusable::Broken(format!(
                "configured policy {:?} differs from state checkpoint policy {:?}",
                self.policy, file.policy_name
            )));
        }
        let parse = |what: String, text: &str| {
            CpuSet::parse(text).map_err(|e| Unusable::Broken(format!("could not parse {what}: {e}")))
        };
        self.shared = parse(format!("default cpu set {:?}", file.default_cpu_set), &file.default_cpu_set)?;
        for (uid, containers) in &file.entries {
            for (container, text) in containers {
                let set = parse(format!("cpuset {text:?} for container {container:?} in pod {uid:?}"), text)?;
                self.assigned.entry(uid.clone()).or_default().insert(container.clone(), set);
            }
        }
        Ok(())
    }

    /// Writes it down. What could not be written is told, and written with the next change.
    pub(crate) fn save(&self) {
        let containers =
            |of: &BTreeMap<String, CpuSet>| of.iter().map(|(c, s)| (c.clone(), s.to_string())).collect();
        let mut file = File {
            policy_name: self.policy.to_owned(),
            default_cpu_set: self.shared.to_string(),
            entries: self.assigned.iter().map(|(uid, of)| (uid.clone(), containers(of))).collect(),
            checksum: 0,
        };
        let written = serde_json::to_value(&file).map_err(std::io::Error::from).and_then(|value| {
            file.checksum = checksum(&value);
            checkpoint::write(&self.path, &serde_json::to_vec(&file)?)
        });
        if let Err(error) = written {
            tracing::error!(%error, path = %self.path.display(), "writing the CPU manager's checkpoint");
        }
    }

    /// A container's own processors.
    pub(crate) fn own(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.assigned.get(uid)?.get(container)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files and checksums as upstream's kubelet writes and its tests have them.
    #[test]
    fn checksums_are_upstreams() {
        for (policy, text, shared, assigned) in [
            ("none", r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#, "", ""),
            (
                "none",
                r#"{"policyName":"none","defaultCPUSet":"4-6","entries":{},"checksum":354655845}"#,
                "4-6",
                "",
            ),
            (
                "none",
                r#"{"policyName":"none","defaultCPUSet":"1-3","entries":{"pod":{"container1":"4-6","container2":"1-3"}},"checksum":3610638499}"#,
                "1-3",
                "4-6 1-3",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("cpu_manager_state");
            std::fs::write(&path, text).unwrap();
            let state = State::open(path.clone(), policy).unwrap();
            assert_eq!(state.shared.to_string(), shared);
            let sets: Vec<String> =
                state.assigned.values().flat_map(|c| c.values().map(CpuSet::to_string)).collect();
            assert_eq!(sets.join(" "), assigned);
            // What is written back is the same, down to the checksum.
            state.save();
            let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let before: Value = serde_json::from_str(text).unwrap();
            assert_eq!(written["checksum"], before["checksum"]);
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        for (policy, text, want) in [
            (
                "none",
                r#"{"policyName":"none","defaultCpuSet":"4-6","entries":{},"checksum":1337}"#,
                "checkpoint is corrupted",
            ),
            ("none", "{", "EOF"),
            (
                "static",
                r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#,
                "configured policy \"static\" differs from state checkpoint policy \"none\"",
            ),
            (
                "none",
                r#"{"policyName":"none","defaultCpuSet":"x","checksum":0}"#,
                "could not parse default cpu set \"x\"",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("cpu_manager_state");
            std::fs::write(&path, text).unwrap();
            let error = State::open(path, policy).unwrap_err();
            assert!(error.contains(want) && error.contains("please drain this node"), "{error}");
        }
    }
}

//! Memory of NUMA nodes and who has it, and upstream's checkpoint of it, `memory_manager_state`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::managers::checkpoint::{self, Field, Keys, Shape, Unusable};

/// One kind of memory of a NUMA node, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Table {
    pub(crate) total: u64,
    pub(crate) system_reserved: u64,
    pub(crate) allocatable: u64,
    pub(crate) reserved: u64,
    pub(crate) free: u64,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeState {
    /// How many blocks come from it.
    pub(crate) number_of_assignments: i64,
    /// By resource.
    pub(crate) memory_map: BTreeMap<String, Table>,
    /// The nodes that give memory together with it, itself included.
    pub(crate) cells: Vec<u32>,
}

/// Memory of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Block {
    #[serde(rename = "numaAffinity")]
    pub(crate) nodes: Vec<u32>,
    #[serde(rename = "type")]
    pub(crate) resource: String,
    pub(crate) size: u64,
}

pub(crate) type Nodes = BTreeMap<u32, NodeState>;
pub(crate) type Assigned = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// Assignments, written down at every change.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    policy: &'static str,
    pub(crate) nodes: Nodes,
    /// Pod uid → container → blocks.
    pub(crate) assigned: Assigned,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(default)]
    machine_state: Nodes,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Assigned,
    #[serde(default)]
    checksum: u64,
}

const NUMBERS: Shape = Shape::List(&Shape::Number);

const TABLE: Shape = Shape::Struct(&[
    Field { name: "TotalMemSize", json: "total", kind: "uint64", shape: Shape::Number },
    Field { name: "SystemReserved", json: "systemReserved", kind: "uint64", shape: Shape::Number },
    Field { name: "Allocatable", json: "allocatable", kind: "uint64", shape: Shape::Number },
    Field { name: "Reserved", json: "reserved", kind: "uint64", shape: Shape::Number },
    Field { name: "Free", json: "free", kind: "uint64", shape: Shape::Number },
]);

const NODE: Shape = Shape::Struct(&[
    Field { name: "NumberOfAssignments", json: "numberOfAssignments", kind: "int", shape: Shape::Number },
    Field {
        name: "MemoryMap",
        json: "memoryMap",
        kind: "map[v1.ResourceName]*state.MemoryTable",
        shape: Shape::Map(Keys::Text, &Shape::Pointer(&TABLE)),
    },
    Field { name: "Cells", json: "cells", kind: "[]int", shape: NUMBERS },
]);

const BLOCK: Shape = Shape::Struct(&[
    Field { name: "NUMAAffinity", json: "numaAffinity", kind: "[]int", shape: NUMBERS },
    Field { name: "Type", json: "type", kind: "v1.ResourceName", shape: Shape::Text },
    Field { name: "Size", json: "size", kind: "uint64", shape: Shape::Number },
]);

const FILE: Shape = Shape::Struct(&[
    Field { name: "PolicyName", json: "policyName", kind: "string", shape: Shape::Text },
    Field {
        name: "MachineState",
        json: "machineState",
        kind: "state.NUMANodeMap",
        shape: Shape::Map(Keys::Number, &Shape::Pointer(&NODE)),
    },
    Field {
        name: "Entries",
        json: "entries",
        kind: "state.ContainerMemoryAssignments",
        shape: Shape::Map(Keys::Text, &Shape::Map(Keys::Text, &Shape::List(&BLOCK))),
    },
    // It is nothing while it is computed.
    Field { name: "Checksum", json: "none", kind: "checksum.Checksum", shape: Shape::Number },
]);

fn checksum(value: &Value) -> u64 {
    checkpoint::checksum("*state.MemoryManagerCheckpoint", &FILE, value)
}

impl State {
    /// Takes over a checkpoint, or begins one.
    pub(crate) fn open(path: PathBuf, policy: &'static str) -> Result<Self, String> {
        let mut state = State { path: path.clone(), policy, nodes: Nodes::new(), assigned: Assigned::new() };
        match state.load(&path) {
            Ok(()) => Ok(state),
            Err(Unusable::NotFound) => {
                state.save();
                Ok(state)
            }
            Err(error) => Err(format!(
                "could not restore state from checkpoint: {error}, please drain this node and delete the memory manager \
                 checkpoint file {:?} before restarting Kubelet",
                path.display()
            )),
        }
    }

    fn load(&mut self, path: &Path) -> Result<(), Unusable> {
        let value = checkpoint::read(path)?;
        let sum = checksum(&value);
        let file: File = serde_json::from_value(value).map_err(|e| Unusable::Broken(e.to_string()))?;
        if file.checksum != 0 && file.checksum != sum {
            return Err(Unusable::Corrupt);
        }
        if file.policy_name != self.policy {
            return Err(Unusable::Broken(format!(
                "[memorymanager] configured policy {:?} differs from state checkpoint policy {:?}",
                self.policy, file.policy_name
            )));
        }
        self.nodes = file.machine_state;
        self.assigned = file.entries;
        Ok(())
    }

    /// Writes it down. What could not be written is told, and written with the next change.
    pub(crate) fn save(&self) {
        let mut file = File {
            policy_name: self.policy.to_owned(),
            machine_state: self.nodes.clone(),
            entries: self.assigned.clone(),
            checksum: 0,
        };
        let written = serde_json::to_value(&file).map_err(std::io::Error::from).and_then(|value| {
            file.checksum = checksum(&value);
            checkpoint::write(&self.path, &serde_json::to_vec(&file)?)
        });
        if let Err(error) = written {
            tracing::error!(%error, path = %self.path.display(), "writing the memory manager's checkpoint");
        }
    }

    /// A container's blocks.
    pub(crate) fn blocks(&self, uid: &str, container: &str) -> Option<&Vec<Block>> {
        self.assigned.get(uid)?.get(container)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As upstream's tests have it.
    const TEXT: &str = r#"{"policyName":"static",
        "machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},
        "entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}},"checksum":4215593881}"#;

    #[test]
    fn checksums_are_upstreams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory_manager_state");
        std::fs::write(&path, TEXT).unwrap();
        let state = State::open(path.clone(), "static").unwrap();
        assert_eq!(state.blocks("pod", "container1").unwrap()[0].size, 512);
        assert_eq!(state.nodes[&0].memory_map["memory"].free, 1024);
        state.save();
        let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(TEXT).unwrap());
        std::fs::write(&path, TEXT.replace("1536", "1537")).unwrap();
        assert!(State::open(path.clone(), "static").unwrap_err().contains("checkpoint is corrupted"));
        std::fs::write(&path, TEXT).unwrap();
        assert!(
            State::open(path, "None")
                .unwrap_err()
                .contains("differs from state checkpoint policy \"static\"")
        );
    }
}

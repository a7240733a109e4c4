//! The signals: what can run short on a node, which condition says so, and what is won back.

use std::collections::BTreeMap;

use yare_schema::quantity::{Format, Quantity};

/// What can run short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// Memory of the machine, bytes.
    MemoryAvailable,
    /// Memory that all pods together may still use, bytes.
    AllocatableMemory,
    /// The file system of volumes and logs, bytes.
    NodeFsAvailable,
    /// Its inodes.
    NodeFsInodesFree,
    /// The file system of images, bytes.
    ImageFsAvailable,
    /// Its inodes.
    ImageFsInodesFree,
    /// The file system of writable layers, bytes.
    ContainerFsAvailable,
    /// Its inodes.
    ContainerFsInodesFree,
    /// Process ids.
    PidAvailable,
}

/// A node condition that signals bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pressure {
    /// `MemoryPressure`
    Memory,
    /// `DiskPressure`
    Disk,
    /// `PIDPressure`
    Pid,
}

impl Pressure {
    /// The condition's type.
    pub fn condition(self) -> &'static str {
        match self {
            Pressure::Memory => "MemoryPressure",
            Pressure::Disk => "DiskPressure",
            Pressure::Pid => "PIDPressure",
        }
    }
}

/// What is won back when a signal is acted upon; the words are those of messages and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starved {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

impl Starved {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Starved::Memory => "memory",
            Starved::EphemeralStorage => "ephemeral-storage",
            Starved::Inodes => "inodes",
            Starved::Pids => "pids",
        }
    }
}

/// One signal.
pub(crate) struct Row {
    pub(crate) signal: Signal,
    pub(crate) name: &'static str,
    pub(crate) pressure: Pressure,
    pub(crate) starved: Starved,
}

/// The signals by name.
#[rustfmt::skip]
pub(crate) const SIGNALS: &[Row] = &[
    Row { signal: Signal::MemoryAvailable, name: "memory.available", pressure: Pressure::Memory, starved: Starved::Memory },
    Row { signal: Signal::AllocatableMemory, name: "allocatableMemory.available", pressure: Pressure::Memory, starved: Starved::Memory },
    Row { signal: Signal::NodeFsAvailable, name: "nodefs.available", pressure: Pressure::Disk, starved: Starved::EphemeralStorage },
    Row { signal: Signal::NodeFsInodesFree, name: "nodefs.inodesFree", pressure: Pressure::Disk, starved: Starved::Inodes },
    Row { signal: Signal::ImageFsAvailable, name: "imagefs.available", pressure: Pressure::Disk, starved: Starved::EphemeralStorage },
    Row { signal: Signal::ImageFsInodesFree, name: "imagefs.inodesFree", pressure: Pressure::Disk, starved: Starved::Inodes },
    Row { signal: Signal::ContainerFsAvailable, name: "containerfs.available", pressure: Pressure::Disk, starved: Starved::EphemeralStorage },
    Row { signal: Signal::ContainerFsInodesFree, name: "containerfs.inodesFree", pressure: Pressure::Disk, starved: Starved::Inodes },
    Row { signal: Signal::PidAvailable, name: "pid.available", pressure: Pressure::Pid, starved: Starved::Pids },
];

impl Signal {
    /// The signal of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        SIGNALS.iter().find(|row| row.name == name).map(|row| row.signal)
    }

    pub(crate) fn row(self) -> &'static Row {
        // Every signal has a row: a test holds it.
        SIGNALS.iter().find(|row| row.signal == self).unwrap_or(&SIGNALS[0])
    }

    /// How amounts of it are written.
    pub(crate) fn format(self) -> Format {
        match self.row().starved {
            Starved::Memory | Starved::EphemeralStorage => Format::BinarySi,
            Starved::Inodes | Starved::Pids => Format::DecimalSi,
        }
    }
}

/// How much there is of something, and how much of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observation {
    /// Left.
    pub available: u64,
    /// In all.
    pub capacity: u64,
}

impl Observation {
    /// What is left, as messages write it.
    pub(crate) fn available(&self, signal: Signal) -> Quantity {
        Quantity::new(i64::try_from(self.available).unwrap_or(i64::MAX), signal.format())
    }
}

/// What was observed of the signals; one that could not be is absent.
pub type Observations = BTreeMap<Signal, Observation>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_row() {
        for row in SIGNALS {
            assert_eq!(Signal::named(row.name), Some(row.signal));
            assert_eq!(row.signal.row().name, row.name);
        }
        assert_eq!(SIGNALS.len(), Signal::PidAvailable as usize + 1);
        assert_eq!(Signal::named("cpu.available"), None);
    }
}

//! What the machine has.

use std::collections::BTreeSet;
use std::path::Path;

use yare_metrics::text::Page;

use crate::managers::machine::Machine;
use crate::node::capacity::{Capacity, boot_id, node_info};

struct Row {
    name: &'static str,
    help: &'static str,
    value: fn(&Facts) -> u64,
}

struct Facts {
    machine: Machine,
    capacity: Capacity,
    books: u64,
    drawers: u64,
}

const ROWS: &[Row] = &[
    Row { name: "machine_cpu_books", help: "Number of CPU books.", value: |f| f.books },
    Row {
        name: "machine_cpu_cores",
        help: "Number of logical CPU cores.",
        value: |f| f.machine.cpus.len() as u64,
    },
    Row { name: "machine_cpu_drawers", help: "Number of CPU drawers.", value: |f| f.drawers },
    Row {
        name: "machine_cpu_physical_cores",
        help: "Number of physical CPU cores.",
        value: |f| f.machine.cpus.values().map(|c| (c.socket, c.core)).collect::<BTreeSet<_>>().len() as u64,
    },
    Row {
        name: "machine_cpu_sockets",
        help: "Number of CPU sockets.",
        value: |f| f.machine.cpus.values().map(|c| c.socket).collect::<BTreeSet<_>>().len() as u64,
    },
    Row {
        name: "machine_memory_bytes",
        help: "Amount of memory installed on the machine.",
        value: |f| f.capacity.memory_bytes,
    },
    Row {
        name: "machine_swap_bytes",
        help: "Amount of swap memory available on the machine.",
        value: |f| f.capacity.swap_bytes,
    },
];

pub(super) fn expose(capacity: &Capacity, page: &mut Page) {
    let info = node_info("", &boot_id());
    let text = |field: &str| info[field].as_str().unwrap_or_default().to_owned();
    let (boot, machine, system) = (text("bootID"), text("machineID"), text("systemUUID"));
    let labels =
        [("boot_id", boot.as_str()), ("machine_id", machine.as_str()), ("system_uuid", system.as_str())];
    let machine = Machine::read(Path::new("/"));
    let facts = Facts {
        books: groups(&machine, "book_id"),
        drawers: groups(&machine, "drawer_id"),
        machine,
        capacity: capacity.clone(),
    };
    for row in ROWS {
        page.family(row.name, "gauge", row.help);
        page.sample(row.name, &labels, (row.value)(&facts));
    }
    let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
    page.single("machine_scrape_error", "gauge", help, u8::from(facts.machine.cpus.is_empty()));
}

/// How many groups of sockets there are, on machines (s390) that have such.
fn groups(machine: &Machine, file: &str) -> u64 {
    let id = |cpu: &u32| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}");
        std::fs::read_to_string(path).ok()?.trim().parse::<i64>().ok().filter(|id| *id >= 0)
    };
    machine.cpus.keys().filter_map(id).collect::<BTreeSet<_>>().len() as u64
}

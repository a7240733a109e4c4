//! What `kubectl get` shows of each kind: columns and the cells of a row.
//!
//! Headings, types, formats, priorities and the wording of the cells are upstream's (`pkg/printers`), since
//! people and scripts read them. Cells of wide columns are always made; the client drops them.

use serde_json::Value;

use crate::{table::Column, view::View};

mod access;
mod core;
mod extension;
mod format;
mod network;
mod pod;
mod storage;
mod workloads;

pub use access::*;
pub use core::*;
pub use extension::*;
pub use format::{format_label_selector, human_duration, selector as selector_text};
pub use network::*;
pub use pod::POD;
pub use storage::*;
pub use workloads::*;

/// Columns and the cells of a row.
#[derive(Clone, Copy)]
pub struct Printer {
    /// Columns of `kubectl get`.
    pub columns: &'static [Column],
    /// The cells of one row, one for each of `columns`; the second argument is now in Unix seconds.
    pub row: fn(&Value, i64) -> Vec<Value>,
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name, unique among the objects of its kind in a namespace.",
    priority: 0,
};
const AGE: Column = text("Age", "Time since the object was created.");
const CONTAINERS: Column = text("Containers", "Names of each container in the template.").wide();
const IMAGES: Column = text("Images", "Images referenced by each container in the template.").wide();
const SELECTOR: Column = text("Selector", "Labels of the pods that belong to the object.").wide();

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", format: "", description, priority: 0 }
}

const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "boolean", format: "", description, priority: 0 }
}

impl Column {
    const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    const fn format(mut self, format: &'static str) -> Self {
        self.format = format;
        self
    }
}

/// Makes a row of anything that converts into a JSON value.
macro_rules! cells {
    ($($cell:expr),* $(,)?) => { vec![$(::serde_json::Value::from($cell)),*] };
}
use cells;

fn name(object: &Value) -> &str {
    object.str_at("metadata.name")
}

/// Kinds without columns of their own.
pub const DEFAULT: Printer = Printer {
    columns: &[
        NAME,
        Column {
            name: "Created At",
            kind: "date",
            format: "",
            description: "Time at which the object was created.",
            priority: 0,
        },
    ],
    row: |o, _| cells![name(o), o.at("metadata.creationTimestamp").clone()],
};

/// Kinds that show name and age.
pub const NAME_AND_AGE: Printer =
    Printer { columns: &[NAME, AGE], row: |o, now_s| cells![name(o), format::age(o, now_s)] };

//! Views: the few fields of API objects that a node reads, decoded straight from cached bytes.
//!
//! A full `Pod` type costs ten times its JSON on the heap; these structs hold what the kubelet acts on
//! and nothing else. What they leave out stays untouched on the server, because every write is a patch.

mod container;
mod objects;
mod pod;
mod status;
mod storage;
mod volume;

pub use container::*;
pub use objects::*;
pub use pod::*;
pub use status::*;
pub use storage::*;
pub use volume::*;

pub(crate) use yare_client::nullable;

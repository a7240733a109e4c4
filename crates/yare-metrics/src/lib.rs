//! What every component shows of itself: counters, gauges and histograms in Prometheus' text format at `/metrics`,
//! and the pages of [`zpages`].
//!
//! Two ways lead onto a [`Page`](text::Page). Who counts on the path of each request keeps numbers of its own
//! ([`Histogram`], [`timing::Timing`]) and writes them onto the page. Who counts things that happen a few times a
//! second has a table of [`Family`](table::Family) rows and a [`Counts`](table::Counts), which keeps the numbers
//! and writes the page from the table.

mod histogram;
pub mod process;
pub mod slis;
pub mod table;
pub mod text;
pub mod timing;
pub mod zpages;

pub use histogram::Histogram;

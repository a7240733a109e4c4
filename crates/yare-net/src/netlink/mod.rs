//! Netlink (RFC 3549): a message codec and a blocking socket.
//!
//! Requests take microseconds, so callers treat them as function calls. A socket belongs to the network
//! namespace in which it was opened, whichever thread uses it.

mod message;
mod socket;

pub use message::{Attributes, Message};
pub use socket::{Error, Socket};

/// `NETLINK_ROUTE`: links, addresses, routes.
pub const ROUTE: i32 = libc::NETLINK_ROUTE;
/// `NETLINK_NETFILTER`: nftables, conntrack.
pub const NETFILTER: i32 = libc::NETLINK_NETFILTER;

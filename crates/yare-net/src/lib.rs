//! The network of a node.
//!
//! * [`pods`]: addresses and interfaces of pods; in flow sandboxes with their network namespaces, out flow
//!   addresses.
//! * [`proxy`]: services; in flow Services and EndpointSlices, out flow elements of nftables maps ([`nft`]).
//! * [`dns`]: names of services; in flow the same, out flow answers.
//! * [`cni`]: the pod network for container runtimes that make sandboxes themselves; in flow their questions.
//! * [`netlink`]: how the kernel is told: one small codec for both routing and nftables messages.
//!
//! Pods are *routed*, not bridged: each has a veth pair whose end on the node carries a host route to the
//! pod's one address, and the pod's only neighbour is that end. So every packet passes the node's IP layer,
//! where the service proxy's nftables rules see it, and neither a bridge nor `br_netfilter` is needed.

pub mod cni;
pub mod dns;
mod host_ports;
pub mod ipam;
mod link;
pub mod netlink;
pub mod nft;
pub mod pods;
pub mod proxy;

pub use host_ports::{HostPort, Protocol};
pub use pods::{Attached, NetError, PodNetwork};

//! Gives every node address ranges for its pods, cut from the cluster's.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use yare_client::{Informer, NODES, ObjectKey};

use crate::{
    api::Patch,
    context::{Context, Error},
    harness::{Next, Reconcile},
    node_view::NodeView,
};

/// More ranges than this are not searched.
const RANGES_MAX: u128 = 1 << 20;

struct NodeIpam {
    context: Context,
    nodes: Informer,
    pools: Vec<Pool>,
    /// Given out but maybe not in the cache yet.
    reserved: Mutex<HashMap<ObjectKey, Vec<String>>>,
}

/// One of the cluster's ranges, cut into equal parts.
#[derive(Debug, Clone, PartialEq)]
struct Pool {
    first: u128,
    ipv6: bool,
    /// Length of the parts' prefix.
    prefix: u8,
    count: u128,
}

/// The controller; keys are nodes.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    let config = &context.config;
    let pools = config.cluster_cidrs.iter().filter_map(|cidr| {
        let pool = Pool::parse(cidr, config.node_cidr_mask_size_ipv4, config.node_cidr_mask_size_ipv6);
        if pool.is_none() {
            tracing::error!(cidr, "cluster-cidr is no address range that can be cut into the nodes' size");
        }
        pool
    });
    Arc::new(NodeIpam {
        nodes: context.informer(NODES),
        pools: pools.collect(),
        reserved: Mutex::default(),
        context: context.clone(),
    })
}

#[async_trait]
impl Reconcile for NodeIpam {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(node) = self.nodes.get(key).filter(|n| n.deletion_timestamp().is_none()) else {
            self.reserved.lock().remove(key);
            return Ok(Next::Done);
        };
        let view: NodeView = node.view()?;
        if self.pools.is_empty() || !view.spec.pod_cidr.is_empty() || !view.spec.pod_cidrs.is_empty() {
            self.reserved.lock().remove(key);
            return Ok(Next::Done);
        }
        let Some(cidrs) = self.reserve(key)? else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.context.normal(&NODES, &node, "CIDRNotAvailable", message);
            return Err(Error::Other(format!(
                "node {key}: no pod CIDR is left in {:?}",
                self.context.config.cluster_cidrs
            )));
        };
        let patch =
            json!({"metadata": {"uid": node.uid()}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}});
        self.context.api.patch(&NODES, key, "", Patch::Strategic, &patch).await?;
        Ok(Next::Done)
    }
}

impl NodeIpam {
    /// One free range of every pool; the same ones again if the write has to be repeated.
    fn reserve(&self, key: &ObjectKey) -> Result<Option<Vec<String>>, Error> {
        let mut reserved = self.reserved.lock();
        if let Some(cidrs) = reserved.get(key) {
            return Ok(Some(cidrs.clone()));
        }
        let mut used: HashSet<String> = reserved.values().flatten().cloned().collect();
        for node in self.nodes.list() {
            let spec = node.view::<NodeView>()?.spec;
            used.extend(spec.pod_cidrs);
            used.insert(spec.pod_cidr);
        }
        let free: Option<Vec<String>> =
            self.pools.iter().map(|pool| pool.parts().find(|part| !used.contains(part))).collect();
        if let Some(free) = &free {
            reserved.insert(key.clone(), free.clone());
        }
        Ok(free)
    }
}

impl Pool {
    fn parse(cidr: &str, prefix_ipv4: u8, prefix_ipv6: u8) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
        let (bits, value, prefix) = match address {
            IpAddr::V4(a) => (32u8, u128::from(u32::from(a)), prefix_ipv4),
            IpAddr::V6(a) => (128u8, u128::from(a), prefix_ipv6),
        };
        if length > prefix || prefix > bits {
            return None;
        }
        let host_bits = u32::from(bits - length);
        let mask = if host_bits == 128 { u128::MAX } else { (1u128 << host_bits) - 1 };
        let count = 1u128.checked_shl(u32::from(prefix - length)).unwrap_or(u128::MAX);
        Some(Self { first: value & !mask, ipv6: bits == 128, prefix, count })
    }

    fn parts(&self) -> impl Iterator<Item = String> + '_ {
        let bits = if self.ipv6 { 128 } else { 32 };
        let step = u32::from(bits - self.prefix);
        (0..self.count.min(RANGES_MAX)).map(move |i| {
            let value = self.first + (i << step);
            let address = match self.ipv6 {
                true => IpAddr::V6(value.into()),
                // The pool lies within 32 bits.
                false => IpAddr::V4((value as u32).into()),
            };
            format!("{address}/{}", self.prefix)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_cut() {
        let parts =
            |cidr: &str| Pool::parse(cidr, 24, 64).map(|p| (p.count, p.parts().take(2).collect::<Vec<_>>()));
        let (count, first) = parts("10.42.0.0/16").unwrap();
        assert_eq!((count, first), (256, vec!["10.42.0.0/24".to_owned(), "10.42.1.0/24".to_owned()]));
        let (count, first) = parts("fd00:42::/56").unwrap();
        assert_eq!((count, first), (256, vec!["fd00:42::/64".to_owned(), "fd00:42:0:1::/64".to_owned()]));
        assert_eq!(parts("10.42.0.0/28"), None);
        assert_eq!(parts("nonsense"), None);
        assert_eq!(parts("10.0.0.0/24").unwrap().0, 1);
    }
}

//! Pod network, service proxy on nftables, cluster DNS

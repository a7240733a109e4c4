//! The controllers, one file each, and the table of them.
//!
//! In flow watches, out flow writes, both through `yare-client` and nothing else. [`Controllers::start`]
//! runs every row of [`table::CONTROLLERS`]: a change becomes keys, a key is reconciled, a failure is
//! retried with back-off. A controller reads the current state from caches, decides in pure functions
//! where there is something to decide, and writes. It keeps no state that a restart would lose.
//!
//! To add one: write its file, add its row.

pub mod api;
mod attach_detach;
mod attributes_class_protection;
mod bootstrap_signer;
pub mod certificates;
mod claim_owners;
mod clusterrole_aggregation;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taint_eviction;
mod discovery;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod expectations;
mod garbage;
mod harness;
mod history;
mod job;
mod legacy_tokens;
mod local_path;
mod metrics;
mod namespace;
mod node_affinity;
mod node_ipam;
mod node_lifecycle;
mod node_view;
mod ownership;
mod pod_certificates;
mod pod_end;
mod pod_group_protection;
mod podgc;
mod policy_status;
mod ranking;
mod replicaset;
mod resource_claim;
mod resourcequota;
mod root_ca;
mod selector;
mod service_account_tokens;
mod service_cidr;
mod service_pods;
mod serviceaccount;
mod statefulset;
mod storage_migration;
mod storage_version_gc;
pub mod table;
mod taint_eviction;
mod template;
mod token_cleaner;
mod trust_bundle;
mod ttl_after_finished;
mod views;
mod volume_binder;
mod volume_expand;
mod volume_protection;
mod volume_views;

pub use context::{Clock, Config, Context, Error, Writers};
pub use harness::{Controllers, Keys, Next, Reconcile, Watch};
pub use metrics::Metrics;

//! A storage driver, as its node calls it.
//!
//! Every failed call is either final (nothing is under way, nothing was left behind) or not: then the driver
//! may still be at it, or have done it, and what it may have done has to be undone one day.

use std::time::Duration;

use prost::Message;
use yare_grpc::{Client, Code, Status, describe};

use super::proto::{
    self, AccessMode, Capabilities, NodeCapability, NodeExpand, NodeExpanded, NodeGetVolumeStats, NodeInfo,
    NodePublish, NodeStage, NodeUnpublish, NodeUnstage, Nothing, VolumeStats,
};

/// How long a driver has for a call.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A driver refused, or did not answer.
#[derive(Debug, Clone)]
pub(crate) struct CallError(Status);

impl CallError {
    /// Nothing is under way.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(
            self.0.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
        )
    }

    /// What was asked for can never be.
    pub(crate) fn is_infeasible(&self) -> bool {
        matches!(self.0.code(), Code::InvalidArgument | Code::OutOfRange | Code::NotFound)
    }

    /// Not while the volume is used.
    pub(crate) fn is_in_use(&self) -> bool {
        self.0.code() == Code::FailedPrecondition
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&describe(&self.0))
    }
}

/// What a driver's node service can do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Abilities(Vec<i32>);

impl Abilities {
    pub(crate) fn has(&self, capability: NodeCapability) -> bool {
        self.0.contains(&(capability as i32))
    }

    /// How a driver is told an access mode.
    pub(crate) fn access_mode(&self, mode: &str) -> AccessMode {
        let tells_writers_apart = self.has(NodeCapability::SingleNodeMultiWriter);
        match (mode, tells_writers_apart) {
            ("ReadWriteOnce", false) | ("ReadWriteOncePod", false) => AccessMode::SingleNodeWriter,
            ("ReadWriteOnce", true) => AccessMode::SingleNodeMultiWriter,
            ("ReadWriteOncePod", true) => AccessMode::SingleNodeSingleWriter,
            ("ReadOnlyMany", _) => AccessMode::MultiNodeReaderOnly,
            ("ReadWriteMany", _) => AccessMode::MultiNodeMultiWriter,
            _ => AccessMode::Unknown,
        }
    }
}

/// A registered driver. Clones share its connection.
#[derive(Clone)]
pub(crate) struct Driver {
    name: String,
    client: Client,
}

impl Driver {
    pub(crate) fn new(name: &str, client: Client) -> Self {
        Driver { name: name.to_owned(), client }
    }

    async fn call<Q, R>(&self, method: &'static str, request: Q) -> Result<R, CallError>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let answer = self.client.call(method, request, TIMEOUT).await;
        answer.map_err(|status| {
            // Requests hold secrets and stay out of the log.
            tracing::debug!(driver = self.name, method, error = describe(&status), "a CSI call failed");
            CallError(status)
        })
    }

    pub(crate) async fn node_get_info(&self) -> Result<NodeInfo, CallError> {
        self.call(proto::NODE_GET_INFO, Nothing {}).await
    }

    /// Asked for anew before every operation: a driver may be replaced by another version of it.
    pub(crate) async fn abilities(&self) -> Result<Abilities, CallError> {
        let found: Capabilities = self.call(proto::NODE_GET_CAPABILITIES, Nothing {}).await?;
        Ok(Abilities(found.capabilities.into_iter().filter_map(|c| Some(c.rpc?.kind)).collect()))
    }

    pub(crate) async fn stage(&self, request: NodeStage) -> Result<(), CallError> {
        self.call::<_, Nothing>(proto::NODE_STAGE_VOLUME, request).await.map(drop)
    }

    pub(crate) async fn unstage(&self, request: NodeUnstage) -> Result<(), CallError> {
        self.call::<_, Nothing>(proto::NODE_UNSTAGE_VOLUME, request).await.map(drop)
    }

    pub(crate) async fn publish(&self, request: NodePublish) -> Result<(), CallError> {
        self.call::<_, Nothing>(proto::NODE_PUBLISH_VOLUME, request).await.map(drop)
    }

    pub(crate) async fn unpublish(&self, request: NodeUnpublish) -> Result<(), CallError> {
        self.call::<_, Nothing>(proto::NODE_UNPUBLISH_VOLUME, request).await.map(drop)
    }

    pub(crate) async fn expand(&self, request: NodeExpand) -> Result<NodeExpanded, CallError> {
        self.call(proto::NODE_EXPAND_VOLUME, request).await
    }

    pub(crate) async fn stats(&self, request: NodeGetVolumeStats) -> Result<VolumeStats, CallError> {
        self.call(proto::NODE_GET_VOLUME_STATS, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_failures_leave_doubt() {
        for (code, is_final, infeasible) in [
            (Code::Internal, true, false),
            (Code::InvalidArgument, true, true),
            (Code::NotFound, true, true),
            (Code::OutOfRange, true, true),
            (Code::FailedPrecondition, true, false),
            (Code::Unknown, true, false),
            (Code::Cancelled, false, false),
            (Code::DeadlineExceeded, false, false),
            (Code::Unavailable, false, false),
            (Code::ResourceExhausted, false, false),
            (Code::Aborted, false, false),
        ] {
            let error = CallError(Status::new(code, ""));
            assert_eq!((error.is_final(), error.is_infeasible()), (is_final, infeasible), "{code:?}");
        }
    }

    #[test]
    fn access_modes() {
        let plain = Abilities::default();
        let exact = Abilities(vec![NodeCapability::SingleNodeMultiWriter as i32]);
        for (mode, by_plain, by_exact) in [
            ("ReadWriteOnce", AccessMode::SingleNodeWriter, AccessMode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", AccessMode::SingleNodeWriter, AccessMode::SingleNodeSingleWriter),
            ("ReadOnlyMany", AccessMode::MultiNodeReaderOnly, AccessMode::MultiNodeReaderOnly),
            ("ReadWriteMany", AccessMode::MultiNodeMultiWriter, AccessMode::MultiNodeMultiWriter),
            ("Other", AccessMode::Unknown, AccessMode::Unknown),
        ] {
            assert_eq!((plain.access_mode(mode), exact.access_mode(mode)), (by_plain, by_exact), "{mode}");
        }
    }
}

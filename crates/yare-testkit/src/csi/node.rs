//! The node service.

use std::{io, path::Path, sync::Arc};

use serde_json::{Value, json};
use yare_grpc::{Server, Status};

use super::{
    Shared,
    proto::{
        self, AccessMode, AccessType, Capabilities, Capability, NodeCapability, NodeExpand, NodeExpanded,
        NodeGetVolumeStats, NodeInfo, NodePublish, NodeStage, NodeUnpublish, NodeUnstage, Nothing, Topology,
        UsageUnit, VolumeCapability, VolumeCondition, VolumeStats, VolumeUsage,
    },
};

pub(super) fn refused(error: io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(error.to_string()),
        io::ErrorKind::AlreadyExists => Status::already_exists(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

/// What a capability says, for the record.
pub(super) fn describe(capability: Option<&VolumeCapability>) -> Value {
    let mode = capability
        .and_then(|c| c.access_mode)
        .map(|m| format!("{:?}", AccessMode::try_from(m.mode).unwrap_or(AccessMode::Unknown)));
    match capability.and_then(|c| c.access_type.as_ref()) {
        Some(AccessType::Mount(m)) => json!({
            "mode": mode, "block": false, "fs_type": m.fs_type, "flags": m.mount_flags, "group": m.volume_mount_group,
        }),
        Some(AccessType::Block(_)) => json!({ "mode": mode, "block": true }),
        None => json!({ "mode": mode }),
    }
}

pub(super) fn with(mut fields: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (fields.as_object_mut(), more) {
        fields.extend(more);
    }
    fields
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(AccessType::Block(_)))
}

pub(super) fn service(shared: &Arc<Shared>, server: Server) -> Server {
    let [caps, info, stage, unstage, publish, unpublish, stats, expand] =
        std::array::from_fn(|_| shared.clone());
    server
        .unary(proto::NODE_GET_CAPABILITIES, move |_: Nothing| {
            let shared = caps.clone();
            async move {
                shared.enter("NodeGetCapabilities", "", json!({})).await??;
                let all = &shared.behaviour.lock().node;
                Ok(Capabilities { capabilities: all.iter().map(|c| Capability::rpc(*c as i32)).collect() })
            }
        })
        .unary(proto::NODE_GET_INFO, move |_: Nothing| {
            let shared = info.clone();
            async move {
                shared.enter("NodeGetInfo", "", json!({})).await??;
                let b = shared.behaviour.lock();
                let segments = b.topology.clone().into_iter().collect();
                Ok(NodeInfo {
                    node_id: b.node_id.clone(),
                    max_volumes_per_node: b.max_volumes,
                    accessible_topology: (!b.topology.is_empty()).then_some(Topology { segments }),
                })
            }
        })
        .unary(proto::NODE_STAGE_VOLUME, move |q: NodeStage| {
            let shared = stage.clone();
            async move {
                let fields = json!({
                    "staging": q.staging_target_path, "secrets": q.secrets, "context": q.volume_context,
                    "publish_context": q.publish_context,
                });
                let fields = with(fields, describe(q.volume_capability.as_ref()));
                let end = shared.enter("NodeStageVolume", &q.volume_id, fields).await?;
                let block = is_block(q.volume_capability.as_ref());
                let staging = Path::new(&q.staging_target_path);
                shared.backing.stage(&q.volume_id, staging, block).map_err(refused)?;
                end.map(|()| Nothing {})
            }
        })
        .unary(proto::NODE_UNSTAGE_VOLUME, move |q: NodeUnstage| {
            let shared = unstage.clone();
            async move {
                let fields = json!({ "staging": q.staging_target_path });
                let end = shared.enter("NodeUnstageVolume", &q.volume_id, fields).await?;
                shared
                    .backing
                    .unstage(&q.volume_id, Path::new(&q.staging_target_path))
                    .map_err(refused)?;
                end.map(|()| Nothing {})
            }
        })
        .unary(proto::NODE_PUBLISH_VOLUME, move |q: NodePublish| {
            let shared = publish.clone();
            async move {
                let fields = json!({
                    "staging": q.staging_target_path, "target": q.target_path, "readonly": q.readonly,
                    "secrets": q.secrets, "context": q.volume_context, "publish_context": q.publish_context,
                });
                let fields = with(fields, describe(q.volume_capability.as_ref()));
                let end = shared.enter("NodePublishVolume", &q.volume_id, fields).await?;
                let ephemeral =
                    q.volume_context.get("csi.storage.k8s.io/ephemeral").is_some_and(|v| v == "true");
                if ephemeral && shared.backing.find(&q.volume_id).is_err() {
                    shared.backing.adopt(&q.volume_id).map_err(refused)?;
                }
                let stages = shared.behaviour.lock().node.contains(&NodeCapability::StageUnstageVolume);
                let staging = Path::new(&q.staging_target_path);
                shared
                    .backing
                    .publish(
                        &q.volume_id,
                        (stages && !ephemeral).then_some(staging),
                        Path::new(&q.target_path),
                        is_block(q.volume_capability.as_ref()),
                        q.readonly,
                    )
                    .map_err(refused)?;
                end.map(|()| Nothing {})
            }
        })
        .unary(proto::NODE_UNPUBLISH_VOLUME, move |q: NodeUnpublish| {
            let shared = unpublish.clone();
            async move {
                let fields = json!({ "target": q.target_path });
                let end = shared.enter("NodeUnpublishVolume", &q.volume_id, fields).await?;
                shared.backing.unpublish(Path::new(&q.target_path)).map_err(refused)?;
                // One that a pod brought ends with it.
                if q.volume_id.starts_with("csi-") {
                    shared.backing.delete(&q.volume_id).map_err(refused)?;
                }
                end.map(|()| Nothing {})
            }
        })
        .unary(proto::NODE_GET_VOLUME_STATS, move |q: NodeGetVolumeStats| {
            let shared = stats.clone();
            async move {
                let fields = json!({ "path": q.volume_path });
                shared.enter("NodeGetVolumeStats", &q.volume_id, fields).await??;
                let (total, _) = shared.backing.find(&q.volume_id).map_err(refused)?;
                let b = shared.behaviour.lock();
                Ok(VolumeStats {
                    usage: vec![
                        VolumeUsage { available: total - 4096, total, used: 4096, unit: UsageUnit::Bytes as i32 },
                        VolumeUsage { available: 90, total: 100, used: 10, unit: UsageUnit::Inodes as i32 },
                    ],
                    volume_condition: b.node.contains(&NodeCapability::VolumeCondition).then(|| {
                        VolumeCondition {
                            abnormal: b.abnormal.is_some(),
                            message: b.abnormal.clone().unwrap_or_default(),
                        }
                    }),
                })
            }
        })
        .unary(proto::NODE_EXPAND_VOLUME, move |q: NodeExpand| {
            let shared = expand.clone();
            async move {
                let bytes = q.capacity_range.map_or(0, |r| r.required_bytes);
                let fields = json!({
                    "path": q.volume_path, "staging": q.staging_target_path, "bytes": bytes, "secrets": q.secrets,
                });
                let fields = with(fields, describe(q.volume_capability.as_ref()));
                let end = shared.enter("NodeExpandVolume", &q.volume_id, fields).await?;
                shared.backing.resize(&q.volume_id, bytes).map_err(refused)?;
                end.map(|()| NodeExpanded { capacity_bytes: bytes })
            }
        })
}

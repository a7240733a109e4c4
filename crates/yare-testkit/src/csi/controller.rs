//! The identity and the controller service.

use std::sync::Arc;

use serde_json::json;
use yare_grpc::{Server, Status};

use super::{
    Shared,
    node::{describe, refused, with},
    proto::{
        self, AccessType, AvailableCapacity, BoolValue, Capabilities, Capability, Confirmed,
        ControllerCapability, ControllerExpand, ControllerExpanded, ControllerPublish, ControllerPublished,
        ControllerUnpublish, CreateVolume, CreatedVolume, DeleteVolume, GetCapacity, NodeCapability, Nothing,
        PluginInfo, PluginService, Readiness, Topology, ValidateVolumeCapabilities,
        ValidatedVolumeCapabilities, Volume,
    },
};

/// Bytes that the driver says it has left.
const AVAILABLE_BYTES: i64 = 100 << 30;

pub(super) fn identity(shared: &Arc<Shared>, server: Server) -> Server {
    let info = shared.clone();
    server
        .unary(proto::GET_PLUGIN_INFO, move |_: Nothing| {
            let name = info.name.clone();
            async move { Ok(PluginInfo { name, vendor_version: "1.0.0".into(), ..PluginInfo::default() }) }
        })
        .unary(proto::GET_PLUGIN_CAPABILITIES, move |_: Nothing| async move {
            let all = [PluginService::ControllerService, PluginService::VolumeAccessibilityConstraints];
            Ok(Capabilities { capabilities: all.map(|c| Capability::rpc(c as i32)).into() })
        })
        .unary(proto::PROBE, move |_: Nothing| async move {
            Ok(Readiness { ready: Some(BoolValue { value: true }) })
        })
}

impl Shared {
    pub(super) async fn create_volume(&self, q: CreateVolume) -> Result<CreatedVolume, Status> {
        let bytes = q.capacity_range.map_or(1 << 30, |r| r.required_bytes);
        let source = q.volume_content_source.as_ref().and_then(|s| s.volume.as_ref()).map(|v| &v.volume_id);
        let fields = json!({
            "name": q.name, "bytes": bytes, "parameters": q.parameters, "secrets": q.secrets, "source": source,
        });
        let fields = with(fields, describe(q.volume_capabilities.first()));
        let end = self.enter("CreateVolume", "", fields).await?;
        let block = q.volume_capabilities.iter().any(|c| matches!(c.access_type, Some(AccessType::Block(_))));
        let volume_id =
            self.backing.create(&q.name, bytes, block, source.map(String::as_str)).map_err(refused)?;
        let topology = self.behaviour.lock().topology.clone();
        let accessible_topology = if topology.is_empty() {
            Vec::new()
        } else {
            vec![Topology { segments: topology.into_iter().collect() }]
        };
        end.map(|()| CreatedVolume {
            volume: Some(Volume {
                capacity_bytes: bytes,
                volume_id,
                volume_context: q.parameters,
                content_source: q.volume_content_source,
                accessible_topology,
            }),
        })
    }

    pub(super) async fn delete_volume(&self, q: DeleteVolume) -> Result<Nothing, Status> {
        let end = self.enter("DeleteVolume", &q.volume_id, json!({ "secrets": q.secrets })).await?;
        self.backing.delete(&q.volume_id).map_err(refused)?;
        end.map(|()| Nothing {})
    }

    pub(super) async fn publish(&self, q: ControllerPublish) -> Result<ControllerPublished, Status> {
        let fields = json!({
            "node": q.node_id, "readonly": q.readonly, "secrets": q.secrets, "context": q.volume_context,
        });
        let fields = with(fields, describe(q.volume_capability.as_ref()));
        let end = self.enter("ControllerPublishVolume", &q.volume_id, fields).await?;
        self.backing.find(&q.volume_id).map_err(refused)?;
        let context = [("attached-to".to_owned(), q.node_id)];
        end.map(|()| ControllerPublished { publish_context: context.into() })
    }

    pub(super) async fn unpublish(&self, q: ControllerUnpublish) -> Result<Nothing, Status> {
        let fields = json!({ "node": q.node_id, "secrets": q.secrets });
        let end = self.enter("ControllerUnpublishVolume", &q.volume_id, fields).await?;
        end.map(|()| Nothing {})
    }

    pub(super) async fn controller_expand(&self, q: ControllerExpand) -> Result<ControllerExpanded, Status> {
        let bytes = q.capacity_range.map_or(0, |r| r.required_bytes);
        let fields = json!({ "bytes": bytes, "secrets": q.secrets });
        let end = self.enter("ControllerExpandVolume", &q.volume_id, fields).await?;
        self.backing.resize(&q.volume_id, bytes).map_err(refused)?;
        let by_node = self.behaviour.lock().node.contains(&NodeCapability::ExpandVolume);
        end.map(|()| ControllerExpanded { capacity_bytes: bytes, node_expansion_required: by_node })
    }
}

pub(super) fn service(shared: &Arc<Shared>, server: Server) -> Server {
    let [caps, create, delete, publish, unpublish, validate, capacity, expand] =
        std::array::from_fn(|_| shared.clone());
    server
        .unary(proto::CONTROLLER_GET_CAPABILITIES, move |_: Nothing| {
            let shared = caps.clone();
            async move {
                shared.enter("ControllerGetCapabilities", "", json!({})).await??;
                let all: &std::collections::BTreeSet<ControllerCapability> =
                    &shared.behaviour.lock().controller;
                Ok(Capabilities { capabilities: all.iter().map(|c| Capability::rpc(*c as i32)).collect() })
            }
        })
        .unary(proto::CREATE_VOLUME, move |q: CreateVolume| {
            let shared = create.clone();
            async move { shared.create_volume(q).await }
        })
        .unary(proto::DELETE_VOLUME, move |q: DeleteVolume| {
            let shared = delete.clone();
            async move { shared.delete_volume(q).await }
        })
        .unary(proto::CONTROLLER_PUBLISH_VOLUME, move |q: ControllerPublish| {
            let shared = publish.clone();
            async move { shared.publish(q).await }
        })
        .unary(proto::CONTROLLER_UNPUBLISH_VOLUME, move |q: ControllerUnpublish| {
            let shared = unpublish.clone();
            async move { shared.unpublish(q).await }
        })
        .unary(proto::CONTROLLER_EXPAND_VOLUME, move |q: ControllerExpand| {
            let shared = expand.clone();
            async move { shared.controller_expand(q).await }
        })
        .unary(proto::VALIDATE_VOLUME_CAPABILITIES, move |q: ValidateVolumeCapabilities| {
            let shared = validate.clone();
            async move {
                shared.enter("ValidateVolumeCapabilities", &q.volume_id, json!({})).await??;
                shared.backing.find(&q.volume_id).map_err(refused)?;
                let confirmed = Confirmed {
                    volume_context: q.volume_context,
                    volume_capabilities: q.volume_capabilities,
                };
                Ok(ValidatedVolumeCapabilities { confirmed: Some(confirmed), message: String::new() })
            }
        })
        .unary(proto::GET_CAPACITY, move |_: GetCapacity| {
            let shared = capacity.clone();
            async move {
                shared.enter("GetCapacity", "", json!({})).await??;
                Ok(AvailableCapacity { available_capacity: AVAILABLE_BYTES })
            }
        })
}

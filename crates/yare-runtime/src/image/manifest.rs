//! OCI and Docker manifests: which configuration and which layers make an image, and for which machine.

use serde::Deserialize;
use yare_schema::release::architecture;

use super::{Held, ImageConfig, ImageStore, NewImage, Reference, chain_names, digest_of};
use crate::api::ImageId;
use crate::error::{Result, RuntimeError};

/// Larger manifests and configurations are refused.
pub(super) const MAX_DOCUMENT: u64 = 8 * 1024 * 1024;
/// More layers are refused (overlayfs takes 500).
const MAX_LAYERS: usize = 256;

/// Manifests and indexes in one: they differ in which field is filled.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Document {
    pub schema_version: u32,
    pub manifests: Vec<Descriptor>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
}

/// Points at content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// For which machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub architecture: String,
    pub os: String,
    pub variant: String,
}

/// The manifest for this machine; with a single one without a platform, that one.
pub(super) fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    manifests.iter().find(fits).or_else(|| {
        let plain: Vec<&Descriptor> = manifests.iter().filter(|d| d.platform.is_none()).collect();
        if plain.len() == 1 { plain.first().copied() } else { None }
    })
}

pub(super) fn check_digest(image: &str, what: &str, bytes: &[u8], expected: &str) -> Result<()> {
    let digest = digest_of(bytes);
    if digest == expected {
        return Ok(());
    }
    Err(RuntimeError::CorruptImage {
        reference: image.to_owned(),
        message: format!("{what} {expected} has the digest {digest}"),
    })
}

pub(super) fn parse<'a, T: Deserialize<'a>>(image: &str, what: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| RuntimeError::CorruptImage {
        reference: image.to_owned(),
        message: format!("{what}: {e}"),
    })
}

/// An image whose manifest and configuration have been read and checked.
pub(super) struct Plan {
    pub config: ImageConfig,
    pub config_bytes: Vec<u8>,
    /// Directory names of the layers, lowest first.
    pub chain: Vec<String>,
}

impl Plan {
    /// Checks a configuration against the number of layers in the manifest.
    pub(super) fn new(image: &str, config_bytes: Vec<u8>, layers: usize) -> Result<Self> {
        let corrupt = |message: String| RuntimeError::CorruptImage { reference: image.to_owned(), message };
        let config: ImageConfig = parse(image, "configuration", &config_bytes)?;
        let ids = &config.rootfs.diff_ids;
        if ids.len() != layers || layers == 0 || layers > MAX_LAYERS {
            return Err(corrupt(format!(
                "{layers} layers in the manifest, {} in the configuration",
                ids.len()
            )));
        }
        let digest = |d: &String| {
            d.strip_prefix("sha256:")
                .is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if !ids.iter().all(digest) {
            return Err(corrupt("a layer's digest is not a sha256 digest".into()));
        }
        let (os, arch) = (config.os.as_str(), config.architecture.as_str());
        if !(os.is_empty() || os == "linux") || !(arch.is_empty() || arch == architecture()) {
            return Err(corrupt(format!(
                "it is for {os}/{arch}, and this machine is linux/{}",
                architecture()
            )));
        }
        let chain = chain_names(ids);
        Ok(Self { config, config_bytes, chain })
    }

    /// Protects the layers until the image is recorded.
    pub(super) fn hold<'a>(&self, store: &'a ImageStore) -> Held<'a> {
        let mut held = store.hold();
        for name in &self.chain {
            held.add(name);
        }
        held
    }

    /// Records the image, its layers being in place.
    pub(super) fn record(
        self,
        store: &ImageStore,
        tags: Vec<Reference>,
        digests: Vec<String>,
    ) -> Result<ImageId> {
        store.sync();
        let id = store.put_blob(&self.config_bytes)?;
        store.record(NewImage {
            id,
            tags,
            digests,
            config: self.config.config,
            layers: self.chain.into_iter().rev().collect(),
            binds: Vec::new(),
            pinned: false,
        })
    }
}

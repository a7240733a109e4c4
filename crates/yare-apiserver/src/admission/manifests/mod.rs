//! Webhooks and policies of admission that the operator gives in files (KEP-5793): in force before anybody can ask
//! for anything, out of the reach of all who use the API, and for what configures admission as well.
//!
//! In: a directory for each of four plugins (`staticManifestsDir` of their configuration). Out: objects as they would
//! rest in the store, had somebody written them through the API, and what is counted of reading them. What is wrong
//! with them at the start keeps the server from starting; later, what was in force stays.

mod load;
mod metrics;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    table::{MUTATING_POLICIES, MUTATING_WEBHOOKS, VALIDATING_POLICIES, VALIDATING_WEBHOOKS},
    webhook::GROUP,
};
use crate::{core::Core, files::Changes, server::StartError};

use load::Loaded;
pub(super) use metrics::expose;

const GATE: &str = "ManifestBasedAdmissionControlConfig";

/// Changes within this time are one.
const SETTLE: Duration = Duration::from_millis(50);
/// When a directory is read again without having been told: it may have been replaced as a whole.
const AGAIN: Duration = Duration::from_secs(60);

/// One plugin that takes objects from files.
pub struct Plugin {
    /// Its name.
    pub name: &'static str,
    /// What it takes: webhook configurations or policies.
    kind: &'static str,
    /// What binds its policies; webhooks need nothing such.
    binding: Option<&'static str>,
    /// What upstream's errors call its objects.
    what: &'static str,
}

/// Those that there are.
pub static PLUGINS: [Plugin; 4] = [
    Plugin {
        name: MUTATING_POLICIES,
        kind: "MutatingAdmissionPolicy",
        binding: Some("MutatingAdmissionPolicyBinding"),
        what: "policy",
    },
    Plugin { name: MUTATING_WEBHOOKS, kind: "MutatingWebhookConfiguration", binding: None, what: "webhook" },
    Plugin {
        name: VALIDATING_POLICIES,
        kind: "ValidatingAdmissionPolicy",
        binding: Some("ValidatingAdmissionPolicyBinding"),
        what: "policy",
    },
    Plugin {
        name: VALIDATING_WEBHOOKS,
        kind: "ValidatingWebhookConfiguration",
        binding: None,
        what: "webhook",
    },
];

/// What is wrong with a directory, before anything in it is looked at.
pub fn check_directory(path: &str) -> Result<(), String> {
    let wrong = |why: String| Err(format!("staticManifestsDir: Invalid value: {path:?}: {why}"));
    if !Path::new(path).is_absolute() {
        return wrong("must be an absolute file path".into());
    }
    match std::fs::metadata(path) {
        Err(error) => wrong(format!("unable to read: {error}")),
        Ok(found) if !found.is_dir() => wrong("must be a directory".into()),
        Ok(_) => Ok(()),
    }
}

/// What one plugin has from files.
struct Source {
    plugin: &'static Plugin,
    directory: PathBuf,
    counts: metrics::Counts,
}

/// What all plugins have from files.
#[derive(Default)]
pub struct Manifests(Vec<Source>);

impl Manifests {
    /// Of the plugins that run.
    pub fn new(directories: &[(&'static str, PathBuf)], runs: impl Fn(&str) -> bool) -> Self {
        let source = |(name, directory): &(&'static str, PathBuf)| {
            Some(Source {
                plugin: PLUGINS.iter().find(|plugin| plugin.name == *name && runs(name))?,
                directory: directory.clone(),
                counts: metrics::Counts::default(),
            })
        };
        Self(directories.iter().filter_map(source).collect())
    }

    /// Reads everything for the first time.
    ///
    /// # Errors
    /// What is wrong with it, by the name of its file.
    pub fn load(&self, core: &Core) -> Result<(), StartError> {
        for source in &self.0 {
            let Source { plugin, directory, .. } = source;
            if !core.config.gates.is_on(GATE) {
                return Err(StartError::Admission(
                    "staticManifestsDir: Forbidden: staticManifestsDir requires the ManifestBasedAdmissionControlConfig feature gate to be enabled".into(),
                ));
            }
            source.read(core).map_err(|why| {
                let what = plugin.what;
                StartError::Admission(format!(
                    "failed to load static {what} manifests from {directory:?}: {why}"
                ))
            })?;
        }
        Ok(())
    }

    /// Reads what changes until the server stops.
    pub fn follow(core: &Arc<Core>) {
        for at in 0..core.admission.manifests.0.len() {
            tokio::spawn(follow(core.clone(), at));
        }
    }
}

async fn follow(core: Arc<Core>, at: usize) {
    let Some(source) = core.admission.manifests.0.get(at) else { return };
    loop {
        // First watched, then read: what changes in between is not missed.
        let changes = Changes::within(&source.directory);
        if let Err(why) = source.read(&core) {
            let (plugin, directory) = (source.plugin.name, source.directory.display());
            tracing::error!(plugin, %directory, why, "what the files of admission said before stays in force");
        }
        let told = async {
            match &changes {
                Ok(changes) => changes.next().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = told => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(AGAIN) => {}
            () = core.stop.cancelled() => return,
        }
    }
}

impl Source {
    /// Reads the files and puts what they say in force, unless they say what they said.
    fn read(&self, core: &Core) -> Result<(), String> {
        match load::load(self.plugin, &self.directory, &core.config.gates) {
            Ok(loaded) if self.counts.is_in_force(&loaded.hash) => Ok(()),
            Ok(loaded) => {
                self.put(core, &loaded);
                self.counts.reloaded(Some(&loaded.hash), core.now());
                tracing::info!(plugin = self.plugin.name, "files of admission are in force");
                Ok(())
            }
            Err(why) => {
                self.counts.reloaded(None, core.now());
                Err(why)
            }
        }
    }

    fn put(&self, core: &Core, loaded: &Loaded) {
        let (webhooks, policies) = (&core.admission.webhooks, &core.admission.policies);
        let Loaded { objects, bindings, .. } = loaded;
        match self.plugin.name {
            MUTATING_WEBHOOKS | VALIDATING_WEBHOOKS => {
                webhooks.fix(self.plugin.name == MUTATING_WEBHOOKS, objects, core);
            }
            name => policies.fix(name == MUTATING_POLICIES, objects, bindings, core),
        }
    }
}

/// The `apiVersion` and `kind` of a document.
fn kind_of(document: &Value) -> (&str, &str) {
    let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
    (text("apiVersion"), text("kind"))
}

/// `admissionregistration.k8s.io/v1`
fn api_version() -> String {
    format!("{GROUP}/v1")
}

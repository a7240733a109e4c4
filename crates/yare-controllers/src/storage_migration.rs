//! Storage version migrations: every object of a resource is written once more, so that it rests in today's
//! version.
//!
//! Of the migrations of one resource the oldest runs, the others wait. A migration that runs notes the revision
//! at which it begins, and then applies a configuration that says nothing to every object that is no newer: the
//! server writes it anew if its bytes change by that. A CustomResourceDefinition says in its conditions that its
//! objects are being migrated; when they are, no version but the storage version is left in its
//! `status.storedVersions`, unless the definition changed meanwhile.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use yare_client::{
    CUSTOM_RESOURCE_DEFINITIONS, Cached, Change, Informer, ObjectKey, Resource, STORAGE_VERSION_MIGRATIONS,
};
use yare_kinds::{
    conditions,
    view::{View, ViewMut},
};

use crate::{
    api::ApiError,
    context::{Context, Error},
    discovery::{Served, discover},
    harness::{Next, Reconcile},
    views::since,
};

/// What must be possible with a resource.
const VERBS: [&str; 3] = ["update", "patch", "list"];
/// How long a resource that is not there may still come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long until it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Objects that are read at a time.
const PAGE: usize = 500;
/// Media type of lists that hold metadata only.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const APPLY: &str = "application/apply-patch+yaml";

struct Migrations {
    context: Context,
    migrations: Informer,
}

/// The controller; keys are migrations.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Migrations {
        migrations: context.informer(STORAGE_VERSION_MIGRATIONS),
        context: context.clone(),
    })
}

/// A migration concerns all others of its resource: one of them may run next.
pub fn changed(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(changed) = change.object().and_then(|o| Migration::read(o).ok()) else { return };
    for other in context.informer(STORAGE_VERSION_MIGRATIONS).list() {
        if Migration::read(&other).is_ok_and(|m| m.resource == changed.resource) {
            add(other.key().clone());
        }
    }
    if let Some(object) = change.object() {
        add(object.key().clone());
    }
}

/// What is read of a migration.
#[derive(Clone, Debug)]
struct Migration {
    object: Cached,
    /// Plural and group.
    resource: (String, String),
    created: String,
    status: Value,
}

impl Migration {
    fn read(object: &Cached) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(object.bytes())
            .map_err(|e| Error::Other(format!("migration {}: {e}", object.key())))?;
        let text = |path: &str| value.str_at(path).to_owned();
        Ok(Self {
            resource: (text("spec.resource.resource"), text("spec.resource.group")),
            created: text("metadata.creationTimestamp"),
            status: value.at("status").clone(),
            object: object.clone(),
        })
    }

    fn is(&self, condition: &str) -> bool {
        conditions::is_true(self.status.items("conditions"), condition)
    }

    fn is_over(&self) -> bool {
        self.is("Succeeded") || self.is("Failed")
    }

    fn age_order(&self) -> (&str, &str) {
        (&self.created, self.object.name())
    }
}

/// Whether it is a migration's turn, among all of its resource.
fn is_next(one: &Migration, all: &[Migration]) -> bool {
    let waits = |m: &&Migration| !m.is("Running") && !m.is_over();
    let running = all.iter().any(|m| m.is("Running") && !m.is_over());
    !running && waits(&one) && all.iter().filter(waits).all(|m| m.age_order() >= one.age_order())
}

/// Whether it makes sense to try again later.
fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::Status(status) => matches!(status.code, 429 | 500 | 503 | 504),
        _ => true,
    }
}

#[async_trait]
impl Reconcile for Migrations {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.migrations.get(key) else { return Ok(Next::Done) };
        let migration = Migration::read(&object)?;
        match (migration.is("Running"), migration.is_over()) {
            (true, true) => self.finish(&migration).await?,
            (false, true) => {}
            (true, false) if migration.status.is_set("resourceVersion") => self.run(&migration).await?,
            (true, false) => return self.begin(&migration).await,
            (false, false) => {
                let all: Vec<Migration> = self
                    .migrations
                    .list()
                    .iter()
                    .filter_map(|m| Migration::read(m).ok())
                    .filter(|m| m.resource == migration.resource)
                    .collect();
                if is_next(&migration, &all) {
                    self.activate(&migration).await?;
                }
            }
        }
        Ok(Next::Done)
    }
}

impl Migrations {
    /// The time as conditions have it.
    fn now(&self) -> String {
        self.context.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Sets a condition, which must not be set yet.
    async fn set(&self, migration: &Migration, kind: &str, reason: &str, message: &str) -> Result<(), Error> {
        let mut status = migration.status.clone();
        let mut conditions = status.items("conditions").to_vec();
        if conditions::find(&conditions, kind).is_some() {
            return Ok(());
        }
        let condition = json!({"type": kind, "status": "True", "reason": reason, "message": message});
        conditions::put(&mut conditions, condition, &self.now());
        if !status.is_object() {
            status = json!({});
        }
        status.set("conditions", conditions);
        self.context.api.update_status(&STORAGE_VERSION_MIGRATIONS, &migration.object, &status).await?;
        Ok(())
    }

    async fn fail(&self, migration: &Migration, why: &str) -> Result<(), Error> {
        self.set(migration, "Failed", "StorageVersionMigrationFailed", why).await
    }

    /// Makes a migration the one that runs for its resource.
    async fn activate(&self, migration: &Migration) -> Result<(), Error> {
        if let Some(definition) = self.definition(migration).await? {
            let message = format!("Migration {} is running", migration.object.name());
            let condition = ("True", "MigrationRunning", message.as_str());
            self.note(&definition, condition, None).await?;
        }
        self.set(migration, "Running", "MigrationRunning", "The migration is running").await
    }

    /// Notes from which revision on objects need not be migrated.
    async fn begin(&self, migration: &Migration) -> Result<Next, Error> {
        let Some(served) = self.served(migration).await? else {
            let created = migration.created.parse().ok();
            if created.is_some_and(|at| since(self.context.now(), at) < PATIENCE) {
                return Ok(Next::After(LOOK_AGAIN));
            }
            self.fail(migration, "resource does not exist in discovery").await?;
            return Ok(Next::Done);
        };
        let resource = &served.resource;
        if !served.supports(&VERBS) {
            let name = format!("{}, Resource={}", group_version(resource), resource.plural);
            let why =
                format!("resource \"{name}\" does not support discovery operations: [{}]", VERBS.join(" "));
            self.fail(migration, &why).await?;
            return Ok(Next::Done);
        }
        let list = self.page(resource, "limit=1").await?;
        let mut status = migration.status.clone();
        status.set("resourceVersion", list.str_at("metadata.resourceVersion"));
        self.context.api.update_status(&STORAGE_VERSION_MIGRATIONS, &migration.object, &status).await?;
        Ok(Next::Done)
    }

    /// Writes every object anew.
    async fn run(&self, migration: &Migration) -> Result<(), Error> {
        let Some(served) = self.served(migration).await? else {
            let why = "migration encountered unhandled error: unable to obtain GVR from discovery";
            return self.fail(migration, why).await;
        };
        let resource = &served.resource;
        let revision = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        let until = revision(migration.status.str_at("resourceVersion"));
        let mut next = String::new();
        loop {
            let list = self.page(resource, &format!("limit={PAGE}{next}")).await?;
            for item in list.items("items") {
                if revision(item.str_at("metadata.resourceVersion")) > until {
                    continue;
                }
                match self.rewrite(resource, item).await {
                    Ok(()) => {}
                    // It was written meanwhile, or is gone.
                    Err(error) if error.is_conflict() => {}
                    Err(error) if is_passing(&error) => return Err(error.into()),
                    Err(error) => {
                        let why = format!("migration encountered unhandled error: {error}");
                        return self.fail(migration, &why).await;
                    }
                }
            }
            match list.str_at("metadata.continue") {
                "" => break,
                token => next = format!("&continue={token}"),
            }
        }
        self.set(migration, "Succeeded", "StorageVersionMigrationSucceeded", "").await
    }

    /// Ends what a migration that is over had begun.
    async fn finish(&self, migration: &Migration) -> Result<(), Error> {
        if let Some(definition) = self.definition(migration).await? {
            let generation = definition.int_at("metadata.generation");
            let noted = conditions::find(definition.items("status.conditions"), "StorageMigrating");
            let unchanged = noted.is_some_and(|c| c.int_at("observedGeneration") == generation);
            let (reason, message) = match (migration.is("Succeeded"), unchanged) {
                (true, true) => (
                    "MigrationSucceeded",
                    "The migration has succeeded and the stored versions have been updated",
                ),
                (true, false) => (
                    "MigrationSucceeded",
                    "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
                ),
                (false, _) => ("MigrationFailed", "The migration has failed"),
            };
            let mut versions = definition.items("spec.versions").iter();
            let storage = versions.find(|v| v.at("storage") == &Value::Bool(true)).map(|v| v.str_at("name"));
            self.note(&definition, ("False", reason, message), storage.filter(|_| unchanged)).await?;
        }
        let mut status = migration.status.clone();
        for condition in status.items_mut("conditions") {
            if condition.str_at("type") == "Running" {
                condition.set("status", "False");
                condition.set("reason", "MigrationCompleted");
                condition.set("message", "Migration completed");
                let now = self.now();
                condition.set("lastTransitionTime", now);
            }
        }
        self.context.api.update_status(&STORAGE_VERSION_MIGRATIONS, &migration.object, &status).await?;
        Ok(())
    }

    /// The definition of the migration's resource, where it is a custom one.
    async fn definition(&self, migration: &Migration) -> Result<Option<Value>, Error> {
        let (plural, group) = &migration.resource;
        let key = ObjectKey::cluster(&format!("{plural}.{group}"));
        let Some(object) = self.context.api.get(&CUSTOM_RESOURCE_DEFINITIONS, &key).await? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(object.bytes());
        value.map(Some).map_err(|e| Error::Other(format!("definition {key}: {e}")))
    }

    /// Says in a definition's status how its migration stands; with `stored`, also that only that version is
    /// stored. A conflict means that the definition changed since it was read.
    async fn note(
        &self,
        definition: &Value,
        (status, reason, message): (&str, &str, &str),
        stored: Option<&str>,
    ) -> Result<(), Error> {
        let name = definition.str_at("metadata.name");
        let mut config = json!({
            "apiVersion": CUSTOM_RESOURCE_DEFINITIONS.api_version(), "kind": &*CUSTOM_RESOURCE_DEFINITIONS.kind,
            "metadata": {"name": name, "resourceVersion": definition.at("metadata.resourceVersion")},
            "status": {"conditions": [{
                "type": "StorageMigrating", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": self.now(),
                "observedGeneration": definition.int_at("metadata.generation"),
            }]},
        });
        if let Some(stored) = stored {
            config.set("status.storedVersions", vec![stored]);
        }
        let path = format!("{}/{name}/status?force=true", CUSTOM_RESOURCE_DEFINITIONS.path(None));
        self.context.api.call(Method::PATCH, &path, APPLY, Some(&config)).await?;
        Ok(())
    }

    /// The migration's resource as the server has it.
    async fn served(&self, migration: &Migration) -> Result<Option<Served>, Error> {
        let (plural, group) = &migration.resource;
        let found = discover(&self.context.api).await?;
        Ok(found
            .resources
            .into_iter()
            .find(|s| *s.resource.plural == **plural && *s.resource.group == **group))
    }

    async fn page(&self, resource: &Resource, query: &str) -> Result<Value, Error> {
        let path = format!("{}?{query}", resource.path(None));
        let bytes = self.context.api.read(&path, METADATA).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Other(format!("list of {}: {e}", resource.plural)))
    }

    /// Applies a configuration that says nothing to exactly this object in this state.
    async fn rewrite(&self, resource: &Resource, item: &Value) -> Result<(), ApiError> {
        let namespace = Some(item.str_at("metadata.namespace")).filter(|n| !n.is_empty());
        let path = format!("{}/{}", resource.path(namespace), item.str_at("metadata.name"));
        let config = json!({
            "apiVersion": resource.api_version(), "kind": &*resource.kind,
            "metadata": {"uid": item.at("metadata.uid"), "resourceVersion": item.at("metadata.resourceVersion")},
        });
        self.context.api.call(Method::PATCH, &path, APPLY, Some(&config)).await.map(drop)
    }
}

fn group_version(resource: &Resource) -> String {
    format!("{}/{}", resource.group, resource.version)
}

//! Keeps VolumeAttributesClasses that claims or volumes name from being deleted: each carries a finalizer, which
//! admission gave it, until nobody names it any more.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{
    Cached, Change, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES,
    VOLUME_ATTRIBUTES_CLASSES,
};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::Meta,
};

const FINALIZER: &str = "kubernetes.io/vac-protection";

struct Protection {
    context: Context,
    classes: Informer,
    claims: Informer,
    volumes: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
}

/// The fields of claims and volumes that name a class.
#[derive(Deserialize, Default)]
#[serde(default)]
struct User {
    spec: UserSpec,
    status: UserStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct UserSpec {
    volume_attributes_class_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct UserStatus {
    current_volume_attributes_class_name: Option<String>,
    modify_volume_status: Option<Modification>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Modification {
    target_volume_attributes_class_name: Option<String>,
}

/// The classes that a claim or a volume has, wants, or is on its way to.
fn classes_of(user: &Cached) -> BTreeSet<String> {
    let User { spec, status } = user.view().unwrap_or_default();
    let target = status.modify_volume_status.and_then(|m| m.target_volume_attributes_class_name);
    [spec.volume_attributes_class_name, status.current_volume_attributes_class_name, target]
        .into_iter()
        .flatten()
        .filter(|name| !name.is_empty())
        .collect()
}

/// The controller; keys are classes.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Protection {
        classes: context.informer(VOLUME_ATTRIBUTES_CLASSES),
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        volumes: context.informer(PERSISTENT_VOLUMES),
        context: context.clone(),
    })
}

/// A claim or volume that no longer names a class may have been its last user.
pub fn changed_user(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(old) = &change.old else { return };
    let still = change.new.as_ref().map(classes_of).unwrap_or_default();
    for class in classes_of(old).difference(&still) {
        add(ObjectKey::new("", class));
    }
}

#[async_trait]
impl Reconcile for Protection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(class) = self.classes.get(key) else { return Ok(Next::Done) };
        let mut finalizers = class.view::<View>()?.metadata.finalizers;
        let protected = finalizers.iter().any(|f| f == FINALIZER);
        match (class.deletion_timestamp().is_some(), protected) {
            (true, true) if !self.in_use(class.name()) => finalizers.retain(|f| f != FINALIZER),
            (false, false) => finalizers.push(FINALIZER.to_owned()),
            _ => return Ok(Next::Done),
        }
        let edit = |body: &mut Value| body["metadata"]["finalizers"] = json!(finalizers);
        self.context.api.update(&VOLUME_ATTRIBUTES_CLASSES, &class, edit).await?;
        Ok(Next::Done)
    }
}

impl Protection {
    fn in_use(&self, name: &str) -> bool {
        let users = self.volumes.list().into_iter().chain(self.claims.list());
        users.into_iter().any(|user| classes_of(&user).contains(name))
    }
}

//! Revisions of a pod template, kept as ControllerRevisions by DaemonSets and StatefulSets.

use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{CONTROLLER_REVISIONS, Cached, Informer, ObjectKey, Resource};

use crate::{
    api::Deletion,
    context::{Context, Error},
    ownership::{self, controller_ref},
    selector::LabelSelector,
    template,
    views::Meta,
};

/// Label of pods with their revision: DaemonSets put the hash there, StatefulSets the revision's name.
pub const REVISION_HASH: &str = "controller-revision-hash";
/// Label of revisions of StatefulSets with their hash.
const HASH: &str = "controller.kubernetes.io/hash";

/// One revision.
#[derive(Clone)]
pub struct Revision {
    /// The object.
    pub cached: Cached,
    /// Its place in the sequence.
    pub number: i64,
    /// The pod template.
    pub template: Value,
    meta: Meta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    revision: i64,
    data: Value,
}

impl Revision {
    fn new(cached: Cached) -> Result<Self, Error> {
        let mut view: View = cached.view()?;
        let mut template = view.data.pointer_mut("/spec/template").map(Value::take).unwrap_or_default();
        if let Some(fields) = template.as_object_mut() {
            fields.remove("$patch");
        }
        Ok(Self { cached, number: view.revision, template, meta: view.metadata })
    }

    /// The hash in its labels.
    pub fn hash(&self) -> &str {
        self.cached.label(REVISION_HASH).or_else(|| self.cached.label(HASH)).unwrap_or_default()
    }
}

/// The owner whose history it is.
pub struct Owner<'a> {
    /// Its kind.
    pub resource: &'a Resource,
    /// The object.
    pub object: &'a Cached,
    /// Which revisions are its.
    pub selector: &'a LabelSelector,
    /// The template as it is now.
    pub template: &'a Value,
    /// Annotations that revisions carry along.
    pub annotations: &'a std::collections::BTreeMap<String, String>,
}

/// What became of asking for the current revision.
pub enum Current {
    /// The revision of the current template.
    Found(Revision),
    /// Another template has the same hash: `status.collisionCount` has to be raised first.
    Collision,
}

impl Owner<'_> {
    /// The revisions of the owner, in order.
    pub async fn revisions(&self, context: &Context, cache: &Informer) -> Result<Vec<Revision>, Error> {
        let candidates = cache.in_namespace(self.object.namespace());
        let candidates = candidates
            .into_iter()
            .filter(|r| r.controller().is_none_or(|c| &*c.uid == self.object.uid()))
            .collect();
        let claimed = ownership::claim(
            context,
            self.resource,
            self.object,
            self.selector,
            &CONTROLLER_REVISIONS,
            candidates,
            None,
        )
        .await?;
        let mut revisions = claimed.into_iter().map(Revision::new).collect::<Result<Vec<_>, _>>()?;
        revisions.sort_by(|a, b| {
            (a.number, a.meta.creation_timestamp, a.cached.name()).cmp(&(
                b.number,
                b.meta.creation_timestamp,
                b.cached.name(),
            ))
        });
        Ok(revisions)
    }

    /// The revision of the current template: an existing one (made the newest if it is not), or a new one.
    pub async fn current(
        &self,
        context: &Context,
        revisions: &mut Vec<Revision>,
        collisions: Option<i32>,
    ) -> Result<Current, Error> {
        let next = revisions.iter().map(|r| r.number).max().unwrap_or(0).saturating_add(1);
        if let Some(i) = revisions.iter().rposition(|r| template::same(&r.template, self.template)) {
            if i + 1 == revisions.len() {
                return Ok(Current::Found(revisions[i].clone()));
            }
            let write = |body: &mut Value| body["revision"] = next.into();
            let written = context.api.update(&CONTROLLER_REVISIONS, &revisions[i].cached, write).await?;
            let revision = Revision::new(written)?;
            revisions.remove(i);
            revisions.push(revision.clone());
            return Ok(Current::Found(revision));
        }
        let hash = template::hash(self.template, collisions);
        let name = format!("{}-{hash}", self.object.name());
        let mut labels = self.template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
        let label = if self.resource.kind == "DaemonSet" { REVISION_HASH } else { HASH };
        labels[label] = hash.into();
        let mut data = self.template.clone();
        data["$patch"] = "replace".into();
        let body = json!({
            "kind": "ControllerRevision",
            "apiVersion": "apps/v1",
            "metadata": {
                "name": name,
                "namespace": self.object.namespace(),
                "labels": labels,
                "annotations": self.annotations,
                "ownerReferences": [controller_ref(self.resource, self.object)],
            },
            "data": {"spec": {"template": data}},
            "revision": next,
        });
        let created = match context.api.create(&CONTROLLER_REVISIONS, self.object.namespace(), &body).await {
            Ok(created) => created,
            Err(error) if error.is_already_exists() => {
                let key = ObjectKey::new(self.object.namespace(), &name);
                let Some(existing) = context.api.get(&CONTROLLER_REVISIONS, &key).await? else {
                    return Err(error.into());
                };
                let mine = ownership::is_controlled_by(&existing, self.object);
                let existing = Revision::new(existing)?;
                if !mine || !template::same(&existing.template, self.template) {
                    return Ok(Current::Collision);
                }
                existing.cached
            }
            Err(error) => return Err(error.into()),
        };
        let revision = Revision::new(created)?;
        revisions.push(revision.clone());
        Ok(Current::Found(revision))
    }
}

/// Deletes the oldest revisions beyond `limit` that are not in use.
pub async fn truncate(
    context: &Context,
    revisions: &[Revision],
    limit: i32,
    in_use: impl Fn(&Revision) -> bool,
) -> Result<(), Error> {
    // A negative limit keeps all.
    let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
    let idle: Vec<&Revision> = revisions.iter().filter(|r| !in_use(r)).collect();
    let surplus = idle.len().saturating_sub(limit);
    for revision in idle.into_iter().take(surplus) {
        context
            .api
            .delete(&CONTROLLER_REVISIONS, revision.cached.key(), Deletion::of(&revision.cached))
            .await?;
    }
    Ok(())
}

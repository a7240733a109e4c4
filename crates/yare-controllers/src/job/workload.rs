//! Workloads and PodGroups of Jobs (KEP-5547): a Job whose pods can only run together says so to the scheduler.
//!
//! Both have names that follow from the Job, so that a second try finds what the first has made. Where they are not as
//! this controller makes them, the Job runs without.

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, Informer, JOBS, POD_GROUPS, Resource, WORKLOADS};

use super::{JobPod, View};
use crate::{
    context::{Context, Error},
    ownership::{controller_ref, is_controlled_by},
    template,
    views::{condition, nullable},
};

/// The feature.
pub const GATE: &str = "WorkloadWithJob";
/// The longest name.
const NAME_MAX_BYTES: usize = 253;

/// What is known of Workloads and PodGroups.
pub(super) struct Groups {
    workloads: Made,
    groups: Made,
}

/// The objects of a resource, with those that were made and that the cache may not show yet.
struct Made {
    informer: Informer,
    made: Mutex<Vec<Cached>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WorkloadView {
    spec: WorkloadSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WorkloadSpec {
    controller_ref: Option<ControllerRef>,
    #[serde(deserialize_with = "nullable")]
    pod_group_templates: Vec<GroupTemplate>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ControllerRef {
    api_group: String,
    kind: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct GroupTemplate {
    name: String,
    scheduling_policy: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct GroupView {
    spec: GroupSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct GroupSpec {
    pod_group_template_ref: Option<TemplateRef>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TemplateRef {
    workload: Option<WorkloadRef>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WorkloadRef {
    workload_name: String,
}

impl WorkloadView {
    fn is_of(&self, job: &Cached) -> bool {
        let of = self.spec.controller_ref.as_ref();
        of.is_some_and(|c| c.api_group == JOBS.group && c.kind == *JOBS.kind && c.name == job.name())
    }
}

impl GroupView {
    fn is_of(&self, workload: &Cached) -> bool {
        let of = self.spec.pod_group_template_ref.as_ref().and_then(|r| r.workload.as_ref());
        of.is_some_and(|w| w.workload_name == workload.name())
    }
}

impl Made {
    fn new(informer: Informer) -> Self {
        Self { informer, made: Mutex::default() }
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Cached> {
        let mut made = self.made.lock();
        let seen = self.informer.version();
        made.retain(|object| object.resource_version() > seen);
        let mut all = self.informer.in_namespace(namespace);
        for object in made.iter().filter(|o| o.namespace() == namespace) {
            if !all.iter().any(|known| known.uid() == object.uid()) {
                all.push(object.clone());
            }
        }
        all
    }

    async fn create(&self, context: &Context, namespace: &str, body: &Value) -> Result<Cached, Error> {
        let created = context.api.create(self.informer.resource(), namespace, body).await?;
        self.made.lock().push(created.clone());
        Ok(created)
    }
}

impl View {
    /// Whether the pods of the Job can only run together: one for each index, all at once.
    fn is_gang(&self) -> bool {
        let spec = &self.spec;
        let parallelism = spec.parallelism.unwrap_or(0);
        let grouped = spec.template.pointer("/spec/schedulingGroup").is_some_and(|g| !g.is_null());
        parallelism > 1 && spec.is_indexed() && spec.completions == Some(parallelism) && !grouped
    }

    /// Whether the Job has never run. One that has, before the feature was on, goes on without a group.
    fn is_new(&self, pods: &[JobPod]) -> bool {
        let status = &self.status;
        pods.is_empty()
            && status.start_time.is_none()
            && status.succeeded == 0
            && status.failed == 0
            && condition(&status.conditions, "Suspended").is_none()
            && self.metadata.deletion_timestamp.is_none()
    }
}

impl Groups {
    /// Nothing where the feature is off.
    pub(super) fn new(context: &Context) -> Option<Self> {
        let made = |resource: Resource| Made::new(context.informer(resource));
        context
            .config
            .gates
            .is_on(GATE)
            .then(|| Self { workloads: made(WORKLOADS), groups: made(POD_GROUPS) })
    }

    /// The PodGroup that new pods of the Job belong to, made with its Workload if it is time for that.
    pub(super) async fn group_of(
        &self,
        context: &Context,
        job: &Cached,
        view: &View,
        pods: &[JobPod],
    ) -> Result<Option<Cached>, Error> {
        if !view.is_gang() {
            return Ok(None);
        }
        let Some(workload) = self.workload_of(context, job, view, pods).await? else { return Ok(None) };
        let mut matching = Vec::new();
        for group in self.groups.in_namespace(job.namespace()) {
            if group.view::<GroupView>()?.is_of(&workload) {
                matching.push(group);
            }
        }
        match matching.as_slice() {
            // One that is on its way out would wait for what it makes.
            [] if job.deletion_timestamp().is_some() => Ok(None),
            [] => self.make_group(context, job, &workload).await.map(Some),
            [group] => Ok(is_controlled_by(group, job).then(|| group.clone())),
            _ => {
                tracing::warn!(
                    workload = %workload.key(),
                    "{} PodGroups reference it: falling back to default scheduling",
                    matching.len()
                );
                Ok(None)
            }
        }
    }

    async fn workload_of(
        &self,
        context: &Context,
        job: &Cached,
        view: &View,
        pods: &[JobPod],
    ) -> Result<Option<Cached>, Error> {
        let mut matching = Vec::new();
        for workload in self.workloads.in_namespace(job.namespace()) {
            let view: WorkloadView = workload.view()?;
            if view.is_of(job) {
                matching.push((workload, view));
            }
        }
        match matching.as_slice() {
            [] if view.is_new(pods) => self.make_workload(context, job, view).await.map(Some),
            [] => Ok(None),
            [(workload, view)] => {
                let usable = is_controlled_by(workload, job) && view.spec.pod_group_templates.len() == 1;
                Ok(usable.then(|| workload.clone()))
            }
            _ => {
                tracing::warn!(
                    job = %job.key(),
                    "{} Workloads reference it: falling back to default scheduling",
                    matching.len()
                );
                Ok(None)
            }
        }
    }

    async fn make_workload(&self, context: &Context, job: &Cached, view: &View) -> Result<Cached, Error> {
        let workload = json!({
            "kind": WORKLOADS.kind,
            "apiVersion": WORKLOADS.api_version(),
            "metadata": {
                "name": workload_name(job),
                "namespace": job.namespace(),
                "ownerReferences": [controller_ref(&JOBS, job)],
            },
            "spec": {
                "controllerRef": {"apiGroup": JOBS.group, "kind": JOBS.kind, "name": job.name()},
                "podGroupTemplates": [{
                    "name": format!("{}-pgt-0", job.name()),
                    "schedulingPolicy": {"gang": {"minCount": view.spec.parallelism}},
                }],
            },
        });
        let created = self.workloads.create(context, job.namespace(), &workload).await?;
        let message = format!("Created Workload {} for Job {}", created.name(), job.name());
        context.normal(&JOBS, job, "WorkloadCreated", message);
        Ok(created)
    }

    async fn make_group(&self, context: &Context, job: &Cached, workload: &Cached) -> Result<Cached, Error> {
        let WorkloadView { spec } = workload.view()?;
        let Some(template) = spec.pod_group_templates.first() else {
            return Err(Error::Other(format!("workload {} has no PodGroupTemplates", workload.key())));
        };
        let group = json!({
            "kind": POD_GROUPS.kind,
            "apiVersion": POD_GROUPS.api_version(),
            "metadata": {
                "name": group_name(workload.name(), &template.name),
                "namespace": job.namespace(),
                // The Workload does not wait for it to go.
                "ownerReferences": [controller_ref(&JOBS, job), owner_ref(&WORKLOADS, workload)],
            },
            "spec": {
                "podGroupTemplateRef": {"workload": {
                    "workloadName": workload.name(), "podGroupTemplateName": template.name,
                }},
                "schedulingPolicy": template.scheduling_policy,
            },
        });
        self.groups.create(context, job.namespace(), &group).await
    }
}

fn owner_ref(resource: &Resource, owner: &Cached) -> Value {
    json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "name": owner.name(),
        "uid": owner.uid(),
    })
}

/// Puts a new pod into its group.
pub(super) fn join(pod: &mut Value, group: &Cached) {
    pod["spec"]["schedulingGroup"] = json!({"podGroupName": group.name()});
    // Beside the Job; the group does not wait for it to go.
    if let Some(owners) = pod["metadata"]["ownerReferences"].as_array_mut() {
        owners.push(owner_ref(&POD_GROUPS, group));
    }
}

/// The beginning of a name (which is ASCII), of at most so many bytes.
fn cut(name: &str, max_bytes: usize) -> &str {
    name.get(..max_bytes).unwrap_or(name)
}

fn workload_name(job: &Cached) -> String {
    let hash = template::hash_of(&[job.uid()]);
    format!("{}-{hash}", cut(job.name(), NAME_MAX_BYTES - hash.len() - 1))
}

/// Of both names, each is cut to half of what there is, or to what the other leaves it.
fn group_name(workload: &str, template: &str) -> String {
    let hash = template::hash_of(&[workload, template]);
    let room = NAME_MAX_BYTES - hash.len() - 2;
    let half = room / 2;
    let (mut first, mut second) = (workload, template);
    if first.len() + second.len() > room {
        if first.len() <= half {
            second = cut(second, room - first.len());
        } else if second.len() <= half {
            first = cut(first, room - second.len());
        } else {
            (first, second) = (cut(first, room - half), cut(second, half));
        }
    }
    format!("{first}-{second}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gangs_have_workloads() {
        let indexed = json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed"});
        let cases = [
            (json!({}), true),
            (json!({"parallelism": 1, "completions": 1}), false),
            (json!({"completions": 3}), false),
            (json!({"completions": null}), false),
            (json!({"completionMode": "NonIndexed"}), false),
            (json!({"completionMode": null}), false),
            (json!({"template": {"spec": {"schedulingGroup": {"podGroupName": "g"}}}}), false),
            (json!({"template": {"spec": {"schedulingGroup": null}}}), true),
        ];
        for (change, expected) in cases {
            let mut spec = indexed.clone();
            for (field, value) in change.as_object().unwrap() {
                spec[field] = value.clone();
            }
            let view: View = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(view.is_gang(), expected, "{change}");
        }
    }

    #[test]
    fn only_new_jobs_get_workloads() {
        let time = "2026-01-01T00:00:00Z";
        let cases = [
            (json!({}), json!({}), true),
            (json!({}), json!({"startTime": time}), false),
            (json!({}), json!({"succeeded": 1}), false),
            (json!({}), json!({"failed": 1}), false),
            (json!({}), json!({"conditions": [{"type": "Suspended", "status": "False"}]}), false),
            (json!({"deletionTimestamp": time}), json!({}), false),
        ];
        for (metadata, status, expected) in cases {
            let view: View = serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap();
            assert_eq!(view.is_new(&[]), expected, "{status}");
        }
    }

    #[test]
    fn names_fit() {
        let name = group_name("w", "t");
        assert!(name.starts_with("w-t-") && name == group_name("w", "t") && name != group_name("w", "u"));
        let (short, long) = ("a".repeat(20), "b".repeat(253));
        for (workload, template) in [(&short, &long), (&long, &short), (&long, &long)] {
            assert_eq!(group_name(workload, template).len(), NAME_MAX_BYTES);
        }
        assert!(group_name(&short, &long).starts_with(&format!("{short}-b")));
        assert!(group_name(&long, &short).contains(&format!("b-{short}-")));
    }
}

//! Keeps flow control in step with the store: objects that must exist are made and kept up, every change makes
//! a new table, and FlowSchemas say in their status whether their level exists.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Bound,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderValue, header};
use serde_json::{Value, json};
use tokio::time::Instant;
use yare_kinds::view::{View, ViewMut};

use super::{
    bootstrap::{self, AUTO_UPDATE, Wanted},
    queueset::Discipline,
    table::{self, Dangling, Table},
};
use crate::{
    bootstrap::internal_call,
    changes::Changes,
    core::{Call, Core},
    options::{APPLY_PATCH, FieldValidation, WriteOptions},
    path::Query,
    registry::{Served, store_kind},
    status::{ApiError, ApiResult},
    verbs::{create, delete, patch, write},
};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const LEVELS: &str = "prioritylevelconfigurations";
const SCHEMAS: &str = "flowschemas";
/// Field managers of what is written here.
const PRODUCER: &str = "api-priority-and-fairness-config-producer-v1";
const CONSUMER: &str = "api-priority-and-fairness-config-consumer-v1";
/// Objects are put right within this time after they changed.
const ENSURE_EVERY: Duration = Duration::from_secs(60);
/// Status updates of one FlowSchema within a minute; servers that disagree would fight.
const MAX_UPDATES: usize = 6;
const UPDATE_WINDOW: Duration = Duration::from_secs(60);

/// Makes the objects that must exist, takes in what is in the store, and follows it until the server stops.
pub async fn start(core: &Arc<Core>) {
    if !core.flow.settings().fair {
        return;
    }
    if let Err(error) = ensure(core).await {
        tracing::warn!(%error, "objects of priority and fairness");
    }
    let mut feed = Feed { updates: HashMap::new(), ensured: Instant::now(), dirty: false };
    let (schemas, dangling) = take_in(core);
    let core = core.clone();
    tokio::spawn(async move {
        let adjuster = core.clone();
        tokio::select! {
            () = core.stop.cancelled() => {}
            () = adjuster.flow.keep_adjusted() => {}
            () = async {
                feed.report(&core, &dangling, &schemas).await;
                feed.follow(&core).await;
            } => {}
        }
    });
}

/// Reads all objects and swaps the table; the FlowSchemas and what their conditions should be.
fn take_in(core: &Core) -> (Vec<Value>, Vec<Dangling>) {
    let flow = &core.flow;
    let (levels, schemas) = (objects(core, LEVELS), objects(core, SCHEMAS));
    let old = flow.table.load_full();
    let (table, dangling) = Table::build(Some(&old), &levels, &schemas, flow.total(), flow.now());
    let rooms = table.levels.values().map(|row| match row.discipline() {
        Discipline::Queue { queues, length, .. } => u64::from(queues) * u64::from(length),
        _ => 0,
    });
    flow.room.store(rooms.sum::<u64>().max(1), Ordering::Relaxed);
    flow.table.store(Arc::new(table));
    flow.adjust(1.0);
    (schemas, dangling)
}

fn objects(core: &Core, plural: &str) -> Vec<Value> {
    let snapshot = core.store().snapshot(&store_kind(GROUP, plural));
    let all = snapshot.range(Bound::Unbounded, "");
    all.filter_map(|object| serde_json::from_slice(&object.bytes).ok()).collect()
}

struct Feed {
    /// When the status of each FlowSchema was written.
    updates: HashMap<String, VecDeque<Instant>>,
    /// When objects were last put right.
    ensured: Instant,
    /// Something changed since.
    dirty: bool,
}

impl Feed {
    async fn follow(&mut self, core: &Arc<Core>) {
        let kinds = [LEVELS, SCHEMAS].map(|plural| store_kind(GROUP, plural));
        let mut changes = Changes::from_now(core, kinds.iter().map(|kind| &**kind));
        // What changed before the watch began.
        let mut wait = self.sync(core).await;
        loop {
            let due = wait;
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changes.next() => match change {
                    Some(_) => self.dirty = true,
                    None => return,
                },
                () = core.flow.reap.notified() => {}
                () = timer => wait = None,
            }
            wait = earlier(wait, self.sync(core).await);
        }
    }

    /// Takes in the present state; when to look again though nothing changes.
    async fn sync(&mut self, core: &Arc<Core>) -> Option<Instant> {
        let (schemas, dangling) = take_in(core);
        let again = self.report(core, &dangling, &schemas).await;
        if !self.dirty {
            return again;
        }
        let due = self.ensured + ENSURE_EVERY;
        if Instant::now() < due {
            return earlier(again, Some(due));
        }
        (self.ensured, self.dirty) = (Instant::now(), false);
        match ensure(core).await {
            Ok(()) => again,
            Err(error) => {
                tracing::warn!(%error, "objects of priority and fairness");
                self.dirty = true;
                earlier(again, Some(self.ensured + ENSURE_EVERY))
            }
        }
    }

    /// Writes the conditions that are not as they should be.
    async fn report(&mut self, core: &Arc<Core>, wanted: &[Dangling], schemas: &[Value]) -> Option<Instant> {
        let mut again = None;
        let names: HashSet<&str> = wanted.iter().map(|d| d.schema.as_str()).collect();
        self.updates.retain(|name, _| names.contains(name.as_str()));
        for condition in table::outdated(wanted, schemas) {
            let now = Instant::now();
            let recent = self.updates.entry(condition.schema.clone()).or_default();
            while recent.front().is_some_and(|at| now.duration_since(*at) > UPDATE_WINDOW) {
                recent.pop_front();
            }
            if recent.len() >= MAX_UPDATES {
                // Servers that disagree should not come back at the same time.
                let mut byte = [0u8];
                core.config.random.fill(&mut byte);
                again = earlier(again, Some(now + Duration::from_secs(30 + u64::from(byte[0] % 45))));
                continue;
            }
            recent.push_back(now);
            match set_condition(core, condition).await {
                Ok(()) => {}
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => {
                    tracing::warn!(schema = condition.schema, %error, "status of a FlowSchema");
                    again = earlier(again, Some(now + Duration::from_secs(1)));
                }
            }
        }
        again
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// A request of this controller about one object.
fn request(core: &Arc<Core>, verb: &'static str, plural: &str, name: &str, sub: &str) -> Call {
    let mut call = internal_call(core, verb, plural, "", name);
    let info = Arc::make_mut(&mut call.info);
    (info.group, info.version) = (GROUP.into(), "v1".into());
    info.subresource = sub.into();
    call
}

fn served(core: &Core, plural: &str) -> ApiResult<Arc<Served>> {
    core.registry.load().find(GROUP, "v1", plural).cloned().ok_or_else(ApiError::unknown_resource)
}

async fn set_condition(core: &Arc<Core>, wanted: &Dangling) -> ApiResult<()> {
    let served = served(core, SCHEMAS)?;
    let mut call = request(core, "patch", SCHEMAS, &wanted.schema, "status");
    call.query = Query::parse(Some(&format!("fieldManager={CONSUMER}&force=true")));
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(APPLY_PATCH));
    let (status, reason, message) = wanted.condition();
    let body = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema",
        "metadata": { "name": wanted.schema },
        "status": { "conditions": [{
            "type": "Dangling", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": core.now_rfc3339(),
        }] },
    });
    patch::patch(&call, &served, &write::STATUS, body.to_string().into()).await.map(drop)
}

/// Makes and keeps up the objects that must exist, and removes those that no longer must.
async fn ensure(core: &Arc<Core>) -> ApiResult<()> {
    for (plural, wanted) in
        [(LEVELS, bootstrap::levels().collect::<Vec<_>>()), (SCHEMAS, bootstrap::schemas().collect())]
    {
        // Together, so that they share the disk's syncs.
        let mut jobs = Vec::with_capacity(wanted.len());
        for wanted in &wanted {
            jobs.push(keep(core, plural, wanted));
        }
        futures::future::try_join_all(jobs).await?;
        let names: HashSet<&str> = wanted.iter().map(|w| w.object.str_at("metadata.name")).collect();
        for object in objects(core, plural) {
            let name = object.str_at("metadata.name");
            if !names.contains(name) && auto_update(&object) == Some(true) {
                let served = served(core, plural)?;
                let call = request(core, "delete", plural, name, "");
                match delete::delete(&call, &served, b"").await {
                    Ok(_) => {}
                    Err(error) if error.reason == "NotFound" => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

/// What the annotation says, where it says something.
fn auto_update(object: &Value) -> Option<bool> {
    match object.at("metadata").at("annotations").get(AUTO_UPDATE)?.as_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

async fn keep(core: &Arc<Core>, plural: &str, wanted: &Wanted) -> ApiResult<()> {
    let name = wanted.object.str_at("metadata.name");
    let served = served(core, plural)?;
    let options = WriteOptions {
        dry_run: false,
        field_manager: PRODUCER.into(),
        field_validation: FieldValidation::Strict,
        force: false,
    };
    let Some(current) = core.read(&store_kind(GROUP, plural), name) else {
        let call = request(core, "create", plural, "", "");
        return match create::object_of(&call, &served, wanted.object.clone(), &options, create::By::Create)
            .await
        {
            Err(error) if error.reason != "AlreadyExists" => Err(error),
            _ => Ok(()),
        };
    };
    let Some(revised) = revise(&current, wanted) else { return Ok(()) };
    let call = request(core, "update", plural, name, "");
    let make = |_: &Value| Ok(revised.clone());
    let update = write::Update {
        call: &call,
        served: &served,
        name,
        target: &write::MAIN,
        options: &options,
        make: &make,
        apply: false,
        retry: false,
        view: None,
    };
    match write::update(&update).await {
        // Somebody else changed it: it is looked at again then.
        Err(error) if !matches!(&*error.reason, "Conflict" | "NotFound") => Err(error),
        _ => Ok(()),
    }
}

/// The object as it should be, where it is not: its spec where the server keeps it up, and the annotation that
/// says whether it does.
fn revise(current: &Value, wanted: &Wanted) -> Option<Value> {
    let said = auto_update(current);
    // Without a word in the annotation, one that nobody changed is the server's.
    let update = wanted.mandatory || said.unwrap_or_else(|| current.int_at("metadata.generation") == 1);
    let changed = update && current.at("spec") != wanted.object.at("spec");
    if !changed && said == Some(update) {
        return None;
    }
    let mut revised = current.clone();
    if changed {
        revised.set("spec", wanted.object.at("spec").clone());
    }
    if said != Some(update) {
        let mut annotations =
            current.at("metadata").at("annotations").as_object().cloned().unwrap_or_default();
        annotations.insert(AUTO_UPDATE.into(), update.to_string().into());
        revised.set("metadata.annotations", Value::Object(annotations));
    }
    Some(revised)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_up() {
        let wanted =
            |mandatory| Wanted { object: json!({"metadata": {"name": "x"}, "spec": {"a": 1}}), mandatory };
        let object = |annotation: Option<&str>, generation: i64, a: i64| {
            let mut object = json!({"metadata": {"name": "x", "generation": generation}, "spec": {"a": a}});
            if let Some(text) = annotation {
                object["metadata"]["annotations"] = json!({ AUTO_UPDATE: text });
            }
            object
        };
        // annotation, generation, spec, mandatory → spec and annotation afterwards; none: left alone
        for (annotation, generation, a, mandatory, want) in [
            (Some("true"), 1, 1, false, None),
            (Some("true"), 3, 2, false, Some((1, "true"))),
            (Some("false"), 3, 2, false, None),
            (Some("false"), 3, 2, true, Some((1, "true"))),
            (Some("false"), 3, 1, true, Some((1, "true"))),
            (None, 1, 2, false, Some((1, "true"))),
            (None, 2, 2, false, Some((2, "false"))),
            (Some("maybe"), 2, 2, false, Some((2, "false"))),
        ] {
            let got = revise(&object(annotation, generation, a), &wanted(mandatory));
            let got = got.as_ref().map(|o| {
                (
                    o["spec"]["a"].as_i64().unwrap(),
                    o["metadata"]["annotations"][AUTO_UPDATE].as_str().unwrap(),
                )
            });
            assert_eq!(got, want, "{annotation:?} {generation} {a} {mandatory}");
        }
    }
}

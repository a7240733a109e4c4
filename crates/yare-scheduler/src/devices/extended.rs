//! Extended resources that devices stand behind (KEP-5004): a pod asks for `example.com/gpu: 2` as ever, and on a node
//! whose devices no plugin counts, a claim made for the pod gets them.
//!
//! In: what a pod's containers ask for, and which class stands for which resource. Out: the requests of the pod's one
//! claim, and which of them serves which container.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, ObjectKey, ViewError};
use yare_kinds::quota;
use yare_schema::quantity::Quantity;

use super::requests::{Alternative, ClaimSpec, Class, Request, Wanted};
use crate::view;

/// Tells a claim that was made for extended resources.
pub const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// The resource that stands for a class without being named in it.
const CLASS_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// Whether devices may stand behind a resource of this name.
pub fn may_stand_behind(resource: &str) -> bool {
    quota::is_extended_resource(resource) || resource.starts_with(CLASS_PREFIX)
}

/// What one container asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asking {
    /// The container.
    name: Box<str>,
    /// It ends before the pod's containers begin, which may have its devices then.
    passing: bool,
    wants: Box<[Want]>,
}

#[derive(Debug, PartialEq, Eq)]
struct Want {
    resource: Box<str>,
    /// Its place among all that the container asks for, by name.
    place: usize,
    count: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Names {
    spec: NamesSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NamesSpec {
    containers: Vec<Name>,
    init_containers: Vec<Name>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Name {
    name: Box<str>,
}

/// What the containers of a pod ask for, init containers first; `None`, as for most pods: nothing that devices may
/// stand behind.
pub fn asked(object: &Cached, spec: &view::PodSpec) -> Result<Option<Arc<[Asking]>>, ViewError> {
    let all = || spec.init_containers.iter().chain(&spec.containers);
    if !all().any(|c| c.resources.requests.keys().any(|name| may_stand_behind(name))) {
        return Ok(None);
    }
    let Names { spec: names } = object.view()?;
    let names = names.init_containers.into_iter().chain(names.containers);
    let ask = |(place, (container, name)): (usize, (&view::Container, Name))| {
        let wants =
            container.resources.requests.iter().enumerate().filter_map(|(place, (resource, text))| {
                let count = Quantity::parse(text).ok().and_then(|q| u64::try_from(q.value()).ok())?;
                let wanted = count > 0 && may_stand_behind(resource);
                wanted.then(|| Want { resource: resource.as_str().into(), place, count })
            });
        let passing = place < spec.init_containers.len() && container.restart_policy != "Always";
        Asking { name: name.name, passing, wants: wants.collect() }
    };
    Ok(Some(all().zip(names).enumerate().map(ask).collect()))
}

/// Which request of the claim serves a container's resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The container.
    pub container: Box<str>,
    /// The resource that it asks for.
    pub resource: Box<str>,
    /// The request.
    pub request: Box<str>,
}

/// Requests of a pod's claim, and whom they serve.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Name, class and number of devices, by name.
    requests: Vec<(Box<str>, Box<str>, u64)>,
    /// Which of them serve which container.
    pub mappings: Vec<Mapping>,
}

impl Demand {
    /// What containers ask for of the resources for which classes stand.
    pub fn new(containers: &[Asking], classes: &BTreeMap<&str, &str>) -> Self {
        let mut out = Self::default();
        for (resource, class) in classes {
            out.add(containers, resource, class);
        }
        out.requests.sort();
        out
    }

    fn add(&mut self, containers: &[Asking], resource: &str, class: &str) {
        let wanted = |at: usize| {
            let want = containers[at].wants.iter().find(|w| *w.resource == *resource)?;
            Some((want.count, Box::<str>::from(format!("container-{at}-request-{}", want.place))))
        };
        let serves = |at: usize, request: &str| Mapping {
            container: containers[at].name.clone(),
            resource: resource.into(),
            request: request.into(),
        };
        let places =
            |passing: bool| (0..containers.len()).filter(move |at| containers[*at].passing == passing);
        let mut lasting: Vec<Option<(Box<str>, u64)>> = vec![None; containers.len()];
        for at in places(false) {
            if let Some((count, name)) = wanted(at) {
                self.mappings.push(serves(at, &name));
                lasting[at] = Some((name, count));
            }
        }
        // Of the containers that pass only the one that needs most beyond that counts, as in the pod's own requests.
        let mut most: Option<(Box<str>, u64)> = None;
        let mut own: BTreeSet<Box<str>> = BTreeSet::new();
        let mut passing = Vec::new();
        for at in places(true) {
            let Some((mut count, name)) = wanted(at) else { continue };
            // What later containers will have is free until then.
            for (request, there) in lasting[at..].iter().flatten() {
                passing.push(serves(at, request));
                count = count.saturating_sub(*there);
                if count == 0 {
                    break;
                }
            }
            if count > 0 {
                passing.push(serves(at, &name));
                own.insert(name.clone());
                if most.as_ref().is_none_or(|(_, other)| *other < count) {
                    most = Some((name, count));
                }
            }
        }
        if let Some((name, _)) = &most {
            for mapping in passing.iter_mut().filter(|m| own.contains(&m.request)) {
                mapping.request.clone_from(name);
            }
        }
        self.mappings.extend(passing);
        let all = most.into_iter().chain(lasting.into_iter().flatten());
        self.requests.extend(all.map(|(name, count)| (name, class.into(), count)));
    }

    /// The claim's spec for the allocator.
    pub fn spec(&self, pod: &ObjectKey) -> ClaimSpec {
        let request = |(name, class, count): &(Box<str>, Box<str>, u64)| Request {
            name: name.clone(),
            alternatives: vec![Alternative {
                name: name.clone(),
                class: class.clone(),
                selectors: Vec::new(),
                wanted: Wanted::Exactly(*count),
                admin_access: false,
                tolerations: Vec::new(),
                tolerations_value: None,
                capacity: None,
            }],
            listed: false,
        };
        ClaimSpec {
            name: format!("{}/<extended-resources>", pod.namespace).into(),
            requests: self.requests.iter().map(request).collect(),
            constraints: Vec::new(),
            config: Vec::new(),
        }
    }

    /// `spec.devices.requests` of the claim.
    pub fn to_json(&self) -> Value {
        let one = |(name, class, count): &(Box<str>, Box<str>, u64)| {
            json!({"name": name, "exactly": {
                "deviceClassName": class, "allocationMode": "ExactCount", "count": count}})
        };
        self.requests.iter().map(one).collect()
    }
}

/// What a pod's extended resources come to on nodes where the same of them are devices.
#[derive(Debug)]
pub struct Wish {
    /// Requests, and whom they serve.
    pub demand: Demand,
    /// The same for the allocator.
    pub spec: Arc<ClaimSpec>,
}

impl Wish {
    /// What the containers of `pod` ask for of the resources for which classes stand.
    pub fn new(pod: &ObjectKey, containers: &[Asking], classes: &BTreeMap<&str, &str>) -> Self {
        let demand = Demand::new(containers, classes);
        let spec = Arc::new(demand.spec(pod));
        Self { demand, spec }
    }
}

/// Which class stands for which resource.
#[derive(Debug, Default)]
pub struct Resources(HashMap<Box<str>, Box<str>>);

impl Resources {
    /// As classes say. Of several that name one resource it is the newest, and of those the first by name.
    pub fn new<'c>(classes: impl Iterator<Item = &'c Arc<Class>>) -> Self {
        let mut named: HashMap<&str, &Class> = HashMap::new();
        let mut out = HashMap::new();
        for class in classes {
            out.insert(format!("{CLASS_PREFIX}{}", class.name).into(), class.name.clone());
            let Some(resource) = &class.extended_resource else { continue };
            let rank = |c: &Class| (c.created.clone(), std::cmp::Reverse(c.name.clone()));
            let best = named.entry(resource).or_insert(class);
            if rank(class) > rank(best) {
                *best = class;
            }
        }
        out.extend(named.into_iter().map(|(resource, class)| (resource.into(), class.name.clone())));
        Self(out)
    }

    /// The class that stands for a resource.
    pub fn class(&self, resource: &str) -> Option<&str> {
        self.0.get(resource).map(|class| &**class)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Containers as `name: resource=count …`; `i:` before the name is an init container, `s:` a sidecar.
    fn pod(containers: &[&str]) -> Cached {
        let mut spec = json!({"containers": [], "initContainers": []});
        for text in containers {
            let (name, wants) = text.split_once(": ").unwrap();
            let requests: serde_json::Map<String, Value> = wants
                .split_whitespace()
                .map(|want| want.split_once('=').unwrap())
                .map(|(resource, count)| (resource.to_owned(), count.into()))
                .collect();
            let (list, name) = match name.split_once(':') {
                Some((_, name)) => ("initContainers", name),
                None => ("containers", name),
            };
            let mut container = json!({"name": name, "resources": {"requests": requests}});
            if text.starts_with("s:") {
                container["restartPolicy"] = "Always".into();
            }
            spec[list].as_array_mut().unwrap().push(container);
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        Cached::new(Bytes::from(pod.to_string())).unwrap()
    }

    /// Requests as `number=count`, mappings as `container<number`, where a number is a container's and its request's.
    fn demand(containers: &[&str]) -> String {
        let object = pod(containers);
        let read: view::Pod = object.view().unwrap();
        let Some(asked) = asked(&object, &read.spec).unwrap() else { return "nothing".into() };
        let classes =
            BTreeMap::from([("x.io/gpu", "gpu"), ("deviceclass.resource.kubernetes.io/net", "net")]);
        let demand = Demand::new(&asked, &classes);
        let short = |name: &str| name.replace("container-", "").replace("-request-", ".");
        let requests =
            demand.requests.iter().map(|(n, class, count)| format!("{}={count} {class}", short(n)));
        let mappings = demand.mappings.iter().map(|m| format!("{}<{}", m.container, short(&m.request)));
        requests.chain(mappings).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn demands() {
        for (containers, want) in [
            (&["a: cpu=1 memory=1"][..], "nothing"),
            // What devices may stand behind, and nothing does here.
            (&["a: y.io/nic=1"], ""),
            (&["a: x.io/gpu=0"], ""),
            (&["a: cpu=1 x.io/gpu=2"], "0.1=2 gpu, a<0.1"),
            (
                &["a: x.io/gpu=1", "b: deviceclass.resource.kubernetes.io/net=1 x.io/gpu=1"],
                "0.0=1 gpu, 1.0=1 net, 1.1=1 gpu, b<1.0, a<0.0, b<1.1",
            ),
            // What passes uses what comes later, and its own beyond that.
            (&["i:i: x.io/gpu=1", "a: x.io/gpu=2"], "1.0=2 gpu, a<1.0, i<1.0"),
            (&["i:i: x.io/gpu=3", "a: x.io/gpu=1"], "0.0=2 gpu, 1.0=1 gpu, a<1.0, i<1.0, i<0.0"),
            // Of two that pass, the one that needs more.
            (&["i:i: x.io/gpu=2", "i:j: x.io/gpu=3", "a: cpu=1"], "1.0=3 gpu, i<1.0, j<1.0"),
            // A sidecar keeps its own; those before it may use it, those after it not.
            (
                &["i:i: x.io/gpu=1", "s:s: x.io/gpu=1", "i:j: x.io/gpu=1", "a: cpu=1"],
                "1.0=1 gpu, 2.0=1 gpu, s<1.0, i<1.0, j<2.0",
            ),
        ] {
            assert_eq!(demand(containers), want, "{containers:?}");
        }
    }

    #[test]
    fn classes_stand_for_resources() {
        let class = |name: &str, created: &str, resource: Option<&str>| {
            Arc::new(Class {
                name: name.into(),
                selectors: Vec::new(),
                config: Vec::new(),
                extended_resource: resource.map(Into::into),
                created: created.into(),
            })
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let classes = [
            class("old", old, Some("x.io/gpu")),
            class("b", new, Some("x.io/gpu")),
            class("a", new, Some("x.io/gpu")),
            class("plain", new, None),
        ];
        let resources = Resources::new(classes.iter());
        for (resource, want) in [
            ("x.io/gpu", Some("a")),
            ("x.io/nic", None),
            ("deviceclass.resource.kubernetes.io/old", Some("old")),
            ("deviceclass.resource.kubernetes.io/plain", Some("plain")),
        ] {
            assert_eq!(resources.class(resource), want, "{resource}");
        }
    }
}

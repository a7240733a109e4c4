//! `Event`, in the shape of the core group, which is also how `events.k8s.io` events are stored.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta::IMMUTABLE as IMMUTABLE_DETAIL,
    names,
    shown::{EVENT_SOURCE, OBJECT, show},
    strategy::{Context, Strategy},
    view::{View, same},
};

pub struct Event {
    /// By the rules of `events.k8s.io`.
    pub strict: bool,
}

/// What never changes in an event of `events.k8s.io`.
const IMMUTABLE: &[&str] = &[
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "reason",
    "type",
    "eventTime",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
];

impl Event {
    fn check_common(&self, errs: &mut Errors, event: &Value) {
        let namespace = event.str_at("metadata.namespace");
        let about = event.str_at("involvedObject.namespace");
        let path = Path::new("involvedObject");
        let matches = if event.has("eventTime") {
            !about.is_empty() || matches!(namespace, "default" | "kube-system")
        } else if about.is_empty() {
            matches!(namespace, "" | "default")
        } else {
            namespace == about
        };
        if !matches {
            errs.invalid(&path.child("namespace"), about, "does not match event.namespace");
        }
        if event.has("eventTime") {
            let controller = if self.strict { "reportingController" } else { "reportingComponent" };
            let controller = Path::new(controller);
            let name = event.str_at("reportingComponent");
            errs.non_empty(&controller, name);
            errs.each(&controller, name, names::qualified_name(name));
            const LIMITS: [(&str, usize); 4] =
                [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)];
            for (field, max) in LIMITS {
                let (path, value) = (Path::new(field), event.str_at(field));
                if value.is_empty() && field != "message" {
                    errs.required(&path, "");
                }
                if value.len() > max {
                    errs.invalid(&path, "", format!("can have at most {max} characters"));
                }
            }
        }
        errs.each(&Path::new("namespace"), namespace, names::dns1123_subdomain(namespace));
    }

    fn check_series(errs: &mut Errors, event: &Value) {
        if event.has("series") {
            if event.int_at("series.count") < 2 {
                errs.invalid(&Path::new("series.count"), "", "should be at least 2");
            }
            if !event.has("series.lastObservedTime") {
                errs.required(&Path::new("series.lastObservedTime"), "");
            }
        }
    }
}

impl Strategy for Event {
    fn validate(&self, event: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        self.check_common(&mut errs, event);
        if !self.strict {
            return errs;
        }
        Self::check_series(&mut errs, event);
        if !event.has("eventTime") {
            errs.required(&Path::new("eventTime"), "");
        }
        let kind = event.str_at("type");
        if !matches!(kind, "Normal" | "Warning") {
            errs.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
        }
        for field in ["firstTimestamp", "lastTimestamp", "count"] {
            if event.is_set(field) {
                errs.invalid(&Path::new(field), "", "needs to be unset");
            }
        }
        if event.is_set("source.component") || event.is_set("source.host") {
            errs.invalid(&Path::new("source"), "", "needs to be unset");
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        self.check_common(&mut errs, new);
        if self.strict {
            if !same(new.at("series"), old.at("series")) {
                Self::check_series(&mut errs, new);
            }
            for field in IMMUTABLE {
                let (now, before) = (new.at(field), old.at(field));
                if same(now, before) {
                    continue;
                }
                let path = if *field == "reportingComponent" { "reportingController" } else { field };
                let error = FieldError::invalid(&Path::new(path), now.clone(), IMMUTABLE_DETAIL);
                errs.push(match *field {
                    "involvedObject" | "related" => error.showing(show(now, OBJECT)),
                    "source" => error.showing(show(now, EVENT_SOURCE)),
                    "count" => error.showing(new.int_at(field).to_string()),
                    "reason" | "message" | "type" | "action" | "reportingComponent" | "reportingInstance" => {
                        FieldError::invalid(&Path::new(path), new.str_at(field), IMMUTABLE_DETAIL)
                    }
                    _ => error,
                });
            }
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn judges_metadata(&self) -> bool {
        self.strict
    }

    /// The core group has never asked more of an event's name than that it fits into a path.
    fn validate_name(&self, name: &str) -> Vec<String> {
        if self.strict { names::dns1123_subdomain(name) } else { names::path_segment(name) }
    }
}

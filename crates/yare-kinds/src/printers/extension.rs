//! Rows of what extends and protects the API, of leases, and of runtime classes.

use serde_json::Value;

use super::{
    AGE, NAME, Printer, cells,
    format::{self, age},
    integer, name, text,
};
use crate::{conditions, view::View};

/// `MutatingWebhookConfiguration` and `ValidatingWebhookConfiguration`
pub const WEBHOOK_CONFIGURATION: Printer = Printer {
    columns: &[
        NAME,
        integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"),
        AGE,
    ],
    row: |o, now_s| cells![name(o), o.items("webhooks").len(), age(o, now_s)],
};

/// `ValidatingAdmissionPolicy`
pub const VALIDATING_ADMISSION_POLICY: Printer = Printer {
    columns: &[
        NAME,
        integer(
            "Validations",
            "Validations indicates the number of validation rules defined in this configuration",
        ),
        text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
        AGE,
    ],
    row: |o, now_s| cells![name(o), o.items("spec.validations").len(), param_kind(o), age(o, now_s)],
};

/// `MutatingAdmissionPolicy`
pub const MUTATING_ADMISSION_POLICY: Printer = Printer {
    columns: &[
        NAME,
        integer(
            "Mutations",
            "Mutation indicates the number of mutations rules defined in this configuration",
        ),
        text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
        AGE,
    ],
    row: |o, now_s| cells![name(o), o.items("spec.mutations").len(), param_kind(o), age(o, now_s)],
};

fn param_kind(o: &Value) -> String {
    let kind = o.at("spec.paramKind");
    if kind.is_null() {
        return "<unset>".to_owned();
    }
    format!("{}/{}", kind.str_at("apiVersion"), kind.str_at("kind"))
}

/// `ValidatingAdmissionPolicyBinding` and `MutatingAdmissionPolicyBinding`
pub const ADMISSION_POLICY_BINDING: Printer = Printer {
    columns: &[
        NAME,
        text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
        text("ParamRef", "ParamRef indicates the param resource which sets the configuration param"),
        AGE,
    ],
    row: |o, now_s| {
        let param = o.at("spec.paramRef");
        let text = match (param.str_at("namespace"), param.str_at("name")) {
            (_, "") if param.has("selector") => format::format_label_selector(param.at("selector")),
            (_, "") => "<unset>".to_owned(),
            // A reference without a namespace may be to a cluster-scoped object or to one in each namespace.
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        cells![name(o), o.str_at("spec.policyName"), text, age(o, now_s)]
    },
};

/// `APIService`
pub const API_SERVICE: Printer = Printer {
    columns: &[
        NAME,
        text("Service", "The reference to the service that hosts this API endpoint."),
        text("Available", "Whether this service is available."),
        AGE,
    ],
    row: |o, now_s| {
        let service = o.at("spec.service");
        let service = if service.is_null() {
            "Local".to_owned()
        } else {
            format!("{}/{}", service.str_at("namespace"), service.str_at("name"))
        };
        let condition = conditions::find(o.items("status.conditions"), "Available");
        let available = match condition {
            None => "Unknown".to_owned(),
            Some(c) if c.str_at("status") == "True" => "True".to_owned(),
            Some(c) => format!("{} ({})", c.str_at("status"), c.str_at("reason")),
        };
        cells![name(o), service, available, age(o, now_s)]
    },
};

/// `FlowSchema`
pub const FLOW_SCHEMA: Printer = Printer {
    columns: &[
        NAME,
        text("PriorityLevel", "Priority level of the requests that match."),
        text("MatchingPrecedence", "The lowest that matches wins."),
        text("DistinguisherMethod", "How requests are told apart into flows."),
        AGE,
        text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
    ],
    row: |o, now_s| {
        let dangling = conditions::find(o.items("status.conditions"), "Dangling");
        cells![
            name(o),
            o.str_at("spec.priorityLevelConfiguration.name"),
            o.int_at("spec.matchingPrecedence"),
            format::or(o, "spec.distinguisherMethod.type", "<none>"),
            age(o, now_s),
            dangling.map_or("?", |c| c.str_at("status")),
        ]
    },
};

/// `PriorityLevelConfiguration`
pub const PRIORITY_LEVEL_CONFIGURATION: Printer = Printer {
    columns: &[
        NAME,
        text("Type", "Exempt or Limited."),
        text("NominalConcurrencyShares", "Share of the server's seats."),
        text("Queues", "Number of queues."),
        text("HandSize", "Number of queues a flow is dealt."),
        text("QueueLengthLimit", "Greatest length of a queue."),
        AGE,
    ],
    row: |o, now_s| {
        let limited = o.at("spec.limited");
        let number = |path: &str, set: bool| {
            if set { Value::from(limited.int_at(path)) } else { Value::from("<none>") }
        };
        let queuing = limited.has("limitResponse.queuing");
        cells![
            name(o),
            o.str_at("spec.type"),
            number("nominalConcurrencyShares", !limited.is_null()),
            number("limitResponse.queuing.queues", queuing),
            number("limitResponse.queuing.handSize", queuing),
            number("limitResponse.queuing.queueLengthLimit", queuing),
            age(o, now_s),
        ]
    },
};

/// `StorageVersion`
pub const STORAGE_VERSION: Printer = Printer {
    columns: &[
        NAME,
        text("CommonEncodingVersion", "Version all servers encode in."),
        text("StorageVersions", "Versions of each server."),
        AGE,
    ],
    row: |o, now_s| {
        let servers: Vec<String> = o
            .items("status.storageVersions")
            .iter()
            .map(|v| format!("{}={}", v.str_at("apiServerID"), v.str_at("encodingVersion")))
            .collect();
        cells![
            name(o),
            o.str_opt("status.commonEncodingVersion").unwrap_or("<unset>"),
            format::first_or_unset(&servers),
            age(o, now_s),
        ]
    },
};

/// `StorageVersionMigration`
pub const STORAGE_VERSION_MIGRATION: Printer = Printer {
    columns: &[NAME, text("Resource", "GroupResource to migrate"), text("Status", "Status of the migration")],
    row: |o, _| {
        let mut resource = o.str_at("spec.resource.resource").to_owned();
        if o.is_set("spec.resource.group") {
            resource.push_str(&format!(".{}", o.str_at("spec.resource.group")));
        }
        let status = o
            .items("status.conditions")
            .iter()
            .filter(|c| c.str_at("status") == "True")
            .map(|c| c.str_at("type"))
            .rfind(|t| matches!(*t, "Running" | "Failed" | "Succeeded"))
            .unwrap_or("Unknown");
        cells![name(o), resource, status]
    },
};

/// `Lease`
pub const LEASE: Printer = Printer {
    columns: &[NAME, text("Holder", "Who holds the lease."), AGE],
    row: |o, now_s| cells![name(o), o.str_at("spec.holderIdentity"), age(o, now_s)],
};

/// `LeaseCandidate`
pub const LEASE_CANDIDATE: Printer = Printer {
    columns: &[
        NAME,
        text("LeaseName", "Lease the candidate stands for."),
        text("BinaryVersion", "Version of the candidate."),
        text("EmulationVersion", "Version the candidate behaves as."),
        AGE,
    ],
    row: |o, now_s| {
        cells![
            name(o),
            o.str_at("spec.leaseName"),
            o.str_at("spec.binaryVersion"),
            o.str_at("spec.emulationVersion"),
            age(o, now_s),
        ]
    },
};

/// `RuntimeClass`
pub const RUNTIME_CLASS: Printer = Printer {
    columns: &[NAME, text("Handler", "Configuration of the container runtime."), AGE],
    row: |o, now_s| cells![name(o), o.str_at("handler"), age(o, now_s)],
};

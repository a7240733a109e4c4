//! Cases for `batch`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{
        CONTEXT, check_create, check_update, defaulted, named, patched, status_errors, strategy, template,
    },
    view::View,
};

fn pods() -> Value {
    patched(&template(), json!({"spec": {"restartPolicy": "Never"}}))
}

/// A job as it is after the API server has prepared it.
fn job() -> Value {
    let mut job =
        defaulted("batch", "Job", named(json!({"metadata": {"uid": "u"}, "spec": {"template": pods()}})));
    strategy("batch", "Job").prepare_for_create(&mut job, &CONTEXT);
    job
}

#[test]
fn defaults() {
    let job = job();
    assert_eq!((job.int_at("spec.completions"), job.int_at("spec.parallelism")), (1, 1));
    assert_eq!(job.int_at("spec.backoffLimit"), 6);
    assert_eq!(job.str_at("spec.completionMode"), "NonIndexed");
    assert_eq!(job.str_at("spec.podReplacementPolicy"), "TerminatingOrFailed");
    assert_eq!(
        job.at("metadata.labels"),
        job.at("spec.template.metadata.labels"),
        "those that are generated, too"
    );
    let own = json!({"metadata": {"uid": "u", "labels": {"own": "x"}}, "spec": {"template": pods()}});
    let mut own = defaulted("batch", "Job", named(own));
    strategy("batch", "Job").prepare_for_create(&mut own, &CONTEXT);
    assert_eq!(own.at("metadata.labels"), &json!({"own": "x"}));
    let bare = json!({"metadata": {"uid": "u"}, "spec": {"template": {"spec": pods()["spec"].clone()}}});
    let mut bare = defaulted("batch", "Job", named(bare));
    strategy("batch", "Job").prepare_for_create(&mut bare, &CONTEXT);
    assert_eq!(bare.at("metadata.labels"), bare.at("spec.template.metadata.labels"));
    assert_eq!(job.at("spec.selector"), &json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
    assert_eq!(
        job.at("spec.template.metadata.labels"),
        &json!({"app": "a", "job-name": "a", "batch.kubernetes.io/job-name": "a",
            "controller-uid": "u", "batch.kubernetes.io/controller-uid": "u"})
    );
    let parallel = defaulted("batch", "Job", json!({"spec": {"parallelism": 3, "backoffLimitPerIndex": 1}}));
    assert!(!parallel.has("spec.completions"));
    assert_eq!(parallel.int_at("spec.backoffLimit"), i64::from(i32::MAX));
    let cron = defaulted("batch", "CronJob", json!({}));
    assert_eq!(cron.str_at("spec.concurrencyPolicy"), "Allow");
    assert_eq!(
        (cron.int_at("spec.successfulJobsHistoryLimit"), cron.int_at("spec.failedJobsHistoryLimit")),
        (3, 1)
    );
}

#[test]
fn jobs() {
    let policy = |rule: Value| json!({"spec": {"podFailurePolicy": {"rules": [rule]}, "podReplacementPolicy": "Failed"}});
    check_create(
        "batch",
        "Job",
        &job(),
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"template": {"spec": {"restartPolicy": "Always"}}}}),
                &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
            ),
            (
                json!({"spec": {"backoffLimit": -1}}),
                &["spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"spec": {"completionMode": "Indexed", "completions": null}}),
                &["spec.completions: Required value: when completion mode is Indexed"],
            ),
            (
                json!({"spec": {"backoffLimitPerIndex": 1}}),
                &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
            ),
            (
                json!({"spec": {"managedBy": "x"}}),
                &[
                    "spec.managedBy: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
            (
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
                &[
                    "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"batch.kubernetes.io/controller-uid\":\"u\"}}: `selector` not auto-generated",
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"a\",\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"a\",\"controller-uid\":\"u\",\"job-name\":\"a\"}: `selector` does not match template `labels`",
                ],
            ),
            (policy(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}})), &[]),
            (
                policy(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 0, 2]}})),
                &[
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 2",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,0,2]: must be ordered",
                ],
            ),
            (
                policy(json!({"action": "FailIndex"})),
                &[
                    "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                    "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
                ],
            ),
            (
                json!({"spec": {"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 4}]}}}),
                &[
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of specified completions)",
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)",
                ],
            ),
        ],
    );
    check_update(
        "batch",
        "Job",
        &job(),
        &[
            (json!({"spec": {"parallelism": 2}}), &[]),
            (
                json!({"spec": {"completions": 2}}),
                &["spec.completions: Invalid value: 2: field is immutable"],
            ),
            (
                json!({"spec": {"managedBy": "a.b/c"}}),
                &["spec.managedBy: Invalid value: \"a.b/c\": field is immutable"],
            ),
        ],
    );
    let other_node = json!({"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}});
    let suspended = patched(&job(), json!({"spec": {"suspend": true}}));
    check_update("batch", "Job", &suspended, &[(other_node.clone(), &[])]);
    let old = job();
    let errs = strategy("batch", "Job").validate_update(&patched(&old, other_node), &old, &CONTEXT);
    assert_eq!(errs.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), ["spec.template"]);
}

#[test]
fn cron_jobs() {
    let base =
        named(json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": pods()}}}}));
    check_create(
        "batch",
        "CronJob",
        &base,
        &[
            (json!({}), &[]),
            (json!({"spec": {"timeZone": "Etc/UTC"}}), &[]),
            (
                json!({"metadata": {"name": "a".repeat(53)}}),
                &[
                    "metadata.name: Invalid value: \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\": must be no more than 52 characters",
                ],
            ),
            (
                json!({"spec": {"schedule": "error"}}),
                &["spec.schedule: Invalid value: \"error\": expected exactly 5 fields, found 1: [error]"],
            ),
            (
                json!({"spec": {"schedule": "TZ=UTC 0 * * * *"}}),
                &[
                    "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                ],
            ),
            (
                json!({"spec": {"timeZone": "Mars/Olympus"}}),
                &["spec.timeZone: Invalid value: \"Mars/Olympus\": unknown time zone Mars/Olympus"],
            ),
            (
                json!({"spec": {"concurrencyPolicy": "X"}}),
                &[
                    "spec.concurrencyPolicy: Unsupported value: \"X\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                ],
            ),
            (
                json!({"spec": {"jobTemplate": {"spec": {"manualSelector": true}}}}),
                &[
                    "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
                ],
            ),
        ],
    );
}

#[test]
fn status() {
    let check = |old: Value, new: Value, expected: &[&str]| {
        let base = job();
        let (old, new) =
            (patched(&base, json!({"status": old})), patched(&base, json!({"status": new.clone()})));
        assert_eq!(status_errors("batch", "Job", old, new.clone()), expected, "{}", new.at("status"));
    };
    let set = |kinds: &[&str]| -> Value {
        kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect()
    };
    check(json!({}), json!({"active": 1, "startTime": "2026-01-01T00:00:00Z"}), &[]);
    check(
        json!({"startTime": "2026-01-01T00:00:00Z", "active": 1}),
        json!({"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z", "succeeded": 1,
            "conditions": set(&["SuccessCriteriaMet", "Complete"])}),
        &[],
    );
    check(
        json!({}),
        json!({"conditions": set(&["Complete"])}),
        &[
            "status.completionTime: Required value: completionTime is required for Complete jobs",
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            "status.startTime: Required value: startTime is required for finished job",
        ],
    );
    check(
        json!({"failed": 2}),
        json!({"failed": 1}),
        &["status.failed: Invalid value: 1: cannot decrease the failed counter"],
    );
    check(
        json!({}),
        json!({"ready": 1}),
        &["status.ready: Invalid value: 1: cannot set more ready pods than active"],
    );
}

//! Cases for `certificates.k8s.io`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{CONTEXT, check_create, patched, strategy},
    view::View,
};

const GROUP: &str = "certificates.k8s.io";
const KIND: &str = "CertificateSigningRequest";
/// A request for `CN=jane`, signed with its key (P-256), whose private half is nowhere.
const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIWE1IOENBUUF3SFRFTk1Bc0dBMVVFQXd3RWFtRnVaVEVNTUFvR0ExVUVDZ3dEWkdWMk1Ga3dFd1lIS29aSQp6ajBDQVFZSUtvWkl6ajBEQVFjRFFnQUVGOGIyeW1TYnBSVDBrUjhHdkkyc1k3czVoNGpoZUdYQjY0QnVrelQ5CjlNTW9xSTJnUGFuZjQ3NFphZ2lYNFZxUXBvRHJVTkJOcGo1dnBBQ3lZY242c2FBQU1Bb0dDQ3FHU000OUJBTUMKQTBnQU1FVUNJUUQ1OGFBbWhWbG9FZE1KY2IvWDJNbUk3blNrUUROLzArMXUyd0RtSHNtNXhBSWdXVUxZaW53NQpnYmU5MURWeVQvVjVNdm9PQWZ1RHpFeXdzdlVoNVhwYW04Zz0KLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg==";
/// A certificate of the same key.
const CERTIFICATE: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJkVENDQVJ1Z0F3SUJBZ0lVWVI5d3FyTVk2NTVDYTBXdGl0NHFlb0RmckFJd0NnWUlLb1pJemowRUF3SXcKRHpFTk1Bc0dBMVVFQXd3RWFtRnVaVEFnRncweU5qRXhNakV3TkRJNU1EQmFHQTh5TVRJMk1UQXlPREEwTWprdwpNRm93RHpFTk1Bc0dBMVVFQXd3RWFtRnVaVEJaTUJNR0J5cUdTTTQ5QWdFR0NDcUdTTTQ5QXdFSEEwSUFCQmZHCjlzcGttNlVVOUpFZkJyeU5yR083T1llSTRYaGx3ZXVBYnBNMC9mVERLS2lOb0QycDMrTytHV29JbCtGYWtLYUEKNjFEUVRhWStiNlFBc21ISityR2pVekJSTUIwR0ExVWREZ1FXQkJTMmNBdzBOZ1RNQ2V1WkNUWVBvWjg1M0lPUQpCekFmQmdOVkhTTUVHREFXZ0JTMmNBdzBOZ1RNQ2V1WkNUWVBvWjg1M0lPUUJ6QVBCZ05WSFJNQkFmOEVCVEFECkFRSC9NQW9HQ0NxR1NNNDlCQU1DQTBnQU1FVUNJUUN6TGc1ZzU5WEVXUXpHNEpHUG5CdnVCdkhkWEhlYkRlbkIKeTZuK3pKcGdXQUlnYWdac1FqaXVaejJhbTJHTDdYUWRlS2FMT01uc2ZJZ0tIOGxlWDZheVhLbz0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";

fn csr() -> Value {
    json!({"metadata": {"name": "a"}, "spec": {"request": REQUEST, "signerName": "a.b/c", "usages": ["client auth"]}})
}

#[test]
fn creation() {
    check_create(
        GROUP,
        KIND,
        &csr(),
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"request": "YWJj"}}),
                &["spec.request: Invalid value: \"YWJj\": PEM block type must be CERTIFICATE REQUEST"],
            ),
            (
                json!({"spec": {"usages": [], "signerName": "kubernetes.io/legacy-unknown", "expirationSeconds": 599}}),
                &[
                    "spec.usages: Required value",
                    "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via this API version",
                    "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
                ],
            ),
            (
                json!({"spec": {"usages": ["client auth", "client auth"]}}),
                &["spec.usages[1]: Duplicate value: \"client auth\""],
            ),
        ],
    );
    let mut request =
        patched(&csr(), json!({"spec": {"username": "root", "groups": ["system:masters"], "uid": "0"}}));
    strategy(GROUP, KIND).prepare_for_create(&mut request, &CONTEXT);
    assert_eq!(request.str_at("spec.username"), "jane");
    assert!(!request.has("spec.groups") && !request.has("spec.uid"));
}

#[test]
fn updates() {
    let check = |subresource: &str, old: Value, new: Value, expected: &[&str]| {
        let (old, mut new) =
            (patched(&csr(), json!({"status": old})), patched(&csr(), json!({"status": new})));
        let strategy = strategy(GROUP, KIND);
        strategy.prepare_for_subresource_update(subresource, &mut new, &old, &CONTEXT);
        let errs: Vec<String> = strategy
            .validate_subresource_update(subresource, &new, &old, &CONTEXT)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(errs, expected, "{subresource}");
        new
    };
    let set = |kinds: &[&str]| -> Value {
        let conditions: Vec<Value> =
            kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        json!({"conditions": conditions})
    };
    let new = check("approval", json!({}), set(&["Approved"]), &[]);
    assert_eq!(new.items("status.conditions")[0].str_at("lastUpdateTime"), CONTEXT.now);
    check(
        "approval",
        json!({}),
        set(&["Approved", "Denied"]),
        &[
            "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
        ],
    );
    check(
        "approval",
        set(&["Approved"]),
        set(&[]),
        &["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""],
    );
    check(
        "approval",
        set(&["Approved"]),
        json!({}),
        &["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""],
    );
    check(
        "status",
        json!({}),
        set(&["Approved"]),
        &["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""],
    );
    check("status", json!({}), json!({"certificate": CERTIFICATE}), &[]);
    check(
        "status",
        json!({}),
        json!({"certificate": REQUEST}),
        &[
            "status.certificate: Invalid value: \"<certificate data>\": only CERTIFICATE PEM blocks are allowed, found \"CERTIFICATE REQUEST\"",
        ],
    );
    check(
        "status",
        json!({"certificate": CERTIFICATE}),
        json!({"certificate": ""}),
        &["status.certificate: Forbidden: updates may not modify existing certificate content"],
    );
    let kept = check("", json!({"certificate": CERTIFICATE}), json!({}), &[]);
    assert_eq!(kept.str_at("status.certificate"), CERTIFICATE);
}

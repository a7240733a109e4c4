//! What a service account may do, and what it is told where it may not.

use anyhow::ensure;
use yare_testkit::Cluster;

use crate::{YARE, control_plane};

/// What the service account `viewer`, who may read ConfigMaps of its namespace, is told.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (
        &["get", "secrets"],
        r#"secrets is forbidden: User "USER" cannot list resource "secrets" in API group "" in the namespace "default""#,
    ),
    (
        &["get", "nodes"],
        r#"nodes is forbidden: User "USER" cannot list resource "nodes" in API group "" at the cluster scope"#,
    ),
    (
        &["get", "configmaps", "-n", "kube-system"],
        r#"configmaps is forbidden: User "USER" cannot list resource "configmaps" in API group "" in the namespace "kube-system""#,
    ),
    (
        &["get", "deployment", "web"],
        r#"deployments.apps "web" is forbidden: User "USER" cannot get resource "deployments" in API group "apps" in the namespace "default""#,
    ),
    (
        &["create", "configmap", "mine"],
        r#"configmaps is forbidden: User "USER" cannot create resource "configmaps" in API group "" in the namespace "default""#,
    ),
    (
        &["delete", "configmap", "kube-root-ca.crt"],
        r#"configmaps "kube-root-ca.crt" is forbidden: User "USER" cannot delete resource "configmaps" in API group "" in the namespace "default""#,
    ),
    (&["get", "--raw", "/metrics"], r#"forbidden: User "USER" cannot get path "/metrics""#),
];

/// `auth can-i` as the service account, and the answer.
const CAN_I: &[(&[&str], &str)] = &[
    (&["list", "configmaps"], "yes"),
    (&["watch", "configmaps"], "no"),
    (&["list", "configmaps", "-n", "kube-system"], "no"),
    (&["get", "pods", "--subresource=log"], "no"),
    (&["get", "/healthz"], "yes"),
    (&["get", "/metrics"], "no"),
];

#[test]
fn a_service_account_may_do_what_its_role_says() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let user = "system:serviceaccount:default:viewer";
        for args in [
            &["create", "serviceaccount", "viewer"][..],
            &["create", "role", "reader", "--verb=get,list", "--resource=configmaps"],
            &["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:viewer"],
        ] {
            cluster.kubectl(args)?;
        }
        let token = cluster.kubectl(&["create", "token", "viewer", "--duration=10m"])?;
        let ca = cluster.path("data/tls/ca.crt").display().to_string();
        let as_token = |token: &str, args: &[&str]| {
            let token = format!("--token={token}");
            let start =
                ["--kubeconfig=/dev/null", "--server=https://127.0.0.1:6443", "--certificate-authority", &ca];
            cluster.kubectl_with(&[&start[..], &[token.as_str()], args].concat(), "")
        };
        let token = token.trim();

        cluster.soon(|| {
            let (status, out, err) = as_token(token, &["get", "configmaps", "-o", "name"])?;
            ensure!(status.success() && out.contains("configmap/kube-root-ca.crt"), "{out}{err}");
            Ok(())
        })?;
        for (args, want) in FORBIDDEN {
            let (status, out, err) = as_token(token, args)?;
            ensure!(!status.success() && err.contains(&want.replace("USER", user)), "{args:?}: {out}{err}");
        }
        for (args, want) in CAN_I {
            let (_, out, err) = as_token(token, &[&["auth", "can-i"], *args].concat())?;
            ensure!(out.trim() == *want, "{args:?}: {out}{err}");
        }
        let whoami = as_token(token, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?.1;
        ensure!(whoami == user, "{whoami}");
        // The administrator asks on behalf of others.
        ensure!(cluster.kubectl(&["auth", "can-i", "list", "configmaps", "--as", user])?.trim() == "yes");
        let error = cluster.kubectl_fails(&["get", "pods", "--as=jane", "--as-group=developers"])?;
        ensure!(error.contains(r#"User "jane" cannot list resource "pods""#), "{error}");

        // Nobody hands out what they do not have.
        let grant = ["create", "role", "bind", "--verb=create", "--resource=roles,rolebindings"];
        cluster.kubectl(&grant)?;
        cluster.kubectl(&[
            "create",
            "rolebinding",
            "bind",
            "--role=bind",
            "--serviceaccount=default:viewer",
        ])?;
        cluster.soon(|| {
            let (_, _, err) =
                as_token(token, &["create", "role", "more", "--verb=get", "--resource=secrets"])?;
            ensure!(err.contains("is attempting to grant RBAC permissions not currently held"), "{err}");
            Ok(())
        })?;

        // A token ends with its account.
        cluster.kubectl(&["delete", "serviceaccount", "viewer"])?;
        for token in [token, "no-such-token"] {
            let (status, _, err) = as_token(token, &["get", "configmaps"])?;
            ensure!(!status.success() && err.contains("Unauthorized"), "{err}");
        }
        Ok(())
    });
}

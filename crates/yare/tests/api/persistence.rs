//! What the control plane remembers over restarts, and what it forgets with time.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use yare_testkit::Cluster;

use crate::{JSON, NAMESPACE, TOKEN, WIDGETS, YARE, bad, config_map, control_plane, get, send};

#[test]
fn old_revisions_are_gone_after_much_change() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let client = cluster.https(TOKEN)?;
        for name in ["one", "two", "three"] {
            cluster.kubectl(&["create", "configmap", name])?;
        }
        let path = "/api/v1/namespaces/default/configmaps";
        let page = get(cluster, &client, &format!("{path}?limit=1"))?.json()?;
        let token = page["metadata"]["continue"].as_str().context("a token")?.to_owned();
        let revision = page["metadata"]["resourceVersion"].as_str().context("a revision")?.to_owned();
        let rest = get(cluster, &client, &format!("{path}?limit=50&continue={token}"))?;
        ensure!(rest.code == 200, "{rest:?}");

        // More than the server remembers.
        for round in 0..40 {
            let data = format!(r#","data":{{"a":"{}"}}"#, format!("{round:04}").repeat(225_000));
            let request = bad(("PUT", "configmaps/one"), (JSON, config_map("one", &data)), (200, "", ""));
            let answer = send(cluster, &client, &request)?;
            ensure!(answer.code == 200, "{} {:.300}", answer.code, answer.body);
        }

        let expired = get(cluster, &client, &format!("{path}?limit=50&continue={token}"))?;
        let status = expired.json()?;
        ensure!(expired.code == 410 && status["reason"] == "Expired", "{status:#}");
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(message.contains("The provided continue parameter is too old"), "{message}");
        // The answer carries a token that goes on with what is there now.
        let token = status["metadata"]["continue"].as_str().context("a token to go on with")?;
        let rest = get(cluster, &client, &format!("{path}?limit=50&continue={token}"))?;
        ensure!(rest.code == 200, "{} {:.300}", rest.code, rest.body);

        let exact = format!("{path}?resourceVersion={revision}&resourceVersionMatch=Exact");
        let exact = get(cluster, &client, &exact)?;
        ensure!(
            exact.code == 410 && exact.json()?["reason"] == "Expired",
            "{} {:.300}",
            exact.code,
            exact.body
        );
        let watch =
            get(cluster, &client, &format!("{path}?watch=true&resourceVersion={revision}&timeoutSeconds=5"))?;
        let event = watch.body.lines().next().unwrap_or_default();
        let event: Value = serde_json::from_str(event).with_context(|| format!("{:.300}", watch.body))?;
        let status = if watch.code == 200 { &event["object"] } else { &event };
        ensure!(status["code"] == 410 && status["reason"] == "Expired", "{} {event:#}", watch.code);
        ensure!(
            status["message"].as_str().is_some_and(|m| m.contains("too old resource version")),
            "{event:#}"
        );
        Ok(())
    });
}

#[test]
fn data_and_revisions_survive_sigkill() {
    Cluster::test(YARE, control_plane(), |cluster| {
        let client = cluster.https(TOKEN)?;
        cluster.apply(WIDGETS)?;
        cluster.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.yare.local"])?;
        cluster.apply(
            "apiVersion: test.yare.local/v1\nkind: Widget\nmetadata: {name: one}\nspec: {size: 3}\n",
        )?;
        let kinds = "configmaps,secrets,serviceaccounts,services,clusterroles,widgets,crd";
        let list =
            |cluster: &Cluster| cluster.kubectl(&["get", kinds, "-A", "-o", "json", "--show-managed-fields"]);

        let mut revision = 0;
        for round in 0..3 {
            // Killed right behind the last answer.
            let mut acknowledged = Vec::new();
            for number in 0..20 {
                let name = format!("round-{round}-{number}");
                let body = config_map(&name, r#","data":{"a":"b"}"#);
                let request = bad(("POST", "configmaps"), (JSON, body), (201, "", ""));
                let answer = send(cluster, &client, &request)?;
                ensure!(answer.code == 201, "{answer:?}");
                acknowledged.push((name, answer.json()?["metadata"]["resourceVersion"].clone()));
            }
            let before = (round == 2).then(|| list(cluster)).transpose()?;
            cluster.kill()?;
            cluster.launch()?;
            for (name, version) in &acknowledged {
                let found = get(cluster, &client, &format!("{NAMESPACE}configmaps/{name}"))?.json()?;
                ensure!(
                    found["metadata"]["resourceVersion"] == *version,
                    "{name} was at {version}: {found:#}"
                );
                let version: u64 = version.as_str().unwrap_or_default().parse()?;
                ensure!(version > revision, "{name}: {version} comes behind {revision}");
                revision = version;
            }
            if let Some(before) = before {
                ensure!(list(cluster)? == before, "objects changed over a restart");
            }
        }
        // What was stored before is served, defaulted and validated as before.
        cluster.kubectl(&["scale", "wd/one", "--replicas=5"])?;
        ensure!(cluster.field("wd/one", ".spec")? == r#"{"color":"red","size":5}"#);
        cluster.stop()
    });
}

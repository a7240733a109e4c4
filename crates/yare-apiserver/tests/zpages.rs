//! `/statusz` and `/flagz`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Server;
use serde_json::json;

const STATUSZ: &str = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz";

#[tokio::test]
async fn what_the_server_is_and_how_it_was_started() {
    let server = Server::with(|config| {
        config.flags = [("audit-log-path".to_owned(), "-".to_owned())].into();
    })
    .await;
    let text = server.get("/flagz").await.text();
    let mut lines = text.lines();
    assert_eq!(lines.by_ref().take(2).collect::<Vec<_>>(), ["", "apiserver flagz"]);
    let last = lines.last().unwrap();
    assert!(last.starts_with("audit-log-path") && last.ends_with('-'), "{text}");
    let text = server.get("/statusz").await.text();
    assert!(text.lines().any(|l| l.starts_with("Binary version") && l.ends_with(" 1.36")), "{text}");

    let accept = |value| [("accept", value)];
    let status = server.send("GET", "/statusz", &accept(STATUSZ), "").await;
    let status = status.expect(200);
    assert_eq!(
        (&status["kind"], &status["apiVersion"]),
        (&json!("Statusz"), &json!("config.k8s.io/v1beta1"))
    );
    assert_eq!(
        (&status["metadata"], &status["binaryVersion"]),
        (&json!({"name": "apiserver"}), &json!("1.36"))
    );
    let paths = status["paths"].as_array().unwrap();
    assert!(paths.contains(&json!("/flagz")) && !paths.contains(&json!("/apis")), "{paths:?}");

    let old = "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz";
    let flags = server.send("GET", "/flagz", &accept(old), "").await;
    let warning = flags.headers["warning"].to_str().unwrap().to_owned();
    assert_eq!(
        warning,
        "299 - \"This version of the flagz endpoint is deprecated. Please use a newer version.\""
    );
    assert_eq!(flags.expect(200)["flags"], json!({"audit-log-path": "-"}));
    let refused = server.send("GET", "/flagz", &accept("application/json"), "").await;
    assert_eq!(refused.code, 406);

    let off = Server::with(|config| {
        config.gates =
            yare_schema::features::Gates::parse("ComponentStatusz=false,ComponentFlagz=false").unwrap();
    })
    .await;
    for path in ["/statusz", "/flagz"] {
        off.get(path).await.expect(404);
    }
}

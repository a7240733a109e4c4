//! The API server alone, on plain HTTP and loopback, everybody an administrator: to try a client against it.
//!
//! `cargo run -p yare-apiserver --example serve -- 127.0.0.1:8080 /tmp/objects`

use yare_apiserver::{ApiServer, Config};
use yare_store::{Options, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    let directory = arguments.next().ok_or("name a directory for the objects")?;
    let store = Store::open(Options::new(directory), yare_apiserver::indexer()).await?;
    let mut config = Config::new(store);
    config.objects = yare_auth::bootstrap::objects(&config.gates);
    let api = ApiServer::start(config).await?;
    let listener = ApiServer::bind(address.parse()?).await?;
    api.serve(listener).await;
    Ok(())
}

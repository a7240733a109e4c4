//! A server whose objects rest encrypted, that can be stopped and started again on the same directory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use yare_apiserver::{
    ApiServer, Config, SystemClock, SystemRandom,
    encryption::{Encryption, Settings, Timings},
};
use yare_schema::features::Gates;
use yare_store::{Options, Store};

use crate::common::{Answer, Server};

/// How a server is started.
#[derive(Clone, Default)]
pub struct Setup {
    pub reload: bool,
    pub gates: &'static str,
    pub timings: Timings,
}

/// A directory that outlives servers.
pub struct Disk(pub TempDir);

impl Disk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn config(&self) -> PathBuf {
        self.0.path().join("encryption.yaml")
    }

    /// Writes the configuration's `resources`, by renaming as editors do.
    pub fn write(&self, resources: &str) {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}\n"
        );
        let temporary = self.0.path().join("encryption.new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.config()).unwrap();
    }

    /// What the configuration makes of itself.
    pub async fn open(&self, setup: &Setup) -> Result<Arc<Encryption>, String> {
        let Setup { reload, timings, .. } = *setup;
        let settings =
            Settings { file: self.config(), reload, kms_v1: false, server: "apiserver-test".into(), timings };
        Encryption::open(settings, Arc::new(SystemClock), Arc::new(SystemRandom)).await
    }

    /// Starts a server with the configuration, where there is one.
    pub async fn start(self, setup: &Setup) -> Server {
        let mut options = Options::new(self.0.path().join("store"));
        let mut encryption = None;
        if self.config().exists() {
            let opened = self.open(setup).await.unwrap();
            options.sealer = opened.clone();
            encryption = Some(opened);
        }
        let mut config = Config::new(Store::open(options, yare_apiserver::indexer()).await.unwrap());
        config.advertise = Some(("127.0.0.1".parse().unwrap(), 6443));
        config.encryption = encryption;
        config.gates = Gates::parse(setup.gates).unwrap();
        let api = ApiServer::start(config).await.unwrap();
        Server { api, dir: self.0 }
    }

    /// [`Disk::start`] with a new configuration.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub async fn start_with(self, resources: &str) -> Server {
        self.write(resources);
        self.start(&Setup::default()).await
    }
}

impl Server {
    /// Stops it, and gives the directory back.
    pub async fn stop(self) -> Disk {
        let Server { api, dir } = self;
        let store = api.core().store().clone();
        api.shutdown().await;
        store.close().await;
        Disk(dir)
    }

    /// Everything that lies on disk of objects, a snapshot included.
    pub async fn at_rest(&self) -> Vec<u8> {
        let backup = self.dir.path().join("backup");
        let _ = std::fs::remove_file(&backup);
        self.api.core().store().backup(&backup).await.unwrap();
        let mut all = std::fs::read(&backup).unwrap();
        for file in std::fs::read_dir(self.dir.path().join("store")).unwrap() {
            all.extend(std::fs::read(file.unwrap().path()).unwrap());
        }
        all
    }

    /// How often the text lies on disk.
    pub async fn count_at_rest(&self, text: &str) -> usize {
        self.at_rest().await.windows(text.len()).filter(|w| *w == text.as_bytes()).count()
    }

    /// Creates a secret whose data, label and annotation say `text`.
    pub async fn secret(&self, name: &str, text: &str) -> Value {
        let secret = json!({
            "metadata": { "name": name, "labels": { "says": text }, "annotations": { "says": text } },
            "stringData": { "says": text },
        });
        self.post("/api/v1/namespaces/default/secrets", &secret).await.expect(201)
    }

    /// Updates an object with what it is; gives the new version.
    pub async fn touch(&self, path: &str) -> String {
        let object = self.get(path).await.expect(200);
        let object = self.put(path, &object).await.expect(200);
        object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// The version of an object.
    pub async fn version(&self, path: &str) -> String {
        let object = self.get(path).await.expect(200);
        object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// Waits until a request is answered so.
    pub async fn until(&self, path: &str, code: u16) -> Answer {
        for _ in 0..200 {
            let answer = self.get(path).await;
            if answer.code == code {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} is never answered with {code}: {}", self.get(path).await.text());
    }
}

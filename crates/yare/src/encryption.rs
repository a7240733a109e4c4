//! Flags about encryption at rest, under kube-apiserver's names.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use clap::Args;
use yare_apiserver::{
    SystemClock, SystemRandom,
    encryption::{Encryption, Settings, Timings},
};
use yare_schema::features::Gates;

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
pub struct EncryptionArgs {
    /// File with an EncryptionConfiguration: which resources rest encrypted, and with which keys.
    #[arg(long, env = "YARE_ENCRYPTION_PROVIDER_CONFIG")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Take changes of that file in while the server runs.
    #[arg(long, env = "YARE_ENCRYPTION_PROVIDER_CONFIG_AUTOMATIC_RELOAD")]
    pub encryption_provider_config_automatic_reload: bool,
}

impl EncryptionArgs {
    /// Reads the file, where there is one. `server`: which server this is.
    pub async fn open(&self, gates: &Gates, server: &str) -> anyhow::Result<Option<Arc<Encryption>>> {
        let reload = self.encryption_provider_config_automatic_reload;
        let Some(file) = &self.encryption_provider_config else {
            if reload {
                bail!(
                    "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config"
                );
            }
            return Ok(None);
        };
        let kms_v1 = gates.is_on("KMSv1");
        let (file, server, timings) = (file.clone(), server.to_owned(), Timings::default());
        let settings = Settings { file, reload, kms_v1, server, timings };
        let opened = Encryption::open(settings, Arc::new(SystemClock), Arc::new(SystemRandom)).await;
        opened.map(Some).map_err(anyhow::Error::msg).context("--encryption-provider-config")
    }
}

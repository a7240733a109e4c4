//! Signs approved requests for Kubernetes' own signers with the cluster's authority. What a signer does not
//! sign gets the condition `Failed`.

use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use yare_auth::pki::{Authority, CertificateRequest, Usages};
use yare_client::{CERTIFICATE_SIGNING_REQUESTS, Informer, ObjectKey};

use super::{
    Spec, View,
    policy::{self, SIGNERS},
};
use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::whole_second,
};

struct Signer {
    context: Context,
    requests: Informer,
}

/// The controller; keys are CertificateSigningRequests.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Signer { requests: context.informer(CERTIFICATE_SIGNING_REQUESTS), context: context.clone() })
}

impl Signer {
    /// Who signs for the signer; nobody does where others have an authority of their own and it has none.
    fn authority(&self, signer: &str) -> Option<&Authority> {
        let config = &self.context.config;
        if config.signer_authorities.is_empty() {
            return config.cluster_signing.as_deref();
        }
        config.signer_authorities.get(signer).map(|authority| &**authority)
    }

    fn certify(
        &self,
        authority: &Authority,
        spec: &Spec,
        request: &CertificateRequest,
    ) -> Result<String, Error> {
        let failed = |why: String| Error::Other(format!("error auto signing csr: {why}"));
        let end = authority.not_after_s().ok_or_else(|| failed("the authority has no end".into()))?;
        let max = self.context.config.cluster_signing_duration;
        let now = whole_second(self.context.now());
        let (from, to) = policy::validity(spec.expiration_seconds, max, end, now).map_err(failed)?;
        let usages = Usages::parse(&spec.usages).map_err(failed)?;
        authority.certify(request, &usages, from, to).map_err(|e| failed(e.to_string()))
    }
}

#[async_trait]
impl Reconcile for Signer {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.requests.get(key) else { return Ok(Next::Done) };
        let View { spec, status, .. } = object.view()?;
        let approved = status.has("Approved") && !status.has("Denied");
        if status.is_issued() || !approved || status.is("Failed") {
            return Ok(Next::Done);
        }
        let Some(signer) = SIGNERS.iter().find(|s| s.name == spec.signer_name) else { return Ok(Next::Done) };
        let Some(authority) = self.authority(signer.name) else { return Ok(Next::Done) };
        let request = spec.parse()?;
        let api = &self.context.api;
        if let Err(why) = (signer.check)(&request, &spec.usages) {
            let fail = |body: &mut Value| {
                let condition = json!({
                    "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why,
                    "lastUpdateTime": whole_second(self.context.now()),
                });
                super::add_condition(body, condition);
            };
            api.put(&CERTIFICATE_SIGNING_REQUESTS, &object, "/status", fail).await?;
            return Ok(Next::Done);
        }
        let certificate = STANDARD.encode(self.certify(authority, &spec, &request)?);
        let issue = |body: &mut Value| body["status"]["certificate"] = certificate.into();
        api.put(&CERTIFICATE_SIGNING_REQUESTS, &object, "/status", issue).await?;
        Ok(Next::Done)
    }
}

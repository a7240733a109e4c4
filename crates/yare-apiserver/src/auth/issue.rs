//! Service-account tokens that this server issues.

use yare_auth::token::{Bound, Claims, Reference};

use crate::{
    core::Core,
    status::{ApiError, ApiResult},
};

/// How long a token lives that asks for [`WARN_ONLY_S`] and is only used here: its holder is warned after the
/// time it asked for, and may be late.
pub const EXTENDED_S: i64 = 365 * 24 * 3600;
/// What the node agent asks for in the tokens that it projects by default.
pub const WARN_ONLY_S: i64 = 3607;

/// How service-account tokens are issued and checked.
#[derive(Clone, Debug)]
pub struct ServiceAccounts {
    /// Whether tokens of the old kind die with their Secret and account.
    pub lookup: bool,
    /// The longest validity, in seconds; absent: as asked for.
    pub max_expiration_s: Option<i64>,
    /// Whether projected tokens live longer than they ask for.
    pub extend: bool,
    /// How long those live then, in seconds.
    pub extended_s: i64,
}

impl Default for ServiceAccounts {
    fn default() -> Self {
        Self { lookup: true, max_expiration_s: None, extend: true, extended_s: EXTENDED_S }
    }
}

/// A service-account token to be issued.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub account: Reference,
    /// Audiences, empty for the server's own.
    pub audiences: Vec<String>,
    /// Validity.
    pub expiration_s: i64,
    /// What the token dies with: its kind, and which.
    pub bound: Option<(String, Reference)>,
    /// Node of the pod it is bound to.
    pub node: Option<Reference>,
}

/// A token that was issued.
pub struct Issued {
    /// Itself.
    pub token: String,
    /// Its audiences.
    pub audiences: Vec<String>,
    /// When its holder should have replaced it, Unix seconds.
    pub expires_s: i64,
    /// Its identifier.
    pub jti: String,
}

/// Issues a token.
pub async fn issue(core: &Core, spec: TokenSpec) -> ApiResult<Issued> {
    let auth = &core.config.auth;
    let Some(signer) = &auth.signer else {
        return Err(ApiError::internal("this server issues no service account tokens"));
    };
    let audiences = if spec.audiences.is_empty() { signer.audiences().to_vec() } else { spec.audiences };
    let now_s = core.now().as_second();
    let mut bound =
        Bound { namespace: spec.namespace.clone(), serviceaccount: spec.account.clone(), ..Bound::default() };
    match spec.bound {
        Some((kind, reference)) if kind == "Pod" => {
            bound.pod = Some(reference);
            bound.node = spec.node;
        }
        Some((kind, reference)) if kind == "Secret" => bound.secret = Some(reference),
        Some((_, reference)) => bound.node = Some(reference),
        None => {}
    }
    let mut lives_s = spec.expiration_s;
    let only_here = audiences.iter().all(|a| signer.audiences().contains(a));
    if auth.service_accounts.extend && bound.pod.is_some() && lives_s == WARN_ONLY_S && only_here {
        bound.warnafter = Some(now_s + lives_s);
        lives_s = auth.service_accounts.extended_s;
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: Some(now_s + lives_s),
        iat: Some(now_s),
        iss: signer.issuer().to_owned(),
        jti: core.new_uid(),
        sub: format!("system:serviceaccount:{}:{}", spec.namespace, spec.account.name),
        bound,
        nbf: Some(now_s),
    };
    let token = match &auth.external {
        Some(external) => external.sign(&claims).await.map_err(|error| error.to_string()),
        None => signer.sign(&claims).map_err(|error| error.to_string()),
    };
    let token = token.map_err(|why| ApiError::internal(format_args!("failed to generate token: {why}")))?;
    Ok(Issued { token, audiences, expires_s: now_s + spec.expiration_s, jti: claims.jti })
}

//! The other end of a connection: the certificate it showed, read once for all its requests, and again when
//! the authorities change or the certificate's time is over.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ServerConfig, pki_types::CertificateDer};
use yare_auth::{
    User, pki,
    tls::{self, ClientAuthority, Limits, Serving, Speaks, TlsError},
};

use super::authenticators::front_proxy::FrontProxy;

/// Who vouches for client certificates.
#[derive(Default)]
pub struct Authorities {
    /// For clients themselves.
    pub clients: Option<ClientAuthority>,
    /// For proxies that say whom they speak for.
    pub front_proxy: Option<Arc<FrontProxy>>,
}

impl Authorities {
    /// A server that shows `serving` and asks clients for a certificate of one of these.
    pub fn server(
        &self,
        serving: Arc<Serving>,
        limits: &Limits,
        speaks: Speaks,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let of_proxies = self.front_proxy.as_ref().map(|proxy| &proxy.authority);
        let all: Vec<&ClientAuthority> = self.clients.as_ref().into_iter().chain(of_proxies).collect();
        tls::limited_server(serving, &all, limits, speaks)
    }
}

/// A client that showed a certificate and holds its key.
pub struct Peer {
    chain: Vec<CertificateDer<'static>>,
    not_after_s: i64,
    reading: ArcSwap<Reading>,
}

/// What a certificate says, as far as somebody vouches for it.
pub(super) struct Reading {
    by: Arc<Authorities>,
    expired: bool,
    /// The client it names; `Ok(None)`: nobody.
    pub(super) client: Result<Option<Arc<User>>, String>,
    /// The common name of a proxy.
    pub(super) proxy: Result<String, String>,
}

impl Peer {
    /// Reads the certificates that a client showed, its own first.
    pub fn new(chain: &[CertificateDer<'_>], authorities: &Arc<Authorities>, now_s: i64) -> Self {
        let chain: Vec<CertificateDer<'static>> = chain.iter().map(|c| c.clone().into_owned()).collect();
        let not_after_s = chain.first().and_then(|leaf| pki::not_after_s(leaf)).unwrap_or(i64::MIN);
        let reading = Reading::new(&chain, authorities, now_s, not_after_s);
        Self { chain, not_after_s, reading: ArcSwap::from_pointee(reading) }
    }

    /// How long the certificate is good for.
    pub(super) fn left_s(&self, now_s: i64) -> i64 {
        self.not_after_s.saturating_sub(now_s)
    }

    pub(super) fn reading(
        &self,
        authorities: &Arc<Authorities>,
        now_s: i64,
    ) -> arc_swap::Guard<Arc<Reading>> {
        let known = self.reading.load();
        if Arc::ptr_eq(&known.by, authorities) && known.expired == (now_s > self.not_after_s) {
            return known;
        }
        self.reading.store(Arc::new(Reading::new(&self.chain, authorities, now_s, self.not_after_s)));
        self.reading.load()
    }
}

impl Reading {
    fn new(chain: &[CertificateDer<'_>], by: &Arc<Authorities>, now_s: i64, not_after_s: i64) -> Self {
        let leaf = || chain.first().map_or_else(|| Ok(None), |leaf| User::from_certificate(leaf));
        let client = match &by.clients {
            Some(authority) => authority.vouches(chain, now_s).and_then(|()| leaf()),
            None => Ok(None),
        };
        let proxy = match &by.front_proxy {
            Some(proxy) => proxy
                .authority
                .vouches(chain, now_s)
                .and_then(|()| Ok(leaf()?.map(|user| user.name).unwrap_or_default())),
            None => Err(String::new()),
        };
        Self { by: by.clone(), expired: now_s > not_after_s, client: client.map(|c| c.map(Arc::new)), proxy }
    }
}

//! What is counted of an external signer, under upstream's names.

use yare_metrics::table::{Family, Kind};

pub(super) static FETCHED: Family = Family::plain(
    "apiserver_externaljwt_fetch_keys_success_timestamp",
    Kind::Gauge,
    "[ALPHA] Unix Timestamp in seconds of the last successful FetchKeys request",
);
pub(super) static DATA: Family = Family::plain(
    "apiserver_externaljwt_fetch_keys_data_timestamp",
    Kind::Gauge,
    "[ALPHA] Unix Timestamp in seconds of the last successful FetchKeys data_timestamp value returned by the external signer",
);
pub(super) static FETCHES: Family = Family::labelled(
    "apiserver_externaljwt_fetch_keys_request_total",
    Kind::Counter,
    &["code"],
    "[ALPHA] Total attempts at syncing supported JWKs",
);
pub(super) static SIGNED: Family = Family::labelled(
    "apiserver_externaljwt_sign_request_total",
    Kind::Counter,
    &["code"],
    "[ALPHA] Total attempts at signing JWT",
);
pub(super) static CALLS: Family = Family::labelled(
    "apiserver_externaljwt_request_duration_seconds",
    Kind::Histogram(&[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
    &["code", "method"],
    "[ALPHA] Request duration and time for calls to external-jwt-signer",
);

/// All of it.
pub(super) const TABLE: [&Family; 5] = [&FETCHED, &DATA, &FETCHES, &SIGNED, &CALLS];

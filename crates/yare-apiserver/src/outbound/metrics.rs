//! What is counted of calls to other servers, under upstream's names
//! (`k8s.io/component-base/metrics/prometheus/restclient`), and of programs that say who this server is there.

use std::time::Duration;

use http::Method;
use yare_metrics::{
    table::{Counts, Family, Kind},
    text::Page,
};

static REQUESTS: Family = Family::labelled(
    "rest_client_requests_total",
    Kind::Counter,
    &["code", "host", "method"],
    "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
);
static TOOK: Family = Family::labelled(
    "rest_client_request_duration_seconds",
    Kind::Histogram(&[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0]),
    HOST_VERB,
    "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
);
static SENT: Family = Family::labelled(
    "rest_client_request_size_bytes",
    Kind::Histogram(BOUNDS_BYTES),
    HOST_VERB,
    "[ALPHA] Request size in bytes. Broken down by verb and host.",
);
static RECEIVED: Family = Family::labelled(
    "rest_client_response_size_bytes",
    Kind::Histogram(BOUNDS_BYTES),
    HOST_VERB,
    "[ALPHA] Response size in bytes. Broken down by verb and host.",
);
static PROGRAMS: Family = Family::labelled(
    "rest_client_exec_plugin_call_total",
    Kind::Counter,
    &["call_status", "code"],
    "[ALPHA] Number of calls to an exec plugin, partitioned by the type of event encountered (no_error, plugin_execution_error, plugin_not_found_error, client_internal_error) and an optional exit code. The exit code will be set to 0 if and only if the plugin call was successful.",
);
const HOST_VERB: &[&str] = &["host", "verb"];
/// From 64 bytes to 16 MiB.
const BOUNDS_BYTES: &[f64] = &[
    64.0,
    256.0,
    512.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];
static TABLE: [&Family; 5] = [&TOOK, &SENT, &RECEIVED, &REQUESTS, &PROGRAMS];

/// One call: to whom and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of<'a> {
    /// Host and port, as the URL has them.
    pub host: &'a str,
    /// HTTP method.
    pub method: &'a Method,
    /// Bytes that are sent; none: there is no body.
    pub sent: Option<usize>,
}

/// What came of a program that was to say who this server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Program {
    /// It ended with that code.
    Ended(i32),
    /// It is not there.
    NotFound,
    /// It could not be run.
    Failed,
}

/// All of it. Calls are far slower than the lock.
#[derive(Default, Debug)]
pub struct Calls(Counts);

impl Calls {
    /// A call ended, with the status and the bytes of an answer or without one.
    pub(super) fn called(&self, of: Of<'_>, answer: Option<(u16, usize)>, took: Duration) {
        let (host, method) = (of.host, of.method.as_str());
        let labels = [host, method];
        self.0.observe(&TOOK, &labels, took.as_secs_f64());
        if let Some(bytes) = of.sent {
            self.0.observe(&SENT, &labels, bytes as f64);
        }
        match answer {
            Some((code, bytes)) => {
                self.0.count(&REQUESTS, &[&code.to_string(), host, method]);
                self.0.observe(&RECEIVED, &labels, bytes as f64);
            }
            None => self.0.count(&REQUESTS, &["<error>", host, method]),
        }
    }

    /// A program was run, or should have been.
    pub(super) fn ran(&self, program: Program) {
        let (status, code) = match program {
            Program::Ended(0) => ("no_error", 0),
            Program::Ended(code) => ("plugin_execution_error", code),
            Program::NotFound => ("plugin_not_found_error", 1),
            Program::Failed => ("client_internal_error", 1),
        };
        self.0.count(&PROGRAMS, &[status, &code.to_string()]);
    }

    /// Adds all of it to a page.
    pub fn expose(&self, page: &mut Page) {
        self.0.expose(&TABLE, page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_programs() {
        let calls = Calls::default();
        let of = Of { host: "a:8443", method: &Method::POST, sent: Some(300) };
        calls.called(of, Some((200, 20)), Duration::from_millis(30));
        calls.called(of, None, Duration::from_secs(90));
        calls.called(Of { method: &Method::GET, sent: None, ..of }, Some((404, 0)), Duration::ZERO);
        for program in [Program::Ended(0), Program::Ended(3), Program::NotFound, Program::Failed] {
            calls.ran(program);
        }
        let mut page = Page::new();
        calls.expose(&mut page);
        let page = page.finish();
        for line in [
            r#"rest_client_requests_total{code="200",host="a:8443",method="POST"} 1"#,
            r#"rest_client_requests_total{code="<error>",host="a:8443",method="POST"} 1"#,
            r#"rest_client_requests_total{code="404",host="a:8443",method="GET"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{host="a:8443",verb="POST",le="0.025"} 0"#,
            r#"rest_client_request_duration_seconds_bucket{host="a:8443",verb="POST",le="60"} 1"#,
            r#"rest_client_request_duration_seconds_count{host="a:8443",verb="POST"} 2"#,
            r#"rest_client_request_size_bytes_bucket{host="a:8443",verb="POST",le="512"} 2"#,
            r#"rest_client_response_size_bytes_bucket{host="a:8443",verb="POST",le="64"} 1"#,
            r#"rest_client_response_size_bytes_count{host="a:8443",verb="GET"} 1"#,
            r#"rest_client_exec_plugin_call_total{call_status="no_error",code="0"} 1"#,
            r#"rest_client_exec_plugin_call_total{call_status="plugin_execution_error",code="3"} 1"#,
            r#"rest_client_exec_plugin_call_total{call_status="plugin_not_found_error",code="1"} 1"#,
            r#"rest_client_exec_plugin_call_total{call_status="client_internal_error",code="1"} 1"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(!page.contains(r#"request_size_bytes_count{host="a:8443",verb="GET"}"#), "{page}");
    }
}

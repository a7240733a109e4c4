//! `TracingConfiguration`: where the traces of requests go, and how many there are.

use serde::Deserialize;
use serde_json::Value;
use yare_schema::field::Path;

use super::{ConfigError, Errors, read};

const KIND: &str = "TracingConfiguration";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
/// OTLP's usual port for gRPC.
const ENDPOINT: &str = "localhost:4317";

/// Where traces go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TracingConfiguration {
    /// The collector, in gRPC's way to name servers; absent: on this machine.
    pub endpoint: Option<String>,
    /// Of a million traces that do not come from elsewhere, so many are recorded; absent: none.
    pub sampling_rate_per_million: Option<i32>,
}

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Host and port.
    Address(String),
    /// A socket's path, or a name in the abstract namespace after `@`.
    Socket(String),
}

impl TracingConfiguration {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let configuration: Self = read(text, KIND, &VERSIONS)?;
        let mut errs = Errors::default();
        configuration.check(&Path::ROOT, &mut errs);
        errs.finish(configuration)
    }

    /// What is wrong with it as the field `name` of another configuration.
    pub fn problems(&self, name: &str) -> Vec<String> {
        let mut errs = Errors::default();
        self.check(&Path::new(name), &mut errs);
        errs.0.iter().map(ToString::to_string).collect()
    }

    fn check(&self, at: &Path<'_>, errs: &mut Errors) {
        if let Some(rate) = self.sampling_rate_per_million {
            let path = at.child("samplingRatePerMillion");
            if rate < 0 {
                errs.invalid(&path, rate, "sampling rate must be positive");
            }
            if rate > 1_000_000 {
                let why = "sampling rate per million must be less than or equal to one million";
                errs.invalid(&path, rate, why);
            }
        }
        let Some(endpoint) = &self.endpoint else { return };
        let scheme = endpoint.split_once("//").map_or("dns", |(scheme, _)| scheme.trim_end_matches(':'));
        let path = at.child("endpoint");
        if scheme.bytes().any(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))) {
            let why = format!("parse {endpoint:?}: first path segment in URL cannot contain colon");
            errs.invalid(&path, Value::from(endpoint.as_str()), why);
        } else if !["dns", "unix", "unix-abstract"].contains(&scheme) {
            let why = format!(
                "unsupported scheme: {scheme}.  Options are none, dns, unix, or unix-abstract.  See https://github.com/grpc/grpc/blob/master/doc/naming.md"
            );
            errs.invalid(&path, Value::from(endpoint.as_str()), why);
        }
    }

    /// Where the collector is.
    pub fn place(&self) -> Endpoint {
        let endpoint = self.endpoint.as_deref().unwrap_or(ENDPOINT);
        let (scheme, rest) = endpoint.split_once("//").unwrap_or(("dns:", endpoint));
        match scheme {
            "unix:" => Endpoint::Socket(rest.to_owned()),
            "unix-abstract:" => Endpoint::Socket(format!("@{}", rest.trim_start_matches('/'))),
            // Which name server is asked (`dns://8.8.8.8/host:4317`) is the machine's matter.
            _ => Endpoint::Address(rest.rsplit('/').next().unwrap_or(rest).to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(version: &str, body: &str) -> Result<TracingConfiguration, String> {
        let text =
            format!("apiVersion: apiserver.config.k8s.io/{version}\nkind: TracingConfiguration\n{body}");
        TracingConfiguration::parse(text.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn files() {
        for version in VERSIONS {
            let read = parse(version, "samplingRatePerMillion: 100\nendpoint: localhost:1").unwrap();
            assert_eq!(read.sampling_rate_per_million, Some(100));
        }
        assert_eq!(parse(VERSIONS[0], ""), Ok(TracingConfiguration::default()));
        for (version, body, part) in [
            (VERSIONS[0], "samplingRatePerMillion: -1", "sampling rate must be positive"),
            (
                VERSIONS[0],
                "samplingRatePerMillion: 1000001",
                "sampling rate per million must be less than or equal to one million",
            ),
            (VERSIONS[0], "samplingRatePerMillion: many", "strict decoding error"),
            (VERSIONS[0], "endpoint: http://localhost:4317", "unsupported scheme: http.  Options are none,"),
            (VERSIONS[0], "endpoint: dn%2s://localhost:4317", "first path segment in URL"),
            (VERSIONS[0], "rate: 1", "unknown field"),
            (VERSIONS[0], "endpoint: a:1\nendpoint: b:1", "endpoint"),
            (
                "v2",
                "",
                "no kind \"TracingConfiguration\" is registered for version \"apiserver.config.k8s.io/v2\"",
            ),
        ] {
            let error = parse(version, body).unwrap_err();
            assert!(error.contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn collectors() {
        let address = |text: &str| Endpoint::Address(text.into());
        let socket = |text: &str| Endpoint::Socket(text.into());
        for (endpoint, place) in [
            (None, address("localhost:4317")),
            (Some("collector:1"), address("collector:1")),
            (Some("dns:///collector:1"), address("collector:1")),
            (Some("dns://8.8.8.8/collector:1"), address("collector:1")),
            (Some("dns://collector:1"), address("collector:1")),
            (Some("unix:///run/otel.sock"), socket("/run/otel.sock")),
            (Some("unix-abstract:///otel"), socket("@otel")),
        ] {
            let configuration = TracingConfiguration {
                endpoint: endpoint.map(str::to_owned),
                ..TracingConfiguration::default()
            };
            assert_eq!(configuration.place(), place, "{endpoint:?}");
        }
    }
}

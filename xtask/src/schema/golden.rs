//! Upstream's golden fixtures (`api/testdata/HEAD`) through our codecs, byte for byte.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use yare_schema::{
    builtin::builtin,
    decode::{self, Mode, Syntax},
    encode, proto,
};

use super::{fetch, tables::GOPATH};

/// Checks every fixture and returns how many there are and what is wrong.
pub fn check(packages: &Path) -> Result<(usize, Vec<String>)> {
    let dir = packages.join(GOPATH).join("k8s.io/api/testdata/HEAD");
    let mut problems = Vec::new();
    let mut count = 0;
    for path in fetch::files(&dir, "json")? {
        let stem = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        count += 1;
        if let Err(e) = fixture(&path, &stem) {
            problems.push(format!("{stem}: {e:#}"));
        }
    }
    Ok((count, problems))
}

/// `core.v1.Pod` or `apps.v1.Deployment`.
fn fixture(path: &Path, stem: &str) -> Result<()> {
    let (rest, kind) = stem.rsplit_once('.').context("odd file name")?;
    let (group, version) = rest.rsplit_once('.').context("odd file name")?;
    let group = if group == "core" { "" } else { group };
    let ty = builtin().lookup(group, version, kind).context("no such kind in the tables")?;

    let pretty = fs::read(path)?;
    let decoded = decode::decode(ty, &pretty, Mode::Strict).context("JSON")?.value;
    let json = encode::json(ty, &decoded);
    let indented = encode::indent(&json);
    same("JSON to JSON", trim(&indented), trim(&pretty))?;

    let yaml = fs::read(path.with_extension("yaml"))?;
    let from_yaml = decode::decode_as(ty, &yaml, Syntax::Yaml, Mode::Strict).context("YAML")?.value;
    same("YAML to JSON", &encode::json(ty, &from_yaml), &json)?;

    let wire = fs::read(path.with_extension("pb"))?;
    let envelope = proto::unwrap(&wire)?;
    let mut from_wire = proto::decode(ty, envelope.raw)?;
    if let Value::Object(map) = &mut from_wire {
        map.insert("apiVersion".into(), envelope.api_version.clone().into());
        map.insert("kind".into(), envelope.kind.clone().into());
    }
    same("protobuf to JSON", &encode::json(ty, &from_wire), &json)?;
    same("JSON to protobuf", &proto::to_wire(ty, &decoded), &wire)?;
    same("protobuf to protobuf", &proto::to_wire(ty, &from_wire), &wire)
}

fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

fn same(what: &str, got: &[u8], wanted: &[u8]) -> Result<()> {
    let Some(at) = (0..got.len().max(wanted.len())).find(|&i| got.get(i) != wanted.get(i)) else {
        return Ok(());
    };
    let around = |bytes: &[u8]| {
        let from = at.saturating_sub(40).min(bytes.len());
        let to = (at + 40).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..to]).into_owned()
    };
    bail!("{what} differs at byte {at}: got {:?}, upstream has {:?}", around(got), around(wanted))
}

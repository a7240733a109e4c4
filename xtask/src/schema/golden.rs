//! Upstream's golden fixtures (`api/testdata/HEAD`) through our codecs, byte for byte.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use yare_schema::{
    builtin::builtin,
    decode::{self, Mode, Syntax},
    encode,
    model::TypeRef,
    proto,
};

use super::{fetch, tables::GOPATH};

/// Groups in the fixtures that the tables leave out: kinds that no release since 1.22 serves.
const LEFT_OUT: &[&str] = &["apiextensions.k8s.io.v1beta1."];

/// Checks every fixture and returns how many there are and what is wrong.
pub fn check(packages: &Path) -> Result<(usize, Vec<String>)> {
    let mut problems = Vec::new();
    let mut count = 0;
    for data in ["k8s.io/api/testdata", "k8s.io/apiextensions-apiserver/pkg/apis/testdata"] {
        let data = packages.join(GOPATH).join(data);
        for entry in fs::read_dir(&data).with_context(|| format!("cannot list {}", data.display()))? {
            let dir = entry?.path();
            if !dir.is_dir() {
                continue;
            }
            let current = dir.ends_with("HEAD");
            for path in fetch::files(&dir, "json")? {
                let stem = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
                if LEFT_OUT.iter().any(|l| stem.starts_with(l)) || stem.ends_with(".after_roundtrip") {
                    continue;
                }
                count += 1;
                let outcome = if current { fixture(&path, &stem) } else { earlier(&path, &stem) };
                if let Err(e) = outcome {
                    problems.push(format!("{}: {e:#}", path.display()));
                }
            }
        }
    }
    Ok((count, problems))
}

/// An object of an earlier release: what this release does not know is dropped, the rest stays.
fn earlier(path: &Path, stem: &str) -> Result<()> {
    // Kinds that are gone by now.
    let Some(ty) = kind(stem) else { return Ok(()) };
    let after = |extension: &str| -> Result<Vec<u8>> {
        let changed = path.with_file_name(format!("{stem}.after_roundtrip.{extension}"));
        let path = if changed.is_file() { changed } else { path.with_extension(extension) };
        Ok(fs::read(path)?)
    };
    let decoded = decode::decode(ty, &fs::read(path)?, Mode::Ignore).context("JSON")?.value;
    same("JSON to JSON", trim(&encode::indent(&encode::json(ty, &decoded))), trim(&after("json")?))?;
    let wire = fs::read(path.with_extension("pb"))?;
    let envelope = proto::unwrap(&wire)?;
    let value = proto::decode(ty, envelope.raw)?;
    let again = proto::wrap(&envelope.api_version, &envelope.kind, &proto::encode(ty, &value));
    same("protobuf to protobuf", &again, &after("pb")?)
}

/// The type of `core.v1.Pod` or `apps.v1.Deployment`.
fn kind(stem: &str) -> Option<TypeRef<'static>> {
    let (rest, kind) = stem.rsplit_once('.')?;
    let (group, version) = rest.rsplit_once('.')?;
    builtin().lookup(if group == "core" { "" } else { group }, version, kind)
}

/// An object of this release through every codec.
fn fixture(path: &Path, stem: &str) -> Result<()> {
    let ty = kind(stem).context("no such kind in the tables")?;
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

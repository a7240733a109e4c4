//! Checkpoints of managers, in upstream's format: a kubelet of either kind goes on from the other's file.
//!
//! In: a checkpoint as JSON, and the shape of the Go value that upstream keeps in it. Out: upstream's checksum, which
//! is a hash of the value as `spew` prints it (`%#v`, sorted keys), and files that are whole or absent.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Checkpoints over this are not read.
const SIZE_MAX: u64 = 64 << 20;

/// How a Go value is printed.
pub(crate) enum Shape {
    /// A string.
    Text,
    /// A number, signed or not.
    Number,
    /// `[]byte`, in JSON as base64.
    Bytes,
    /// A slice; absent: nil.
    List(&'static Shape),
    /// A map; absent: made but empty.
    Map(Keys, &'static Shape),
    /// What a pointer points to.
    Pointer(&'static Shape),
    /// Fields in their order: Go's name, the name in JSON, the type as Go prints it, the shape.
    Struct(&'static [Field]),
}

/// See [`Shape::Struct`].
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) json: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) shape: Shape,
}

/// How the keys of a map are sorted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Text,
    Number,
}

/// The checksum of a value of a Go type, which is named as Go prints it.
pub(crate) fn checksum(kind: &str, shape: &Shape, value: &Value) -> u64 {
    let mut text = format!("({kind})");
    print(shape, value, &mut text);
    u64::from(fnv1a(text.as_bytes()))
}

fn print(shape: &Shape, value: &Value, out: &mut String) {
    match shape {
        Shape::Text => out.push_str(value.as_str().unwrap_or_default()),
        Shape::Number => match value {
            Value::Number(number) => out.push_str(&number.to_string()),
            _ => out.push('0'),
        },
        Shape::Bytes => match value.as_str() {
            None => out.push_str("<nil>"),
            Some(text) => {
                let bytes = STANDARD.decode(text).unwrap_or_default();
                let words: Vec<String> = bytes.iter().map(u8::to_string).collect();
                out.push_str(&format!("[{}]", words.join(" ")));
            }
        },
        Shape::List(of) => match value.as_array() {
            None => out.push_str("<nil>"),
            Some(list) => {
                out.push('[');
                for (i, item) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    print(of, item, out);
                }
                out.push(']');
            }
        },
        Shape::Map(keys, of) => {
            if value.is_null() {
                return out.push_str("<nil>");
            }
            let mut entries: Vec<(&String, &Value)> = value.as_object().into_iter().flatten().collect();
            match keys {
                Keys::Text => entries.sort_by_key(|(key, _)| *key),
                Keys::Number => entries.sort_by_key(|(key, _)| key.parse::<i64>().unwrap_or(0)),
            }
            out.push_str("map[");
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                print(of, item, out);
            }
            out.push(']');
        }
        Shape::Pointer(to) => match value {
            Value::Null => out.push_str("<nil>"),
            value => {
                out.push_str("<*>");
                print(to, value, out);
            }
        },
        Shape::Struct(fields) => {
            out.push('{');
            for (i, field) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(&format!("{}:({})", field.name, field.kind));
                let empty = Value::Object(serde_json::Map::new());
                let found = member(value, field.json);
                match (&field.shape, found) {
                    (Shape::Map(..), None) => print(&field.shape, &empty, out),
                    (_, found) => print(&field.shape, found.unwrap_or(&Value::Null), out),
                }
            }
            out.push('}');
        }
    }
}

/// A member of a JSON object; as in Go, case does not matter.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .get(name)
        .or_else(|| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// There is none.
    #[error("checkpoint is not found")]
    NotFound,
    /// Its checksum is another one.
    #[error("checkpoint is corrupted")]
    Corrupt,
    /// It is not what it should be.
    #[error("{0}")]
    Broken(String),
}

/// Reads a checkpoint as JSON.
pub(crate) fn read(path: &Path) -> Result<Value, Unusable> {
    let broken = |e: &dyn std::fmt::Display| Unusable::Broken(format!("{}: {e}", path.display()));
    let length = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Unusable::NotFound),
        Err(e) => return Err(broken(&e)),
    };
    if length > SIZE_MAX {
        return Err(broken(&format!("{length} bytes are too many for a checkpoint")));
    }
    let bytes = std::fs::read(path).map_err(|e| broken(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| broken(&e))
}

/// Writes a checkpoint: whoever reads sees the one before or this one, also after a loss of power.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.tmp"));
    let mut file = std::fs::File::create(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

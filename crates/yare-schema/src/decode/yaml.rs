//! YAML to JSON, as upstream's YAML library resolves plain scalars (YAML 1.1: `yes` is true).
//!
//! In: the text of a YAML stream. Out: its first document as JSON text, its keys in order (upstream makes maps of it,
//! and what is wrong first is so in that order), and the keys that stand twice. Aliases are bounded by the size of
//! what they expand to.

use std::{collections::HashMap, rc::Rc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};
use serde_json::Value;

use super::{DecodeError, MAX_DEPTH, quote};
use crate::encode;

/// The longest JSON that a YAML document may expand to, in bytes. Bodies are bounded by 3 MiB.
const MAX_JSON_BYTES: usize = 16 << 20;

/// The most entries that merges (`<<`) may copy into mappings, each of which costs a little before anything is written.
const MAX_MERGED: usize = 1 << 17;

const EXCESSIVE: &str = "document contains excessive aliasing";

enum Node {
    Scalar(Value),
    List(Vec<Rc<Node>>),
    Map(Vec<(String, Rc<Node>)>),
}

/// The first document of the stream as JSON, and a message for each duplicate key.
pub fn to_json(bytes: &[u8]) -> Result<(Vec<u8>, Vec<String>), DecodeError> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.block_nesting_limit = MAX_DEPTH;
    options.flow_nesting_limit = MAX_DEPTH;
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        duplicates: Vec::new(),
        merged: 0,
    };
    let root = builder.document()?;
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 4);
    match root {
        Some(root) => write(&root, &mut out, 0)?,
        None => out.extend_from_slice(b"null"),
    }
    let duplicates = match builder.duplicates.as_slice() {
        [] => Vec::new(),
        lines => vec![format!("yaml: unmarshal errors:\n{}", lines.join("\n"))],
    };
    Ok((out, duplicates))
}

struct Builder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Rc<Node>>,
    duplicates: Vec<String>,
    /// Entries that merges have looked at.
    merged: usize,
}

fn syntax(message: impl std::fmt::Display) -> DecodeError {
    DecodeError::Syntax(format!("yaml: {message}"))
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), DecodeError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(e)) => Err(syntax(format_args!("line {}: {}", e.marker().line(), e.info()))),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn document(&mut self) -> Result<Option<Rc<Node>>, DecodeError> {
        loop {
            let (event, line) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(None),
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => {
                    let root = self.node(event, line, 0)?;
                    // The rest of this document must be YAML too; further documents are not looked at.
                    while !matches!(self.next()?.0, Event::DocumentEnd | Event::StreamEnd) {}
                    return Ok(Some(root));
                }
            }
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Rc<Node>, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::Depth);
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (Rc::new(Node::Scalar(scalar(&text, style, tag.as_deref())?)), anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, line) => items.push(self.node(event, line, depth + 1)?),
                    }
                }
                (Rc::new(Node::List(items)), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Rc::new(self.mapping(depth)?), anchor),
            Event::Alias(id) => {
                let target = self.anchors.get(&id).cloned();
                return target.ok_or_else(|| syntax(format_args!("line {line}: unknown anchor")));
            }
            _ => return Err(syntax(format_args!("line {line}: did not find expected node content"))),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Result<Node, DecodeError> {
        let mut entries: Vec<(String, Rc<Node>)> = Vec::new();
        let mut index: HashMap<String, usize> = HashMap::new();
        let mut merges: Vec<Rc<Node>> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.node(event, line, depth + 1)?;
            let (event, value_line) = self.next()?;
            let value = self.node(event, value_line, depth + 1)?;
            if merge {
                match &*value {
                    Node::List(items) => merges.extend(items.iter().cloned()),
                    _ => merges.push(value),
                }
                continue;
            }
            let Node::Scalar(key) = &*key else {
                return Err(syntax(format_args!("line {line}: invalid map key")));
            };
            let key = key_text(key);
            if let Some(&at) = index.get(&key) {
                self.duplicates.push(format!("  line {line}: key {} already set in map", quote(&key)));
                entries[at].1 = value;
            } else {
                index.insert(key.clone(), entries.len());
                entries.push((key, value));
            }
        }
        // What stands in the mapping itself goes before what is merged in, and earlier merges before later.
        for merge in merges {
            let Node::Map(merged) = &*merge else {
                return Err(syntax("map merge requires map or sequence of maps as the value"));
            };
            self.merged = self.merged.saturating_add(merged.len());
            if self.merged > MAX_MERGED {
                return Err(syntax(EXCESSIVE));
            }
            for (key, value) in merged {
                if !index.contains_key(key) {
                    index.insert(key.clone(), entries.len());
                    entries.push((key.clone(), Rc::clone(value)));
                }
            }
        }
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Node::Map(entries))
    }
}

/// JSON has only strings for keys.
fn key_text(key: &Value) -> String {
    match key {
        Value::String(s) => s.clone(),
        Value::Null => "null".into(),
        other => other.to_string(),
    }
}

fn write(node: &Node, out: &mut Vec<u8>, depth: usize) -> Result<(), DecodeError> {
    if out.len() > MAX_JSON_BYTES {
        return Err(syntax(EXCESSIVE));
    }
    if depth > MAX_DEPTH {
        return Err(DecodeError::Depth);
    }
    match node {
        Node::Scalar(value) => encode::write_any(value, out),
        Node::List(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out, depth + 1)?;
            }
            out.push(b']');
        }
        Node::Map(entries) => {
            out.push(b'{');
            for (i, (key, value)) in entries.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                encode::write_string(key, out);
                out.push(b':');
                write(value, out, depth + 1)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, DecodeError> {
    if let Some(tag) = tag {
        if tag.is_yaml_core_schema_tag("str") {
            return Ok(Value::from(text));
        }
        if tag.handle().starts_with("tag:yaml.org") && tag.suffix() == "binary" {
            let text: String = text.split_whitespace().collect();
            let bytes =
                BASE64.decode(text).map_err(|_| syntax("!!binary value contains invalid base64 data"))?;
            return Ok(Value::from(String::from_utf8_lossy(&bytes)));
        }
        if tag.is_yaml_core_schema() {
            return Ok(plain(text));
        }
        return Ok(Value::from(text));
    }
    Ok(if style == ScalarStyle::Plain { plain(text) } else { Value::from(text) })
}

/// What a plain scalar means.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if !matches!(text.as_bytes()[0], b'0'..=b'9' | b'-' | b'+' | b'.') {
        return Value::from(text);
    }
    number(text).unwrap_or_else(|| Value::from(text))
}

fn number(text: &str) -> Option<Value> {
    let bare = text.replace('_', "");
    if let Ok(n) = bare.parse::<i64>() {
        // A leading zero makes an octal number, where the digits allow it.
        let digits = bare.trim_start_matches(['-', '+']);
        if digits.len() > 1 && digits.starts_with('0') {
            if let Ok(octal) = i64::from_str_radix(&digits[1..], 8) {
                return Some(Value::from(if bare.starts_with('-') { -octal } else { octal }));
            }
            return bare.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number);
        }
        return Some(Value::from(n));
    }
    if let Ok(n) = bare.parse::<u64>() {
        return Some(Value::from(n));
    }
    let (negative, digits) = match bare.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, bare.strip_prefix('+').unwrap_or(&bare)),
    };
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0b", 2), ("0o", 8)] {
        if let Some(n) = digits.strip_prefix(prefix).and_then(|d| i64::from_str_radix(d, radix).ok()) {
            return Some(Value::from(if negative { -n } else { n }));
        }
    }
    let float = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().filter(|b| *b == b'.').count() <= 1;
    if !float {
        return None;
    }
    let value: f64 = bare.parse().ok()?;
    super::read::float(&value.to_string()).map(Value::Number)
}

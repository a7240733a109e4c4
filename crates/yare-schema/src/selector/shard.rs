//! Shard selectors (KEP-5866): `shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')`, several
//! of them with `||` between. An object belongs to the shard whose range holds the hash (64-bit FNV-1a) of the field.
//!
//! The text is an expression of CEL, of which only this much is allowed. It is read, never evaluated.

use std::fmt;

/// What the hash is taken of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardField {
    /// `object.metadata.uid`
    Uid,
    /// `object.metadata.namespace`
    Namespace,
}

impl ShardField {
    fn name(self) -> &'static str {
        match self {
            Self::Uid => "object.metadata.uid",
            Self::Namespace => "object.metadata.namespace",
        }
    }
}

/// Ranges of hashes. Made by [`ShardSelector::parse`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardSelector {
    /// What the hash is taken of; the same for all ranges.
    pub field: ShardField,
    /// From, to (not included): up to 2^64.
    ranges: Vec<(u128, u128)>,
}

/// Longest text that is read, and how deep its parentheses may nest.
const MAX_BYTES: usize = 64 << 10;
const MAX_DEPTH: usize = 100;

impl ShardSelector {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("empty shard selector is not allowed; omit the parameter for unfiltered lists".into());
        }
        if text.len() > MAX_BYTES {
            return Err(format!(
                "CEL parse error: expression code point size exceeds limit: size: {}",
                text.len()
            ));
        }
        let mut parser = Parser { rest: text, depth: 0 };
        let mut calls = Vec::new();
        parser.alternatives(&mut calls)?;
        if !parser.rest.is_empty() {
            return Err(parser.syntax());
        }
        let mut field: Option<ShardField> = None;
        let mut ranges = Vec::new();
        for call in &calls {
            let (this, from, to) = call.range()?;
            match field {
                Some(first) if first != this => {
                    return Err(format!(
                        "all shard ranges must use the same field, got {:?} and {:?}",
                        first.name(),
                        this.name()
                    ));
                }
                _ => field = Some(this),
            }
            ranges.push((from, to));
        }
        let field = field.ok_or_else(|| parser.syntax())?;
        Ok(Self { field, ranges })
    }

    /// Whether an object whose field has this value is in the shard.
    pub fn matches(&self, value: &str) -> bool {
        let hash = u128::from(hash(value));
        self.ranges.iter().any(|(from, to)| (*from..*to).contains(&hash))
    }
}

/// The form that is echoed in `metadata.shardInfo`.
impl fmt::Display for ShardSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (from, to)) in self.ranges.iter().enumerate() {
            let or = if i == 0 { "" } else { " || " };
            write!(f, "{or}shardRange({}, '0x{from:016x}', '0x{to:016x}')", self.field.name())?;
        }
        Ok(())
    }
}

/// FNV-1a, 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A call of a function, not yet looked at.
struct Call {
    name: String,
    arguments: Vec<Argument>,
}

enum Argument {
    Path(String),
    Text(String),
    Number,
    Call,
}

/// Kinds of expressions by number, as CEL's own tree numbers them.
impl Argument {
    fn kind(&self) -> u8 {
        match self {
            Self::Call => 1,
            Self::Path(path) if path.contains('.') => 7,
            Self::Path(_) => 3,
            Self::Text(_) | Self::Number => 5,
        }
    }
}

impl Call {
    fn range(&self) -> Result<(ShardField, u128, u128), String> {
        if self.name != "shardRange" {
            return Err(format!(
                "unsupported function {:?}; only shardRange() and || are allowed",
                self.name
            ));
        }
        let [field, from, to] = self.arguments.as_slice() else {
            return Err(format!("shardRange() requires exactly 3 arguments, got {}", self.arguments.len()));
        };
        let field = match field {
            Argument::Path(path) if path == ShardField::Uid.name() => ShardField::Uid,
            Argument::Path(path) if path == ShardField::Namespace.name() => ShardField::Namespace,
            Argument::Path(path) => {
                return Err(format!(
                    "unsupported field path {path:?}; supported: object.metadata.uid, object.metadata.namespace"
                ));
            }
            other => {
                return Err(format!(
                    "shardRange() first argument: expected field path (e.g. object.metadata.uid), got expression kind {}",
                    other.kind()
                ));
            }
        };
        let (from_text, from) = bound(from, "hexStart")?;
        let (to_text, to) = bound(to, "hexEnd")?;
        if from >= to {
            return Err(format!("shard range start {from_text} must be less than end {to_text}"));
        }
        Ok((field, from, to))
    }
}

/// The end of a range: 16 hexadecimal digits behind `0x`, or 2^64.
fn bound<'a>(argument: &'a Argument, name: &str) -> Result<(&'a str, u128), String> {
    let text = match argument {
        Argument::Text(text) => text,
        Argument::Number => return Err(format!("{name} must be a string literal, got int64")),
        other => {
            return Err(format!(
                "{name} must be a string literal (e.g. '0xff'), got expression kind {}",
                other.kind()
            ));
        }
    };
    let Some(digits) = text.strip_prefix("0x") else {
        return Err(format!("{name} must have '0x' prefix, got {text:?}"));
    };
    if digits.is_empty() {
        return Err(format!("{name}: hex value is required after '0x'"));
    }
    if digits.len() > 17 {
        return Err(format!("{name}: hex value too long ({} chars, max 17): {digits:?}", digits.len()));
    }
    if let Some(bad) = digits.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(format!("{name}: invalid hex character {:?} in {text:?}", bad.to_string()));
    }
    if digits.len() == 17 && digits != "10000000000000000" {
        return Err(format!("{name}: 17-digit hex value must be '0x10000000000000000' (2^64), got {text:?}"));
    }
    if digits.len() < 16 {
        return Err(format!(
            "{name} must be a 0x-prefixed 16-digit hex value, got {text:?} (did you mean {:?}?)",
            format!("0x{digits:0>16}")
        ));
    }
    // Digits and their number were looked at: it fits.
    Ok((text, u128::from_str_radix(digits, 16).unwrap_or_default()))
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn syntax(&self) -> String {
        match self.rest.chars().next() {
            None => "CEL parse error: Syntax error: mismatched input '<EOF>'".into(),
            Some(c) => format!("CEL parse error: Syntax error: extraneous input '{c}'"),
        }
    }

    /// Takes a mark, and the space around it.
    fn eat(&mut self, mark: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(mark);
        if let Some(rest) = rest {
            self.rest = rest.trim_start();
        }
        rest.is_some()
    }

    /// Calls with `||` between.
    fn alternatives(&mut self, into: &mut Vec<Call>) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("CEL parse error: expression recursion limit exceeded".into());
        }
        loop {
            if self.eat("(") {
                self.alternatives(into)?;
                if !self.eat(")") {
                    return Err(self.syntax());
                }
            } else {
                match self.argument()? {
                    (_, Some(call)) => into.push(call),
                    (other, None) => {
                        return Err(format!(
                            "unexpected expression kind {}; expected shardRange() call or || operator",
                            other.kind()
                        ));
                    }
                }
            }
            if !self.eat("||") {
                self.depth -= 1;
                return Ok(());
            }
        }
    }

    /// A call, path, string or number.
    fn argument(&mut self) -> Result<(Argument, Option<Call>), String> {
        match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => {
                let text = &self.rest[1..];
                let end = text.find(quote).ok_or_else(|| self.syntax())?;
                let (inside, rest) = (text[..end].to_owned(), text[end + 1..].trim_start());
                self.rest = rest;
                Ok((Argument::Text(inside), None))
            }
            Some(c) if c.is_ascii_digit() => {
                let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
                self.rest = self.rest[end..].trim_start();
                Ok((Argument::Number, None))
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
                let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
                let name = self.rest[..end].to_owned();
                self.rest = self.rest[end..].trim_start();
                if !self.eat("(") {
                    return Ok((Argument::Path(name), None));
                }
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err("CEL parse error: expression recursion limit exceeded".into());
                }
                let mut arguments = Vec::new();
                while !self.eat(")") {
                    if !arguments.is_empty() && !self.eat(",") {
                        return Err(self.syntax());
                    }
                    arguments.push(self.argument()?.0);
                }
                self.depth -= 1;
                // Of a method, the name is what stands last.
                let name = name.rsplit('.').next().unwrap_or_default().to_owned();
                Ok((Argument::Call, Some(Call { name, arguments })))
            }
            _ => Err(self.syntax()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let lower = "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')";
        let upper = "shardRange(object.metadata.uid, '0x8000000000000000', '0x10000000000000000')";
        for (text, want) in [
            (lower.to_owned(), Ok(lower.to_owned())),
            (
                r#" shardRange ( object.metadata.uid , "0x0000000000000000","0x8000000000000000" ) "#.into(),
                Ok(lower.to_owned()),
            ),
            (format!("{lower}||({upper})"), Ok(format!("{lower} || {upper}"))),
            (
                "  ".into(),
                Err("empty shard selector is not allowed; omit the parameter for unfiltered lists"),
            ),
            ("has(a)".into(), Err(r#"unsupported function "has"; only shardRange() and || are allowed"#)),
            (
                "object.metadata".into(),
                Err("unexpected expression kind 7; expected shardRange() call or || operator"),
            ),
            (
                "shardRange(object.metadata.uid)".into(),
                Err("shardRange() requires exactly 3 arguments, got 1"),
            ),
            (
                "shardRange('x', '0x0000000000000000', '0x8000000000000000')".into(),
                Err(
                    "shardRange() first argument: expected field path (e.g. object.metadata.uid), got expression kind 5",
                ),
            ),
            (
                "shardRange(object.metadata.name, '0x0000000000000000', '0x8000000000000000')".into(),
                Err(
                    r#"unsupported field path "object.metadata.name"; supported: object.metadata.uid, object.metadata.namespace"#,
                ),
            ),
            (
                "shardRange(object.metadata.uid, '0x0', '0x8000000000000000')".into(),
                Err(
                    r#"hexStart must be a 0x-prefixed 16-digit hex value, got "0x0" (did you mean "0x0000000000000000"?)"#,
                ),
            ),
            (
                "shardRange(object.metadata.uid, '0x0000000000000000', '80')".into(),
                Err(r#"hexEnd must have '0x' prefix, got "80""#),
            ),
            (
                "shardRange(object.metadata.uid, '0x000000000000000G', '0x8000000000000000')".into(),
                Err(r#"hexStart: invalid hex character "G" in "0x000000000000000G""#),
            ),
            (
                "shardRange(object.metadata.uid, '0x', '0x8000000000000000')".into(),
                Err("hexStart: hex value is required after '0x'"),
            ),
            (
                "shardRange(object.metadata.uid, '0x0000000000000000', '0x20000000000000000')".into(),
                Err(
                    "hexEnd: 17-digit hex value must be '0x10000000000000000' (2^64), got \"0x20000000000000000\"",
                ),
            ),
            (
                "shardRange(object.metadata.uid, '0x8000000000000000', '0x8000000000000000')".into(),
                Err("shard range start 0x8000000000000000 must be less than end 0x8000000000000000"),
            ),
            (
                format!("{lower} || {}", upper.replace("uid", "namespace")),
                Err(
                    r#"all shard ranges must use the same field, got "object.metadata.uid" and "object.metadata.namespace""#,
                ),
            ),
        ] {
            let got = ShardSelector::parse(&text).map(|s| s.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{text}");
        }
        for bad in ["shardRange(", "shardRange(a,", "'x", "|| x", &"(".repeat(10_000), &"f(".repeat(30_000)] {
            assert!(ShardSelector::parse(bad).unwrap_err().starts_with("CEL parse error"), "{bad:.40}");
        }
    }

    #[test]
    fn every_hash_is_in_one_half() {
        // The test vectors of the algorithm's authors.
        for (text, want) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(hash(text), want, "{text}");
            let half = |from: &str, to: &str| {
                ShardSelector::parse(&format!("shardRange(object.metadata.uid, '{from}', '{to}')"))
                    .unwrap()
                    .matches(text)
            };
            let upper = want >> 63 == 1;
            assert_eq!(half("0x0000000000000000", "0x8000000000000000"), !upper, "{text}");
            assert_eq!(half("0x8000000000000000", "0x10000000000000000"), upper, "{text}");
        }
    }
}

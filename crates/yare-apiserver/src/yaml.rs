//! JSON values as YAML in block style, to the letter as upstream's library (`sigs.k8s.io/yaml`, which is go-yaml 2)
//! writes them: keys in the order of people, lists not indented in their members, lines that are broken behind column
//! 80, and quotes only where a text would read as something else.

mod scalar;

use serde_json::{Map, Value};

use self::scalar::Style;

/// Columns by which a collection stands deeper than the one around it.
const STEP: usize = 2;
/// Behind this column texts go on in a new line.
const WIDTH: usize = 80;
/// Longer keys stand behind a question mark, in bytes.
const MAX_KEY: usize = 128;

/// The value as one YAML document.
pub fn emit(value: &Value) -> String {
    let mut emitter = Emitter { out: String::new(), column: 0 };
    match value {
        Value::Object(map) if !map.is_empty() => emitter.object(map, 0),
        Value::Array(items) if !items.is_empty() => emitter.array(items, 0),
        other => emitter.leaf(other, STEP),
    }
    if emitter.column > 0 {
        emitter.out.push('\n');
    }
    emitter.out
}

struct Emitter {
    out: String,
    /// Characters in the line so far.
    column: usize,
}

impl Emitter {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn end_line(&mut self) {
        self.out.push('\n');
        self.column = 0;
    }

    /// Goes to a column: in this line, where nothing stands in it that far, else in the next.
    fn begin(&mut self, indent: usize) {
        if self.column > indent || (self.column > 0 && !self.out.ends_with(' ')) {
            self.end_line();
        }
        while self.column < indent {
            self.push(" ");
        }
    }

    fn object(&mut self, map: &Map<String, Value>, indent: usize) {
        let mut members: Vec<(&String, &Value)> = map.iter().collect();
        members.sort_by_cached_key(|(key, _)| parts(key));
        for (key, value) in members {
            self.begin(indent);
            if key.len() > MAX_KEY || key.contains('\n') {
                self.push("? ");
                self.text(key, indent + STEP, false);
                self.begin(indent);
                self.push(":");
                self.behind(value, indent + STEP);
                continue;
            }
            self.text(key, indent, true);
            self.push(":");
            match value {
                Value::Object(map) if !map.is_empty() => {
                    self.end_line();
                    self.object(map, indent + STEP);
                }
                Value::Array(items) if !items.is_empty() => {
                    self.end_line();
                    self.array(items, indent);
                }
                other => self.behind(other, indent + STEP),
            }
        }
    }

    fn array(&mut self, items: &[Value], indent: usize) {
        for item in items {
            self.begin(indent);
            self.push("-");
            self.behind(item, indent + STEP);
        }
    }

    /// A value in the line of the sign before it.
    fn behind(&mut self, value: &Value, indent: usize) {
        self.push(" ");
        match value {
            Value::Object(map) if !map.is_empty() => self.object(map, indent),
            Value::Array(items) if !items.is_empty() => self.array(items, indent),
            other => self.leaf(other, indent),
        }
    }

    fn leaf(&mut self, value: &Value, indent: usize) {
        match value {
            Value::String(text) => self.text(text, indent, false),
            Value::Object(_) => self.push("{}"),
            Value::Array(_) => self.push("[]"),
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(number) => self.push(&scalar::float(number)),
                None => self.push(&number.to_string()),
            },
            other => self.push(&other.to_string()),
        }
    }

    /// A text. `is_key`: in one line.
    fn text(&mut self, text: &str, indent: usize, is_key: bool) {
        match scalar::style(text, is_key) {
            Style::Plain => self.folded(text, Style::Plain, indent, is_key),
            Style::Single => {
                self.push("'");
                self.folded(text, Style::Single, indent, is_key);
                self.push("'");
            }
            Style::Double => {
                self.push("\"");
                self.folded(text, Style::Double, indent, is_key);
                self.push("\"");
            }
            Style::Literal => self.literal(text, indent),
        }
    }

    /// A text that goes on in the next line where a word ends behind the last column, unless it is a key.
    fn folded(&mut self, text: &str, style: Style, indent: usize, is_key: bool) {
        let mut characters = text.char_indices().peekable();
        let mut in_spaces = false;
        while let Some((at, c)) = characters.next() {
            if c != ' ' {
                match style {
                    Style::Single if c == '\'' => self.push("''"),
                    Style::Double => self.push(&scalar::escaped(c)),
                    _ => self.push(c.encode_utf8(&mut [0; 4])),
                }
                in_spaces = false;
                continue;
            }
            let next = characters.peek().map(|(_, c)| *c);
            let inside = at > 0 && next.is_some();
            let may_break = match style {
                Style::Double => inside,
                Style::Single => inside && next != Some(' '),
                _ => next != Some(' '),
            };
            if may_break && !is_key && !in_spaces && self.column > WIDTH {
                self.end_line();
                self.begin(indent);
                // Spaces that begin a line count only behind this.
                if style == Style::Double && next == Some(' ') {
                    self.push("\\");
                }
            } else {
                self.push(" ");
            }
            in_spaces = true;
        }
    }

    /// A text with its lines as they are.
    fn literal(&mut self, text: &str, indent: usize) {
        self.push("|");
        if text.starts_with([' ', '\n']) {
            self.push(&STEP.to_string());
        }
        match text.strip_suffix('\n') {
            None => self.push("-"),
            Some(rest) if rest.is_empty() || rest.ends_with('\n') => self.push("+"),
            Some(_) => {}
        }
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            self.end_line();
            if !line.is_empty() {
                self.begin(indent);
                self.push(line);
            }
        }
        if text.ends_with('\n') {
            self.end_line();
        }
    }
}

/// A part of a key, in the order of people: signs, numbers by what they come to, letters.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Sign(char),
    /// With how many digits.
    Number(u64, usize),
    Letter(char),
}

/// What a key is sorted by. Go-yaml compares where two keys differ first, which is no order where a number goes on on
/// one side and a letter stands on the other (`2`, `12`, `1a`); everywhere else this is the same.
fn parts(key: &str) -> Vec<Part> {
    let mut out = Vec::new();
    let mut rest = key.chars().peekable();
    while let Some(c) = rest.next() {
        let Some(digit) = c.to_digit(10) else {
            out.push(if c.is_alphabetic() { Part::Letter(c) } else { Part::Sign(c) });
            continue;
        };
        let (mut value, mut digits) = (u64::from(digit), 1);
        while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
            value = value.saturating_mul(10).saturating_add(u64::from(digit));
            digits += 1;
            rest.next();
        }
        out.push(Part::Number(value, digits));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn as_upstream_writes_it() {
        let long = "aaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb cccccccccccccccccccccccccccccccc ddddddddddddddddddddddd eeeeeee";
        for (value, want) in [
            (json!({}), "{}\n"),
            (json!("a"), "a\n"),
            (
                json!({"a": {"b": [1, {"k": "v", "l": []}, [2, [3]]], "e": {}}, "n": null}),
                "a:\n  b:\n  - 1\n  - k: v\n    l: []\n  - - 2\n    - - 3\n  e: {}\n\"n\": null\n",
            ),
            (
                json!({"f:a": {".": {}}, "x": 1.0, "y": -1.5, "z": 1234567.5}),
                "f:a:\n  .: {}\nx: 1\n\"y\": -1.5\nz: 1.2345675e+06\n",
            ),
            (
                json!({"ip": "1.2.3.4", "at": "1.2.3.4:80", "v6": "::1", "s": "12:30"}),
                "at: 1.2.3.4:80\nip: 1.2.3.4\ns: \"12:30\"\nv6: ::1\n",
            ),
            (
                json!([
                    "a ", " a", "", "a: b", "a #b", "#b", "'x'", "\"x\"", "- a", "-", "*a", "?a", "? a",
                    "a:", "---"
                ]),
                "- 'a '\n- ' a'\n- \"\"\n- 'a: b'\n- 'a #b'\n- '#b'\n- '''x'''\n- '\"x\"'\n- '- a'\n- '-'\n- '*a'\n- ?a\n- '? a'\n- 'a:'\n- '---'\n",
            ),
            (
                json!([
                    "1e3",
                    "0x10",
                    "010",
                    "yes",
                    "No",
                    "~",
                    "null",
                    ".5",
                    "1.",
                    ".inf",
                    "1_000",
                    "2020-01-01",
                    "0b1",
                    "yEs",
                    "1Gi",
                    "2020-13-01"
                ]),
                "- \"1e3\"\n- \"0x10\"\n- \"010\"\n- \"yes\"\n- \"No\"\n- \"~\"\n- \"null\"\n- \".5\"\n- \"1.\"\n- \".inf\"\n- \"1_000\"\n- \"2020-01-01\"\n- \"0b1\"\n- yEs\n- 1Gi\n- 2020-13-01\n",
            ),
            (
                json!(["a\tb", "\u{0}\u{1b}", "😀", "\u{feff}x", "é", "a\r\nb"]),
                "- \"a\\tb\"\n- \"\\0\\e\"\n- \"\\U0001F600\"\n- \"\\uFEFFx\"\n- é\n- \"a\\r\\nb\"\n",
            ),
            (
                json!({"a": "x\ny", "b": "x\n", "c": "x\n\n", "d": "\n", "e": "x\n  y\n", "f": "  x\ny", "g": "x \ny", "h": "x\ny "}),
                "a: |-\n  x\n  y\nb: |\n  x\nc: |+\n  x\n\nd: |2+\n\ne: |\n  x\n    y\nf: |2-\n    x\n  y\ng: \"x \\ny\"\nh: \"x\\ny \"\n",
            ),
            (
                json!({"k": long}),
                "k: aaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb cccccccccccccccccccccccccccccccc ddddddddddddddddddddddd\n  eeeeeee\n",
            ),
            (
                json!({"a10": 1, "a9": 1, "a_": 1, "aB": 1, "ab": 1, "a": 1}),
                "a: 1\na_: 1\na9: 1\na10: 1\naB: 1\nab: 1\n",
            ),
        ] {
            assert_eq!(emit(&value), want);
        }
        let key = "k".repeat(129);
        assert_eq!(emit(&json!({ &*key: {"a": 1}, "b": [1] })), format!("b:\n- 1\n? {key}\n: a: 1\n"));
    }

    #[test]
    fn reads_back() {
        let hard = [
            "",
            " ",
            "x y",
            ": ",
            "a: b: c",
            "- - a",
            "{a: b}",
            "[",
            "a'b\"c\\d",
            "\n",
            "\n\n",
            " \n",
            "a\n\n b\n",
            "\u{85}",
            "\u{2028}a",
            "\u{7f}",
            "a\u{a0}b",
            "1__0",
            "+1",
            "0o17",
            "-0b11",
            "1:2:3",
            "1:99",
            "1e999",
            "0x",
            ".",
            "..",
            "...",
            "....",
            "<<",
            "=",
            "!",
            "%",
            "@",
            "`",
            "|",
            ">",
            "\t",
            "a\tb",
            "a\u{300}",
            "123456789012345678901234567890",
            "18446744073709551615",
            "2001-12-14t21:59:43.10-05:00",
            "2001-12-14 21:59:43.10",
        ];
        let long: Vec<String> = ["w", "w:", "'w'", "w\t", "w  w"].map(|word| [word; 60].join(" ")).to_vec();
        let mut map = Map::new();
        for text in hard.into_iter().map(str::to_owned).chain(long) {
            map.insert(text.clone(), json!([text, { &*text: text }, [[text]]]));
        }
        let value = json!({ "deep": { "map": map, "list": [[1, -2, 1.5], {}, [], null, true] } });
        let text = emit(&value);
        assert_eq!(crate::codec::from_yaml(text.as_bytes()).unwrap(), value, "{text}");
    }
}

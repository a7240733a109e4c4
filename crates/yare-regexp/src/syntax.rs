//! Regular expressions in the syntax of Go's `regexp`, read into that of the engine here, which is linear as Go's is.
//! What is none is told in Go's words.
//!
//! Go has ASCII classes, plain brackets in classes, `\Q…\E` and groups that share a name; it has no set operations, and
//! bounds on what is repeated.

use std::{iter::Peekable, str::Chars};

/// How often a pattern may ask for something to be repeated, repetitions within repetitions included.
const MAX_REPEAT: u32 = 1_000;
/// How deep groups nest.
const MAX_NESTING: usize = 1_000;
/// Names of ASCII classes.
const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

const BAD_ESCAPE: &str = "invalid escape sequence";
const BAD_RANGE: &str = "invalid character class range";

/// The pattern for the engine here.
///
/// # Errors
/// What Go says of a pattern that is none: `error parsing regexp: missing closing ): `(``.
pub(crate) fn translate(pattern: &str) -> Result<String, String> {
    let mut reader = Reader {
        pattern,
        rest: pattern,
        out: String::with_capacity(pattern.len() + 8),
        groups: Vec::new(),
        flags: None,
    };
    reader.read().map_err(|(what, text)| format!("error parsing regexp: {what}: `{text}`"))?;
    Ok(reader.out)
}

/// What is wrong, and with which part.
type Wrong<'p> = (&'static str, &'p str);

/// How often the largest repetition in something repeats; 1 without one.
type Times = u32;

#[derive(Clone, Copy, Default)]
struct Group {
    /// Of what is complete.
    most: Times,
    /// Of what a repetition would be of; none where there is nothing.
    last: Option<Times>,
    /// Where in what is written the group begins, and that which a repetition would be of.
    at: usize,
    last_at: usize,
}

impl Group {
    fn push(&mut self, times: Times, at: usize) {
        self.most = self.most.max(self.last.unwrap_or(1));
        self.last = Some(times);
        self.last_at = at;
    }
}

struct Reader<'p> {
    pattern: &'p str,
    rest: &'p str,
    out: String,
    groups: Vec<Group>,
    /// Flags that are not written yet: a repetition that comes after them is of what stands before.
    flags: Option<String>,
}

impl<'p> Reader<'p> {
    fn read(&mut self) -> Result<(), Wrong<'p>> {
        self.groups.push(Group::default());
        // Where the repetition just read begins.
        let mut repeated: Option<&'p str> = None;
        while let Some(c) = self.rest.chars().next() {
            let before = self.rest;
            let after = &before[c.len_utf8()..];
            let last = repeated.take();
            match c {
                '(' => self.open(before)?,
                ')' => {
                    if self.groups.len() == 1 {
                        return Err(("unexpected )", self.pattern));
                    }
                    let closed = self.groups.pop().unwrap_or_default();
                    self.put(")", after);
                    if let Some(group) = self.groups.last_mut() {
                        group.push(closed.most.max(closed.last.unwrap_or(1)), closed.at);
                    }
                }
                '|' => {
                    if let Some(group) = self.groups.last_mut() {
                        group.most = group.most.max(group.last.take().unwrap_or(1));
                    }
                    self.put("|", after);
                }
                '[' => self.class(before)?,
                '*' | '+' | '?' => {
                    self.repeat(before, after, (0, None), last)?;
                    repeated = Some(before);
                }
                '{' => match bounds(after) {
                    Some((bounds, after)) => {
                        self.repeat(before, after, bounds, last)?;
                        repeated = Some(before);
                    }
                    None => self.atom(r"\{", after),
                },
                '\\' => self.escaped(before)?,
                c => self.atom(&before[..c.len_utf8()], after),
            }
        }
        if self.groups.len() > 1 { Err(("missing closing )", self.pattern)) } else { Ok(()) }
    }

    fn put(&mut self, text: &str, rest: &'p str) {
        self.out.push_str(&self.flags.take().unwrap_or_default());
        self.out.push_str(text);
        self.rest = rest;
    }

    fn atom(&mut self, text: &str, rest: &'p str) {
        self.put(text, rest);
        let at = self.out.len() - text.len();
        if let Some(group) = self.groups.last_mut() {
            group.push(1, at);
        }
    }

    fn begin(&mut self, text: &str, rest: &'p str) {
        self.put(text, rest);
        self.groups.push(Group { at: self.out.len() - text.len(), ..Group::default() });
    }

    /// A group, named or not, or flags.
    fn open(&mut self, before: &'p str) -> Result<(), Wrong<'p>> {
        if self.groups.len() > MAX_NESTING {
            return Err(("expression nests too deeply", self.pattern));
        }
        let Some(inner) = before.strip_prefix("(?") else {
            self.begin("(", &before[1..]);
            return Ok(());
        };
        let named = inner.strip_prefix("P<").or_else(|| inner.strip_prefix('<'));
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            let end = named.find('>').ok_or(("invalid named capture", before))?;
            let name = &named[..end];
            let rest = &named[end + 1..];
            if name.is_empty() || !name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
                return Err(("invalid named capture", &before[..before.len() - rest.len()]));
            }
            // Nobody asks for what a group holds, and names may stand twice.
            self.begin("(", rest);
            return Ok(());
        }
        // Of the flags that stand more than once the last counts, which the engine would not take.
        let (mut on, mut off) = (String::new(), String::new());
        let (mut negative, mut any) = (false, false);
        let mut end = before.len();
        for (i, c) in inner.char_indices() {
            end = before.len() - inner.len() + i + c.len_utf8();
            match c {
                'i' | 'm' | 's' | 'U' => {
                    any = true;
                    on.retain(|flag| flag != c);
                    off.retain(|flag| flag != c);
                    if negative { off.push(c) } else { on.push(c) }
                }
                '-' if !negative => (negative, any) = (true, false),
                ':' | ')' if !negative || any => {
                    let minus = if off.is_empty() { "" } else { "-" };
                    let rest = &before[end..];
                    if c == ':' {
                        self.begin(&format!("(?{on}{minus}{off}:"), rest);
                    } else {
                        let mut flags = self.flags.take().unwrap_or_default();
                        if any {
                            flags.push_str(&format!("(?{on}{minus}{off})"));
                        }
                        self.flags = Some(flags);
                        self.rest = rest;
                    }
                    return Ok(());
                }
                _ => break,
            }
        }
        Err(("invalid or unsupported Perl syntax", &before[..end]))
    }

    /// `bounds`: at least, and at most; the latter is absent where there is no end.
    fn repeat(
        &mut self,
        before: &'p str,
        after: &'p str,
        (min, max): (u32, Option<u32>),
        last: Option<&'p str>,
    ) -> Result<(), Wrong<'p>> {
        let operator = &before[..before.len() - after.len()];
        let braced = operator.starts_with('{');
        if braced && (min > MAX_REPEAT || max.is_some_and(|max| max > MAX_REPEAT || max < min)) {
            return Err(("invalid repeat count", operator));
        }
        let after = after.strip_prefix('?').unwrap_or(after);
        let whole = &before[..before.len() - after.len()];
        if let Some(first) = last {
            return Err(("invalid nested repetition operator", &first[..first.len() - after.len()]));
        }
        let Some(group) = self.groups.last_mut() else { return Ok(()) };
        let Some(inner) = group.last else { return Err(("missing argument to repetition operator", whole)) };
        if braced {
            let times = inner.saturating_mul(max.unwrap_or(min).max(1));
            if times > MAX_REPEAT {
                return Err(("invalid repeat count", whole));
            }
            group.last = Some(times);
        }
        if self.flags.is_some() {
            self.out.insert_str(group.last_at, "(?:");
            self.out.push(')');
        }
        self.out.push_str(whole);
        self.rest = after;
        Ok(())
    }

    /// What a backslash begins, outside of classes.
    fn escaped(&mut self, before: &'p str) -> Result<(), Wrong<'p>> {
        let after = &before[1..];
        match after.chars().next() {
            Some('C') => Err((BAD_ESCAPE, &before[..2])),
            Some('A' | 'z') => {
                self.atom(&before[..2], &after[1..]);
                Ok(())
            }
            Some('b') => {
                self.atom(r"(?-u:\b)", &after[1..]);
                Ok(())
            }
            Some('B') => {
                self.atom(r"(?-u:\B)", &after[1..]);
                Ok(())
            }
            Some('Q') => {
                let text = &after[1..];
                let (literal, rest) = text.split_once(r"\E").unwrap_or((text, ""));
                for c in literal.chars() {
                    self.atom(&regex::escape(c.encode_utf8(&mut [0; 4])), rest);
                }
                self.rest = rest;
                Ok(())
            }
            Some(class @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => {
                self.atom(&format!("[{}]", perl(class)), &after[1..]);
                Ok(())
            }
            Some('p' | 'P') => {
                let (class, rest) = unicode(before)?;
                self.atom(&class, rest);
                Ok(())
            }
            _ => {
                let (code, rest) = character(before)?;
                self.atom(&literal(code), rest);
                Ok(())
            }
        }
    }

    /// `[…]`
    fn class(&mut self, before: &'p str) -> Result<(), Wrong<'p>> {
        let mut out = String::from("[");
        let mut rest = &before[1..];
        if let Some(negated) = rest.strip_prefix('^') {
            out.push('^');
            rest = negated;
        }
        let mut first = true;
        while first || !rest.starts_with(']') {
            first = false;
            if let Some(named) = rest.strip_prefix("[:")
                && let Some(end) = named.find(":]")
            {
                let name = &named[..end];
                let whole = &rest[..end + 4];
                if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err((BAD_RANGE, whole));
                }
                out.push_str(whole);
                rest = &rest[whole.len()..];
                continue;
            }
            match rest.strip_prefix('\\').and_then(|escape| escape.chars().next()) {
                Some('p' | 'P') => {
                    let (class, after) = unicode(rest)?;
                    out.push_str(&class);
                    rest = after;
                    continue;
                }
                Some(class @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => {
                    out.push_str(&format!("[{}]", perl(class)));
                    rest = &rest[2..];
                    continue;
                }
                _ => {}
            }
            let range = rest;
            let low = one_of_class(before, &mut rest)?;
            let mut high = low;
            if let Some(after) =
                rest.strip_prefix('-').filter(|after| !after.is_empty() && !after.starts_with(']'))
            {
                rest = after;
                high = one_of_class(before, &mut rest)?;
                if high < low {
                    return Err((BAD_RANGE, &range[..range.len() - rest.len()]));
                }
            }
            out.push_str(&literal(low));
            if high != low {
                out.push('-');
                out.push_str(&literal(high));
            }
        }
        out.push(']');
        self.atom(&out, &rest[1..]);
        Ok(())
    }
}

/// A character of the class that begins at `class`, which is stepped over.
fn one_of_class<'p>(class: &'p str, rest: &mut &'p str) -> Result<u32, Wrong<'p>> {
    let Some(c) = rest.chars().next() else { return Err(("missing closing ]", class)) };
    if c == '\\' {
        let (code, after) = character(rest)?;
        *rest = after;
        return Ok(code);
    }
    *rest = &rest[c.len_utf8()..];
    Ok(c.into())
}

/// What stands between braces behind something that repeats (`2}`, `2,}`, `2,3}`), and what follows.
fn bounds(text: &str) -> Option<((u32, Option<u32>), &str)> {
    let (inner, rest) = text.split_once('}')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (plain && (text.len() == 1 || !text.starts_with('0'))).then(|| text.parse().unwrap_or(u32::MAX))
    };
    let bounds = match inner.split_once(',') {
        None => number(inner).map(|n| (n, Some(n)))?,
        Some((min, "")) => (number(min)?, None),
        Some((min, max)) => (number(min)?, Some(number(max)?)),
    };
    Some((bounds, rest))
}

/// The members of a Perl class, which knows ASCII alone.
fn perl(class: char) -> &'static str {
    match class {
        'd' => "0-9",
        'D' => "^0-9",
        's' => r"\t\n\x0c\r ",
        'S' => r"^\t\n\x0c\r ",
        'w' => "0-9A-Za-z_",
        _ => "^0-9A-Za-z_",
    }
}

/// `\pL`, `\P{Greek}`, `\p{^L}` and the like as the engine here reads them, and what follows.
fn unicode(text: &str) -> Result<(String, &str), Wrong<'_>> {
    let inner = text.get(2..).unwrap_or_default();
    let (name, length) = match inner.chars().next() {
        Some('{') => {
            let end = inner.find('}').ok_or((BAD_RANGE, text))?;
            (&inner[1..end], end + 1)
        }
        Some(c) => (&inner[..c.len_utf8()], c.len_utf8()),
        None => return Err((BAD_RANGE, text)),
    };
    let (class, rest) = text.split_at(2 + length);
    let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
    let class_of = |name: &str| {
        let upper = text.starts_with(r"\P") != negated;
        format!(r"\{}{{{name}}}", if upper { 'P' } else { 'p' })
    };
    match property(name).map(|name| class_of(&name)).filter(|class| regex::Regex::new(class).is_ok()) {
        Some(class) => Ok((class, rest)),
        None => Err((BAD_RANGE, class)),
    }
}

/// Scripts whose names have no more letters than their codes, which Go does not know.
const SHORT_SCRIPTS: [&str; 9] = ["ahom", "cham", "kawi", "lisu", "miao", "modi", "newa", "thai", "toto"];

/// The name of a category or script, which Go reads without regard to case, spaces, `_` and `-`.
fn property(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).collect();
    let plain = name.bytes().all(|b| b.is_ascii_alphabetic()).then(|| name.to_ascii_lowercase())?;
    // A category's code, or a script's, or what the engine lets stand before a name.
    let foreign = (plain.len() == 4 && !SHORT_SCRIPTS.contains(&&*plain) && !matches!(&*plain, "mark"))
        || plain.starts_with("is");
    (!foreign).then_some(plain)
}

/// The character that an escape stands for, and what follows.
fn character(text: &str) -> Result<(u32, &str), Wrong<'_>> {
    let mut chars = text[1..].chars().peekable();
    let left = |chars: &Peekable<Chars<'_>>| chars.clone().map(char::len_utf8).sum::<usize>();
    let Some(c) = chars.next() else { return Err(("trailing backslash at end of expression", "")) };
    let octal = |chars: &mut Peekable<Chars<'_>>| chars.peek().and_then(|c| c.to_digit(8));
    let found = match c {
        '0'..='7' if c == '0' || octal(&mut chars).is_some() => {
            let mut code = c.to_digit(8).unwrap_or_default();
            for _ in 1..3 {
                let Some(digit) = octal(&mut chars) else { break };
                chars.next();
                code = code * 8 + digit;
            }
            Some(code)
        }
        'x' => hexadecimal(&mut chars),
        'a' => Some(7),
        'f' => Some(12),
        'n' => Some(10),
        'r' => Some(13),
        't' => Some(9),
        'v' => Some(11),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c.into()),
        _ => None,
    };
    let rest = &text[text.len() - left(&chars)..];
    found.map(|code| (code, rest)).ok_or((BAD_ESCAPE, &text[..text.len() - rest.len()]))
}

fn hexadecimal(chars: &mut Peekable<Chars<'_>>) -> Option<u32> {
    if chars.peek() != Some(&'{') {
        // Both are read before either is judged.
        let (high, low) = (chars.next(), chars.next());
        return Some(high?.to_digit(16)? * 16 + low?.to_digit(16)?);
    }
    chars.next();
    let (mut code, mut digits) = (0, 0);
    loop {
        let c = chars.next()?;
        if c == '}' {
            return (digits > 0).then_some(code);
        }
        code = code * 16 + c.to_digit(16)?;
        digits += 1;
        if code > u32::from(char::MAX) {
            return None;
        }
    }
}

/// A character as the engine here reads it everywhere.
fn literal(code: u32) -> String {
    match char::from_u32(code) {
        Some(c) if c.is_alphanumeric() => c.to_string(),
        _ => format!(r"\x{{{code:x}}}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_none_is_told_in_go_s_words() {
        for (pattern, expect) in [
            ("(", "missing closing ): `(`"),
            ("((((", "missing closing ): `((((`"),
            ("a)", "unexpected ): `a)`"),
            ("[", "missing closing ]: `[`"),
            ("x[a", "missing closing ]: `[a`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("a|*", "missing argument to repetition operator: `*`"),
            ("(+?)", "missing argument to repetition operator: `+?`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a++", "invalid nested repetition operator: `++`"),
            ("a{2}{3}", "invalid nested repetition operator: `{2}{3}`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("x{2,1}", "invalid repeat count: `{2,1}`"),
            ("(a{500}){500}", "invalid repeat count: `{500}`"),
            ("a{1000}{1000}", "invalid nested repetition operator: `{1000}{1000}`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?i", "invalid or unsupported Perl syntax: `(?i`"),
            ("(?P<>a)", "invalid named capture: `(?P<>`"),
            ("(?P<n", "invalid named capture: `(?P<n`"),
            (r"\", "trailing backslash at end of expression: ``"),
            (r"\1", r"invalid escape sequence: `\1`"),
            (r"\8", r"invalid escape sequence: `\8`"),
            (r"\C", r"invalid escape sequence: `\C`"),
            (r"\y", r"invalid escape sequence: `\y`"),
            (r"\x{110000}", r"invalid escape sequence: `\x{110000`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("[[:foo:]]", "invalid character class range: `[:foo:]`"),
            (r"\p{Grek}", r"invalid character class range: `\p{Grek}`"),
            (r"\p{isGreek}", r"invalid character class range: `\p{isGreek}`"),
            (r"\xgh", r"invalid escape sequence: `\xgh`"),
            ("(?P<", "invalid or unsupported Perl syntax: `(?P`"),
            (r"\p{Foo}", r"invalid character class range: `\p{Foo}`"),
        ] {
            assert_eq!(
                translate(pattern).unwrap_err(),
                format!("error parsing regexp: {expect}"),
                "{pattern}"
            );
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let error = crate::compile(r"(\pL{1000}|\pN{1000}){1}").unwrap_err();
        assert!(error.starts_with("error parsing regexp: expression too large: "), "{error}");
    }

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, expect) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١٢٣", false),
            (r"^[\w.-]+$", "a_b.c-1", true),
            (r"^[\w]+$", "é", false),
            (r"^\S+$", "a b", false),
            (r"^[^\s]+$", "ab", true),
            (r"^[\D]+$", "ab", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^]a]+$", "]a", false),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^[[:^alpha:]]+$", "123", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[a[]+$", "a[", true),
            (r"^[a~~-]+$", "a~-", true),
            (r"(?i)^ABC$", "abc", true),
            (r"^(?i:A)B$", "aB", true),
            (r"(?)(?ii)^(?i-i:A)(?:b)$", "AB", true),
            (r"(?ii)^(?i-i:A)b$", "ab", false),
            (r"^(a|b)+(?i)?C(?)+$", "c", true),
            (r"^(a|b)+(?i)?C(?)+$", "Ac", false),
            (r"^\p{L}+$", "é", true),
            (r"^\pL+$", "é", true),
            (r"^[\pN_]+$", "1_", true),
            (r"^\p{^L}\P{^ greek_}[\p{^Lowercase-Letter}]$", "1αA", true),
            (r"^\p{Any}\p{Kawi}?$", "é", true),
            (r"^\.\\\[$", ".\\[", true),
            (r"^\Qa.b\E+$", "a.bb", true),
            (r"\Q", "anything", true),
            (r"^(?P<n>a)(?P<n>b)$", "ab", true),
            (r"^a{2,3}$", "aaa", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^a{02}$", "a{02}", true),
            (r"^a+?b??$", "aab", true),
            (r"^\x41\101\x{42}$", "AAB", true),
            (r"^[\x41-\x43]+$", "ABC", true),
            (r"^\-\_\/$", "-_/", true),
            ("^ #x$", " #x", true),
            (r"^\p{L}{1,63}$", "é", true),
        ] {
            assert_eq!(crate::compile(pattern).unwrap().is_match(text), expect, "{pattern} on {text}");
        }
    }
}

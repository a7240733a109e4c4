//! Which trace something belongs to, and how that travels with requests: W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>).

use http::{HeaderMap, HeaderName, HeaderValue};

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");
/// Vendors' entries of a trace's state, and its length in bytes; one with more is not passed on.
const STATE_MEMBERS_MAX: usize = 32;
const STATE_MAX_BYTES: usize = 2048;

/// A span, as others name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; not zero.
    pub trace: [u8; 16],
    /// The span in it; not zero.
    pub span: [u8; 8],
    /// Whether the trace is recorded.
    pub sampled: bool,
    /// What vendors keep in it.
    pub state: String,
}

impl Context {
    /// What a request says that it belongs to; `None`: nothing that can be read.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(PARENT)?.to_str().ok()?;
        let (version, rest) = hex::<1>(text)?;
        let (trace, rest) = hex::<16>(rest.strip_prefix('-')?)?;
        let (span, rest) = hex::<8>(rest.strip_prefix('-')?)?;
        let (flags, rest) = hex::<1>(rest.strip_prefix('-')?)?;
        // Later versions may say more behind it.
        let whole = if version == [0] { rest.is_empty() && flags[0] <= 2 } else { version[0] != 0xff };
        if !whole || !(rest.is_empty() || rest.starts_with('-')) || trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let state = headers.get(STATE).and_then(|value| value.to_str().ok()).filter(|text| is_state(text));
        let state = state.unwrap_or_default().to_owned();
        Some(Self { trace, span, sampled: flags[0] & 1 == 1, state })
    }

    /// Says it in a request.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut text = String::with_capacity(55);
        text.push_str("00");
        for part in [&self.trace[..], &self.span, &[u8::from(self.sampled)]] {
            text.push('-');
            for byte in part {
                text.push_str(DIGITS[usize::from(byte >> 4)]);
                text.push_str(DIGITS[usize::from(byte & 15)]);
            }
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(PARENT, value);
        }
        if let Some(value) = HeaderValue::try_from(&self.state).ok().filter(|value| !value.is_empty()) {
            headers.insert(STATE, value);
        }
    }

    /// OTLP's flags of a span: whether it is recorded, and that it is known where its parent is.
    pub(crate) fn flags(&self, remote_parent: bool) -> u32 {
        u32::from(self.sampled) | 0x100 | if remote_parent { 0x200 } else { 0 }
    }
}

const DIGITS: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f"];

/// `N` bytes in lower-case hexadecimal digits, and what comes after.
fn hex<const N: usize>(text: &str) -> Option<([u8; N], &str)> {
    let (digits, rest) = text.split_at_checked(2 * N)?;
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | value;
        }
    }
    Some((bytes, rest))
}

fn is_state(text: &str) -> bool {
    let is_key = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    let is_value = |b: u8| matches!(b, b' '..=b'~') && b != b'=';
    text.len() <= STATE_MAX_BYTES
        && text.split(',').count() <= STATE_MEMBERS_MAX
        && text.split(',').all(|member| {
            member.trim().split_once('=').is_some_and(|(key, value)| {
                !key.is_empty() && key.bytes().all(is_key) && !value.is_empty() && value.bytes().all(is_value)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parent: &str, state: Option<&str>) -> Option<Context> {
        let mut headers = HeaderMap::new();
        headers.insert(PARENT, HeaderValue::from_str(parent).unwrap());
        if let Some(state) = state {
            headers.insert(STATE, HeaderValue::from_str(state).unwrap());
        }
        Context::of(&headers)
    }

    #[test]
    fn what_requests_say() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = read(good, Some("a=1,b@c=x y")).unwrap();
        assert_eq!((context.trace[0], context.trace[15], context.span[7]), (0x0a, 0x9c, 0x31));
        assert!(context.sampled);
        assert_eq!(context.state, "a=1,b@c=x y");
        let mut headers = HeaderMap::new();
        context.write(&mut headers);
        assert_eq!(headers[PARENT], good);
        assert_eq!(headers[STATE], "a=1,b@c=x y");
        let unsampled = Context { sampled: false, state: String::new(), ..context };
        let mut headers = HeaderMap::new();
        unsampled.write(&mut headers);
        assert_eq!(headers[PARENT], format!("{}0", &good[..good.len() - 1]));
        assert!(!headers.contains_key(STATE));
        for (text, sampled) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", Some(false)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", Some(false)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", None),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09-more", Some(true)),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", None),
            ("00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("", None),
            ("00-0af7", None),
        ] {
            assert_eq!(read(text, None).map(|c| c.sampled), sampled, "{text}");
        }
    }

    #[test]
    fn states_that_are_not_passed_on() {
        let many = (0..33).map(|n| format!("a{n}=1")).collect::<Vec<_>>().join(",");
        let long = format!("a={}", "x".repeat(STATE_MAX_BYTES));
        for (text, good) in [
            ("a=1", true),
            (&many[..many.rfind(',').unwrap()], true),
            (&many, false),
            (&long, false),
            ("a", false),
            ("=1", false),
            ("A=1", false),
            ("a=1=2", false),
            ("a=", false),
        ] {
            assert_eq!(is_state(text), good, "{text}");
        }
    }
}

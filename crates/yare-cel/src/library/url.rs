//! URLs, as Go's `net/url` reads them.

use std::{any::Any, collections::BTreeMap};

use super::{Cost, Function, constant, row, standard::never};
use crate::{
    error::EvalError,
    value::{Key, OpaqueValue, Str, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    constant(
        "url",
        Cost::Walk { times: 1.0, sized: true },
        url,
        &[("string_to_url", "string -> kubernetes.URL")],
    ),
    row("getScheme", Cost::Unit, scheme, &[("url_get_scheme", ".kubernetes.URL -> string")]),
    row("getHost", Cost::Unit, host, &[("url_get_host", ".kubernetes.URL -> string")]),
    row("getHostname", Cost::Unit, hostname, &[("url_get_hostname", ".kubernetes.URL -> string")]),
    row("getPort", Cost::Unit, port, &[("url_get_port", ".kubernetes.URL -> string")]),
    row("getEscapedPath", Cost::Unit, escaped_path, &[("url_get_escaped_path", ".kubernetes.URL -> string")]),
    row("getQuery", Cost::Unit, query, &[("url_get_query", ".kubernetes.URL -> map(string, list(string))")]),
    row("isURL", Cost::Unit, is_url, &[("is_url_string", "string -> bool")]),
];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    scheme: String,
    user: String,
    host: String,
    path: String,
    query: String,
    fragment: String,
}

impl OpaqueValue for Url {
    fn type_name(&self) -> &'static str {
        "kubernetes.URL"
    }
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool> {
        other.as_any().downcast_ref::<Url>().map(|other| self == other)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The bytes that a text with `%XX` stands for.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let code = text.get(at + 1..at + 3).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(code) = code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
            let shown: String = text[at..].chars().take(3).collect();
            return Err(format!("invalid URL escape {shown:?}"));
        };
        out.push(code);
        bytes.nth(1);
    }
    Ok(out)
}

/// `uri`: without a fragment, and with an absolute path if there is no scheme.
pub(super) fn check(text: &str) -> Result<(), String> {
    parse(text, true).map(|_| ()).map_err(|why| format!("parse {text:?}: {why}"))
}

fn parse(text: &str, uri: bool) -> Result<Url, String> {
    if text.chars().any(|c| c.is_ascii_control()) {
        return Err("net/url: invalid control character in URL".into());
    }
    if text.is_empty() && uri {
        return Err("empty url".into());
    }
    let (text, fragment) = if uri { (text, "") } else { text.split_once('#').unwrap_or((text, "")) };
    let mut url = Url {
        scheme: String::new(),
        user: String::new(),
        host: String::new(),
        path: String::new(),
        query: String::new(),
        fragment: fragment.to_owned(),
    };
    unescape(fragment)?;
    if text == "*" {
        url.path = "*".into();
        return Ok(url);
    }
    let mut rest = text;
    if let Some(end) = text.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))) {
        let starts_with_letter = text.starts_with(|c: char| c.is_ascii_alphabetic());
        if text[end..].starts_with(':') {
            if end == 0 {
                return Err("missing protocol scheme".into());
            }
            if starts_with_letter {
                url.scheme = text[..end].to_ascii_lowercase();
                rest = &text[end + 1..];
            }
        }
    }
    if let Some((before, query)) = rest.split_once('?') {
        rest = before;
        url.query = query.to_owned();
    }
    if !rest.starts_with('/') {
        if !url.scheme.is_empty() {
            // Opaque: `mailto:x`. It has no host and no path.
            return Ok(url);
        }
        if uri {
            return Err("invalid URI for request".into());
        }
        if rest.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err("first path segment in URL cannot contain colon".into());
        }
    }
    let with_authority = !url.scheme.is_empty() || (!uri && !rest.starts_with("///"));
    if let Some(after) = rest.strip_prefix("//").filter(|_| with_authority) {
        let end = after.find('/').unwrap_or(after.len());
        let (authority, path) = after.split_at(end);
        rest = path;
        let host = match authority.rsplit_once('@') {
            Some((user, host)) => {
                let valid = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
                if !user.chars().all(valid) {
                    return Err("net/url: invalid userinfo".into());
                }
                unescape(user)?;
                url.user = user.to_owned();
                host
            }
            None => authority,
        };
        url.host = parse_host(host)?;
    }
    unescape(rest)?;
    url.path = rest.to_owned();
    Ok(url)
}

fn valid_port(port: &str) -> bool {
    port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn parse_host(host: &str) -> Result<String, String> {
    if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        let port = &host[end + 1..];
        if !valid_port(port) {
            return Err(format!("invalid port {port:?} after host"));
        }
    } else if let Some(colon) = host.rfind(':')
        && !valid_port(&host[colon..])
    {
        return Err(format!("invalid port {:?} after host", &host[colon..]));
    }
    let valid = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:[]<>\"%".contains(c);
    if let Some(bad) = host.chars().find(|c| !valid(*c)) {
        return Err(format!("invalid character {:?} in host name", bad.to_string()));
    }
    // A host's escapes stand for what is not ASCII, and for what follows an address' zone.
    let plain = unescape(host)?;
    String::from_utf8(plain).map_err(|_| "invalid host name".into())
}

/// The path as it is sent: what must not be plain in it is escaped.
fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn url<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text)] = args else { return never(args) };
    let failed =
        |why: String| EvalError::failed(format!("URL parse error during conversion from string: {why}"));
    check(text).map_err(failed)?;
    let parsed = parse(text, false).map_err(|why| failed(format!("parse {:?}: {why}", &**text)))?;
    Ok(Value::opaque(parsed))
}

fn is_url<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(check(text).is_ok())),
        _ => never(args),
    }
}

fn own<'v>(args: &'v [Value<'_>]) -> Result<&'v Url, EvalError> {
    args[0].downcast::<Url>().ok_or(EvalError::NoSuchOverload)
}

fn scheme<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(own(args)?.scheme.as_str()))
}

fn host<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(own(args)?.host.as_str()))
}

/// Host and port; an IPv6 address comes without its brackets.
fn split_host(host: &str) -> (&str, &str) {
    let (name, port) = match host.rfind(':') {
        Some(colon) if valid_port(&host[colon..]) => (&host[..colon], &host[colon + 1..]),
        _ => (host, ""),
    };
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => (address, port),
        None => (name, port),
    }
}

fn hostname<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(split_host(&own(args)?.host).0))
}

fn port<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(split_host(&own(args)?.host).1))
}

fn escaped_path<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::string(escape_path(&own(args)?.path)))
}

fn query<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let mut map: BTreeMap<Key<'a>, Vec<Value<'a>>> = BTreeMap::new();
    for pair in own(args)?.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| {
            let bytes = unescape(&text.replace('+', " ")).ok()?;
            String::from_utf8(bytes).ok()
        };
        // What cannot be read is left out.
        if let (Some(name), Some(value)) = (plain(name), plain(value)) {
            map.entry(Key::String(Str::Shared(name.into()))).or_default().push(Value::string(value));
        }
    }
    Ok(Value::map(map.into_iter().map(|(name, values)| (name, Value::list(values))).collect()))
}

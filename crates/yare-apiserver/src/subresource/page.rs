//! Answers that `proxy` brings back from pods, services and nodes, made to work under another path: links in
//! HTML and in `Location` that mean the backend's own host lead through the proxy again.

use std::io::{Read, Write as _};

use bytes::{Bytes, BytesMut};
use flate2::{
    Compression,
    read::{DeflateDecoder, GzDecoder},
    write::{DeflateEncoder, GzEncoder},
};
use futures::StreamExt;
use html5gum::{
    Span, Tokenizer,
    emitters::callback::{CallbackEmitter, CallbackEvent},
};
use http::{HeaderValue, header};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};

use crate::{
    body::{Body, Reply},
    status::{ApiError, ApiResult},
};

/// Larger pages pass as they are.
const MAX_PAGE_BYTES: usize = 16 << 20;

/// Attributes that hold a link (HTML 4.01, index of attributes, and what HTML 5 added): element, attributes.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["formaction", "src", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Headers by which a backend would open the API server's origin to scripts of others.
const CROSS_ORIGIN: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// Where a proxied answer comes from, and under which path the client sees it.
pub struct Place {
    /// The path of the proxy, up to and with `/proxy`.
    pub prefix: String,
    /// `HOST:PORT` of the backend.
    pub backend: String,
    /// What the client calls this server.
    pub requested: String,
}

impl Place {
    /// The answer as the client should have it.
    pub async fn rewrite(&self, mut reply: Reply) -> ApiResult<Reply> {
        let headers = reply.headers_mut();
        for name in CROSS_ORIGIN {
            headers.remove(name);
        }
        if let Some(location) = headers.get(header::LOCATION) {
            let led = location.to_str().ok().and_then(|l| self.lead(l));
            if let Some(led) = led.and_then(|l| HeaderValue::from_str(&l).ok()) {
                headers.insert(header::LOCATION, led);
            }
            return Ok(reply);
        }
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        if kind != "text/html" {
            return Ok(reply);
        }
        let Some(encoding) = Encoding::named(text(header::CONTENT_ENCODING)) else { return Ok(reply) };
        let (mut parts, body) = reply.into_parts();
        let body = match gather(body).await? {
            Gathered::Whole(bytes) => match self.page(&bytes, encoding) {
                Some(page) => {
                    parts.headers.remove(header::CONTENT_LENGTH);
                    Body::full(page)
                }
                None => Body::full(bytes),
            },
            Gathered::TooLarge(body) => body,
        };
        Ok(Reply::from_parts(parts, body))
    }

    /// The page with its links led anew; `None` where it is not what its encoding says, or too large.
    fn page(&self, bytes: &[u8], encoding: Encoding) -> Option<Vec<u8>> {
        let html = encoding.decode(bytes).ok()?;
        encoding.encode(self.html(&html)).ok()
    }

    fn html(&self, html: &[u8]) -> Vec<u8> {
        let mut attributes: &[&str] = &[];
        let mut is_link = false;
        let mut emitter = CallbackEmitter::new(|event: CallbackEvent<'_>, span: Span<usize>| match event {
            CallbackEvent::OpenStartTag { name } => {
                let row = LINKS.iter().find(|(element, _)| element.as_bytes() == name);
                attributes = row.map_or(&[], |(_, attributes)| attributes);
                None
            }
            CallbackEvent::AttributeName { name } => {
                is_link = attributes.iter().any(|a| a.as_bytes() == name);
                None
            }
            CallbackEvent::AttributeValue { value } if is_link => {
                let led = std::str::from_utf8(value).ok().and_then(|url| self.lead(url))?;
                Some((span, led))
            }
            _ => None,
        });
        emitter.naively_switch_states(true);
        let mut out = Vec::with_capacity(html.len() + html.len() / 8);
        let mut at = 0;
        for (span, url) in Tokenizer::new_with_emitter(html, emitter).flatten() {
            let Some(before) = html.get(at..span.start).filter(|_| span.end <= html.len()) else { continue };
            out.extend_from_slice(before);
            escape(&url, &mut out);
            at = span.end;
        }
        out.extend_from_slice(html.get(at..).unwrap_or_default());
        out
    }

    /// Where a link has to lead instead. `None`: it is relative, to another host, or not a URL.
    fn lead(&self, url: &str) -> Option<String> {
        if url.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return None;
        }
        let (authority, rest) = split(url);
        let is_own = authority.is_empty() || authority == self.backend || authority == self.requested;
        if !is_own || !rest.starts_with('/') {
            return None;
        }
        let is_through =
            rest.strip_prefix(&self.prefix).is_some_and(|r| r.is_empty() || r.starts_with(['/', '?', '#']));
        // The client's own name for this server stays; any other host is this server's path.
        let head = if !authority.is_empty() && authority == self.requested {
            url.strip_suffix(rest).unwrap_or_default()
        } else {
            ""
        };
        let led = format!("{head}{}{rest}", if is_through { "" } else { &self.prefix });
        (led != url).then_some(led)
    }
}

/// A URL's authority, and what follows it.
fn split(url: &str) -> (&str, &str) {
    let has_scheme = url.find(':').filter(|colon| {
        let scheme = &url[..*colon];
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    });
    let after = has_scheme.map_or(url, |colon| &url[colon + 1..]);
    match after.strip_prefix("//") {
        Some(place) => place.split_at(place.find(['/', '?', '#']).unwrap_or(place.len())),
        // `mailto:x`, `data:…`: nothing that has a path on a host.
        None if has_scheme.is_some() => ("", ""),
        None => ("", after),
    }
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'"' => out.extend_from_slice(b"&#34;"),
            b'\'' => out.extend_from_slice(b"&#39;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            _ => out.push(byte),
        }
    }
}

enum Gathered {
    Whole(Bytes),
    TooLarge(Body),
}

async fn gather(mut body: Body) -> ApiResult<Gathered> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| ApiError::unavailable(format!("error trying to reach service: {e}")))?;
        if let Ok(data) = frame.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > MAX_PAGE_BYTES {
            let head = futures::stream::once(async { Ok(Frame::data(all.freeze())) });
            return Ok(Gathered::TooLarge(Body::foreign(StreamBody::new(head.chain(BodyStream::new(body))))));
        }
    }
    Ok(Gathered::Whole(all.freeze()))
}

#[derive(Clone, Copy)]
enum Encoding {
    Plain,
    Gzip,
    Deflate,
}

impl Encoding {
    fn named(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::Plain),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    fn decode(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let limit = MAX_PAGE_BYTES as u64 + 1;
        match self {
            Self::Plain => bytes.take(limit).read_to_end(&mut out),
            Self::Gzip => GzDecoder::new(bytes).take(limit).read_to_end(&mut out),
            Self::Deflate => DeflateDecoder::new(bytes).take(limit).read_to_end(&mut out),
        }?;
        if out.len() > MAX_PAGE_BYTES {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        Ok(out)
    }

    fn encode(self, html: Vec<u8>) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(html),
            Self::Gzip => {
                let mut out = GzEncoder::new(Vec::new(), Compression::default());
                out.write_all(&html)?;
                out.finish()
            }
            Self::Deflate => {
                let mut out = DeflateEncoder::new(Vec::new(), Compression::best());
                out.write_all(&html)?;
                out.finish()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/pods/p:80/proxy".into(),
            backend: "10.1.1.1:80".into(),
            requested: "localhost:8001".into(),
        }
    }

    #[test]
    fn links() {
        let through = "/api/v1/namespaces/n/pods/p:80/proxy";
        for (url, want) in [
            ("/", "{}/"),
            ("/a/b?c=d#e", "{}/a/b?c=d#e"),
            ("http://10.1.1.1:80/x", "{}/x"),
            ("//10.1.1.1:80/x/", "{}/x/"),
            ("http://localhost:8001/x", "http://localhost:8001{}/x"),
            // Relative, through the proxy already, or somebody else's.
            ("a/b", ""),
            ("", ""),
            ("#top", ""),
            ("?q=/x", ""),
            ("{}/x", ""),
            ("http://localhost:8001{}/x", ""),
            ("http://example.com/x", ""),
            ("//example.com/x", ""),
            ("mailto:a@b", ""),
            ("data:text/plain,/x", ""),
            ("/a b", ""),
            ("http://10.1.1.1:80", ""),
        ] {
            let (url, want) = (url.replace("{}", through), want.replace("{}", through));
            assert_eq!(place().lead(&url).unwrap_or_default(), want, "{url}");
        }
        // What only begins alike is not through the proxy.
        assert_eq!(place().lead(&format!("{through}2")), Some(format!("{through}{through}2")));
    }

    #[test]
    fn pages() {
        for (html, want) in [
            (r#"<pre><a href="/log/">log</a></pre>"#, r#"<pre><a href="{}/log/">log</a></pre>"#),
            ("<A class=x HREF=/a?b=1&amp;c=2>t</A>", "<A class=x HREF={}/a?b=1&amp;c=2>t</A>"),
            ("<img alt='/a' src='/b'/>", "<img alt='/a' src='{}/b'/>"),
            (r#"<object data="/d" classid=/c name="/n">"#, r#"<object data="{}/d" classid={}/c name="/n">"#),
            (r#"<form action="http://10.1.1.1:80/go">"#, r#"<form action="{}/go">"#),
            // Neither text, nor scripts, nor comments, nor other elements' attributes.
            (r#"<p>a href="/x"</p><!-- <a href="/x"> -->"#, r#"<p>a href="/x"</p><!-- <a href="/x"> -->"#),
            (r#"<script>s = '<a href="/x">'</script>"#, r#"<script>s = '<a href="/x">'</script>"#),
            (r#"<p href="/x"><a id="/y" href>"#, r#"<p href="/x"><a id="/y" href>"#),
            // Broken pages pass as they are.
            ("<a href=\"/x", "<a href=\"/x"),
            ("\u{0}<a\r\nhref=\"/x\">", "\u{0}<a\r\nhref=\"{}/x\">"),
        ] {
            let got = place().html(html.as_bytes());
            assert_eq!(String::from_utf8_lossy(&got), want.replace("{}", &place().prefix), "{html}");
        }
        let got = place().html(b"\xff\xfe<a href=\"/x\">\xff");
        assert_eq!(got, [b"\xff\xfe<a href=\"", place().prefix.as_bytes(), b"/x\">\xff"].concat());
    }

    #[tokio::test]
    async fn answers() {
        let html = br#"<a href="/x">"#;
        let want = format!(r#"<a href="{}/x">"#, place().prefix).into_bytes();
        for name in ["", "gzip", "deflate"] {
            let encoding = Encoding::named(name).unwrap();
            let reply = http::Response::builder()
                .header(header::CONTENT_TYPE, "text/html; charset=utf-8")
                .header(header::CONTENT_ENCODING, name)
                .header(header::CONTENT_LENGTH, "13")
                .header("access-control-allow-origin", "*")
                .body(Body::full(encoding.encode(html.to_vec()).unwrap()))
                .unwrap();
            let reply = place().rewrite(reply).await.unwrap();
            assert!(!reply.headers().contains_key("access-control-allow-origin"));
            assert!(!reply.headers().contains_key(header::CONTENT_LENGTH));
            let bytes = reply.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(encoding.decode(&bytes).unwrap(), want, "{name}");
        }
        // Not compressed as it says, compressed in another way, another type, or too large: as it is.
        let large = vec![b'x'; MAX_PAGE_BYTES + 1];
        for (kind, encoding, body) in [
            ("text/html", "gzip", &html[..]),
            ("text/html", "br", html),
            ("text/plain", "", html),
            ("text/html", "", &large),
        ] {
            let reply = http::Response::builder()
                .header(header::CONTENT_TYPE, kind)
                .header(header::CONTENT_ENCODING, encoding)
                .body(Body::foreign(http_body_util::Full::new(Bytes::copy_from_slice(body))))
                .unwrap();
            let reply = place().rewrite(reply).await.unwrap();
            let bytes = reply.into_body().collect().await.unwrap().to_bytes();
            assert!(bytes == body, "{kind} {encoding}");
        }
        let reply = http::Response::builder()
            .status(302)
            .header(header::LOCATION, "/there")
            .body(Body::default())
            .unwrap();
        let reply = place().rewrite(reply).await.unwrap();
        assert_eq!(reply.headers()[header::LOCATION], format!("{}/there", place().prefix));
    }
}

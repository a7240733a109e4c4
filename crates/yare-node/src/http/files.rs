//! `/logs/…`: the node's log directory, read only: listings of directories, and files with ranges.
//!
//! A path may lead through symbolic links as long as what it ends at lies in the log directory. Pods that mount
//! this directory write there too, so no link is trusted: what a path ends at is opened without effect
//! (`O_PATH`), its true place and kind are looked at, and only that very file is read.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use nix::fcntl::OFlag;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{Body, percent_decode, respond, text};

/// Entries of a directory that are listed; one with more is refused.
const ENTRIES_MAX: usize = 65_536;
/// Bytes that decide whether a file is text.
const SNIFFED_BYTES: u64 = 512;
/// Bytes of a file that are read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What a path leads to.
enum Found {
    /// A directory; its listing.
    Directory(String),
    /// A file, open at its start.
    File { file: File, length: u64, modified: Option<Timestamp>, content_type: &'static str },
}

/// Answers `GET /logs<path>`, `path` as it was sent.
pub(super) async fn serve(
    root: PathBuf,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Response<Body> {
    let decoded = percent_decode(path);
    if decoded.contains('\0') || decoded.split('/').any(|word| word == "..") {
        return text(StatusCode::BAD_REQUEST, "invalid URL path\n");
    }
    // With the slash at its end a file's path would not open.
    let relative = decoded.trim_matches('/').to_owned();
    let is_slashed = decoded.ends_with('/');
    // File systems block.
    let found = tokio::task::spawn_blocking(move || find(&root, &relative)).await;
    match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Found::Directory(_)) if !is_slashed => redirect(path, "", "/", query),
        Ok(Found::File { .. }) if is_slashed => redirect(path.trim_end_matches('/'), "../", "", query),
        Ok(Found::Directory(listing)) => respond(StatusCode::OK, "text/html; charset=utf-8", listing.into()),
        Ok(Found::File { file, length, modified, content_type }) => {
            let mut response = content(file, length, modified, headers).await;
            if response.status().is_success() {
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            }
            response
        }
        Err(error) => match error.kind() {
            io::ErrorKind::PermissionDenied => text(StatusCode::FORBIDDEN, "403 Forbidden\n"),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => {
                text(StatusCode::NOT_FOUND, "404 page not found\n")
            }
            _ => {
                tracing::warn!(%error, path, "reading from the log directory");
                text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n")
            }
        },
    }
}

fn redirect(path: &str, before: &str, after: &str, query: Option<&str>) -> Response<Body> {
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("logs");
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    let mut response = respond(StatusCode::MOVED_PERMANENTLY, "text/plain; charset=utf-8", Bytes::new());
    // What came in as a request's target has no byte that a header may not have.
    if let Ok(location) = HeaderValue::from_str(&format!("{before}{name}{after}{query}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Whether there is something inside the directory under this name.
pub(super) fn exists(root: &Path, relative: &str) -> io::Result<()> {
    inside(root, relative).map(drop)
}

/// Opens a file inside the directory; `None`: it is a directory, or nothing that can be read.
pub(super) fn open(root: &Path, relative: &str) -> io::Result<Option<File>> {
    match find(root, relative)? {
        Found::File { file, .. } => Ok(Some(file)),
        Found::Directory(_) => Ok(None),
    }
}

/// A handle of what a path ends at, and the way to open it; an error when that is not inside the directory.
fn inside(root: &Path, relative: &str) -> io::Result<(File, PathBuf)> {
    let root = std::fs::canonicalize(root)?;
    let relative = relative.trim_start_matches('/');
    if relative.split('/').any(|word| word == "..") {
        return Err(io::Error::new(io::ErrorKind::NotFound, "path escapes from parent"));
    }
    let handle = File::options()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_CLOEXEC).bits())
        .open(root.join(relative))?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    let place = std::fs::read_link(&through)?;
    if !place.starts_with(&root) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "path escapes from parent"));
    }
    Ok((handle, through))
}

fn find(root: &Path, relative: &str) -> io::Result<Found> {
    let (handle, through) = inside(root, relative)?;
    let metadata = handle.metadata()?;
    if metadata.is_dir() {
        return listing(&through).map(Found::Directory);
    }
    // Opening a pipe or a device would wait, or do something.
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(&through)?;
    let mut head = Vec::new();
    io::Read::by_ref(&mut &file).take(SNIFFED_BYTES).read_to_end(&mut head)?;
    io::Seek::seek(&mut &file, io::SeekFrom::Start(0))?;
    let modified = metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    Ok(Found::File { file, length: metadata.len(), modified, content_type: content_type(&head) })
}

/// Never markup: a log must not run in the browser of whoever reads it.
fn content_type(head: &[u8]) -> &'static str {
    let is_text = head.iter().all(|b| !matches!(b, 0..=8 | 11 | 14..=26 | 28..=31));
    if is_text { "text/plain; charset=utf-8" } else { "application/octet-stream" }
}

fn listing(directory: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            name.push('/');
        }
        names.push(name);
        if names.len() > ENTRIES_MAX {
            return Err(io::Error::other(format!("more than {ENTRIES_MAX} entries")));
        }
    }
    names.sort_unstable();
    let mut page =
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in &names {
        page.push_str(&format!("<a href=\"{}\">{}</a>\n", link(name), escape(name)));
    }
    page.push_str("</pre>\n");
    Ok(page)
}

/// A name as a relative reference (RFC 3986, 4.2): no colon before the first slash, nothing but plain bytes.
fn link(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// What a `Range` header asks of a file (RFC 9110, 14).
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of it: no range, or several, which a server may take as none.
    All,
    /// From the first byte up to before the second.
    Bytes(u64, u64),
    /// Bytes that the file does not have.
    Nothing,
}

fn part(range: Option<&str>, length: u64) -> Part {
    let Some((first, last)) =
        range.and_then(|r| r.trim().strip_prefix("bytes=")).and_then(|r| r.split_once('-'))
    else {
        return Part::All;
    };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(length)),
        (Ok(start), Err(_)) if last.is_empty() => (start, length),
        (Err(_), Ok(count)) if first.is_empty() => (length - count.min(length), length),
        _ => return Part::All,
    };
    if start < end { Part::Bytes(start, end) } else { Part::Nothing }
}

async fn content(
    file: File,
    length: u64,
    modified: Option<Timestamp>,
    headers: &HeaderMap,
) -> Response<Body> {
    let value = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let printer = DateTimePrinter::new();
    let modified_text = modified.and_then(|time| printer.timestamp_to_rfc9110_string(&time).ok());
    let since = value(header::IF_MODIFIED_SINCE).and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    let is_known = matches!((since, modified), (Some(since), Some(time)) if time.as_second() <= since.timestamp().as_second());
    if is_known {
        let mut response = Response::new(StreamBody::new(futures::stream::empty()).boxed_unsync());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let (status, start, end) = match part(value(header::RANGE), length) {
        Part::All => (StatusCode::OK, 0, length),
        Part::Bytes(start, end) => (StatusCode::PARTIAL_CONTENT, start, end),
        Part::Nothing => {
            let mut response = text(StatusCode::RANGE_NOT_SATISFIABLE, "invalid range: failed to overlap\n");
            put(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{length}"));
            return response;
        }
    };
    let mut file = tokio::fs::File::from_std(file);
    if start > 0 && file.seek(io::SeekFrom::Start(start)).await.is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "seeker can't seek\n");
    }
    let chunks = ReaderStream::with_capacity(file.take(end - start), CHUNK_BYTES).map_ok(Frame::data);
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    *response.status_mut() = status;
    let out = response.headers_mut();
    put(out, header::CONTENT_LENGTH, &(end - start).to_string());
    put(out, header::ACCEPT_RANGES, "bytes");
    if status == StatusCode::PARTIAL_CONTENT {
        put(out, header::CONTENT_RANGE, &format!("bytes {start}-{}/{length}", end - 1));
    }
    if let Some(text) = modified_text {
        put(out, header::LAST_MODIFIED, &text);
    }
    response
}

fn put(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(
        root: &Path,
        path: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> (u16, HeaderMap, String) {
        let headers = headers.iter().map(|(n, v)| (n.clone(), v.parse().unwrap())).collect();
        let (parts, body) = serve(root.to_owned(), path, None, &headers).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("log/pods/a")).unwrap();
        std::fs::write(at("log/pods/a/0.log"), "0123456789").unwrap();
        std::fs::write(at("log/a <b>&c"), "<script>").unwrap();
        std::fs::write(at("log/binary"), [0, 1, 2]).unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::fs::create_dir(at("secrets")).unwrap();
        std::fs::write(at("secrets/key"), "secret").unwrap();
        let link = std::os::unix::fs::symlink::<PathBuf, PathBuf>;
        link(at("log/pods/a/0.log"), at("log/inside.log")).unwrap();
        link(at("secret"), at("log/outside")).unwrap();
        link(at("secrets"), at("log/away")).unwrap();
        link("../secret".into(), at("log/relative")).unwrap();
        link("loop".into(), at("log/loop")).unwrap();
        nix::unistd::mkfifo(&at("log/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        root
    }

    #[tokio::test]
    async fn directories_and_files() {
        let tree = tree();
        let root = tree.path().join("log");
        let (status, headers, page) = get(&root, "/", &[]).await;
        assert_eq!(
            (status, &headers[header::CONTENT_TYPE]),
            (200, &HeaderValue::from_static("text/html; charset=utf-8"))
        );
        assert!(page.contains("<a href=\"pods/\">pods/</a>\n"), "{page}");
        assert!(page.contains("<a href=\"a%20%3Cb%3E%26c\">a &lt;b&gt;&amp;c</a>\n"), "{page}");
        for (path, status, body) in [
            ("/pods/a/0.log", 200, "0123456789"),
            ("/pods//a/./0.log", 200, "0123456789"),
            ("/inside.log", 200, "0123456789"),
            ("/a%20%3Cb%3E%26c", 200, "<script>"),
            ("/nothing", 404, "404 page not found\n"),
            ("/binary/x", 404, "404 page not found\n"),
            ("/outside", 404, "404 page not found\n"),
            ("/away/key", 404, "404 page not found\n"),
            ("/away/", 404, "404 page not found\n"),
            ("/relative", 404, "404 page not found\n"),
            ("/pipe", 404, "404 page not found\n"),
            ("/../secret", 400, "invalid URL path\n"),
            ("/%2e%2e/secret", 400, "invalid URL path\n"),
            ("//secret", 404, "404 page not found\n"),
            ("/a%00b", 400, "invalid URL path\n"),
            ("/loop", 500, "500 Internal Server Error\n"),
        ] {
            let (got, _, text) = get(&root, path, &[]).await;
            assert_eq!((got, text.as_str()), (status, body), "{path}");
        }
        for (path, location) in [("/pods", "pods/"), ("", "logs/"), ("/pods/a/0.log/", "../0.log")] {
            let (status, headers, _) = get(&root, path, &[]).await;
            assert_eq!((status, headers[header::LOCATION].to_str().unwrap()), (301, location), "{path}");
        }
        for (path, kind) in
            [("/binary", "application/octet-stream"), ("/a%20%3Cb%3E%26c", "text/plain; charset=utf-8")]
        {
            assert_eq!(get(&root, path, &[]).await.1[header::CONTENT_TYPE], kind);
        }
    }

    #[tokio::test]
    async fn ranges_and_what_is_known() {
        let tree = tree();
        let root = tree.path().join("log");
        let (_, headers, _) = get(&root, "/inside.log", &[]).await;
        assert_eq!(headers[header::CONTENT_LENGTH], "10");
        let modified = headers[header::LAST_MODIFIED].to_str().unwrap().to_owned();
        for (range, status, body, part) in [
            ("bytes=2-4", 206, "234", "bytes 2-4/10"),
            ("bytes=7-", 206, "789", "bytes 7-9/10"),
            ("bytes=-2", 206, "89", "bytes 8-9/10"),
            ("bytes=8-99", 206, "89", "bytes 8-9/10"),
            ("bytes=10-", 416, "invalid range: failed to overlap\n", "bytes */10"),
            ("bytes=1-2,4-5", 200, "0123456789", ""),
            ("lines=1-2", 200, "0123456789", ""),
        ] {
            let (got, headers, text) = get(&root, "/inside.log", &[(header::RANGE, range)]).await;
            assert_eq!((got, text.as_str()), (status, body), "{range}");
            let got = headers.get(header::CONTENT_RANGE).map_or("", |v| v.to_str().unwrap());
            assert_eq!(got, part, "{range}");
        }
        for (since, status) in
            [(modified.as_str(), 304), ("Thu, 01 Jan 1970 00:00:00 GMT", 200), ("never", 200)]
        {
            let (got, ..) = get(&root, "/inside.log", &[(header::IF_MODIFIED_SINCE, since)]).await;
            assert_eq!(got, status, "{since}");
        }
    }
}

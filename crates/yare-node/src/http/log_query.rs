//! Node log query: `/logs/?query=…` shows what services of the node wrote (`enableSystemLogQuery`).
//!
//! In: a query string. Out: what systemd's journal has of a service, or the file in the log directory that bears
//! its name, or the one file that was asked for. Only names of known form reach the journal's command line, only
//! files inside the log directory are read, and no query takes longer than half a minute.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio_util::io::ReaderStream;

use super::{Body, files, query, text};

/// How long a query may take.
const PATIENCE: Duration = Duration::from_secs(30);
const TAIL_LINES_MAX: i64 = 100_000;
const SERVICE_LENGTH_MAX: usize = 256;
const SERVICES_MAX: usize = 4;
/// A pattern longer than this is refused.
const PATTERN_LENGTH_MAX: usize = 4096;
/// What the journal says of its units: more is not looked at.
const UNITS_BYTES_MAX: u64 = 4 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// What to show.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Query {
    services: Vec<String>,
    files: Vec<String>,
    options: Options,
}

/// Which part of it; only the journal understands these.
#[derive(Debug, Clone, Default, PartialEq)]
struct Options {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail_lines: Option<i64>,
    boot: Option<i64>,
    pattern: String,
}

/// A refusal: its status, and each thing that is wrong.
type Wrong = (StatusCode, Vec<String>);

fn invalid(field: &str, value: &str, detail: &str) -> String {
    format!("{field}: Invalid value: {value}: {detail}")
}

/// Several things that are wrong, in one line.
fn aggregate(mut wrong: Vec<String>) -> String {
    match wrong.len() {
        1 => wrong.remove(0),
        _ => {
            let mut once: Vec<String> = Vec::new();
            for one in wrong {
                if !once.contains(&one) {
                    once.push(one);
                }
            }
            format!("[{}]", once.join(", "))
        }
    }
}

impl Query {
    /// Reads a query string. `None`: nothing of it is a query of logs.
    fn parse(raw: &str) -> Result<Option<Self>, Wrong> {
        let mut wrong = Vec::new();
        let mut found = Query::default();
        let asked = query(raw, "query");
        for word in &asked {
            // A slash tells a file from a service.
            if word.contains(['/', '\\']) {
                found.files.push(word.clone());
            } else if !word.trim().is_empty() {
                found.services.push(word.clone());
            }
        }
        if !asked.is_empty() && found.files.is_empty() && found.services.is_empty() {
            wrong.push(invalid("query", &format!("{:?}", asked), "query cannot be empty"));
        }
        let first = |name: &str| query(raw, name).into_iter().next().filter(|v| !v.is_empty());
        let mut time = |name: &str| {
            let text = first(name)?;
            let time = text.parse::<Timestamp>().ok();
            if time.is_none() {
                wrong.push(invalid(name, &format!("{text:?}"), "invalid time format"));
            }
            time
        };
        found.options.since = time("sinceTime");
        found.options.until = time("untilTime");
        let mut number = |name: &str| {
            let text = first(name)?;
            let number = text.parse::<i64>().ok();
            if number.is_none() {
                let detail = format!("strconv.Atoi: parsing {text:?}: invalid syntax");
                wrong.push(invalid(name, &format!("{text:?}"), &detail));
            }
            number
        };
        found.options.boot = number("boot");
        found.options.tail_lines = number("tailLines");
        found.options.pattern = first("pattern").unwrap_or_default();
        if !wrong.is_empty() {
            return Err((StatusCode::BAD_REQUEST, wrong));
        }
        let is_query = found != Query::default();
        Ok(is_query.then_some(found))
    }

    /// Whether it makes sense. `root` is where files are.
    fn validate(&self, root: &Path) -> Result<(), Wrong> {
        let mut wrong = Vec::new();
        for service in &self.services {
            let is_known = |b: u8| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b);
            if service.len() > SERVICE_LENGTH_MAX {
                let detail = format!("length must be less than {SERVICE_LENGTH_MAX}");
                wrong.push(invalid("query", &format!("{service:?}"), &detail));
            } else if !service.bytes().all(is_known) {
                wrong.push(invalid(
                    "query",
                    &format!("{service:?}"),
                    "input contains unsupported characters",
                ));
            }
        }
        if self.services.len() > SERVICES_MAX {
            let count = self.services.len();
            wrong.push(format!("query: Too many: {count}: must have at most {SERVICES_MAX} items"));
        }
        let files = format!("{:?}", self.files);
        match (self.files.as_slice(), self.services.is_empty()) {
            ([], true) => wrong.push("query: Required value: cannot be empty with options".to_owned()),
            ([], false) => {}
            (_, false) => {
                let both =
                    format!("{:?}", format!("[{}], [{}]", self.files.join(" "), self.services.join(" ")));
                wrong.push(invalid("query", &both, "cannot specify a file and service"));
            }
            ([_, _, ..], true) => wrong.push(invalid("query", &files, "cannot specify more than one file")),
            ([_], true) if self.options != Options::default() => {
                wrong.push(invalid("query", &files, "cannot specify file with options"));
            }
            ([file], true) => {
                if let Err(error) = files::exists(root, file) {
                    wrong.push(invalid("query", &files, &error.to_string()));
                }
            }
        }
        let options = &self.options;
        if let (Some(since), Some(until)) = (options.since, options.until)
            && since > until
        {
            wrong.push(invalid("untilTime", &format!("\"{until}\""), "must be after `sinceTime`"));
        }
        if let Some(boot) = options.boot.filter(|boot| *boot > 0) {
            wrong.push(invalid("boot", &boot.to_string(), "must be less than 1"));
        }
        if let Some(lines) = options.tail_lines.filter(|lines| !(0..=TAIL_LINES_MAX).contains(lines)) {
            let detail = format!("must be between 0 and {TAIL_LINES_MAX}, inclusive");
            wrong.push(invalid("tailLines", &lines.to_string(), &detail));
        }
        let pattern = &options.pattern;
        let shown: String = pattern.chars().take(SERVICE_LENGTH_MAX).collect();
        if pattern.len() > PATTERN_LENGTH_MAX {
            let detail = format!("length must be less than {PATTERN_LENGTH_MAX}");
            wrong.push(invalid("pattern", &format!("{shown:?}"), &detail));
        } else if let Err(why) = yare_regexp::compile(pattern) {
            wrong.push(invalid("pattern", &format!("{shown:?}"), &why));
        }
        if wrong.is_empty() { Ok(()) } else { Err((StatusCode::NOT_ACCEPTABLE, wrong)) }
    }

    /// The journal's arguments for these services.
    fn arguments(&self, services: &[String]) -> Vec<String> {
        let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S").to_string();
        let options = &self.options;
        let mut arguments =
            vec!["--utc".to_owned(), "--no-pager".to_owned(), "--output=short-precise".to_owned()];
        arguments.extend(options.since.map(|at| format!("--since={}", time(at))));
        arguments.extend(options.until.map(|at| format!("--until={}", time(at))));
        if let Some(lines) = options.tail_lines {
            arguments.extend(["--pager-end".to_owned(), format!("--lines={lines}")]);
        }
        arguments.extend(services.iter().map(|service| format!("--unit={service}")));
        if !options.pattern.is_empty() {
            arguments.push(format!("--grep={}", options.pattern));
            arguments.push("--case-sensitive=false".to_owned());
        }
        arguments.extend(options.boot.map(|boot| format!("--boot={boot}")));
        arguments
    }
}

/// What to do with a request for logs.
pub(super) enum Outcome {
    /// It is answered.
    Answered(Response<Body>),
    /// It is for a file, at this path.
    File(String),
    /// It is none of a query.
    NotAQuery,
}

/// Answers a query.
pub(super) async fn serve(root: &Path, raw: &str) -> Outcome {
    let refuse = |(status, wrong): Wrong| {
        let mut response = text(status, format!("{}\n", aggregate(wrong)));
        let nosniff = http::HeaderValue::from_static("nosniff");
        response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
        Outcome::Answered(response)
    };
    let asked = match Query::parse(raw) {
        Ok(Some(asked)) => asked,
        Ok(None) => return Outcome::NotAQuery,
        Err(wrong) => return refuse(wrong),
    };
    if let Err(wrong) = asked.validate(root) {
        return refuse(wrong);
    }
    if let [file] = asked.files.as_slice() {
        return Outcome::File(file.replace('\\', "/"));
    }
    let units = units().await;
    let is_native = |service: &String| units.contains(&format!("{service}.service"));
    let (native, filed): (Vec<String>, Vec<String>) = asked.services.iter().cloned().partition(is_native);
    let answer = match (filed.is_empty(), asked.options == Options::default()) {
        (true, _) => journal(&asked.arguments(&native)),
        (false, true) => read_files(root, &filed),
        (false, false) => plain(format!(
            "\noptions present and query resolved to log files for [{}]\ntry without specifying options\n",
            filed.join(" ")
        )),
    };
    Outcome::Answered(answer)
}

fn plain(message: String) -> Response<Body> {
    super::respond(StatusCode::OK, "text/plain;charset=UTF-8", message.into())
}

/// What the journal knows of units; nothing where there is no journal.
async fn units() -> String {
    let read = async {
        let mut child = Command::new("journalctl")
            .args(["--field", "_SYSTEMD_UNIT"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let mut told = Vec::new();
        child.stdout.take()?.take(UNITS_BYTES_MAX).read_to_end(&mut told).await.ok()?;
        child.wait().await.ok().filter(|status| status.success())?;
        Some(String::from_utf8_lossy(&told).into_owned())
    };
    tokio::time::timeout(PATIENCE, read).await.ok().flatten().unwrap_or_default()
}

/// Streams what the journal writes. It ends with the client, and after its time.
fn journal(arguments: &[String]) -> Response<Body> {
    let spawned = Command::new("journalctl")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let streams = spawned.map(|mut child| (child.stdout.take(), child.stderr.take(), child));
    let Ok((Some(stdout), Some(stderr), child)) = streams else {
        return plain("\nerror: journal output not available\n".to_owned());
    };
    // What goes wrong is told behind what went right.
    let said = ReaderStream::with_capacity(stdout, CHUNK_BYTES);
    let complained = ReaderStream::with_capacity(stderr.take(UNITS_BYTES_MAX), CHUNK_BYTES);
    let all = said.chain(complained).map_ok(Frame::data);
    let until = Box::pin(tokio::time::sleep(PATIENCE));
    let bounded = all.take_until(until).map(move |frame| {
        // The process lives as long as its output is read.
        let _ = &child;
        frame
    });
    stream(bounded)
}

fn stream(
    frames: impl futures::Stream<Item = std::io::Result<Frame<Bytes>>> + Send + 'static,
) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let kind = http::HeaderValue::from_static("text/plain;charset=UTF-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Streams the files of services: `<service>`, `<service>.log` or `<service>/<service>.log`.
fn read_files(root: &Path, services: &[String]) -> Response<Body> {
    let root = root.to_owned();
    let services = services.to_vec();
    let parts = futures::stream::iter(services).then(move |service| {
        let root = root.clone();
        async move {
            // File systems block.
            let opened = tokio::task::spawn_blocking(move || open(&root, &service)).await;
            let reader: Box<dyn AsyncRead + Send + Unpin> = match opened {
                Ok(Ok(file)) => Box::new(tokio::fs::File::from_std(file)),
                Ok(Err(message)) => Box::new(std::io::Cursor::new(message.into_bytes())),
                Err(error) => Box::new(std::io::Cursor::new(format!("\n{error}\n").into_bytes())),
            };
            ReaderStream::with_capacity(reader, CHUNK_BYTES)
        }
    });
    stream(parts.flatten().map_ok(Frame::data).take_until(Box::pin(tokio::time::sleep(PATIENCE))))
}

/// The error is what to tell in the file's place.
fn open(root: &Path, service: &str) -> Result<std::fs::File, String> {
    for name in [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")] {
        match files::open(root, &name) {
            Ok(Some(file)) => return Ok(file),
            Ok(None) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(format!("\nerror getting log for {service}: {error}\n")),
        }
    }
    Err(format!("\nlog not found for {service}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(root: &Path, raw: &str) -> (u16, String) {
        let judged = Query::parse(raw).and_then(|asked| match asked {
            Some(asked) => asked.validate(root).map(|()| asked.arguments(&asked.services).join(" ")),
            None => Ok("none".to_owned()),
        });
        match judged {
            Ok(text) => (200, text),
            Err((status, wrong)) => (status.as_u16(), aggregate(wrong)),
        }
    }

    #[test]
    fn queries_are_read_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("a.log"), "a").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("away")).unwrap();
        let base = "--utc --no-pager --output=short-precise";
        for (raw, status, want) in [
            ("", 200, "none".to_owned()),
            ("other=1", 200, "none".to_owned()),
            ("query=kubelet", 200, format!("{base} --unit=kubelet")),
            ("query=kubelet&query=cri-o&tailLines=5", 200, format!("{base} --pager-end --lines=5 --unit=kubelet --unit=cri-o")),
            ("query=kubelet&sinceTime=2024-01-02T03:04:05Z&untilTime=2024-01-02T03:04:06%2B00:00", 200, format!("{base} --since=2024-01-02 03:04:05 --until=2024-01-02 03:04:06 --unit=kubelet")),
            ("query=kubelet&pattern=a.*b&boot=-1", 200, format!("{base} --unit=kubelet --grep=a.*b --case-sensitive=false --boot=-1")),
            ("query=+", 400, r#"query: Invalid value: [" "]: query cannot be empty"#.to_owned()),
            ("query=a&sinceTime=now&boot=x", 400, r#"[sinceTime: Invalid value: "now": invalid time format, boot: Invalid value: "x": strconv.Atoi: parsing "x": invalid syntax]"#.to_owned()),
            ("tailLines=5", 406, "query: Required value: cannot be empty with options".to_owned()),
            ("query=a;b", 406, r#"query: Invalid value: "a;b": input contains unsupported characters"#.to_owned()),
            ("query=--flag%20x", 406, r#"query: Invalid value: "--flag x": input contains unsupported characters"#.to_owned()),
            ("query=a&query=b&query=c&query=d&query=e", 406, "query: Too many: 5: must have at most 4 items".to_owned()),
            ("query=a&boot=1", 406, "boot: Invalid value: 1: must be less than 1".to_owned()),
            ("query=a&tailLines=100001", 406, "tailLines: Invalid value: 100001: must be between 0 and 100000, inclusive".to_owned()),
            ("query=/a.log&query=b", 406, r#"query: Invalid value: "[/a.log], [b]": cannot specify a file and service"#.to_owned()),
            ("query=/a.log&query=/b.log", 406, r#"query: Invalid value: ["/a.log", "/b.log"]: cannot specify more than one file"#.to_owned()),
            ("query=/a.log&tailLines=1", 406, r#"query: Invalid value: ["/a.log"]: cannot specify file with options"#.to_owned()),
            ("query=/a.log", 200, base.to_owned()),
        ] {
            assert_eq!(judge(&root, raw), (status, want), "{raw}");
        }
        for raw in
            ["query=../secret", "query=/../secret", "query=/away", "query=/nothing", "query=a&pattern=("]
        {
            assert_eq!(judge(&root, raw).0, 406, "{raw}");
        }
        let long = "a".repeat(257);
        assert_eq!(judge(&root, &format!("query={long}")).0, 406);
    }

    #[tokio::test]
    async fn services_have_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("yare-test-one"), "one\n").unwrap();
        std::fs::write(dir.path().join("yare-test-two.log"), "two\n").unwrap();
        std::fs::create_dir(dir.path().join("yare-test-three")).unwrap();
        std::fs::write(dir.path().join("yare-test-three/yare-test-three.log"), "three\n").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("yare-test-four")).unwrap();
        let read = |raw: &str| {
            let (root, raw) = (dir.path().to_owned(), raw.to_owned());
            async move {
                let Outcome::Answered(response) = serve(&root, &raw).await else { return String::new() };
                let body = response.into_body().collect().await.unwrap().to_bytes();
                String::from_utf8_lossy(&body).into_owned()
            }
        };
        let all = "query=yare-test-one&query=yare-test-two&query=yare-test-three&query=yare-test-four";
        assert_eq!(read(all).await, "one\ntwo\nthree\n\nlog not found for yare-test-four\n");
        let with_options = read("query=yare-test-one&tailLines=1").await;
        assert!(with_options.contains("try without specifying options"), "{with_options}");
        assert!(
            matches!(serve(dir.path(), "query=/yare-test-one").await, Outcome::File(path) if path == "/yare-test-one")
        );
    }
}

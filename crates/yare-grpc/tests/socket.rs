//! A client and a server over a unix socket.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use prost::Message;
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use yare_grpc::{Client, Code, Server, Status};

#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    times: u32,
}

const ECHO: &str = "/test.Echo/Echo";
const REPEAT: &str = "/test.Echo/Repeat";
const HANG: &str = "/test.Echo/Hang";
const FOREVER: &str = "/test.Echo/Forever";
/// More than any of these calls takes.
const LONG: Duration = Duration::from_secs(30);

fn text(text: &str, times: u32) -> Text {
    Text { text: text.to_owned(), times }
}

/// Counts how many of a thing are alive.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn echo(streams: Arc<AtomicUsize>) -> Server {
    Server::new()
        .unary(ECHO, async |asked: Text| match asked.text.as_str() {
            "" => Err(Status::invalid_argument("no \"text\"; 100 % of it")),
            _ => Ok(Text { text: asked.text.repeat(asked.times as usize), times: 0 }),
        })
        .stream(REPEAT, async |asked: Text| {
            let times = asked.times;
            let good = stream::iter((0..times).map(move |n| Ok(text(&asked.text, n))));
            Ok(good.chain(stream::iter([Err(Status::aborted("that was all"))])))
        })
        .unary(HANG, async |_: Text| std::future::pending::<Result<Text, Status>>().await)
        .stream(FOREVER, move |asked: Text| {
            streams.fetch_add(1, Ordering::SeqCst);
            let alive = Alive(streams.clone());
            async move {
                Ok(stream::once(async { Ok(asked) }).chain(stream::pending()).inspect(move |_| {
                    let _ = &alive;
                }))
            }
        })
}

fn serve(socket: &Path) -> (CancellationToken, JoinHandle<()>, Arc<AtomicUsize>) {
    let _ = std::fs::remove_file(socket);
    let (stop, streams) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let listener = UnixListener::bind(socket).unwrap();
    let stopped = stop.clone();
    let server = echo(streams.clone());
    let task = tokio::spawn(async move { server.serve(listener, stopped.cancelled()).await });
    (stop, task, streams)
}

#[tokio::test]
async fn calls_and_streams() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("echo.sock");
    let (stop, task, streams) = serve(&socket);
    let client = Client::unix(&socket).user_agent("test");

    let said: Text = client.call(ECHO, text("ab", 2), LONG).await.unwrap();
    assert_eq!(said, text("abab", 0));
    let refused = client.call::<_, Text>(ECHO, text("", 1), LONG).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "no \"text\"; 100 % of it"));
    let unknown = client.call::<_, Text>("/test.Echo/Shout", text("a", 1), LONG).await.unwrap_err();
    assert_eq!(
        yare_grpc::describe(&unknown),
        "rpc error: code = Unimplemented desc = unknown method Shout for service test.Echo"
    );
    let late = client.call::<_, Text>(HANG, text("a", 1), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);

    // Answers have a bound, and it can be moved.
    let large = client.call::<_, Text>(ECHO, text("0123456789", 500_000), LONG).await.unwrap_err();
    assert_eq!(large.code(), Code::OutOfRange, "{large}");
    let roomy = client.clone().answers_up_to(8 << 20);
    assert_eq!(
        roomy.call::<_, Text>(ECHO, text("0123456789", 500_000), LONG).await.unwrap().text.len(),
        5_000_000
    );

    let mut answers = client.watch::<_, Text>(REPEAT, text("x", 3)).await.unwrap();
    for n in 0..3 {
        assert_eq!(answers.message().await.unwrap(), Some(text("x", n)));
    }
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Aborted);

    // A stream ends at the server when its reader goes.
    let mut forever = client.watch::<_, Text>(FOREVER, text("y", 1)).await.unwrap();
    assert_eq!(forever.message().await.unwrap(), Some(text("y", 1)));
    assert_eq!(streams.load(Ordering::SeqCst), 1);
    drop(forever);
    while streams.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn servers_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("echo.sock");
    let client = Client::unix(&socket);
    let nobody = client.call::<_, Text>(ECHO, text("a", 1), LONG).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unavailable);
    let dialing = format!(
        "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: no such file or directory\"",
        socket.display()
    );
    assert_eq!(nobody.message(), dialing);

    // One that waits says at the end what it waited for.
    let waiting = client.clone().waiting();
    let late = waiting.call::<_, Text>(ECHO, text("a", 1), Duration::from_millis(150)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(late.message(), format!("context deadline exceeded, latest balancer error: {dialing}"));

    // And gets its answer when the server comes.
    let asked = tokio::spawn(async move { waiting.call::<_, Text>(ECHO, text("a", 1), LONG).await });
    let (stop, task, _) = serve(&socket);
    assert_eq!(asked.await.unwrap().unwrap(), text("a", 0));

    // A server that starts anew is found again, call after call.
    let mut running = Some((stop, task));
    for n in 1..=20 {
        assert_eq!(client.call::<_, Text>(ECHO, text("a", n), LONG).await.unwrap().text.len(), n as usize);
        let (stop, task) = running.take().unwrap();
        stop.cancel();
        task.await.unwrap();
        let (stop, task, _) = serve(&socket);
        running = Some((stop, task));
    }
    let (stop, task) = running.take().unwrap();
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn over_a_stream_that_was_given() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("echo.sock");
    let (stop, task, _) = serve(&socket);
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let client = Client::over(stream).await.unwrap();
    assert_eq!(client.call::<_, Text>(ECHO, text("a", 3), LONG).await.unwrap().text, "aaa");
    stop.cancel();
    task.await.unwrap();
    let gone = client.call::<_, Text>(ECHO, text("a", 1), LONG).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone}");
}

/// Go's clients that dial by a path say it as the authority, which no URI may have.
#[tokio::test]
async fn clients_may_call_the_socket_what_they_like() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("echo.sock");
    let server = tokio::spawn(
        echo(Arc::default()).serve(UnixListener::bind(&socket).unwrap(), std::future::pending()),
    );
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let string = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let message = text("a", 3).encode_to_vec();
    let data = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], &message[..]].concat();
    for authority in ["%2Frun%2Fkubelet.sock", "/run/kubelet.sock", "", "localhost"] {
        // POST, http, then path, authority and two more as literals.
        let fields = [
            &[0x83, 0x86, 0x04],
            &string(ECHO)[..],
            &[0x41],
            &string(authority),
            &[0x00],
            &string("content-type"),
            &string("application/grpc"),
            &[0x00],
            &string("te"),
            &string("trailers"),
        ]
        .concat();
        let sent = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(1, 4, 1, &fields),
            frame(0, 1, 1, &data),
        ];
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        stream.write_all(&sent.concat()).await.unwrap();
        let answer = loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload).await.unwrap();
            assert!(!matches!(head[3], 3 | 7), "{authority:?} was refused: {payload:?}");
            if head[3] == 0 {
                break Text::decode(&payload[5..]).unwrap();
            }
        };
        assert_eq!(answer.text, "aaa", "{authority:?}");
    }
    server.abort();
}

//! A proxy that is asked with HTTP's CONNECT (RFC 9110, section 9.3.6).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Failed, Pipe};

/// Largest head of an answer that is read.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Asks the proxy at the other end of `pipe` for a connection to `target`. `proxy`: its name in messages.
pub(super) async fn ask(mut pipe: Box<dyn Pipe>, proxy: &str, target: &str) -> Result<Box<dyn Pipe>, Failed> {
    let failed = |why: &dyn std::fmt::Display| {
        Failed::proxy(format!(
            "reading HTTP response from CONNECT to {target} via proxy {proxy} failed: {why}"
        ))
    };
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    pipe.write_all(head.as_bytes()).await.map_err(|e| failed(&e))?;
    pipe.flush().await.map_err(|e| failed(&e))?;
    // Byte by byte: what comes behind the head belongs to whoever gets the connection.
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_HEAD_BYTES {
            return Err(failed(&"its head is too long"));
        }
        answer.push(pipe.read_u8().await.map_err(|e| failed(&super::super::dial::io_text(&e)))?);
    }
    let text = String::from_utf8_lossy(&answer);
    let line = text.lines().next().unwrap_or_default();
    let (version, status) = line.split_once(' ').unwrap_or_default();
    let code = status.split(' ').next().and_then(|code| code.parse::<u16>().ok());
    match code.filter(|_| version.starts_with("HTTP/1.")) {
        Some(200) => Ok(pipe),
        Some(code) => Err(Failed::proxy(format!(
            "proxy error from {proxy} while dialing {target}, code {code}: {status}"
        ))),
        None => Err(failed(&format_args!("malformed HTTP response {line:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(answer: &str) -> Result<String, String> {
        let (ours, mut theirs) = tokio::io::duplex(256);
        let answer = answer.to_owned();
        let proxy = tokio::spawn(async move {
            let mut head = [0; 256];
            let n = theirs.read(&mut head).await.unwrap();
            theirs.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..n]).into_owned()
        });
        let pipe = ask(Box::new(ours), "p", "a:1").await;
        assert_eq!(proxy.await.unwrap(), "CONNECT a:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        let mut pipe = pipe.map_err(|failed| failed.why)?;
        let mut rest = String::new();
        pipe.read_to_string(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn answers() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\nA: b\r\n\r\nhello").await, Ok("hello".into()));
        assert_eq!(
            asked("HTTP/1.1 503 Service Unavailable\r\n\r\n").await,
            Err("proxy error from p while dialing a:1, code 503: 503 Service Unavailable".into())
        );
        for (answer, why) in [("x\r\n\r\n", "malformed HTTP response \"x\""), ("HTTP/1.1 200", "EOF")] {
            let error = asked(answer).await.unwrap_err();
            assert_eq!(error, format!("reading HTTP response from CONNECT to a:1 via proxy p failed: {why}"));
        }
    }
}

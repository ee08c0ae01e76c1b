//! As much HTTP/1.1 as it takes to answer GET and HEAD: one request for each connection, with a
//! limit on its length, on the time it takes, and on how many there are at once.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Bytes of a request: its line and its headers.
const REQUEST_BYTES_MAX: usize = 4096;
/// Time for a request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 16;
/// How long accepting rests after an error such as "too many open files".
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// How an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    NotAllowed,
    TooLong,
    Unavailable,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::NotAllowed => "405 Method Not Allowed",
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: Status,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Page {
    fn plain(status: Status) -> Self {
        let body = format!("{}\n", status.line());
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// Answers for as long as it is polled. `page` gives what is at a path.
pub(super) async fn serve<F, P>(listener: TcpListener, page: F)
where
    F: Fn(String) -> P + Send + Sync + 'static,
    P: Future<Output = Option<Page>> + Send,
{
    let (room, page) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(page));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of metrics");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let page = Arc::clone(&page);
        tokio::spawn(async move {
            // Whether the reader takes the answer is its business.
            let _ = tokio::time::timeout(PATIENCE, exchange(stream, &*page)).await;
            drop(permit);
        });
    }
}

/// One request and its answer.
async fn exchange<S, F, P>(mut stream: S, page: &F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(String) -> P + Sync,
    P: Future<Output = Option<Page>>,
{
    let mut request = Vec::new();
    let end = loop {
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break Some(at);
        }
        if request.len() >= REQUEST_BYTES_MAX {
            break None;
        }
        let mut part = (&mut stream).take((REQUEST_BYTES_MAX - request.len()) as u64);
        if part.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let asked = match end {
        Some(at) => parse(&request[..at]),
        None => Err(Status::TooLong),
    };
    let (page, has_body) = match asked {
        Ok((path, has_body)) => {
            (page(path).await.unwrap_or_else(|| Page::plain(Status::NotFound)), has_body)
        }
        Err(status) => (Page::plain(status), true),
    };
    let Page { status, content_type, body } = page;
    let allow = if status == Status::NotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{allow}\
         Connection: close\r\n\r\n",
        status.line(),
        body.len()
    );
    if has_body {
        answer.push_str(&body);
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What the reader still sends is taken, or the system would cut off our answer with a reset.
    let mut rest = [0; 512];
    let mut left = REQUEST_BYTES_MAX;
    while left > 0 {
        match stream.read(&mut rest).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// The path that a request asks for, and whether the answer has a body.
fn parse(head: &[u8]) -> Result<(String, bool), Status> {
    let head = std::str::from_utf8(head).map_err(|_| Status::BadRequest)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Status::BadRequest);
    };
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") || !target.starts_with('/') {
        return Err(Status::BadRequest);
    }
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Status::BadRequest)?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Status::BadRequest);
        }
        let is_body = name.eq_ignore_ascii_case("content-length") && value.trim() != "0"
            || name.eq_ignore_ascii_case("transfer-encoding");
        if is_body {
            return Err(Status::BadRequest);
        }
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    match method {
        "GET" => Ok((path, true)),
        "HEAD" => Ok((path, false)),
        _ => Err(Status::NotAllowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back for some bytes.
    async fn answer(request: &[u8]) -> String {
        let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
        let page = |path: String| async move {
            (path == "/page").then(|| Page {
                status: Status::Ok,
                content_type: "text/plain",
                body: "body\n".to_owned(),
            })
        };
        ours.write_all(request).await.unwrap();
        ours.shutdown().await.unwrap();
        let exchange = async move { exchange(theirs, &page).await };
        let mut text = String::new();
        let (read, _) = tokio::join!(ours.read_to_string(&mut text), exchange);
        read.unwrap();
        text
    }

    #[tokio::test]
    async fn a_page_is_answered_whole() {
        let text = answer(b"GET /page?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("Content-Length: 5\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nbody\n"), "{text}");
        let text = answer(b"HEAD /page HTTP/1.0\r\n\r\n").await;
        assert!(text.contains("Content-Length: 5\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }

    #[tokio::test]
    async fn what_is_not_a_small_get_is_refused() {
        let long = [b"GET /page HTTP/1.1\r\nX: ", &[b'a'; REQUEST_BYTES_MAX][..]].concat();
        for (request, status) in [
            (&b"GET /other HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /page HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
            (b"GET /page HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "400"),
            (b"GET /page HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
            (b"GET /page HTTP/2\r\n\r\n", "400"),
            (b"GET http://a/page HTTP/1.1\r\n\r\n", "400"),
            (b"GET  /page HTTP/1.1\r\n\r\n", "400"),
            (b"GET /page\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
            (b"GET /page HTTP/1.1\r\nno colon\r\n\r\n", "400"),
            (b"GET /page HTTP/1.1\r\n folded: a\r\n\r\n", "400"),
            (b"GET /\xff HTTP/1.1\r\n\r\n", "400"),
            (&long, "431"),
        ] {
            let text = answer(request).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} {text}");
        }
        assert_eq!(answer(b"GET /page HTTP/1.1\r\n").await, "", "half a request has no answer");
    }
}

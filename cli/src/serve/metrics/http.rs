//! Just enough HTTP/1.1 to answer GET and HEAD: one request per connection, with limits on its
//! length, its time, and the number of connections. A client that connects and sends nothing cannot
//! block others.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Maximum bytes of a request: its request line and headers.
const REQUEST_BYTES_MAX: usize = 4096;
/// Time limit for a complete request to arrive.
const REQUEST_PATIENCE: Duration = Duration::from_secs(1);
/// Time limit for a request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of connections. A further one replaces the oldest whose request has not arrived;
/// if all have arrived, the new one is closed.
const CONNECTIONS_MAX: usize = 16;
/// Pause of accepting after an error such as "too many open files".
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// The status of an answer.
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

/// Serves for as long as it is polled. `page` returns the page at a path.
pub(super) async fn serve<F, P>(listener: TcpListener, page: F)
where
    F: Fn(String) -> P + Send + Sync + 'static,
    P: Future<Output = Option<Page>> + Send,
{
    let (room, page) = (Arc::new(Room::default()), Arc::new(page));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let Some(mut seat) = room.enter() else { continue };
        let page = Arc::clone(&page);
        tokio::spawn(async move {
            let given_up = seat.given_up.clone();
            let exchange = exchange(stream, &*page, || seat.heard());
            // It does not matter whether the client takes the answer.
            let _ = tokio::time::timeout(PATIENCE, given_up.run_until_cancelled(exchange)).await;
        });
    }
}

/// The connection slots.
#[derive(Default)]
struct Room(Mutex<Seats>);

#[derive(Default)]
struct Seats {
    taken: usize,
    next: u64,
    /// Slots whose request has not arrived, oldest first.
    silent: BTreeMap<u64, CancellationToken>,
}

impl Room {
    /// Takes a slot, if one is free or can be freed.
    fn enter(self: &Arc<Self>) -> Option<Seat> {
        let mut seats = self.0.lock();
        if seats.taken < CONNECTIONS_MAX {
            seats.taken += 1;
        } else {
            let (_, oldest) = seats.silent.pop_first()?;
            oldest.cancel();
        }
        let (number, given_up) = (seats.next, CancellationToken::new());
        seats.next += 1;
        seats.silent.insert(number, given_up.clone());
        Some(Seat { room: Arc::clone(self), number, given_up, is_heard: false })
    }
}

/// The slot of one connection.
struct Seat {
    room: Arc<Room>,
    number: u64,
    /// Cancelled when another connection takes over the slot.
    given_up: CancellationToken,
    is_heard: bool,
}

impl Seat {
    /// The request has arrived: keeps the slot, unless it was taken over.
    fn heard(&mut self) {
        self.is_heard = self.room.0.lock().silent.remove(&self.number).is_some();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.room.0.lock();
        if seats.silent.remove(&self.number).is_some() || self.is_heard {
            seats.taken -= 1;
        }
    }
}

/// Reads a request up to the empty line, or reports that it is too long. `None` when the connection
/// ends early.
async fn request<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> io::Result<Option<Result<Vec<u8>, Status>>> {
    let mut request = Vec::new();
    loop {
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            request.truncate(at);
            return Ok(Some(Ok(request)));
        }
        if request.len() >= REQUEST_BYTES_MAX {
            return Ok(Some(Err(Status::TooLong)));
        }
        let mut part = (&mut *stream).take((REQUEST_BYTES_MAX - request.len()) as u64);
        if part.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
    }
}

/// Handles one request. `heard` is called between the request and its answer.
async fn exchange<S, F, P>(mut stream: S, page: &F, heard: impl FnOnce()) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(String) -> P + Sync,
    P: Future<Output = Option<Page>>,
{
    let asked = tokio::time::timeout(REQUEST_PATIENCE, request(&mut stream)).await;
    let Ok(Some(asked)) = asked.unwrap_or(Ok(None)) else { return Ok(()) };
    heard();
    let asked = asked.and_then(|request| parse(&request));
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
    // Drains what the client still sends, or the kernel would cut off our answer with a reset.
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

/// The requested path, and whether the answer has a body.
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
    use tokio::net::TcpStream;
    use tokio::sync::Semaphore;

    use super::*;

    /// Returns the answer to a request.
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
        let exchange = async move { exchange(theirs, &page, || ()).await };
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

    /// Asks a server for its page over TCP.
    async fn get(mut stream: TcpStream) -> String {
        let mut text = String::new();
        let request = b"GET /page HTTP/1.1\r\n\r\n";
        if stream.write_all(request).await.is_ok() {
            // A connection closed without an answer gives an empty text.
            let _ = stream.read_to_string(&mut text).await;
        }
        text
    }

    #[tokio::test]
    async fn who_is_silent_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let open = Arc::clone(&gate);
        tokio::spawn(serve(listener, move |_| {
            let open = Arc::clone(&open);
            async move {
                open.acquire().await.unwrap().forget();
                let body = "body\n".to_owned();
                Some(Page { status: Status::Ok, content_type: "text/plain", body })
            }
        }));
        let connect = || async { TcpStream::connect(address).await.unwrap() };
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(connect().await);
        }
        let mut asking = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let stream = connect().await;
            asking.push(tokio::spawn(get(stream)));
        }
        // The oldest connections were closed for them, although none had waited long.
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
        }
        gate.add_permits(CONNECTIONS_MAX);
        for asking in asking {
            let text = asking.await.unwrap();
            assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        }
        // All connection slots are free again.
        gate.add_permits(1);
        let again = async { while !get(connect().await).await.starts_with("HTTP/1.1 200 OK") {} };
        tokio::time::timeout(PATIENCE, again).await.unwrap();
    }
}

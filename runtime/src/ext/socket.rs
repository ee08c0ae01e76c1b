//! WebSockets. A connection is made like one of `fetch`: to the addresses that a name resolves to,
//! and only if each of them is allowed. Messages cross one at a time, so that a module that does
//! not read applies backpressure to the peer.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use deno_core::convert::Uint8Array;
use deno_core::url::Url;
use deno_core::{JsBuffer, OpState, op2};
use deno_error::JsErrorBox;
use deno_permissions::PermissionsContainer;
use deno_tls::rustls::pki_types::ServerName;
use deno_tls::{TlsClientConfigOptions, create_client_config};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request as Handshake;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::bridge::{bridge, type_error};
use crate::permissions::{self, Denial};

/// Concurrent sockets of one module.
const SOCKETS_MAX: usize = 64;
/// Maximum number of sockets whose loop was left and whose peer has not ended them yet; beyond it,
/// the oldest is dropped.
const LEAVING_MAX: usize = 64;
/// Maximum bytes of one message.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time limit for connecting.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Time for the peer to answer a close.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// The tag of a message on its way into JavaScript.
const TEXT: u8 = 0;
const BINARY: u8 = 1;
const CLOSED: u8 = 2;
/// Close codes that never cross the wire: none given, connection broken.
const NO_CODE: u16 = 1005;
const BROKEN: u16 = 1006;

trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

type Stream = WebSocketStream<Box<dyn Wire>>;

/// The sockets of one isolate.
#[derive(Default)]
pub(super) struct Sockets {
    open: RefCell<HashMap<u32, Rc<Socket>>>,
    /// Sockets that are still connecting.
    connecting: Rc<Cell<usize>>,
    /// The tokens that drop the sockets whose loop was left, oldest first. Those of sockets that
    /// have ended are removed when the next socket is left.
    leaving: RefCell<VecDeque<CancellationToken>>,
    next: Cell<u32>,
}

/// A reserved slot for a socket that is still connecting.
struct Connecting(Rc<Cell<usize>>);

impl Sockets {
    /// Reserves a slot for another socket, if there is one left.
    fn reserve(&self) -> Result<Connecting, JsErrorBox> {
        let taken = self.connecting.get();
        if self.open.borrow().len() + taken >= SOCKETS_MAX {
            let text = format!("{SOCKETS_MAX} sockets are already open; close one first");
            return Err(JsErrorBox::range_error(text));
        }
        self.connecting.set(taken + 1);
        Ok(Connecting(Rc::clone(&self.connecting)))
    }

    /// Registers a socket whose loop was left, and drops the oldest ones beyond the limit.
    fn leave(&self, given_up: CancellationToken) {
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|other| !other.is_cancelled());
        while leaving.len() >= LEAVING_MAX {
            leaving.pop_front().inspect(CancellationToken::cancel);
        }
        leaving.push_back(given_up);
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

struct Socket {
    sender: tokio::sync::Mutex<SplitSink<Stream, Message>>,
    receiver: tokio::sync::Mutex<SplitStream<Stream>>,
    /// Fires when the peer did not answer a close in time, when the module dropped the socket, or
    /// when the socket is done.
    given_up: CancellationToken,
    /// Fires when the module stops reading.
    left: CancellationToken,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    url: String,
    headers: Vec<(String, String)>,
    protocols: Vec<String>,
}

/// Connects and returns the socket's number and the negotiated protocol, as JSON.
#[op2]
#[string]
pub(super) async fn op_xs_socket(
    state: Rc<RefCell<OpState>>,
    #[string] request: String,
) -> Result<String, JsErrorBox> {
    let request: Request = serde_json::from_str(&request).map_err(type_error)?;
    let bridge = bridge(&state);
    let permissions = state.borrow().try_borrow::<PermissionsContainer>().cloned();
    let mut permissions = permissions.unwrap_or_else(permissions::nothing);
    let place = bridge.sockets.reserve()?;
    let url = Url::parse(&request.url).map_err(|error| type_error(format!("the URL: {error}")))?;
    let connecting = connect(&url, &request, &mut permissions);
    let connected = tokio::time::timeout(CONNECT_MAX, connecting).await;
    let connected = connected.map_err(|_| {
        JsErrorBox::generic(format!("{url} did not answer in {} s", CONNECT_MAX.as_secs()))
    })?;
    let (stream, protocol) = connected.map_err(|error| match error {
        Unconnected::Denied(denial) => bridge.denied(&denial),
        Unconnected::Failed(error) => error,
    })?;
    let (sender, receiver) = stream.split();
    let socket = Socket {
        sender: tokio::sync::Mutex::new(sender),
        receiver: tokio::sync::Mutex::new(receiver),
        given_up: CancellationToken::new(),
        left: CancellationToken::new(),
    };
    let number = bridge.sockets.next.get();
    bridge.sockets.next.set(number.wrapping_add(1));
    bridge.sockets.open.borrow_mut().insert(number, Rc::new(socket));
    drop(place);
    Ok(json!({ "socket": number, "protocol": protocol }).to_string())
}

/// Why a connection failed.
enum Unconnected {
    Denied(Denial),
    Failed(JsErrorBox),
}

impl From<JsErrorBox> for Unconnected {
    fn from(error: JsErrorBox) -> Self {
        Self::Failed(error)
    }
}

async fn connect(
    url: &Url,
    request: &Request,
    permissions: &mut PermissionsContainer,
) -> Result<(Stream, String), Unconnected> {
    let failed = |error: String| JsErrorBox::generic(format!("cannot connect to {url}: {error}"));
    let secure = match url.scheme() {
        "wss" | "https" => true,
        "ws" | "http" => false,
        other => {
            return Err(type_error(format!("a socket's URL begins with wss:, not {other}:")).into());
        }
    };
    let host = url.host_str().ok_or_else(|| type_error("the URL names no host"))?;
    let port = url.port().unwrap_or(if secure { 443 } else { 80 });
    permissions.check_net(&(host, Some(port)), "WebSocket").map_err(|_| denied(host, port))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((bare, port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| failed(error.to_string()))?.collect();
    for address in &addresses {
        let checked = permissions.check_net_resolved(&address.ip(), port, "WebSocket");
        checked.map_err(|_| denied(&address.ip().to_string(), port))?;
    }
    let tcp = TcpStream::connect(&addresses[..]).await.map_err(|e| failed(e.to_string()))?;
    // Messages are small and often answered at once; without this the socket still works.
    let _ = tcp.set_nodelay(true);
    let wire: Box<dyn Wire> = if secure {
        let config = create_client_config(TlsClientConfigOptions::default());
        let config = config.map_err(|error| failed(error.to_string()))?;
        let name = ServerName::try_from(bare.to_owned()).map_err(|e| failed(e.to_string()))?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        Box::new(tls.map_err(|error| failed(error.to_string()))?)
    } else {
        Box::new(tcp)
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let handshake = handshake(url, secure, request)?;
    let agreed = tokio_tungstenite::client_async_with_config(handshake, wire, Some(config)).await;
    let (stream, response) = agreed.map_err(|error| failed(error.to_string()))?;
    let protocol = response.headers().get("sec-websocket-protocol");
    let protocol = protocol.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    Ok((stream, protocol))
}

fn handshake(url: &Url, secure: bool, request: &Request) -> Result<Handshake, JsErrorBox> {
    let mut url = url.clone();
    // fetch's schemes are accepted too, per the standard.
    let _ = url.set_scheme(if secure { "wss" } else { "ws" });
    url.set_fragment(None);
    let mut handshake = url.as_str().into_client_request().map_err(type_error)?;
    let headers = handshake.headers_mut();
    for (name, value) in &request.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(type_error)?;
        headers.append(name, HeaderValue::from_str(value).map_err(type_error)?);
    }
    if !request.protocols.is_empty() {
        let protocols = HeaderValue::from_str(&request.protocols.join(", ")).map_err(type_error)?;
        headers.insert("sec-websocket-protocol", protocols);
    }
    Ok(handshake)
}

fn denied(host: &str, port: u16) -> Unconnected {
    Unconnected::Denied(Denial::Network(format!("{host}:{port}")))
}

fn socket(state: &RefCell<OpState>, number: u32) -> Option<Rc<Socket>> {
    bridge(state).sockets.open.borrow().get(&number).cloned()
}

/// The next message: 0 and text, 1 and bytes, or 2 with the close code and reason.
#[op2]
pub(super) async fn op_xs_socket_next(state: Rc<RefCell<OpState>>, number: u32) -> Uint8Array {
    let message = match socket(&state, number) {
        Some(socket) => socket.next().await,
        None => closed(BROKEN, "the socket is closed"),
    };
    if message.first() == Some(&CLOSED) {
        bridge(&state).sockets.open.borrow_mut().remove(&number);
    }
    message.into()
}

impl Socket {
    async fn next(&self) -> Vec<u8> {
        let mut receiver = self.receiver.lock().await;
        loop {
            let message = tokio::select! {
                biased;
                () = self.given_up.cancelled() => return closed(BROKEN, "closed"),
                () = self.left.cancelled() => return closed(BROKEN, "left"),
                message = receiver.next() => message,
            };
            match message {
                Some(Ok(Message::Text(text))) => return tagged(TEXT, text.as_bytes()),
                Some(Ok(Message::Binary(bytes))) => return tagged(BINARY, &bytes),
                Some(Ok(Message::Close(frame))) => {
                    self.answer_close(&mut receiver).await;
                    return match frame {
                        Some(frame) => closed(frame.code.into(), &frame.reason),
                        None => closed(NO_CODE, ""),
                    };
                }
                Some(Ok(_)) => {}
                Some(Err(Error::ConnectionClosed)) => return closed(NO_CODE, ""),
                Some(Err(error)) => return closed(BROKEN, &error.to_string()),
                None => return closed(BROKEN, "the connection ended"),
            }
        }
    }

    /// Answers a close, which reading does, and waits for the peer to end the connection. Gives up
    /// on a peer that keeps it open.
    async fn answer_close(&self, receiver: &mut SplitStream<Stream>) {
        let ended = async { while let Some(Ok(_)) = receiver.next().await {} };
        tokio::select! {
            () = self.given_up.cancelled() => {}
            () = self.left.cancelled() => {}
            // Either way the socket is done.
            _ = tokio::time::timeout(CLOSE_MAX, ended) => {}
        }
    }

    async fn send(&self, message: Message) -> Result<(), JsErrorBox> {
        let sent = tokio::select! {
            biased;
            () = self.given_up.cancelled() => {
                return Err(JsErrorBox::generic("the socket is closed"));
            }
            sent = async { self.sender.lock().await.send(message).await } => sent,
        };
        sent.map_err(|error| JsErrorBox::generic(format!("the socket: {error}")))
    }
}

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(tag);
    message.extend_from_slice(bytes);
    message
}

fn closed(code: u16, reason: &str) -> Vec<u8> {
    let mut message = tagged(CLOSED, &code.to_le_bytes());
    message.extend_from_slice(reason.as_bytes());
    message
}

/// Sends text.
#[op2]
pub(super) async fn op_xs_socket_text(
    state: Rc<RefCell<OpState>>,
    number: u32,
    #[string] text: String,
) -> Result<(), JsErrorBox> {
    match socket(&state, number) {
        Some(socket) => socket.send(Message::text(text)).await,
        None => Err(JsErrorBox::generic("the socket is closed")),
    }
}

/// Sends bytes.
#[op2]
pub(super) async fn op_xs_socket_bytes(
    state: Rc<RefCell<OpState>>,
    number: u32,
    #[buffer] bytes: JsBuffer,
) -> Result<(), JsErrorBox> {
    match socket(&state, number) {
        Some(socket) => socket.send(Message::binary(bytes.to_vec())).await,
        None => Err(JsErrorBox::generic("the socket is closed")),
    }
}

/// Asks the peer to close; the close arrives as the last message. Code 0 means none.
#[op2]
pub(super) async fn op_xs_socket_close(
    state: Rc<RefCell<OpState>>,
    number: u32,
    code: u32,
    #[string] reason: String,
) {
    let Some(socket) = socket(&state, number) else { return };
    let code = u16::try_from(code).ok().filter(|code| *code != 0);
    let frame = code.map(|code| CloseFrame { code: CloseCode::from(code), reason: reason.into() });
    let closing = Rc::clone(&socket);
    // Started before sending: the peer may not accept the close message either.
    drop(deno_core::unsync::spawn(async move {
        tokio::time::sleep(CLOSE_MAX).await;
        closing.given_up.cancel();
    }));
    // A lost connection needs no close.
    let _ = socket.send(Message::Close(frame)).await;
}

/// Leaves a socket that the module no longer reads. Its number is free at once; the connection ends
/// when the peer has answered the close, or after the time limit for that.
#[op2(fast)]
pub(super) fn op_xs_socket_leave(state: &mut OpState, number: u32) {
    let bridge = state.borrow::<Rc<super::bridge::Bridge>>();
    let Some(socket) = bridge.sockets.open.borrow_mut().remove(&number) else { return };
    bridge.sockets.leave(socket.given_up.clone());
    socket.left.cancel();
    drop(deno_core::unsync::spawn(async move {
        let ended = async {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            // A lost connection needs no close.
            let _ = socket.send(Message::Close(Some(frame))).await;
            let mut receiver = socket.receiver.lock().await;
            while let Some(Ok(_)) = receiver.next().await {}
        };
        tokio::select! {
            () = socket.given_up.cancelled() => {}
            // Either way the socket is done.
            _ = tokio::time::timeout(CLOSE_MAX, ended) => {}
        }
        socket.given_up.cancel();
    }));
}

/// Drops a socket without a close.
#[op2(fast)]
pub(super) fn op_xs_socket_drop(state: &mut OpState, number: u32) {
    let bridge = state.borrow::<Rc<super::bridge::Bridge>>();
    if let Some(socket) = bridge.sockets.open.borrow_mut().remove(&number) {
        socket.given_up.cancel();
    }
}

//! A connection to a server for another process that does not know how to make one: HELLO, with the
//! token in it, is sent here, and the HELLO of the other process is answered here. From then on
//! bytes are copied uninspected.

use std::fmt;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::dial::{self, Dialled, dial};
use super::{ClientOptions, core};
use crate::address::Address;
use crate::auth::Secret;
use crate::codec::{Codec, Envelope, Header, PREFACE};
use crate::error::{ClientError, ProtocolError};
use crate::gather::Gather;
use crate::limits::{HELLO_BYTES_MAX, HELLO_WAIT, SERVER_MESSAGE_BYTES_MAX, SILENCE_MAX};
use crate::message::{HostClaim, Incoming, Op, Response};
use crate::session::ClientSession;

/// Size of the copy buffer of each direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// Time for the server to read the last bytes of the other process and to close.
const LAST_WORDS: Duration = Duration::from_secs(2);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection whose HELLO is done, for a client in another process.
#[must_use = "dropping it closes the connection"]
pub struct Relay {
    server: Box<dyn Stream>,
    /// The server's answer to HELLO, for the other process.
    welcome: Envelope,
    /// Bytes the server sent after it.
    rest: BytesMut,
}

/// Why a [`Relay`] has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEnd {
    /// The other process closed, or did not speak the protocol.
    Process,
    /// The server closed or was lost: a description for people.
    Server(String),
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Relay {
    /// Connects to a server as the Host of its modules, or of a part of them.
    ///
    /// # Errors
    /// [`ClientError`] when nothing listens there or HELLO fails.
    pub async fn open(
        address: &Address,
        options: ClientOptions,
        claim: HostClaim,
    ) -> Result<Self, ClientError> {
        let timeout = options.timeout;
        let open = async {
            let server: Box<dyn Stream> = match dial(address, &options).await? {
                Dialled::Unix(stream) => Box::new(stream),
                Dialled::Tcp(stream) => Box::new(stream),
                Dialled::Tls(stream) => Box::new(stream),
            };
            Self::hello(server, options, claim).await
        };
        tokio::time::timeout(timeout, open).await.map_err(|_| dial::late(address))?
    }

    async fn hello(
        mut server: Box<dyn Stream>,
        options: ClientOptions,
        claim: HostClaim,
    ) -> Result<Self, ClientError> {
        let token = options.token.map(Secret::into_text).unwrap_or_default();
        let (session, corr) = ClientSession::new(options.name, token, Some(claim))?;
        let said = session.into_output();
        let ended = |error: io::Error| ClientError::Disconnected((&error).into());
        server.write_all(&said).await.map_err(ended)?;
        server.flush().await.map_err(ended)?;
        let (mut codec, mut rest) = (Codec::new(SERVER_MESSAGE_BYTES_MAX), BytesMut::new());
        loop {
            let Some(envelope) = next(&mut server, &mut codec, &mut rest).await? else {
                return Err(core::gone());
            };
            match Incoming::read(envelope.clone())? {
                Incoming::Response { header, result } if header.corr == corr => match result? {
                    Response::Hello(_) => return Ok(Self { server, welcome: envelope, rest }),
                    _ => return Err(unexpected()),
                },
                Incoming::Close(refusal) => return Err(refusal.into()),
                // The server is stopping; it reports that to the request too.
                Incoming::GoAway(_) => {}
                _ => return Err(unexpected()),
            }
        }
    }

    /// Connects the other process to the server until either closes or the server is silent for too
    /// long. On return the server's connection is closed, that of the process not yet.
    pub async fn run<S>(self, process: &mut S) -> RelayEnd
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let Self { server, welcome, rest } = self;
        let (mut from_process, mut to_process) = tokio::io::split(process);
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let answered = answer(&mut from_process, &mut to_process, &welcome, &rest);
        let Ok(Ok(said)) = tokio::time::timeout(HELLO_WAIT, answered).await else {
            return RelayEnd::Process;
        };
        let end = {
            let mut up = pin!(copy(&mut from_process, &mut to_server, &said, None));
            let mut down = pin!(copy(&mut from_server, &mut to_process, &[], Some(SILENCE_MAX)));
            tokio::select! {
                end = &mut down => match end {
                    Ended::Reading(reason) => RelayEnd::Server(reason),
                    Ended::Writing => RelayEnd::Process,
                },
                end = &mut up => match end {
                    Ended::Reading(_) => RelayEnd::Process,
                    Ended::Writing => RelayEnd::Server("it takes no more bytes".to_owned()),
                },
            }
        };
        if end == RelayEnd::Process {
            // The last bytes are in flight: closing at once could discard them.
            let last = async {
                to_server.shutdown().await?;
                let mut rest = vec![0; BUFFER_BYTES];
                while from_server.read(&mut rest).await? > 0 {}
                io::Result::Ok(())
            };
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
        }
        end
    }
}

/// Which side ended a copy.
enum Ended {
    /// The source; with a description for people.
    Reading(String),
    /// The destination.
    Writing,
}

/// Copies `first`, then everything received, until either side closes, or the source is silent for
/// `patience`.
async fn copy<R, W>(from: &mut R, to: &mut W, first: &[u8], patience: Option<Duration>) -> Ended
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut count = first.len().min(buffer.len());
    buffer[..count].copy_from_slice(&first[..count]);
    loop {
        if count > 0 && (to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err())
        {
            return Ended::Writing;
        }
        let read = from.read(&mut buffer);
        let read = match patience {
            Some(patience) => tokio::time::timeout(patience, read).await,
            None => Ok(read.await),
        };
        count = match read {
            Ok(Ok(0)) => return Ended::Reading("it hung up".to_owned()),
            Ok(Ok(count)) => count,
            Ok(Err(error)) => return Ended::Reading(error.to_string()),
            Err(_) => return Ended::Reading("nothing was heard from it".to_owned()),
        };
    }
}

/// Receives the HELLO of the other process and answers it with the server's answer. Returns the
/// bytes that followed it; they fit in one buffer.
async fn answer<R, W>(
    from: &mut R,
    to: &mut W,
    welcome: &Envelope,
    rest: &[u8],
) -> Result<Bytes, ClientError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut codec, mut said) = (Codec::new(HELLO_BYTES_MAX), BytesMut::new());
    let Some(hello) = next(from, &mut codec, &mut said).await? else { return Err(core::gone()) };
    if hello.header.op != Op::Hello as u8 {
        return Err(unexpected());
    }
    let mut out = Gather::default();
    out.put_raw(&PREFACE);
    out.begin(Header { corr: hello.header.corr, ..welcome.header });
    out.put_slice(&welcome.body);
    out.finish();
    out.put_raw(rest);
    let ended = |error: io::Error| ClientError::Disconnected((&error).into());
    to.write_all(&out.take_all()).await.map_err(ended)?;
    to.flush().await.map_err(ended)?;
    Ok(said.freeze())
}

/// The next message; `None` at the end.
async fn next<R: AsyncRead + Unpin>(
    from: &mut R,
    codec: &mut Codec,
    buffer: &mut BytesMut,
) -> Result<Option<Envelope>, ClientError> {
    loop {
        if let Some(envelope) = codec.next(buffer)? {
            return Ok(Some(envelope));
        }
        // Never more than the buffer of the first copy holds.
        let room = BUFFER_BYTES.saturating_sub(buffer.len());
        let mut limited = (&mut *from).take(room as u64);
        match limited.read_buf(buffer).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(ClientError::Disconnected((&error).into())),
        }
    }
}

const fn unexpected() -> ClientError {
    ClientError::Protocol(ProtocolError::Unexpected("another message than that of HELLO"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_given_up_and_a_slow_process_is_not() {
        let (mut server, mut far) = tokio::io::duplex(BUFFER_BYTES);
        let (mut process, mut near) = tokio::io::duplex(16);
        far.write_all(&[7; 64]).await.unwrap();
        let began = tokio::time::Instant::now();
        let copied = copy(&mut server, &mut near, b"first", Some(SILENCE_MAX));
        let slow = async {
            let mut bytes = [0; 69];
            for byte in &mut bytes {
                tokio::time::sleep(SILENCE_MAX / 4).await;
                *byte = process.read_u8().await.unwrap();
            }
            (bytes, began.elapsed())
        };
        let (ended, (bytes, taken)) = tokio::join!(copied, slow);
        assert_eq!((&bytes[..5], &bytes[5..]), (&b"first"[..], &[7; 64][..]));
        assert!(matches!(ended, Ended::Reading(why) if why == "nothing was heard from it"));
        assert!(taken > SILENCE_MAX * 16);
    }
}

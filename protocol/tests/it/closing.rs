//! How a client reports the end of its connection.

use bytes::BytesMut;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream, DuplexStream,
};
use xs_engine::{Body, NewFrame, ReadOptions, Topic};
use xs_protocol::codec::{Codec, Header};
use xs_protocol::limits::LINGER;
use xs_protocol::{
    AppendRequest, CallRequest, Class, Client, ClientError, ClientOptions, Code, DisconnectReason,
    Op, ProtocolError, Role, SubEvent, SubscribeOptions, Subscription,
};

use crate::raw::message;
use crate::rig::{Rig, one, soon};

/// More credit than is needed.
const CREDIT: u32 = 1 << 20;
/// What a stream holds that nobody reads.
const PIPE_BYTES: usize = 64 * 1024;

/// Reads from a client until a request with `op` is complete; returns the bytes.
async fn take(from: &mut DuplexStream, codec: &mut Codec, op: Op) -> BytesMut {
    let (mut all, mut inbox) = (BytesMut::new(), BytesMut::new());
    loop {
        let before = inbox.len();
        assert!(soon(from.read_buf(&mut inbox)).await.unwrap() > 0, "no {op:?} came");
        all.extend_from_slice(&inbox[before..]);
        while let Some(envelope) = codec.next(&mut inbox).unwrap() {
            if envelope.header.op == op as u8 {
                return all;
            }
        }
    }
}

/// A client whose HELLO a server has answered, and its other end, which never answers.
async fn met(rig: &Rig) -> (Client, DuplexStream, Codec) {
    let (ours, near) = tokio::io::duplex(PIPE_BYTES);
    met_over(rig, ours, near).await
}

/// The same over a stream whose other end is `near`.
async fn met_over<S>(rig: &Rig, ours: S, mut near: DuplexStream) -> (Client, DuplexStream, Codec)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut far, theirs) = tokio::io::duplex(64 * 1024);
    rig.server.adopt(theirs, Role::Admin);
    let client = tokio::spawn(Client::over(ours, ClientOptions::default()));
    let mut codec = Codec::new(u32::MAX);
    let hello = take(&mut near, &mut codec, Op::Hello).await;
    far.write_all(&hello).await.unwrap();
    let answer = take(&mut far, &mut Codec::new(u32::MAX), Op::Hello).await;
    near.write_all(&answer).await.unwrap();
    (soon(client).await.unwrap().unwrap(), near, codec)
}

/// A CLOSE with a code.
fn close(code: Code) -> Vec<u8> {
    let header = Header { op: Op::Close as u8, flags: 2, code: code.number(), corr: 0, sub: 0 };
    message(header, b"\x04\0over").to_vec()
}

/// When the server closes the connection, it may have stored what it has not answered.
#[tokio::test]
async fn what_was_under_way_at_a_close_may_have_been_done() {
    let rig = Rig::unix(Role::Admin).await;
    for code in [Code::OtherHost, Code::Unauthenticated, Code::Internal, Code::Stalled] {
        let (client, mut server, mut codec) = met(&rig).await;
        let append = client.append(&one("a"));
        take(&mut server, &mut codec, Op::Append).await;
        let call = CallRequest::new(Topic::parse("c").unwrap());
        let (caller, closing) = (client.clone(), client.clone());
        let call = tokio::spawn(async move { caller.call(&call).await.map(|_| ()) });
        take(&mut server, &mut codec, Op::Call).await;
        server.write_all(&close(code)).await.unwrap();
        for error in [soon(append).await.unwrap_err(), soon(call).await.unwrap().unwrap_err()] {
            assert_eq!(error.class(), Class::Unknown, "{code} {error}");
            let ClientError::Disconnected(DisconnectReason::Closed(why)) = error else {
                panic!("{error}")
            };
            assert_eq!((why.code, &*why.message), (code, "over"));
        }
        // `closed` returns the reason. Later requests fail without it, however often they are made.
        assert_eq!(soon(closing.closed()).await.code(), Some(code));
        let error = soon(client.append(&one("a"))).await.unwrap_err();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error}");
    }
}

/// A subscription with this credit on a connection of its own, and the other end.
async fn subscribed(rig: &Rig, credit: u32) -> (Subscription, DuplexStream) {
    let (client, mut server, mut codec) = met(rig).await;
    let how = SubscribeOptions { credit, ..SubscribeOptions::default() };
    let opening = tokio::spawn(async move { client.subscribe(&ReadOptions::default(), how).await });
    take(&mut server, &mut codec, Op::Subscribe).await;
    let answer = Header { op: Op::Subscribe as u8, flags: 1, code: 0, corr: 2, sub: 1 };
    server.write_all(&message(answer, b"")).await.unwrap();
    (soon(opening).await.unwrap().unwrap(), server)
}

/// Otherwise such a server could fill the memory of a client that reads slowly.
#[tokio::test]
async fn a_server_that_sends_beyond_the_credit_is_left() {
    let rig = Rig::unix(Role::Admin).await;
    let (mut subscription, mut server) = subscribed(&rig, 10).await;
    let header = Header { op: Op::Deliver as u8, flags: 2, code: 0, corr: 0, sub: 1 };
    // The first message may exceed the credit; after it none is left.
    let deliver = message(header, &[0; 16]);
    server.write_all(&deliver.repeat(2)).await.unwrap();
    let first = soon(subscription.next()).await.unwrap();
    assert!(matches!(&first, Ok(SubEvent::Frames { .. })), "{first:?}");
    let error = soon(subscription.next()).await.unwrap().unwrap_err();
    let is_breach = matches!(&error, ClientError::Protocol(ProtocolError::FlowControl(_)));
    assert!(is_breach, "{error}");
    // The client hangs up.
    let mut rest = Vec::new();
    soon(server.read_to_end(&mut rest)).await.unwrap();
}

/// A subscription has no effect that could happen twice.
#[tokio::test]
async fn a_subscription_is_told_why_its_connection_was_closed() {
    let rig = Rig::unix(Role::Admin).await;
    let (mut subscription, mut server) = subscribed(&rig, CREDIT).await;
    server.write_all(&close(Code::Unauthenticated)).await.unwrap();
    let error = soon(subscription.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, ClientError::Refused(_)), "{error}");
    assert_eq!(error.class(), Class::Access);
}

/// An append that no pipe holds.
fn long() -> AppendRequest {
    let body = Body::Inline(vec![7; 4 * PIPE_BYTES].into());
    AppendRequest::frames(vec![NewFrame { body, ..NewFrame::new(Topic::parse("a").unwrap()) }])
}

/// Like TLS, the stream keeps bytes back, and must write them before its end can be shut down.
#[tokio::test]
async fn a_server_that_stops_reading_holds_no_client() {
    let rig = Rig::unix(Role::Admin).await;
    let (ours, near) = tokio::io::duplex(PIPE_BYTES);
    let ours = BufStream::with_capacity(PIPE_BYTES, 8 * PIPE_BYTES, ours);
    let (client, mut server, _) = met_over(&rig, ours, near).await;
    tokio::time::pause();
    let append = client.append(&long());
    server.write_all(&close(Code::Stalled)).await.unwrap();
    assert_eq!(soon(client.closed()).await.code(), Some(Code::Stalled));
    assert!(matches!(soon(append).await, Err(ClientError::Disconnected(_))));
    // The socket is closed, though the client is still there and nobody has read from it.
    tokio::time::sleep(2 * LINGER).await;
    assert!(server.write_all(b"is anybody there?").await.is_err());
    drop(client);
}

/// What a dropped client has queued is sent as long as the server takes it, and no longer.
#[tokio::test]
async fn a_dropped_client_waits_for_a_server_that_reads() {
    let rig = Rig::unix(Role::Admin).await;
    for reads in [true, false] {
        let (client, mut server, _) = met(&rig).await;
        tokio::time::pause();
        drop(client.append(&long()));
        drop(client);
        let (mut taken, mut piece) = (0, vec![0; PIPE_BYTES / 4]);
        if !reads {
            tokio::time::sleep(2 * LINGER).await;
        }
        loop {
            tokio::time::sleep(LINGER / 2).await;
            match soon(server.read(&mut piece)).await.unwrap() {
                0 => break,
                count => taken += count,
            }
        }
        assert_eq!(taken > 4 * PIPE_BYTES, reads, "{taken}");
        tokio::time::resume();
    }
}

//! What a client makes of the end of its connection.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use xs_engine::{ReadOptions, Topic};
use xs_protocol::codec::{Codec, Header};
use xs_protocol::{
    CallRequest, Class, Client, ClientError, ClientOptions, Code, Op, Role, SubscribeOptions,
};

use crate::raw::message;
use crate::rig::{Rig, one, soon};

/// Takes bytes of a client until a request with `op` has come whole; the bytes.
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

/// A client whose HELLO a server has answered, and its other end, on which nobody answers.
async fn met(rig: &Rig) -> (Client, DuplexStream, Codec) {
    let (ours, mut near) = tokio::io::duplex(64 * 1024);
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

/// CLOSE with a code.
fn close(code: Code) -> Vec<u8> {
    let header = Header { op: Op::Close as u8, flags: 2, code: code.number(), corr: 0, sub: 0 };
    message(header, b"\x04\0over").to_vec()
}

/// The server refuses the connection: it may have stored what it has not answered.
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
            assert!(error.to_string().contains("over"), "{error}");
        }
        // Why it was closed is told who asks. Who asks for something else does not get it over this
        // connection, however often.
        assert_eq!(soon(closing.closed()).await.code(), Some(code));
        let error = soon(client.append(&one("a"))).await.unwrap_err();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error}");
    }
}

/// A subscription does nothing that could be done twice.
#[tokio::test]
async fn a_subscription_is_told_why_its_connection_was_closed() {
    let rig = Rig::unix(Role::Admin).await;
    let (client, mut server, mut codec) = met(&rig).await;
    let opening = tokio::spawn(async move {
        client.subscribe(&ReadOptions::default(), SubscribeOptions::default()).await
    });
    take(&mut server, &mut codec, Op::Subscribe).await;
    let answer = Header { op: Op::Subscribe as u8, flags: 1, code: 0, corr: 2, sub: 1 };
    server.write_all(&message(answer, b"")).await.unwrap();
    let mut subscription = soon(opening).await.unwrap().unwrap();
    server.write_all(&close(Code::Unauthenticated)).await.unwrap();
    let error = soon(subscription.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, ClientError::Refused(_)), "{error}");
    assert_eq!(error.class(), Class::Access);
}

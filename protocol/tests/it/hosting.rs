//! Connections that claim to run the modules of a store, and the relay over which processes
//! without a token connect.

use bytes::Bytes;
use tokio::task::JoinHandle;
use xs_engine::Topic;
use xs_protocol::{
    Admission, Class, Client, ClientError, ClientOptions, Code, HostClaim, Relay, RelayEnd, Role,
    Secret,
};

use crate::rig::{Rig, one, soon, until};
use crate::tokens::{Guarded, code, options};

fn claim(alone: &str) -> HostClaim {
    HostClaim { instance: [9; 16], alone: Topic::parse(alone).ok() }
}

async fn open(
    guarded: &Guarded,
    secret: Option<&Secret>,
    alone: &str,
) -> Result<Relay, ClientError> {
    soon(Relay::open(&guarded.address, options(secret), claim(alone))).await
}

/// A client that connects over a relay, and the pending outcome of the relay.
async fn over(relay: Relay) -> (Client, JoinHandle<RelayEnd>) {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let running = tokio::spawn(async move { relay.run(&mut theirs).await });
    (soon(Client::over(ours, ClientOptions::default())).await.unwrap(), running)
}

#[tokio::test]
async fn a_host_comes_over_a_passage_without_its_token() {
    let guarded = Guarded::new(None).await;
    let secret = guarded.token("modules", Role::Host);
    let (all, running) = over(open(&guarded, Some(&secret), "").await.unwrap()).await;
    let (alone, _) = over(open(&guarded, Some(&secret), "a.b").await.unwrap()).await;
    assert_eq!((all.server().role, alone.server().role), (Role::Host, Role::Host));
    assert_eq!(guarded.memory.hosts(), [claim(""), claim("a.b")]);
    for client in [&all, &alone] {
        soon(client.append(&one("xs.handler.a.b.active"))).await.unwrap();
        soon(client.append(&one("any"))).await.unwrap();
    }
    soon(all.append(&one("xs.handler.c.active"))).await.unwrap();
    let other = soon(alone.append(&one("xs.handler.c.active"))).await;
    assert_eq!(code(other), Some(Code::Denied), "it runs another processor");
    // More than the buffers hold, in both directions.
    let bytes = Bytes::from(vec![7; 3 << 20]);
    let hash = soon(all.blob_put_bytes(bytes.clone())).await.unwrap();
    let blob = soon(all.blob_get(&hash)).await.unwrap().unwrap();
    assert_eq!(soon(blob.bytes(4 << 20)).await.unwrap(), bytes);
    // Another token is created: connected clients stay, including the one bound to a processor.
    guarded.token("more", Role::Read);
    guarded.server.look_at_files();
    soon(guarded.connect(Some(&secret))).await.unwrap();
    soon(alone.append(&one("any"))).await.unwrap();
    assert_eq!(guarded.memory.hosts().len(), 2, "a token alone makes no host");
    drop(all);
    assert_eq!(soon(running).await.unwrap(), RelayEnd::Process);
    until(|| guarded.memory.hosts() == [claim("a.b")]).await;
}

#[tokio::test]
async fn only_a_host_may_come_as_one() {
    let guarded = Guarded::new(None).await;
    for role in [Role::Read, Role::Append, Role::Admin] {
        let secret = guarded.token(role.as_str(), role);
        let refused = open(&guarded, Some(&secret), "").await.err().unwrap();
        assert_eq!(refused.code(), Some(Code::Denied), "{role}");
        assert!(refused.to_string().contains("--role host"), "{refused}");
    }
    let none = open(&guarded, None, "").await.err().unwrap();
    assert_eq!(none.code(), Some(Code::Unauthenticated));
    assert!(guarded.memory.hosts().is_empty());
    // A client that opens the store's own socket owns the store, as does one admitted without a
    // token.
    for guarded in [Guarded::new(Some(Role::Admin)).await] {
        let (host, _) = over(open(&guarded, None, "").await.unwrap()).await;
        assert_eq!(host.server().role, Role::Host);
    }
    let rig = Rig::unix(Role::Admin).await;
    let relay = soon(Relay::open(&rig.address, ClientOptions::default(), claim(""))).await;
    let (host, _) = over(relay.unwrap()).await;
    assert_eq!(host.server().role, Role::Host);
    // A socket for reading, or for one processor, admits no host.
    for admission in [Admission::Role(Role::Read), Admission::Alone("a".into())] {
        let (address, _kept) = listening_as(&rig, admission).await;
        let refused = soon(Relay::open(&address, ClientOptions::default(), claim(""))).await;
        assert_eq!(code(refused), Some(Code::Denied));
    }
}

/// Another socket of the same server.
async fn listening_as(
    rig: &Rig,
    admission: Admission,
) -> (xs_protocol::Address, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let address = xs_protocol::Address::of_path(dir.path());
    let listener = xs_protocol::Listener::bind(&address).await.unwrap();
    rig.server.listen(listener, admission);
    (address, dir)
}

#[tokio::test]
async fn a_host_that_comes_again_has_its_older_connection_ended() {
    let rig = Rig::tcp().await;
    let come = || soon(Relay::open(&rig.address, ClientOptions::default(), claim("a")));
    let (first, running) = over(come().await.unwrap()).await;
    let refused = come().await.err().unwrap();
    assert_eq!((refused.code(), refused.class()), (Some(Code::OtherHost), Class::Busy));
    assert!(matches!(soon(running).await.unwrap(), RelayEnd::Server(_)));
    let why = soon(first.closed()).await;
    assert_eq!(why.code(), Some(Code::OtherHost), "{why}");
    until(|| rig.memory.hosts().is_empty()).await;
    assert!(come().await.is_ok());
}

#[tokio::test]
async fn what_speaks_otherwise_is_hung_up_on() {
    let rig = Rig::tcp().await;
    let come = || soon(Relay::open(&rig.address, ClientOptions::default(), claim("")));
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &b"XSP\0\x01\0\0\0\xff\xff\xff\xff"[..], b""] {
        let relay = come().await.unwrap();
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        tokio::io::AsyncWriteExt::write_all(&mut ours, said).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut ours).await.unwrap();
        assert_eq!(soon(relay.run(&mut theirs)).await, RelayEnd::Process);
        until(|| rig.memory.hosts().is_empty()).await;
    }
    let (host, running) = over(come().await.unwrap()).await;
    rig.server.stop().await;
    assert_eq!(soon(running).await.unwrap(), RelayEnd::Server("it hung up".to_owned()));
    soon(host.closed()).await;
}

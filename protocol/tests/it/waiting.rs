//! Connections waiting for HELLO: how many are allowed, and which give way, over real sockets from
//! several addresses. Who is late is decided by a clock that only these tests move.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use xs_protocol::codec::PREFACE;
use xs_protocol::{
    Address, Client, ClientOptions, Code, Listener, Op, Role, Server, ServerOptions,
};

use crate::memory::Memory;
use crate::raw::{Raw, header};
use crate::rig::{Clock, soon, until};

/// Connections of the server. A quarter of them may wait, and half of those from one address.
const CONNECTIONS: usize = 280;
const WAITING: usize = 70;
const OF_ADDRESS: usize = 35;
/// Connections that a crowd never gets.
const SPARE: usize = 70;
/// Connections that are kept for Unix sockets.
const KEPT: usize = 16;
/// Many more than may wait.
const CROWD: usize = 200;

/// A server that listens on a Unix socket and on a loopback port.
struct Hall {
    server: Server,
    tcp: Address,
    unix: Address,
    clock: Clock,
    _dir: TempDir,
}

impl Hall {
    async fn new() -> Self {
        let clock = Clock::stopped();
        let options = ServerOptions { connections: CONNECTIONS, ..ServerOptions::default() };
        let server = Server::new(Arc::new(Memory::default()), options);
        let dir = tempfile::tempdir().unwrap();
        let (tcp, unix) = (Address::parse("127.0.0.1:0").unwrap(), Address::of_path(dir.path()));
        let (tcp, unix) =
            (Listener::bind(&tcp).await.unwrap(), Listener::bind(&unix).await.unwrap());
        let [tcp_address, unix_address] = [&tcp, &unix].map(|one| one.address().clone());
        server.listen(tcp, Role::Admin);
        server.listen(unix, Role::Admin);
        Self { server, tcp: tcp_address, unix: unix_address, clock, _dir: dir }
    }

    /// A connection from an address that sends only its preface.
    async fn silent(&self, from: &str) -> Raw<TcpStream> {
        let Address::Tcp(to) = self.tcp else { panic!("not TCP") };
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let mut raw = Raw::over(socket.connect(to).await.unwrap());
        raw.send(&PREFACE).await;
        raw
    }

    /// `count` such connections, once the server has accepted them all.
    async fn crowd(&self, from: &str, count: usize) -> Vec<Raw<TcpStream>> {
        let there = self.server.connections();
        let mut crowd = Vec::new();
        for _ in 0..count {
            crowd.push(self.silent(from).await);
        }
        until(|| self.server.connections() == there + count).await;
        crowd
    }

    /// Takes all places for TCP but `free`, each from an address of its own that has said HELLO.
    async fn fill(&self, free: usize) -> Vec<Raw<TcpStream>> {
        let mut guests = Vec::new();
        for n in 1..=CONNECTIONS - KEPT - free {
            let mut guest = self.silent(&format!("127.0.{}.{}", 1 + n / 200, 1 + n % 200)).await;
            guest.greet().await;
            guests.push(guest);
        }
        guests
    }

    /// One over the Unix socket, once the server has answered its HELLO.
    async fn local(&self) -> Raw<UnixStream> {
        let Address::Unix(path) = &self.unix else { panic!("not a socket") };
        let mut local = Raw::over(UnixStream::connect(path).await.unwrap());
        local.send(&PREFACE).await;
        local.greet().await;
        local
    }

    fn gave_way(&self) -> u64 {
        self.server.stats().gave_way
    }
}

const BUSY: u16 = Code::Busy.number();

#[tokio::test]
async fn those_of_one_address_give_way_to_each_other() {
    let hall = Hall::new().await;
    let mut crowd = hall.crowd("127.0.0.1", OF_ADDRESS - 1).await;
    assert_eq!(hall.gave_way(), 0, "one less");
    crowd.extend(hall.crowd("127.0.0.1", 1).await);
    assert_eq!(hall.gave_way(), 0, "as many as may wait");
    let other = hall.crowd("127.0.0.2", 1).await;
    assert_eq!(hall.gave_way(), 0, "others wait by themselves");
    hall.clock.pass().await;
    crowd.push(hall.silent("127.0.0.1").await);
    assert_eq!(crowd.remove(0).closed().await, BUSY, "one more");
    assert_eq!(hall.gave_way(), 1);
    for raw in &mut crowd {
        raw.greet().await;
    }
    // Connections that have said HELLO do not count as waiting, and never give way.
    let more = hall.crowd("127.0.0.1", OF_ADDRESS).await;
    assert_eq!(hall.gave_way(), 1);
    for raw in &mut crowd {
        assert_eq!(raw.ask(header(Op::Ping, 2, 0), b"").await.header.code, 0);
    }
    // Connections that have hung up do not count either.
    drop((other, more));
    until(|| hall.server.connections() == crowd.len()).await;
    hall.crowd("127.0.0.1", OF_ADDRESS).await;
    assert_eq!(hall.gave_way(), 1);
}

#[tokio::test]
async fn the_oldest_of_all_gives_way_when_too_many_wait() {
    let hall = Hall::new().await;
    let mut crowd = hall.crowd("127.0.0.1", OF_ADDRESS).await;
    crowd.extend(hall.crowd("127.0.0.2", WAITING - OF_ADDRESS - 1).await);
    assert_eq!(hall.gave_way(), 0, "one less");
    crowd.extend(hall.crowd("127.0.0.2", 1).await);
    assert_eq!(hall.gave_way(), 0, "as many as may wait");
    hall.clock.pass().await;
    crowd.push(hall.silent("127.0.0.3").await);
    assert_eq!(crowd.remove(0).closed().await, BUSY, "one more");
    let Address::Unix(path) = &hall.unix else { panic!("not a socket") };
    let mut local = Raw::over(UnixStream::connect(path).await.unwrap());
    assert_eq!(crowd.remove(0).closed().await, BUSY, "and one from elsewhere");
    assert_eq!(hall.gave_way(), 2);
    local.send(&PREFACE).await;
    local.greet().await;
    for raw in &mut crowd {
        raw.greet().await;
    }
}

/// A client that has not sent its preface would not understand a message.
#[tokio::test]
async fn who_said_nothing_is_told_nothing() {
    let hall = Hall::new().await;
    let Address::Tcp(to) = hall.tcp else { panic!("not TCP") };
    let mut mute = Raw::over(TcpStream::connect(to).await.unwrap());
    until(|| hall.server.connections() == 1).await;
    let _crowd = hall.crowd("127.0.0.1", OF_ADDRESS - 1).await;
    hall.clock.pass().await;
    let _last = hall.silent("127.0.0.1").await;
    assert!(mute.receive().await.is_none());
}

/// A well-behaved crowd is admitted in full, however many connect at once.
#[tokio::test]
async fn a_crowd_that_says_hello_at_once_is_let_in() {
    let hall = Hall::new().await;
    let connect = |_| Client::connect(&hall.tcp, ClientOptions::default());
    let crowd = futures::future::join_all((0..CROWD).map(connect));
    let crowd: Vec<_> = soon(crowd).await.into_iter().map(Result::unwrap).collect();
    assert_eq!((crowd.len(), hall.gave_way()), (CROWD, 0));
}

/// HELLO need not come at once, only soon: others are admitted meanwhile.
#[tokio::test]
async fn a_crowd_that_pauses_before_hello_is_let_in() {
    let hall = Hall::new().await;
    let mut crowd = hall.crowd("127.0.0.1", OF_ADDRESS + 50).await;
    hall.silent("127.0.0.2").await.greet().await;
    for raw in &mut crowd {
        raw.greet().await;
    }
    assert_eq!(hall.gave_way(), 0);
}

#[tokio::test]
async fn a_crowd_that_says_nothing_gives_way_after_its_time() {
    let hall = Hall::new().await;
    let mut crowd = hall.crowd("127.0.0.1", OF_ADDRESS + 50).await;
    hall.clock.pass().await;
    hall.silent("127.0.0.1").await.greet().await;
    assert_eq!(hall.gave_way(), 51);
    for mut raw in crowd.drain(..51) {
        assert_eq!(raw.closed().await, BUSY);
    }
    // The others stay as long as their places are not needed.
    for raw in &mut crowd {
        raw.greet().await;
    }
}

/// However large a crowd is, others find room.
#[tokio::test]
async fn a_crowd_leaves_room_for_others() {
    let hall = Hall::new().await;
    let mut crowd = hall.crowd("127.0.0.1", CONNECTIONS - SPARE).await;
    assert_eq!(hall.gave_way(), 0);
    crowd.push(hall.silent("127.0.0.1").await);
    assert_eq!(crowd.remove(0).closed().await, BUSY);
    assert_eq!(hall.gave_way(), 1);
    until(|| hall.server.connections() == CONNECTIONS - SPARE).await;
    for n in 2..20 {
        hall.silent(&format!("127.0.0.{n}")).await.greet().await;
    }
    hall.local().await;
}

/// Silent connections that have taken all the remaining room give way to new ones, once they have
/// had their time.
#[tokio::test]
async fn room_is_made_where_there_is_none() {
    let hall = Hall::new().await;
    let _guests = hall.fill(OF_ADDRESS - 1).await;
    let mut crowd = hall.crowd("127.0.0.1", OF_ADDRESS - 1).await;
    assert_eq!((hall.gave_way(), hall.server.connections()), (0, CONNECTIONS - KEPT));
    hall.clock.pass().await;
    hall.silent("127.0.0.2").await.greet().await;
    assert_eq!(crowd.remove(0).closed().await, BUSY);
    assert_eq!(hall.gave_way(), 1);
    // Connections that have said HELLO never give way.
    for raw in &mut crowd {
        raw.greet().await;
    }
    hall.clock.pass().await;
    let mut last = hall.silent("127.0.0.3").await;
    drop(crowd.pop());
    last.greet().await;
    assert_eq!(hall.gave_way(), 1);
}

/// Clients over TCP that have every place they can get, and have said HELLO, do not keep the owner
/// of the store out.
#[tokio::test]
async fn who_fills_the_server_over_tcp_leaves_the_unix_socket_open() {
    let hall = Hall::new().await;
    let mut guests = hall.fill(0).await;
    // It waits for one of them to end, and delays nothing on the other socket.
    let mut more = hall.silent("127.0.0.1").await;
    let mut locals = Vec::new();
    for _ in 0..KEPT {
        locals.push(hall.local().await);
    }
    assert_eq!((hall.gave_way(), hall.server.connections()), (0, CONNECTIONS));
    for local in &mut locals {
        assert_eq!(local.ask(header(Op::Ping, 2, 0), b"").await.header.code, 0);
    }
    // A kept place goes to the next connection on the Unix socket only.
    drop(locals.pop());
    until(|| hall.server.connections() == CONNECTIONS - 1).await;
    locals.push(hall.local().await);
    drop(guests.pop());
    more.greet().await;
    assert_eq!((hall.gave_way(), hall.server.connections()), (0, CONNECTIONS));
}

/// Connections that arrive while the server is busy are queued: nothing accepts here, since this
/// thread never yields.
#[tokio::test]
async fn many_connections_at_once_are_kept_until_they_are_accepted() {
    let hall = Hall::new().await;
    let Address::Tcp(to) = hall.tcp else { panic!("not TCP") };
    let connect = |_| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(60)).unwrap();
    let crowd: Vec<_> = (0..500).map(connect).collect();
    assert_eq!((crowd.len(), hall.server.connections()), (500, 0));
}

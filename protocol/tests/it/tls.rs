//! TLS on a loopback port: good and bad certificates, peers that use another protocol, and a
//! certificate that changes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use xs_engine::{Body, NewFrame, ReadOptions, Topic};
use xs_protocol::codec::PREFACE;
use xs_protocol::{
    Address, Admission, AppendRequest, Class, Client, ClientError, ClientOptions, ClientTls, Code,
    Listener, NewToken, Role, Secret, Server, ServerOptions, ServerTls, TlsError, TokenFile,
    TokenGuard,
};

use crate::memory::Memory;
use crate::rig::{Clock, one, soon, until};

/// The test's own certificate authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, in PEM form.
    fn sign(&self, names: &[&str], last_year: i32) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(last_year, 1, 1));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A server that uses TLS and requires tokens.
struct Secure {
    dir: tempfile::TempDir,
    ca: Ca,
    server: Server,
    address: Address,
    token: Secret,
}

impl Secure {
    async fn new(names: &[&str], last_year: i32) -> Self {
        Self::with(names, last_year, ServerOptions::default()).await
    }

    async fn with(names: &[&str], last_year: i32, options: ServerOptions) -> Self {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        put(&dir.path().join("ca.pem"), &ca.pem, 0o644);
        let new = NewToken {
            name: "t".to_owned(),
            grant: Role::Append.into(),
            created_ms: 1,
            expires_ms: None,
        };
        let (_, token) = TokenFile::create(dir.path(), new).unwrap();
        let guard = Arc::new(TokenGuard::open(dir.path()).unwrap());
        let server = Server::new(Arc::new(Memory::default()), options);
        let mut secure =
            Self { address: Address::parse("127.0.0.1:0").unwrap(), dir, ca, server, token };
        secure.replace(names, last_year);
        let [cert, key] = secure.files();
        let tls = ServerTls::open(&cert, &key).unwrap();
        let listener = Listener::bind_tls(&secure.address, tls).await.unwrap();
        secure.address = listener.address().clone();
        secure.server.listen(listener, Admission::Token { guard, or: None });
        secure
    }

    fn files(&self) -> [PathBuf; 2] {
        ["cert.pem", "key.pem"].map(|name| self.dir.path().join(name))
    }

    /// Replaces the certificate and its key.
    fn replace(&self, names: &[&str], last_year: i32) {
        let (cert, key) = self.ca.sign(names, last_year);
        let [cert_file, key_file] = self.files();
        put(&cert_file, &cert, 0o644);
        put(&key_file, &key, 0o600);
    }

    fn options(&self) -> ClientOptions {
        ClientOptions {
            token: Some(self.token.clone()),
            tls: Some(ClientTls::trusting(self.dir.path().join("ca.pem")).unwrap()),
            ..ClientOptions::default()
        }
    }

    async fn connect(&self) -> Result<Client, ClientError> {
        soon(Client::connect(&self.address, self.options())).await
    }

    fn port(&self) -> u16 {
        let Address::Tls { port, .. } = &self.address else { panic!("not TLS") };
        *port
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port())).await.unwrap()
    }
}

/// Replaces a file atomically, as a careful program does.
fn put(path: &Path, text: &str, mode: u32) {
    let unfinished = path.with_extension("tmp");
    let _ = fs::remove_file(&unfinished);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::rename(unfinished, path).unwrap();
}

fn reason(result: Result<Client, ClientError>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error}");
    assert_eq!(error.class(), Class::Access, "trying again does not help");
    error.to_string()
}

#[tokio::test]
async fn much_goes_both_ways_over_tls() {
    let secure = Secure::new(&["127.0.0.1"], 2100).await;
    let client = secure.connect().await.unwrap();
    assert_eq!(client.server().role, Role::Append);
    // More than TLS and the socket buffer, both ways, and many small messages in a row.
    let body = Bytes::from(vec![7; 8 << 20]);
    let frame =
        NewFrame { body: Body::Inline(body.clone()), ..NewFrame::new(Topic::parse("a").unwrap()) };
    soon(client.append(&AppendRequest::frames(vec![frame]))).await.unwrap();
    let hash = xs_engine::BlobHash::of(&body);
    let blob = soon(client.blob_get(&hash)).await.unwrap().unwrap();
    assert_eq!(soon(blob.bytes(body.len())).await.unwrap(), body);
    let replies: Vec<_> = (0..2000).map(|_| client.append(&one("b"))).collect();
    for reply in replies {
        soon(reply).await.unwrap();
    }
    let mut stream = client.fetch(&ReadOptions::default());
    let mut count = 0;
    while let Some(frame) = soon(stream.next()).await {
        frame.unwrap();
        count += 1;
    }
    assert_eq!(count, 2001);
    drop((stream, client));
    until(|| secure.server.connections() == 0).await;
}

#[tokio::test]
async fn a_server_is_trusted_for_its_certificate_alone() {
    let secure = Secure::new(&["127.0.0.1"], 2100).await;
    let other = Ca::new();
    let wrong_ca = secure.dir.path().join("other.pem");
    put(&wrong_ca, &other.pem, 0o644);
    let options =
        ClientOptions { tls: Some(ClientTls::trusting(&wrong_ca).unwrap()), ..secure.options() };
    let text = reason(soon(Client::connect(&secure.address, options)).await);
    assert!(text.contains("not from a CA"), "{text}");
    let named = Address::parse(&format!("xss://localhost:{}", secure.port())).unwrap();
    let text = reason(soon(Client::connect(&named, secure.options())).await);
    assert!(text.contains("another name"), "{text}");
    let none = ClientOptions { tls: None, ..secure.options() };
    let error = soon(Client::connect(&secure.address, none)).await.unwrap_err();
    assert!(matches!(error, ClientError::NoCa { .. }), "{error}");
    assert_eq!(error.class(), Class::Access, "trying again does not help");
    let expired = Secure::new(&["127.0.0.1"], 2021).await;
    let text = reason(expired.connect().await);
    assert!(text.contains("expired"), "{text}");
    let wrong = ClientOptions { token: Some("xst_no".to_owned().into()), ..secure.options() };
    let error = soon(Client::connect(&secure.address, wrong)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unauthenticated));
}

/// Such as `openssl req -x509` makes.
#[tokio::test]
async fn a_certificate_that_is_a_ca_is_told_of() {
    let mut secure = Secure::new(&["127.0.0.1"], 2100).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap().pem();
    let [cert_file, key_file] = secure.files();
    put(&cert_file, &cert, 0o644);
    put(&key_file, &key.serialize_pem(), 0o600);
    put(&secure.dir.path().join("ca.pem"), &cert, 0o644);
    let address = Address::parse("127.0.0.1:0").unwrap();
    let tls = ServerTls::open(&cert_file, &key_file).unwrap();
    let listener = Listener::bind_tls(&address, tls).await.unwrap();
    secure.address = listener.address().clone();
    secure.server.listen(listener, Role::Admin);
    let text = reason(secure.connect().await);
    assert!(text.contains("is a CA itself"), "{text}");
}

#[tokio::test]
async fn what_is_not_tls_is_turned_away() {
    let secure = Secure::new(&["127.0.0.1"], 2100).await;
    let plain = Address::parse(&format!("127.0.0.1:{}", secure.port())).unwrap();
    let error = soon(Client::connect(&plain, ClientOptions::default())).await.unwrap_err();
    assert!(error.to_string().contains("xss://"), "{error}");
    // A truncated hello, one of another protocol, and one of an obsolete version.
    let old = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x02\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x00\x00\x02\x00\x2f\x01\x00";
    let wrong = [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/1.1\r\n\r\n", &PREFACE, old];
    for bytes in wrong {
        let mut stream = secure.tcp().await;
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // An alert, or a reset; never our preface.
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"XSP"), "{answer:?}");
    }
    until(|| secure.server.connections() == 0).await;
    let server = Server::new(Arc::new(Memory::default()), ServerOptions::default());
    let listener = Listener::bind(&Address::parse("127.0.0.1:0").unwrap()).await.unwrap();
    let Address::Tcp(socket) = listener.address().clone() else { panic!("not TCP") };
    server.listen(listener, Role::Admin);
    let tls = Address::parse(&format!("xss://{socket}")).unwrap();
    let text = reason(soon(Client::connect(&tls, secure.options())).await);
    assert!(text.contains("does not speak TLS"), "{text}");
}

#[tokio::test]
async fn half_a_hello_is_given_up_in_time() {
    let secure = Secure::new(&["127.0.0.1"], 2100).await;
    let mut stream = secure.tcp().await;
    stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    until(|| secure.server.connections() == 1).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let waited = began.elapsed();
    assert!(waited >= xs_protocol::limits::HELLO_WAIT / 2, "{waited:?}");
    until(|| secure.server.connections() == 0).await;
}

#[tokio::test]
async fn a_stop_waits_for_no_handshake() {
    let secure = Secure::new(&["127.0.0.1"], 2100).await;
    let silent = secure.tcp().await;
    until(|| secure.server.connections() == 1).await;
    soon(secure.server.stop()).await;
    assert_eq!(secure.server.connections(), 0);
    drop(silent);
}

#[tokio::test]
async fn a_token_is_not_sent_in_the_clear() {
    let options =
        ClientOptions { token: Some("xst_x".to_owned().into()), ..ClientOptions::default() };
    let far = Address::parse("192.0.2.1:1").unwrap();
    let text = reason(soon(Client::connect(&far, options)).await);
    assert!(text.contains("not sent"), "{text}");
}

#[tokio::test]
async fn a_new_certificate_is_taken_while_clients_are_connected() {
    let secure = Secure::new(&["127.0.0.1"], 2021).await;
    assert!(reason(secure.connect().await).contains("expired"));
    secure.replace(&["127.0.0.1"], 2100);
    secure.server.look_at_files();
    let client = soon(async {
        loop {
            if let Ok(client) = secure.connect().await {
                break client;
            }
        }
    })
    .await;
    // With a key that does not match, the last certificate stays in use.
    let [_, key_file] = secure.files();
    let (_, other_key) = secure.ca.sign(&["127.0.0.1"], 2100);
    put(&key_file, &other_key, 0o600);
    secure.server.look_at_files();
    soon(client.ping()).await.unwrap();
    secure.connect().await.unwrap();
    secure.replace(&["localhost"], 2100);
    soon(async { while secure.connect().await.is_ok() {} }).await;
    soon(client.append(&one("a"))).await.unwrap();
}

#[test]
fn what_is_wrong_with_the_files_is_told() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let [cert, key, other] = ["cert", "key", "other"].map(|name| dir.path().join(name));
    let (cert_pem, key_pem) = ca.sign(&["a"], 2100);
    put(&cert, &cert_pem, 0o644);
    put(&key, &key_pem, 0o600);
    put(&other, &ca.sign(&["a"], 2100).1, 0o600);
    assert_eq!(ServerTls::open(&cert, &key).unwrap().not_after(), Some(4_102_444_800));
    assert!(matches!(ServerTls::open(&cert, &other), Err(TlsError::Pair { .. })));
    assert!(matches!(ServerTls::open(&key, &key), Err(TlsError::Pem { .. })));
    assert!(matches!(ServerTls::open(&cert, &cert), Err(TlsError::Exposed { .. })));
    assert!(matches!(ClientTls::trusting(&key), Err(TlsError::Pem { .. })));
    assert!(matches!(ClientTls::trusting(dir.path().join("no")), Err(TlsError::Io { .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(matches!(ServerTls::open(&cert, &key), Err(TlsError::Exposed { mode: 0o604, .. })));
}

/// Connections that never begin the handshake also count as waiting for HELLO.
#[tokio::test]
async fn handshakes_that_do_not_begin_give_way_to_others() {
    let clock = Clock::stopped();
    let options = ServerOptions { connections: 280, ..ServerOptions::default() };
    let secure = Secure::with(&["127.0.0.1"], 2100, options).await;
    let mut silent = Vec::new();
    for _ in 0..35 {
        silent.push(secure.tcp().await);
    }
    until(|| secure.server.connections() == silent.len()).await;
    assert_eq!(secure.server.stats().gave_way, 0);
    clock.pass().await;
    let client = secure.connect().await.unwrap();
    assert_eq!(soon(silent[0].read(&mut [0])).await.unwrap(), 0, "it was the first");
    soon(client.ping()).await.unwrap();
    until(|| secure.server.connections() == silent.len()).await;
    let stats = secure.server.stats();
    assert_eq!((stats.gave_way, stats.handshakes_failed), (1, 0));
}

/// Many concurrent handshakes that progress all complete, even more than may wait at a time.
#[tokio::test]
async fn a_crowd_over_tls_is_let_in() {
    let _clock = Clock::stopped();
    let options = ServerOptions { connections: 280, ..ServerOptions::default() };
    let secure = Secure::with(&["127.0.0.1"], 2100, options).await;
    let crowd = futures::future::join_all((0..120).map(|_| secure.connect())).await;
    let crowd: Vec<_> = crowd.into_iter().map(Result::unwrap).collect();
    assert_eq!((crowd.len(), secure.server.stats().gave_way), (120, 0));
}

//! Tokens over a real socket: which clients are admitted, what limited ones see, and how they end.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;
use xs_engine::{
    BlobHash, Body, Bound, CursorChange, CursorName, CursorValue, ExpectRevision, Frame, NewFrame,
    ReadOptions, Topic, TopicPatterns,
};
use xs_protocol::{
    Address, Admission, AppendRequest, CallRequest, Class, Client, ClientError, ClientOptions,
    Code, Detail, Grant, LastRequest, Listener, NewToken, Role, Scope, Secret, Server,
    ServerOptions, SubEvent, SubscribeOptions, TOKENS_NAME, TokenFile, TokenGuard,
};

use crate::memory::Memory;
use crate::rig::{DRAIN, one, soon, until};

/// A server that requires tokens, and the directory of their file.
pub(crate) struct Guarded {
    dir: tempfile::TempDir,
    pub(crate) memory: Memory,
    pub(crate) server: Server,
    pub(crate) address: Address,
    admission: Admission,
}

impl Guarded {
    pub(crate) async fn new(or: Option<Role>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guard = Arc::new(TokenGuard::open(dir.path()).unwrap());
        let admission = Admission::Token { guard, or };
        let memory = Memory::default();
        let options = ServerOptions { drain: DRAIN, ..ServerOptions::default() };
        let server = Server::new(Arc::new(memory.clone()), options);
        let listener = Listener::bind(&Address::of_path(dir.path())).await.unwrap();
        let address = listener.address().clone();
        server.listen(listener, admission.clone());
        Self { dir, memory, server, address, admission }
    }

    pub(crate) fn token(&self, name: &str, role: Role) -> Secret {
        create(self.dir.path(), new(name, role))
    }

    /// A token that is limited to some topics.
    fn limited(&self, name: &str, role: Role, read: &str, append: Option<&str>) -> Secret {
        let scope = |text: &str| match text {
            "-" => Scope::Nothing,
            text => Scope::Topics(TopicPatterns::parse(text).unwrap()),
        };
        let grant = Grant::of(role, Some(scope(read)), append.map(scope)).unwrap();
        let new = NewToken { grant, ..new(name, role) };
        create(self.dir.path(), new)
    }

    pub(crate) async fn connect(&self, secret: Option<&Secret>) -> Result<Client, ClientError> {
        soon(Client::connect(&self.address, options(secret))).await
    }

    async fn client(&self, secret: &Secret) -> Client {
        self.connect(Some(secret)).await.unwrap()
    }
}

fn new(name: &str, role: Role) -> NewToken {
    let name = name.to_owned();
    NewToken { name, grant: role.into(), created_ms: 1, expires_ms: None }
}

fn create(dir: &Path, new: NewToken) -> Secret {
    TokenFile::create(dir, new).unwrap().1
}

pub(crate) fn options(secret: Option<&Secret>) -> ClientOptions {
    ClientOptions { token: secret.cloned(), ..ClientOptions::default() }
}

pub(crate) fn code<T>(result: Result<T, ClientError>) -> Option<Code> {
    result.err().and_then(|error| error.code())
}

fn body_frame(topic: &str, body: &'static [u8]) -> AppendRequest {
    let body = Body::Inline(Bytes::from_static(body));
    AppendRequest::frames(vec![NewFrame { body, ..NewFrame::new(Topic::parse(topic).unwrap()) }])
}

fn topics_of(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(Frame::topic).collect()
}

async fn fetched(client: &Client, topics: &str) -> Result<Vec<Frame>, ClientError> {
    let topics = TopicPatterns::parse(topics).unwrap();
    let mut stream = client.fetch(&ReadOptions { topics, ..ReadOptions::default() });
    let mut frames = Vec::new();
    while let Some(frame) = soon(stream.next()).await {
        frames.push(frame?);
    }
    Ok(frames)
}

#[tokio::test]
async fn a_token_decides_the_role() {
    let guarded = Guarded::new(None).await;
    assert_eq!(code(guarded.connect(None).await), Some(Code::Unauthenticated));
    for role in [Role::Read, Role::Append, Role::Admin, Role::Host] {
        let secret = guarded.token(role.as_str(), role);
        assert_eq!(guarded.client(&secret).await.server().role, role);
    }
    let error = guarded.connect(Some(&Secret::generate().unwrap())).await.unwrap_err();
    assert_eq!((error.code(), error.class()), (Some(Code::Unauthenticated), Class::Access));
    let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let new = NewToken { expires_ms: Some(late), ..new("late", Role::Read) };
    let expired = create(guarded.dir.path(), new);
    assert_eq!(code(guarded.connect(Some(&expired)).await), Some(Code::Unauthenticated));
}

#[tokio::test]
async fn without_a_file_of_tokens_this_machine_needs_none() {
    let guarded = Guarded::new(Some(Role::Admin)).await;
    let open = guarded.connect(None).await.unwrap();
    assert_eq!(open.server().role, Role::Admin);
    let secret = guarded.token("first", Role::Read);
    assert_eq!(code(guarded.connect(None).await), Some(Code::Unauthenticated));
    guarded.server.look_at_files();
    let end = soon(open.closed()).await;
    assert_eq!(end.code(), Some(Code::Unauthenticated), "{end}");
    assert_eq!(guarded.client(&secret).await.server().role, Role::Read);
}

#[tokio::test]
async fn reads_show_what_the_token_shows() {
    let guarded = Guarded::new(None).await;
    let admin = guarded.client(&guarded.token("admin", Role::Admin)).await;
    for topic in ["a.x", "b", "xs.handler.h.create", "a.y"] {
        soon(admin.append(&one(topic))).await.unwrap();
    }
    let client = guarded.client(&guarded.limited("a", Role::Read, "a.*", None)).await;
    let frames = fetched(&client, "*").await.unwrap();
    assert_eq!(topics_of(&frames), ["a.x", "a.y"]);
    assert_eq!(code(fetched(&client, "b").await), Some(Code::Denied));
    assert_eq!(code(fetched(&client, "xs.*").await), Some(Code::Denied));
    for (offset, there) in [(0, true), (1, false), (2, false)] {
        let found = soon(client.get(Bound::Offset(offset))).await.unwrap();
        assert_eq!(found.is_some(), there, "{offset}");
    }
    for per_topic in [false, true] {
        let request = LastRequest { topics: TopicPatterns::all(), n: 9, per_topic };
        let frames = soon(client.last(&request)).await.unwrap();
        assert_eq!(topics_of(&frames), ["a.x", "a.y"]);
    }
    let topics = soon(client.topics(&TopicPatterns::all())).await.unwrap();
    let names: Vec<_> = topics.iter().map(|topic| topic.topic.as_str()).collect();
    assert_eq!(names, ["a.x", "a.y"]);
    assert_eq!(code(soon(client.append(&one("a.z"))).await), Some(Code::Denied));

    let follow = ReadOptions { follow: true, ..ReadOptions::default() };
    let how = SubscribeOptions::default();
    let mut subscription = soon(client.subscribe(&follow, how)).await.unwrap();
    for topic in ["b", "a.live"] {
        soon(admin.append(&one(topic))).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.last().is_none_or(|topic| topic != "a.live") {
        if let SubEvent::Frames { frames, .. } = soon(subscription.next()).await.unwrap().unwrap() {
            seen.extend(frames.iter().map(|one| one.frame.topic().to_owned()));
        }
    }
    assert_eq!(seen, ["a.x", "a.y", "a.live"]);
    let named = ReadOptions { topics: TopicPatterns::parse("a.x,b").unwrap(), ..follow };
    assert_eq!(code(soon(client.subscribe(&named, how)).await), Some(Code::Denied));
}

#[tokio::test]
async fn blobs_are_for_those_who_were_shown_them() {
    let guarded = Guarded::new(None).await;
    let admin = guarded.client(&guarded.token("admin", Role::Admin)).await;
    soon(admin.append(&body_frame("a.x", b"shown"))).await.unwrap();
    soon(admin.append(&body_frame("b", b"hidden"))).await.unwrap();
    let (shown, hidden) = (BlobHash::of(b"shown"), BlobHash::of(b"hidden"));
    let secret = guarded.limited("a", Role::Append, "a.*", Some("a.*"));
    let client = guarded.client(&secret).await;
    let attach = async |hash: BlobHash| {
        let frame =
            NewFrame { body: Body::Stored(hash), ..NewFrame::new(Topic::parse("a.mine").unwrap()) };
        code(soon(client.append(&AppendRequest::frames(vec![frame]))).await)
    };
    for hash in [shown, hidden] {
        assert!(!soon(client.blob_has(&hash)).await.unwrap());
        assert!(soon(client.blob_get(&hash)).await.unwrap().is_none());
        assert_eq!(attach(hash).await, Some(Code::UnknownBlob));
    }
    soon(client.get(Bound::Offset(0))).await.unwrap().unwrap();
    soon(client.get(Bound::Offset(1))).await.unwrap();
    assert!(soon(client.blob_has(&shown)).await.unwrap());
    let blob = soon(client.blob_get(&shown)).await.unwrap().unwrap();
    assert_eq!(soon(blob.bytes(10)).await.unwrap(), "shown");
    assert_eq!(attach(shown).await, None);
    assert!(!soon(client.blob_has(&hidden)).await.unwrap());
    assert!(soon(client.blob_get(&hidden)).await.unwrap().is_none());
    // A client that has the bytes may use them and learns nothing: an upload looks the same either
    // way.
    soon(client.blob_put_bytes(Bytes::from_static(b"hidden"))).await.unwrap();
    assert_eq!(attach(hidden).await, None);
    // Pages, newest frames and deliveries make blobs usable too.
    for way in 0..3 {
        let client = guarded.client(&secret).await;
        let follow = ReadOptions::default();
        match way {
            0 => drop(fetched(&client, "*").await.unwrap()),
            1 => {
                let request = LastRequest { topics: TopicPatterns::all(), n: 9, per_topic: false };
                soon(client.last(&request)).await.unwrap();
            }
            _ => {
                let how = SubscribeOptions::default();
                let mut subscription = soon(client.subscribe(&follow, how)).await.unwrap();
                soon(subscription.next()).await.unwrap().unwrap();
            }
        }
        assert!(soon(client.blob_has(&shown)).await.unwrap(), "{way}");
    }
    let whole = guarded.client(&guarded.token("whole", Role::Read)).await;
    assert!(soon(whole.blob_has(&hidden)).await.unwrap());
}

#[tokio::test]
async fn cursors_and_calls_keep_to_the_topics_of_the_token() {
    let guarded = Guarded::new(None).await;
    let admin = guarded.client(&guarded.token("admin", Role::Admin)).await;
    let change = |name: &str| CursorChange {
        name: CursorName::parse(name).unwrap(),
        expect: ExpectRevision::Any,
        set: Some(CursorValue { offset: 1, state: Bytes::from_static(b"state") }),
    };
    for name in ["a.mine", "other", "xs.handler.h"] {
        soon(admin.cursor_set(change(name))).await.unwrap();
    }
    let names = async |client: &Client| -> Vec<String> {
        let all = soon(client.cursor_list()).await.unwrap();
        all.iter().map(|cursor| cursor.name.as_str().to_owned()).collect()
    };
    let secret = guarded.limited("a", Role::Append, "a.*,echo.*", Some("a.*,echo.call"));
    let client = guarded.client(&secret).await;
    assert_eq!(names(&client).await, ["a.mine"]);
    let whole = guarded.client(&guarded.token("whole", Role::Read)).await;
    assert_eq!(names(&whole).await, ["a.mine", "other"]);
    assert_eq!(names(&admin).await.len(), 3);
    for (name, there) in [("a.mine", true), ("other", false), ("xs.handler.h", false)] {
        let name = CursorName::parse(name).unwrap();
        assert_eq!(soon(client.cursor_get(&name)).await.is_ok(), there, "{name}");
        let set = soon(client.cursor_set(change(name.as_str()))).await;
        assert_eq!(set.is_ok(), there, "{name}");
    }
    let call = |name: &str| CallRequest::new(Topic::parse(name).unwrap());
    let mut results = soon(client.call(&call("echo"))).await.unwrap();
    assert!(soon(results.next()).await.unwrap().unwrap().frame.topic().starts_with("echo."));
    assert_eq!(code(soon(client.call(&call("hang"))).await), Some(Code::Denied));
    assert_eq!(guarded.memory.calls(), 1);
}

#[tokio::test]
async fn a_revoked_token_ends_its_connections_and_no_others() {
    let guarded = Guarded::new(None).await;
    let (kept, gone) = (guarded.token("kept", Role::Read), guarded.token("gone", Role::Append));
    let (kept, gone) = (guarded.client(&kept).await, guarded.client(&gone).await);
    let follow = ReadOptions { follow: true, ..ReadOptions::default() };
    let how = SubscribeOptions::default();
    let mut subscription = soon(gone.subscribe(&follow, how)).await.unwrap();
    assert!(matches!(soon(subscription.next()).await, Some(Ok(SubEvent::CaughtUp { .. }))));
    let call = CallRequest::new(Topic::parse("hang").unwrap());
    let mut results = soon(gone.call(&call)).await.unwrap();
    TokenFile::revoke(guarded.dir.path(), "gone").unwrap();
    // No notification: the server checks on its own.
    let end = soon(gone.closed()).await;
    assert_eq!((end.code(), end.class()), (Some(Code::Unauthenticated), Class::Access), "{end}");
    let end = loop {
        match soon(subscription.next()).await.unwrap() {
            Ok(SubEvent::Frames { .. }) => {}
            other => break other,
        }
    };
    assert_eq!(code(end), Some(Code::Unauthenticated));
    // The command may still be running.
    let end = soon(results.next()).await.unwrap().unwrap_err();
    assert_eq!(end.class(), Class::Unknown, "{end}");
    until(|| guarded.memory.cancelled().len() == 1).await;
    soon(kept.ping()).await.unwrap();
    assert_eq!(guarded.server.connections(), 1);
}

#[tokio::test]
async fn a_token_that_ends_ends_its_connections() {
    let guarded = Guarded::new(None).await;
    // The shortest lifetime that the machine allows: the client must connect before it ends.
    let mut client = Err(None);
    for ms in [1_500, 6_000, 24_000] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let name = format!("within.{ms}");
        let new = NewToken { expires_ms: Some(now + ms), ..new(&name, Role::Read) };
        let secret = create(guarded.dir.path(), new);
        client = guarded.connect(Some(&secret)).await.map_err(|error| error.code());
        if client.is_ok() {
            break;
        }
        assert_eq!(client.as_ref().err(), Some(&Some(Code::Unauthenticated)));
    }
    let end = soon(client.unwrap().closed()).await;
    assert_eq!(end.code(), Some(Code::Unauthenticated));
    assert!(end.to_string().contains("expired"), "{end}");
}

/// A file of tokens that can be opened and never read to its end, until this is dropped.
struct Hanging<'a> {
    guarded: &'a Guarded,
    good: Vec<u8>,
}

impl<'a> Hanging<'a> {
    fn new(guarded: &'a Guarded) -> Self {
        let (tokens, pipe, link) = Self::paths(guarded);
        let good = fs::read(&tokens).unwrap();
        let made = Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status();
        assert!(made.unwrap().success());
        fs::hard_link(&pipe, &link).unwrap();
        fs::rename(link, tokens).unwrap();
        Self { guarded, good }
    }

    fn paths(guarded: &Guarded) -> (PathBuf, PathBuf, PathBuf) {
        let dir = guarded.dir.path();
        (dir.join(TOKENS_NAME), dir.join("pipe"), dir.join("link"))
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        let (tokens, pipe, link) = Self::paths(self.guarded);
        fs::write(&link, &self.good).unwrap();
        fs::set_permissions(&link, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(link, tokens).unwrap();
        // Who waits for a writer finds one, and then the end of the file.
        drop(fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap());
    }
}

/// Files are read beside the connections: a slow disk must not hold up those who come.
#[tokio::test]
async fn clients_are_admitted_while_the_tokens_cannot_be_read() {
    let guarded = Guarded::new(None).await;
    let secret = guarded.token("a", Role::Read);
    let first = guarded.client(&secret).await;
    let hanging = Hanging::new(&guarded);
    guarded.server.look_at_files();
    let second = guarded.client(&secret).await;
    let wrong = Secret::generate().unwrap();
    assert_eq!(code(guarded.connect(Some(&wrong)).await), Some(Code::Unauthenticated));
    soon(first.ping()).await.unwrap();
    drop(hanging);
    let third = guarded.token("b", Role::Read);
    guarded.client(&third).await;
    TokenFile::revoke(guarded.dir.path(), "a").unwrap();
    for client in [first, second] {
        assert_eq!(soon(client.closed()).await.code(), Some(Code::Unauthenticated));
    }
}

/// Time is paused: the elapsed time is that for which the server waits.
#[tokio::test(start_paused = true)]
async fn wrong_tokens_are_answered_later_and_later() {
    let guarded = Guarded::new(None).await;
    let good = guarded.token("good", Role::Read);
    let wrong = Secret::generate().unwrap();
    let attempt = async |secret: &Secret| {
        let (ours, theirs) = tokio::io::duplex(4096);
        guarded.server.adopt(theirs, guarded.admission.clone());
        let began = Instant::now();
        let result = Client::over(ours, options(Some(secret))).await;
        (result, began.elapsed())
    };
    let mut waits = Vec::new();
    for _ in 0..8 {
        let (result, waited) = attempt(&wrong).await;
        assert_eq!(code(result), Some(Code::Unauthenticated));
        waits.push(waited.as_millis());
    }
    assert!(waits[..5].iter().all(|&wait| wait < 50), "{waits:?}");
    assert!(waits[5] >= 250 && waits[6] >= 500 && waits[7] >= 1000, "{waits:?}");
    let (result, waited) = attempt(&good).await;
    assert!(
        result.is_ok() && waited.as_millis() < 50,
        "a right token is not held back: {waited:?}"
    );
    // Many at once: some answers are delayed, and the other clients are told to retry later.
    let busy = futures::future::join_all((0..40).map(|_| attempt(&wrong))).await;
    let refused = busy.iter().filter(|(result, _)| match result {
        Err(ClientError::Refused(refusal)) => {
            refusal.code == Code::Busy
                && matches!(refusal.details[..], [Detail::RetryAfterMs(ms)] if ms > 0)
        }
        _ => false,
    });
    assert_eq!(refused.count(), 40 - 16);
}

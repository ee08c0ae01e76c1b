//! The rights of each role and each limited token, op by op.

use bytes::Bytes;
use xs_engine::{
    BlobHash, Body, Bound, CursorChange, CursorName, ExpectRevision, FrameId, IdempotencyKey,
    NewFrame, Origin, ReadOptions, Topic, TopicPatterns,
};

use super::*;
use crate::auth::Scope;
use crate::message::{
    AppendRequest, BlobGetRequest, FetchRequest, ImportIds, ImportRequest, LastRequest,
    MaintainRequest, Op, RemoveRequest, SubscribeOptions, SubscribeRequest,
};

const ROLES: [Role; 4] = [Role::Read, Role::Append, Role::Admin, Role::Host];

fn allowed(request: &Request) -> [bool; 4] {
    ROLES.map(|role| check(&Access::of(role), None, &mut request.clone()).is_ok())
}

fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap()
}

fn append(frame: NewFrame) -> Request {
    Request::Append(AppendRequest::frames(vec![frame]))
}

fn cursor_set(name: &str) -> Request {
    let name = CursorName::parse(name).unwrap();
    Request::CursorSet(CursorChange { name, expect: ExpectRevision::Any, set: None })
}

fn cursor_get(name: &str) -> Request {
    Request::CursorGet(CursorName::parse(name).unwrap())
}

fn call(name: &str) -> Request {
    Request::Call { credit: 1, call: CallRequest::new(topic(name)) }
}

/// Reads of some topics, with every op that names topics.
fn reads(topics: &str) -> [Request; 4] {
    let topics = TopicPatterns::parse(topics).unwrap();
    let options = ReadOptions { topics: topics.clone(), ..ReadOptions::default() };
    [
        Request::Fetch(FetchRequest { options: options.clone(), page_bytes: 1 }),
        Request::Subscribe(SubscribeRequest { options, how: SubscribeOptions::default() }),
        Request::Last(LastRequest { topics: topics.clone(), n: 1, per_topic: false }),
        Request::Topics(topics),
    ]
}

fn topics_of(request: &Request) -> &TopicPatterns {
    match request {
        Request::Fetch(fetch) => &fetch.options.topics,
        Request::Subscribe(subscribe) => &subscribe.options.topics,
        Request::Last(last) => &last.topics,
        Request::Topics(topics) => topics,
        other => panic!("{other:?}"),
    }
}

fn limited(role: Role, read: &str, append: &str) -> Access {
    let scope = |text: &str| match text {
        "-" => Scope::Nothing,
        text => Scope::Topics(TopicPatterns::parse(text).unwrap()),
    };
    Access { role, read: scope(read), append: scope(append), token: None, alone: None }
}

#[test]
fn reserved_topics_are_for_admins_and_hosts() {
    let cases = [
        ("a.b", [false, true, true, true]),
        ("xs.start", [false, false, false, false]),
        ("xs", [false, false, false, false]),
        ("xs.handler.a.create", [false, false, true, true]),
        ("xs.handler.a.unpark", [false, false, true, true]),
        ("xs.handler.a.b.term", [false, false, true, true]),
        ("xs.handler.create", [false, false, false, true]),
        ("xs.command.a.active", [false, false, false, true]),
        ("xs.other.a.create", [false, false, false, false]),
        ("xs.host.config", [false, false, false, true]),
        ("xs.host.start", [false, false, false, false]),
    ];
    for (name, expected) in cases {
        let frame = NewFrame::new(topic(name));
        assert_eq!(allowed(&append(frame.clone())), expected, "{name}");
        let origin = Origin { processor: FrameId::ZERO, input: None, input_offset: None, hops: 0 };
        let derived = append(NewFrame { origin: Some(origin), ..frame });
        assert_eq!(allowed(&derived), [false, false, false, expected[3]], "{name}");
    }
    for request in reads("xs.start").iter().chain(&reads("xs.*")) {
        assert_eq!(allowed(request), [false, false, true, true], "{request:?}");
    }
    assert_eq!(allowed(&call("xs.a")), [false; 4]);
}

/// The host of one processor reads what others read, and writes only what belongs to that
/// processor.
#[test]
fn a_host_of_one_processor_keeps_to_it() {
    let access = Access::alone(&"a.b".into());
    let may = |mut request: Request| check(&access, None, &mut request).is_ok();
    for (name, expected) in [
        ("any.topic", true),
        ("xs.start", false),
        ("xs.host.config", false),
        ("xs.handler.a.b.create", true),
        ("xs.generator.a.b.fin.error", true),
        ("xs.command.a.b.log", true),
        ("xs.handler.a.b.other", false),
        ("xs.handler.a.b", false),
        ("xs.handler.a.b.log.active", false),
        ("xs.handler.a.b.c.active", false),
        ("xs.handler.a.bc.active", false),
        ("xs.handler.a.active", false),
        ("xs.other.a.b.active", false),
        ("xs.handler.active", false),
    ] {
        let frame = NewFrame::new(topic(name));
        assert_eq!(may(append(frame.clone())), expected, "{name}");
        let origin = Origin { processor: FrameId::ZERO, input: None, input_offset: None, hops: 0 };
        assert_eq!(may(append(NewFrame { origin: Some(origin), ..frame })), expected, "{name}");
    }
    for (name, expected) in [
        ("xs.handler.a.b", true),
        ("xs.generator.a.b:input", true),
        ("xs.handler.a", false),
        ("xs.handler.a.bc", false),
        ("xs.handler.a.b.c", false),
        ("mine", false),
    ] {
        assert_eq!(may(cursor_set(name)), expected, "{name}");
        assert_eq!(may(cursor_get(name)), expected, "{name}");
        let name = CursorName::parse(name).unwrap();
        assert_eq!(sees_cursor(&access, &name), expected, "{name}");
    }
    assert!(reads("xs.*").into_iter().chain(reads("*")).all(may));
    assert!(may(call("other")) && !may(Request::Stats));
}

#[test]
fn removing_is_for_admins_and_for_hosts_within_topics() {
    let cases = [
        (None, false, [false, false, true, false]),
        (Some("a.*"), false, [false, false, true, true]),
        (Some("*"), false, [false, false, true, true]),
        (Some("a.*"), true, [false, false, true, false]),
        (Some("a,xs.*"), false, [false, false, true, false]),
        (Some("xs.handler.a.create"), false, [false, false, true, false]),
    ];
    for (topics, now, expected) in cases {
        let within = topics.map(|topics| TopicPatterns::parse(topics).unwrap());
        let frames = vec![Bound::Offset(1)];
        let remove = RemoveRequest { frames, within, now, ..RemoveRequest::default() };
        assert_eq!(allowed(&Request::Remove(remove.clone())), expected, "{topics:?} {now}");
        if !now {
            let batch = Request::Append(remove.into_batch());
            assert_eq!(allowed(&batch), expected, "{topics:?}");
        }
    }
}

#[test]
fn keys_of_the_store_are_its_own() {
    let with = |key: &str| {
        let frames = vec![NewFrame::new(topic("a"))];
        let key = Some(IdempotencyKey::parse(key).unwrap());
        Request::Append(AppendRequest { key, ..AppendRequest::frames(frames) })
    };
    assert_eq!(allowed(&with("xs.import sha256-x")), [false; 4]);
    assert_eq!(allowed(&with("xs import")), [false, true, true, true]);
}

#[test]
fn cursors_of_processors_are_reserved() {
    for (name, [set, get]) in [
        ("mine", [[false, true, true, true], [true; 4]]),
        ("xsa", [[false, true, true, true], [true; 4]]),
        ("xs", [[false, false, true, true]; 2]),
        ("xs.handler.a", [[false, false, true, true]; 2]),
    ] {
        assert_eq!(allowed(&cursor_set(name)), set, "{name}");
        assert_eq!(allowed(&cursor_get(name)), get, "{name}");
        let cursors = match cursor_set(name) {
            Request::CursorSet(change) => vec![change],
            other => panic!("{other:?}"),
        };
        let batch = AppendRequest { cursors, ..AppendRequest::default() };
        assert_eq!(allowed(&Request::Append(batch)), set, "{name}");
    }
}

/// Each op has its roles here. An op unknown to this test is for admins until that is changed here
/// and in docs/wire.md.
#[test]
fn every_op_has_its_roles() {
    let hash = BlobHash::of(b"x");
    let (readers, writers) = ([true; 4], [false, true, true, true]);
    let admins = [false, false, true, false];
    let import = ImportRequest { frames: Vec::new(), ids: ImportIds::New, durable: false };
    let [fetch, subscribe, last, topics] = reads("a");
    for &op in Op::ALL {
        let (request, expected) = match op {
            Op::Append => (append(NewFrame::new(topic("a"))), writers),
            Op::Fetch => (fetch.clone(), readers),
            Op::Get => (Request::Get(Bound::Offset(0)), readers),
            Op::Last => (last.clone(), readers),
            Op::Topics => (topics.clone(), readers),
            Op::Subscribe => (subscribe.clone(), readers),
            Op::Remove => (Request::Remove(RemoveRequest::default()), admins),
            Op::Import => (Request::Import(import.clone()), admins),
            Op::Stats => (Request::Stats, admins),
            Op::Maintain => (Request::Maintain(MaintainRequest::Verify), admins),
            Op::CursorSet => (cursor_set("a"), writers),
            Op::CursorGet => (cursor_get("a"), readers),
            Op::CursorList => (Request::CursorList, readers),
            Op::BlobHas => (Request::BlobHas(hash), readers),
            Op::BlobPut => (Request::BlobPut, writers),
            Op::BlobGet => (Request::BlobGet(BlobGetRequest { hash, credit: 1 }), readers),
            Op::Call => (call("a"), writers),
            // The session handles these, or a server sends them.
            Op::Ping => (Request::Ping(Bytes::new()), readers),
            Op::Credit => (Request::Credit(1), readers),
            Op::Unsubscribe => (Request::Unsubscribe, readers),
            Op::Hello | Op::GoAway | Op::Close | Op::Deliver | Op::SubEvent | Op::BlobChunk => {
                continue;
            }
        };
        assert_eq!(request.op(), op);
        assert_eq!(allowed(&request), expected, "{}", op.name());
    }
}

#[test]
fn reads_are_narrowed_to_the_topics_of_the_token() {
    let access = limited(Role::Read, "a.*", "-");
    for mut request in reads("*") {
        check(&access, None, &mut request).unwrap();
        assert_eq!(topics_of(&request).to_string(), "a.*");
    }
    for mut request in reads("a.b").into_iter().chain(reads("a.b.*")) {
        let asked = topics_of(&request).clone();
        check(&access, None, &mut request).unwrap();
        assert_eq!(*topics_of(&request), asked);
    }
    for outside in ["b", "b.*", "a", "a.b,b", "xs.*"] {
        for mut request in reads(outside) {
            let refusal = check(&access, None, &mut request).unwrap_err();
            assert_eq!(refusal.code, Code::Denied, "{outside}");
        }
    }
    for mut request in reads("*") {
        let refusal = check(&limited(Role::Append, "-", "a"), None, &mut request).unwrap_err();
        assert_eq!(refusal.code, Code::Denied);
    }
}

#[test]
fn writes_stay_within_the_topics_of_the_token() {
    let access = limited(Role::Append, "a.*,report.*", "a.*,report.call");
    let code =
        |mut request: Request| check(&access, None, &mut request).map_err(|refusal| refusal.code);
    let frame = |name| NewFrame::new(topic(name));
    assert_eq!(code(append(frame("a.b"))), Ok(()));
    for outside in ["a", "b.a", "xs.handler.a.create"] {
        assert_eq!(code(append(frame(outside))), Err(Code::Denied), "{outside}");
    }
    let both = AppendRequest::frames(vec![frame("a.b"), frame("b")]);
    assert_eq!(code(Request::Append(both)), Err(Code::Denied));
    assert_eq!(code(call("report")), Ok(()));
    assert_eq!(code(call("a.c")), Ok(()), "its answers can be read");
    assert_eq!(code(call("b")), Err(Code::Denied));
    let blind = limited(Role::Append, "-", "*");
    let refusal = check(&blind, None, &mut call("report")).unwrap_err();
    assert_eq!(refusal.code, Code::Denied);
    for (name, set, get) in [("a.mine", true, true), ("report.x", false, true), ("b", false, false)]
    {
        assert_eq!(code(cursor_set(name)).is_ok(), set, "{name}");
        assert_eq!(code(cursor_get(name)).is_ok(), get, "{name}");
        assert_eq!(sees_cursor(&access, &CursorName::parse(name).unwrap()), get, "{name}");
    }
}

#[test]
fn conditions_are_reads() {
    let access = limited(Role::Append, "a.*", "*");
    let conditions = |topics: &str| {
        let topics = TopicPatterns::parse(topics).unwrap();
        let last = Condition::LastAtMost { topics: topics.clone(), offset: 1 };
        [last, Condition::Empty(topics)].map(|condition| {
            let conditions = vec![condition];
            Request::Append(AppendRequest { conditions, ..AppendRequest::default() })
        })
    };
    for (topics, expected) in [("a.b", true), ("a.*", true), ("b", false), ("*", false)] {
        for mut request in conditions(topics) {
            assert_eq!(check(&access, None, &mut request).is_ok(), expected, "{topics}");
            assert_eq!(allowed(&request), [false, true, true, true]);
        }
    }
    let conditions = vec![Condition::HeadIs(0)];
    let mut head = Request::Append(AppendRequest { conditions, ..AppendRequest::default() });
    assert!(check(&access, None, &mut head).is_ok());
}

#[test]
fn blobs_are_used_by_those_who_know_them() {
    let (known, other) = (BlobHash::of(b"known"), BlobHash::of(b"other"));
    let mut blobs = KnownBlobs::default();
    blobs.add(known);
    let access = limited(Role::Append, "a.*", "a.*");
    for (hash, expected) in [(known, Ok(())), (other, Err(Code::UnknownBlob))] {
        let frame = NewFrame { body: Body::Stored(hash), ..NewFrame::new(topic("a.b")) };
        let get = Request::BlobGet(BlobGetRequest { hash, credit: 1 });
        for request in [append(frame), get] {
            let found = check(&access, Some(&blobs), &mut request.clone());
            assert_eq!(found.map_err(|refusal| refusal.code), expected, "{request:?}");
            assert!(check(&Access::of(Role::Append), None, &mut request.clone()).is_ok());
        }
    }
}

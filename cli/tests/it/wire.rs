//! What the protocol promises, with a real store.

use xs_engine::{
    Bound, Condition, FrameId, IdempotencyKey, NewFrame, ReadOptions, Removal, Start, Topic,
    TopicPatterns, Ttl,
};
use xs_protocol::{
    AppendRequest, Client, ClientError, Code, Delivered, Detail, Gap, ImportCounts, ImportIds,
    ImportRequest, MaintainRequest, Refusal, RemoveRequest, SubEvent, SubscribeOptions,
};

use crate::client::{connect, frame, runtime};
use crate::support::Sandbox;

async fn refused(client: &Client, batch: &AppendRequest) -> Refusal {
    match client.append(batch).await {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn one(topic: &str) -> AppendRequest {
    AppendRequest::frames(vec![frame(topic, &serde_json::json!({ "n": 1 }), b"body")])
}

#[test]
fn conditions_and_keys_reach_the_store() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let topics = || TopicPatterns::parse("jobs").unwrap();
        let first = AppendRequest {
            conditions: vec![Condition::Empty(topics())],
            key: Some(IdempotencyKey::parse("job-1").unwrap()),
            ..one("jobs")
        };
        let appended = client.append(&first).await.unwrap();
        let at = appended.frames[0].offset.unwrap();
        // Again, over a new connection: its condition no longer holds, but it is already stored.
        let other = connect(&place.store()).await;
        let again = other.append(&first).await.unwrap();
        assert_eq!((again.repeated, &again.frames), (true, &appended.frames));
        let reused = refused(&other, &AppendRequest { key: first.key.clone(), ..one("b") }).await;
        assert_eq!(reused.code, Code::KeyReused);
        assert_eq!(reused.details, [Detail::Frame(appended.frames[0].id)]);
        let keyless = AppendRequest { key: None, ..first };
        let unmet = refused(&client, &keyless).await;
        assert_eq!(unmet.code, Code::ConditionFailed);
        assert_eq!(unmet.details, [Detail::Condition { index: 0, found: at }]);
        let stale = vec![
            Condition::HeadIs(again.head),
            Condition::LastAtMost { topics: topics(), offset: at - 1 },
        ];
        let unmet = refused(&client, &AppendRequest { conditions: stale, ..one("jobs") }).await;
        assert_eq!(unmet.details, [Detail::Condition { index: 1, found: at }]);
        let empty = AppendRequest {
            key: Some(IdempotencyKey::parse("x").unwrap()),
            ..AppendRequest::default()
        };
        assert_eq!(refused(&client, &empty).await.code, Code::InvalidValue);
    });
}

const fn counts(new: usize, there: usize, refused: usize) -> ImportCounts {
    ImportCounts { new, there, refused }
}

/// Imports all frames of some topics into another store. Returns how many were new, there, refused.
async fn import(from: &Client, to: &Client, ids: ImportIds) -> (usize, usize, usize) {
    let topics = TopicPatterns::parse("a.*,b").unwrap();
    let options = ReadOptions { topics, ..ReadOptions::default() };
    let mut export = from.export(&options, None).await.unwrap();
    let mut sum = (0, 0, 0);
    while let Some(frames) = export.next().await {
        let import = ImportRequest { frames: frames.unwrap(), ids, durable: true };
        let ImportCounts { new, there, refused } = to.import(&import).await.unwrap().counts();
        sum = (sum.0 + new, sum.1 + there, sum.2 + refused);
    }
    sum
}

#[test]
fn frames_move_between_stores_under_old_and_new_ids() {
    let (place, fresh, used) = (Sandbox::new(), Sandbox::new(), Sandbox::new());
    let servers = [&place, &fresh, &used].map(|place| place.serve(&["--sync", "none"]));
    runtime().block_on(async {
        let source = connect(&place.store()).await;
        let mut ids: Vec<FrameId> = Vec::new();
        for n in 0..500 {
            let appended = source.append(&one(&format!("a.t{}", n % 7))).await.unwrap();
            ids.push(appended.frames[0].id);
        }
        let used = connect(&used.store()).await;
        // Ids of the same millisecond have no order between stores.
        while used.append(&one("b")).await.unwrap().frames[0].id < ids[499] {}
        assert_eq!(import(&source, &used, ImportIds::Verbatim).await, (0, 0, 500));
        for pass in [(500, 0, 0), (0, 500, 0)] {
            assert_eq!(import(&source, &used, ImportIds::New).await, pass);
        }
        let moved = used.get(Bound::Id(ids[3])).await.unwrap().unwrap();
        assert_eq!((moved.old_id(), moved.topic()), (Some(ids[3]), "a.t3"));
        let body = used.blob_get(&moved.hash().unwrap()).await.unwrap().unwrap();
        assert_eq!(body.bytes(100).await.unwrap(), "body");
        // A store that has only its own first frame, which may be newer than some of these.
        let fresh = connect(&fresh.store()).await;
        let start = fresh.get(Bound::Offset(0)).await.unwrap().unwrap();
        let above = ids.iter().filter(|id| **id > start.id()).count();
        let counts = import(&source, &fresh, ImportIds::Verbatim).await;
        assert_eq!(counts, (above, 0, 500 - above));
        assert!(above > 0);
        assert_eq!(import(&source, &fresh, ImportIds::Verbatim).await, (0, above, 500 - above));
        let same = fresh.get(Bound::Id(ids[499])).await.unwrap().unwrap();
        assert_eq!((same.id(), same.old_id()), (ids[499], None));
    });
    drop(servers);
}

/// Also while an import of the same frame is in flight, and again after it was removed.
#[test]
fn concurrent_imports_store_each_frame_once() {
    let (place, used) = (Sandbox::new(), Sandbox::new());
    let servers = [&place, &used].map(|place| place.serve(&[]));
    runtime().block_on(async {
        let source = connect(&place.store()).await;
        for _ in 0..3 {
            source.append(&one("b")).await.unwrap();
        }
        let topics = TopicPatterns::parse("b").unwrap();
        let options = ReadOptions { topics, ..ReadOptions::default() };
        let mut export = source.export(&options, None).await.unwrap();
        let frames = export.next().await.unwrap().unwrap();
        let used = connect(&used.store()).await;
        let import = |of: &[usize]| {
            let frames = of.iter().map(|&at| frames[at].clone()).collect();
            used.import(&ImportRequest { frames, ids: ImportIds::New, durable: true })
        };
        let answers = tokio::join!(import(&[0, 1]), import(&[1, 2, 2]), import(&[0, 1, 2]));
        assert_eq!(answers.0.unwrap().counts(), counts(2, 0, 0));
        assert_eq!(answers.1.unwrap().counts(), counts(1, 2, 0));
        assert_eq!(answers.2.unwrap().counts(), counts(0, 3, 0));
        let frame = used.get(Bound::Id(frames[0].frame.id())).await.unwrap().unwrap();
        let remove = RemoveRequest {
            frames: vec![Bound::Id(frame.id())],
            now: true,
            ..RemoveRequest::default()
        };
        assert_eq!(used.remove(&remove).await.unwrap().removed, [Removal::Removed]);
        assert_eq!(import(&[0, 1]).await.unwrap().counts(), counts(1, 1, 0));
    });
    drop(servers);
}

/// Whether or not one of them waits for frames that are in flight.
#[test]
fn imports_of_a_connection_keep_their_order() {
    let (place, kept, new) = (Sandbox::new(), Sandbox::new(), Sandbox::new());
    let servers = [&place, &kept, &new].map(|place| place.serve(&[]));
    runtime().block_on(async {
        let (kept, new) = (connect(&kept.store()).await, connect(&new.store()).await);
        let source = connect(&place.store()).await;
        // Kept ids must be above those that the other store has already.
        let above = kept.get(Bound::Offset(0)).await.unwrap().unwrap().id();
        while source.append(&one("a")).await.unwrap().frames[0].id < above {}
        let numbered = (0..8).map(|n| frame("b", &serde_json::json!(n), b"")).collect();
        source.append(&AppendRequest::frames(numbered)).await.unwrap();
        let frames = exported(&source, "b").await;
        for (to, ids) in [(&kept, ImportIds::Verbatim), (&new, ImportIds::New)] {
            let import = async |of: std::ops::Range<usize>| {
                let frames = frames[of].to_vec();
                to.import(&ImportRequest { frames, ids, durable: true }).await.unwrap().counts()
            };
            let answers = tokio::join!(import(0..4), import(3..6), import(6..8));
            let expected = (counts(4, 0, 0), counts(2, 1, 0), counts(2, 0, 0));
            assert_eq!(answers, expected, "{ids:?}");
            let order = exported(to, "b").await;
            let order: Vec<_> = order.iter().map(|one| one.frame.meta()).collect();
            assert_eq!(order, [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"], "{ids:?}");
        }
    });
    drop(servers);
}

/// The stored frames of a topic, as many as fit in one message.
async fn exported(from: &Client, topic: &str) -> Vec<Delivered> {
    let topics = TopicPatterns::parse(topic).unwrap();
    let options = ReadOptions { topics, ..ReadOptions::default() };
    let mut export = from.export(&options, None).await.unwrap();
    export.next().await.unwrap().unwrap()
}

/// When nothing is stored because all of it is there already.
#[test]
fn an_import_answer_is_durable_only_when_the_counted_frames_are() {
    let place = Sandbox::new();
    let _server = place.serve(&["--sync", "none"]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let append = async || client.append(&one("b")).await.unwrap().frames[0].id;
        append().await;
        let frames = exported(&client, "b").await;
        let import = async |durable| {
            let frames = frames.clone();
            let import = ImportRequest { frames, ids: ImportIds::Verbatim, durable };
            let imported = client.import(&import).await.unwrap();
            assert_eq!(imported.counts(), counts(0, 1, 0));
            imported.durable
        };
        assert!(!import(false).await);
        assert!(import(true).await);
        let gone = append().await;
        let remove = async |at, durable| {
            let frames = vec![at];
            let remove = RemoveRequest { frames, durable, ..RemoveRequest::default() };
            let done = client.remove(&remove).await.unwrap();
            (done.removed, done.durable)
        };
        assert_eq!(remove(Bound::Id(gone), false).await, (vec![Removal::Removed], false));
        let never = Bound::Offset(9_999);
        assert_eq!(remove(never, false).await, (vec![Removal::Absent], false));
        assert_eq!(remove(never, true).await, (vec![Removal::Absent], true));
        append().await;
        assert_eq!(remove(Bound::Id(gone), true).await, (vec![Removal::Absent], true));
    });
}

#[test]
fn a_bad_copy_destination_is_not_blamed_on_the_store() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        for to in ["/proc/copy", "/sys/copy", "/dev/null/copy"].map(str::to_owned) {
            let backup = MaintainRequest::Backup { to: to.clone(), link: false };
            for request in [backup, MaintainRequest::Fork { to }] {
                match client.maintain(&request).await {
                    Err(ClientError::Refused(refusal)) => {
                        assert_eq!(refusal.code, Code::InvalidValue, "{refusal}");
                    }
                    other => panic!("{request:?}: {other:?}"),
                }
            }
        }
    });
}

#[test]
fn removals_by_id_and_offset_reach_the_files() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let secret = frame("a", &serde_json::json!({}), b"a very secret body");
        let appended = client.append(&AppendRequest::frames(vec![secret])).await.unwrap();
        let (id, offset) = (appended.frames[0].id, appended.frames[0].offset.unwrap());
        let hash = client.get(Bound::Id(id)).await.unwrap().unwrap().hash().unwrap();
        let kept = client.append(&one("a")).await.unwrap().frames[0];
        let remove = RemoveRequest {
            frames: vec![Bound::Offset(offset), Bound::Id(id), Bound::Offset(9_999)],
            now: true,
            ..RemoveRequest::default()
        };
        assert_eq!(client.remove(&remove).await.unwrap().removed[..1], [Removal::Removed]);
        assert_eq!(client.get(Bound::Id(id)).await.unwrap(), None);
        assert!(!client.blob_has(&hash).await.unwrap());
        let nothing =
            RemoveRequest { frames: vec![Bound::Offset(9_999)], ..RemoveRequest::default() };
        assert_eq!(client.remove(&nothing).await.unwrap().removed, [Removal::Absent]);
        // Combined with an append in one batch, and limited to topics.
        let batch = |topics: &str| AppendRequest {
            removes: vec![Bound::Id(kept.id)],
            removes_within: Some(TopicPatterns::parse(topics).unwrap()),
            ..one("b")
        };
        let denied = refused(&client, &batch("b")).await;
        assert_eq!(
            (denied.code, &denied.details[..]),
            (Code::Denied, &[Detail::Frame(kept.id)][..])
        );
        let appended = client.append(&batch("a,c.*")).await.unwrap();
        assert_eq!((appended.removed, appended.frames.len()), (vec![Removal::Removed], 1));
        let stats: serde_json::Value =
            serde_json::from_str(&client.stats().await.unwrap()).unwrap();
        assert_eq!(stats["store"]["head"], appended.head);
        assert_eq!(stats["store"]["health"], "writable");
        assert!(stats["store"]["commit"]["sync"]["count"].as_u64().unwrap() > 0);
    });
}

#[test]
fn a_keyed_batch_that_removes_frames_can_be_sent_again() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let stamp = async || client.append(&one("a")).await.unwrap().frames[0];
        let (by_offset, by_id) = (stamp().await, stamp().await);
        let within = TopicPatterns::parse("a").unwrap();
        let sent = [
            (Bound::Offset(by_offset.offset.unwrap()), None, "offset"),
            (Bound::Id(by_id.id), Some(within), "id"),
        ];
        for (at, removes_within, key) in sent {
            let batch = AppendRequest {
                removes: vec![at],
                removes_within,
                key: Some(IdempotencyKey::parse(key).unwrap()),
                ..one("b")
            };
            let first = client.append(&batch).await.unwrap();
            assert_eq!((first.repeated, &first.removed), (false, &vec![Removal::Removed]));
            let again = client.append(&batch).await.unwrap();
            assert_eq!((again.repeated, again.removed), (true, vec![Removal::Absent]));
            assert_eq!((again.frames, again.head), (first.frames, first.head));
        }
    });
}

#[test]
fn resume_points_are_bound_to_their_store_and_epoch() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    let (before, head) = runtime().block_on(async {
        let client = connect(&place.store()).await;
        let head = client.append(&one("a")).await.unwrap().head;
        (client.server().resume(), head)
    });
    assert!(server.stop().success());
    let _server = place.serve(&[]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        assert!(client.server().epoch > before.epoch);
        let subscribe = async |offset, resume| {
            let start = Start::From(Bound::Offset(offset));
            let options = ReadOptions { start, ..ReadOptions::default() };
            let how = SubscribeOptions { resume: Some(resume), ..SubscribeOptions::default() };
            match client.subscribe(&options, how).await {
                Ok(_) => None,
                Err(ClientError::Refused(refusal)) => Some((refusal.code, refusal.details)),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(subscribe(head, before).await, None);
        let (code, details) = subscribe(head + 1_000, before).await.unwrap();
        assert_eq!(code, Code::CursorAhead);
        assert!(matches!(details[..], [Detail::Offset(offset)] if offset >= head));
        let other =
            xs_protocol::Resume { store: xs_protocol::StoreUuid::from_bytes([9; 16]), ..before };
        assert_eq!(subscribe(head, other).await.unwrap().0, Code::OtherStore);
    });
}

#[test]
fn ephemeral_frames_beyond_the_ring_are_a_gap() {
    let place = Sandbox::new();
    let _server = place.serve(&["--sync", "none"]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let options = ReadOptions { start: Start::New, follow: true, ..ReadOptions::default() };
        let how = SubscribeOptions { credit: 1000, ..SubscribeOptions::default() };
        let mut slow = client.subscribe(&options, how).await.unwrap();
        const FRAMES: u64 = 5000;
        for _ in 0..FRAMES / 100 {
            let note =
                NewFrame { ttl: Ttl::Ephemeral, ..NewFrame::new(Topic::parse("n").unwrap()) };
            client.append(&AppendRequest::frames(vec![note; 100])).await.unwrap();
        }
        client.append(&one("end")).await.unwrap();
        let (mut came, mut lost) = (0, 0);
        while let Some(event) = slow.next().await {
            match event.unwrap() {
                SubEvent::Frames { frames, .. } => {
                    if frames.iter().any(|one| one.frame.topic() == "end") {
                        came += frames.len() as u64 - 1;
                        break;
                    }
                    came += frames.len() as u64;
                }
                SubEvent::Gap(Gap::Ephemeral { count }) => lost += count,
                SubEvent::CaughtUp { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(lost > 0 && came + lost == FRAMES, "{came} came, {lost} were lost");
    });
}

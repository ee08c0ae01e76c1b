//! Moving frames from one store to another, and what a server reports about itself.

use bytes::Bytes;
use xs_engine::{Body, NewFrame, ReadOptions, Topic};
use xs_protocol::{
    AppendRequest, Code, ImportCounts, ImportIds, ImportOutcome, ImportRequest, MaintainRequest,
    Role, SubscribeOptions,
};

use crate::rig::{Rig, one, soon, until};

#[tokio::test]
async fn what_is_exported_can_be_imported_and_once_is_enough() {
    let from = Rig::unix(Role::Admin).await;
    let to = Rig::unix(Role::Admin).await;
    let (source, target) = (from.client().await, to.client().await);
    from.memory.fill(20_000, "a");
    let body = Body::Inline(Bytes::from(vec![7; 5000]));
    let frame = NewFrame { body, ..NewFrame::new(Topic::parse("b").unwrap()) };
    soon(source.append(&AppendRequest::frames(vec![frame]))).await.unwrap();
    for pass in 0..2 {
        let (mut new, mut there) = (0, 0);
        let resume = Some(source.server().resume());
        let options = ReadOptions {
            start: xs_engine::Start::From(xs_engine::Bound::Offset(0)),
            ..ReadOptions::default()
        };
        let mut export = soon(source.export(&options, resume)).await.unwrap();
        while let Some(frames) = soon(export.next()).await {
            for frames in frames.unwrap().chunks(4096) {
                let (frames, durable) = (frames.to_vec(), true);
                let import = ImportRequest { frames, ids: ImportIds::Verbatim, durable };
                let imported = soon(target.import(&import)).await.unwrap();
                let counts = imported.counts();
                assert!(counts.refused == 0 && imported.durable);
                (new, there) = (new + counts.new, there + counts.there);
            }
        }
        assert_eq!(export.position(), Some(20_001));
        assert_eq!((new, there), if pass == 0 { (20_001, 0) } else { (0, 20_001) });
    }
}

#[tokio::test]
async fn a_frame_that_cannot_be_imported_keeps_no_other_out() {
    let from = Rig::unix(Role::Admin).await;
    let to = Rig::unix(Role::Admin).await;
    let (source, target) = (from.client().await, to.client().await);
    let body = Body::Inline(Bytes::from_static(b"body"));
    let with_body = NewFrame { body, ..NewFrame::new(Topic::parse("b").unwrap()) };
    let frames = vec![one("a").frames.remove(0), with_body, one("c").frames.remove(0)];
    soon(source.append(&AppendRequest::frames(frames))).await.unwrap();
    let mut export = soon(source.export(&ReadOptions::default(), None)).await.unwrap();
    let mut frames = soon(export.next()).await.unwrap().unwrap();
    frames[1].body = None;
    let import = ImportRequest { frames, ids: ImportIds::New, durable: false };
    let imported = soon(target.import(&import)).await.unwrap();
    assert_eq!(imported.counts(), ImportCounts { new: 2, there: 0, refused: 1 });
    assert!(matches!(imported.outcomes[1], ImportOutcome::Refused(_)));
    assert_eq!(imported.head, 2);
}

#[tokio::test]
async fn statistics_count_connections_and_lag() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(1000, "a");
    let client = rig.client().await;
    let how = SubscribeOptions { credit: 1, ..SubscribeOptions::default() };
    let options = ReadOptions { follow: true, ..ReadOptions::default() };
    // Nothing is read from it: it stays at the end of its first message.
    let stalled = soon(client.subscribe(&options, how)).await.unwrap();
    let text = soon(client.stats()).await.unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let server = &stats["server"];
    assert_eq!(
        (server["connections"].as_u64(), server["subscriptions"].as_u64()),
        (Some(1), Some(1))
    );
    let lag = server["lag_frames_max"].as_u64().unwrap();
    assert!(lag > 900 && lag <= 1000, "{lag}");
    assert_eq!(stats["store"]["head"], 1000);
    assert!(server["bytes_in"].as_u64().unwrap() > 0 && server["bytes_out"].as_u64().unwrap() > 0);
    drop(stalled);
    let other = rig.connect_as(Role::Host).await;
    assert_eq!(soon(other.stats()).await.unwrap_err().code(), Some(Code::Denied));
}

#[tokio::test]
async fn files_are_written_for_who_is_on_the_machine() {
    let fork = MaintainRequest::Fork { to: "/somewhere".to_owned() };
    let compact = MaintainRequest::Compact { dead_percent: 50 };
    let near = Rig::unix(Role::Admin).await;
    let text = soon(near.client().await.maintain(&fork)).await.unwrap();
    assert!(text.contains("/somewhere"), "{text}");
    let host = near.connect_as(Role::Host).await;
    assert_eq!(soon(host.maintain(&compact)).await.unwrap_err().code(), Some(Code::Denied));
    let tcp = Rig::tcp().await;
    let far = tcp.client().await;
    assert_eq!(soon(far.maintain(&fork)).await.unwrap_err().code(), Some(Code::Denied));
    let text = soon(far.maintain(&compact)).await.unwrap();
    assert!(text.contains("Compact"), "{text}");
}

#[tokio::test]
async fn work_that_nobody_waits_for_is_told_so() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let check = client.maintain(&MaintainRequest::Verify);
    // Requests are served in order: the check has begun when this one is answered.
    soon(client.stats()).await.unwrap();
    assert_eq!(rig.memory.given_up(), 0);
    drop((check, client));
    until(|| rig.memory.given_up() == 1).await;
}

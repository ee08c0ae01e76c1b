//! Batches that are stored under a condition, or only once.

use xs_engine::{Condition, IdempotencyKey, TopicPatterns};
use xs_protocol::{AppendRequest, Class, Client, ClientError, Code, Detail, Refusal, Role};

use crate::rig::{Rig, one, soon};

async fn refused(client: &Client, batch: &AppendRequest) -> Refusal {
    match soon(client.append(batch)).await {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_condition_that_does_not_hold_says_what_is_there() {
    let rig = Rig::unix(Role::Append).await;
    let client = rig.client().await;
    rig.memory.fill(3, "a");
    let topics = || TopicPatterns::parse("a").unwrap();
    let when = |conditions| AppendRequest { conditions, ..one("a") };
    let held = vec![
        Condition::HeadIs(3),
        Condition::LastAtMost { topics: topics(), offset: 2 },
        Condition::Empty(TopicPatterns::parse("b").unwrap()),
    ];
    let appended = soon(client.append(&when(held.clone()))).await.unwrap();
    assert_eq!((appended.head, appended.repeated), (4, false));
    // The same batch again: the head has moved.
    let refusal = refused(&client, &when(held)).await;
    assert_eq!((refusal.code, refusal.code.class()), (Code::ConditionFailed, Class::Condition));
    assert_eq!(refusal.details, [Detail::Condition { index: 0, found: 4 }]);
    let stale = Condition::LastAtMost { topics: topics(), offset: 2 };
    let refusal = refused(&client, &when(vec![Condition::HeadIs(4), stale])).await;
    assert_eq!(refusal.details, [Detail::Condition { index: 1, found: 3 }]);
    let refusal = refused(&client, &when(vec![Condition::Empty(topics())])).await;
    assert_eq!(refusal.details, [Detail::Condition { index: 0, found: 3 }]);
    assert_eq!(rig.memory.waiting(), 0);
}

#[tokio::test]
async fn a_batch_with_a_key_may_be_sent_again_over_another_connection() {
    let rig = Rig::unix(Role::Append).await;
    let batch = AppendRequest {
        key: Some(IdempotencyKey::parse("order-17").unwrap()),
        conditions: vec![Condition::HeadIs(0)],
        ..one("a")
    };
    let client = rig.client().await;
    let first = soon(client.append(&batch)).await.unwrap();
    assert!(!first.repeated);
    drop(client);
    let client = rig.client().await;
    let again = soon(client.append(&batch)).await.unwrap();
    assert!(again.repeated);
    assert_eq!((again.frames, again.head), (first.frames.clone(), 1));
    let other = AppendRequest { frames: one("b").frames, ..batch };
    let refusal = refused(&client, &other).await;
    assert_eq!((refusal.code, refusal.code.class()), (Code::KeyReused, Class::Invalid));
    assert_eq!(refusal.details, [Detail::Frame(first.frames[0].id)]);
}

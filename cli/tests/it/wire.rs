//! What the protocol promises, with the store behind it.

use xs_engine::{Condition, IdempotencyKey, TopicPatterns};
use xs_protocol::{AppendRequest, Client, ClientError, Code, Detail, Refusal};

use crate::client::{connect, frame, runtime};
use crate::support::Place;

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
    let place = Place::new();
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
        // Again, over a new connection: its condition no longer holds, and it is stored already.
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

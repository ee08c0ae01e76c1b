//! The host of one processor, whose process may have been taken over by its module.

use xs_engine::{FrameId, NewFrame, Origin};
use xs_protocol::{AppendRequest, Client, ClientError, Code, Detail, Entry, Role, Service as _};

use crate::rig::{Rig, one, soon};

/// Batches whose frames name these as their processors.
fn from(processors: &[FrameId]) -> AppendRequest {
    let frame = |&processor| {
        let origin = Origin { processor, input: None, input_offset: None, hops: 1 };
        NewFrame { origin: Some(origin), ..one("any").frames.remove(0) }
    };
    AppendRequest::frames(processors.iter().map(frame).collect())
}

async fn create(admin: &Client, topic: &str) -> FrameId {
    soon(admin.append(&one(topic))).await.unwrap().frames[0].id
}

#[tokio::test]
async fn a_host_of_one_processor_names_no_other_as_the_origin() {
    let rig = Rig::unix(Role::Admin).await;
    let admin = rig.client().await;
    let own = create(&admin, "xs.handler.a.create").await;
    let newer = create(&admin, "xs.command.a.create").await;
    let other = create(&admin, "xs.handler.b.create").await;
    let longer = create(&admin, "xs.handler.a.b.create").await;
    let term = create(&admin, "xs.handler.a.term").await;
    let plain = create(&admin, "plain").await;
    let host = rig.connect_as(Entry::Alone("a".into())).await;
    for version in [own, newer, own] {
        soon(host.append(&from(&[version, version]))).await.unwrap();
    }
    let stored = rig.memory.head();
    let none = FrameId::first_of_ms(1);
    for forged in [other, longer, term, plain, none] {
        // Also behind one that is right: the batch is all or nothing.
        for batch in [from(&[forged]), from(&[own, forged])] {
            let Err(ClientError::Refused(refusal)) = soon(host.append(&batch)).await else {
                panic!("{forged} was taken");
            };
            assert_eq!(refusal.code, Code::Denied);
            assert_eq!(refusal.details, [Detail::Frame(forged)]);
        }
    }
    assert_eq!(rig.memory.head(), stored);
    // The host of all the others runs whatever there is.
    let together = rig.connect_as(Role::Host).await;
    soon(together.append(&from(&[own, other]))).await.unwrap();
}

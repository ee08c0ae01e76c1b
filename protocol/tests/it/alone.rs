//! The host of a single processor, whose process its module may have taken over.

use std::time::Duration;

use xs_engine::{FrameId, NewFrame, Origin};
use xs_protocol::{
    Admission, AppendRequest, Client, ClientError, Code, Detail, Op, Role, Service as _, limits,
};

use crate::raw::{Raw, header};
use crate::rig::{Rig, one, soon};

/// A batch whose frames name these processors as their origins.
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
    let host = rig.connect_as(Admission::Alone("a".into())).await;
    for version in [own, newer, own] {
        soon(host.append(&from(&[version, version]))).await.unwrap();
    }
    let stored = rig.memory.head();
    let none = FrameId::first_of_ms(1);
    for forged in [other, longer, term, plain, none] {
        // Also after a valid one: the batch is all or nothing.
        for batch in [from(&[forged]), from(&[own, forged])] {
            let Err(ClientError::Refused(refusal)) = soon(host.append(&batch)).await else {
                panic!("{forged} was taken");
            };
            assert_eq!(refusal.code, Code::Denied);
            assert_eq!(refusal.details, [Detail::Frame(forged)]);
        }
    }
    assert_eq!(rig.memory.head(), stored);
    // The host of all processors may name any of them.
    let together = rig.connect_as(Role::Host).await;
    soon(together.append(&from(&[own, other]))).await.unwrap();
}

/// A call of `echo` with a deadline, whose origin names a processor that is not the host's.
fn foreign_call(deadline: Duration) -> Vec<u8> {
    let mut body = [0; 8].to_vec();
    body.extend_from_slice(&(deadline.as_millis() as u64).to_le_bytes());
    body.extend_from_slice(b"\0\0\0\0\0\0\0\0\x04\0echo\x01\0\0\0\x30\0\0\0");
    body.extend_from_slice(FrameId::first_of_ms(1).as_bytes());
    // No input.
    body.extend_from_slice(&[0; 16]);
    body.extend_from_slice(&[0xff; 8]);
    body.extend_from_slice(&[0; 8]);
    body
}

/// A call refused for its origin is over: it does not count as a stream, and nothing follows the
/// refusal.
#[tokio::test(start_paused = true)]
async fn a_call_with_the_origin_of_another_leaves_no_stream() {
    let rig = Rig::unix(Role::Admin).await;
    let mut host = Raw::open(&rig, Admission::Alone("a".into())).await;
    let deadline = Duration::from_secs(1);
    for sub in 1..limits::STREAMS_MAX + 2 {
        let refused = host.ask(header(Op::Call, sub, sub), &foreign_call(deadline)).await.header;
        assert_eq!((refused.op, refused.code), (Op::Call as u8, Code::Denied.number()), "{sub}");
    }
    tokio::time::advance(2 * deadline).await;
    let subscribe = [&[0; 16][..], &[2, 0, 1, 0, 1, 0, b'a']].concat();
    for sub in [1000, 1001] {
        let opened = host.ask(header(Op::Subscribe, sub, sub), &subscribe).await.header;
        assert_eq!((opened.op, opened.code), (Op::Subscribe as u8, 0));
    }
    assert_eq!(rig.memory.calls(), 0);
}

//! What each role may do. The only place where `xs.*`, origins and reserved cursors are judged.

use xs_engine::{CursorChange, NewFrame, TopicPattern, TopicPatterns};

use crate::error::{Code, Refusal};
use crate::message::{Request, Role};

const KINDS: [&str; 3] = ["generator", "handler", "command"];

/// Refuses what the role of a connection does not allow.
pub(crate) fn check(role: Role, request: &Request) -> Result<(), Refusal> {
    match request {
        Request::Append(batch) => {
            check_writer(role)?;
            batch.frames.iter().try_for_each(|frame| check_frame(role, frame))?;
            batch.cursors.iter().try_for_each(|change| check_cursor(role, change))?;
            match batch.removes.is_empty() {
                true => Ok(()),
                false => check_remove(role, batch.removes_within.as_ref(), false),
            }
        }
        Request::Remove(remove) => check_remove(role, remove.within.as_ref(), remove.now),
        Request::Import(_) | Request::Stats if role != Role::Admin => {
            Err(denied(format!("{} is for admins", request.op().name())))
        }
        Request::CursorSet(change) => {
            check_writer(role)?;
            check_cursor(role, change)
        }
        Request::BlobPut | Request::Call { .. } => check_writer(role),
        _ => Ok(()),
    }
}

fn check_writer(role: Role) -> Result<(), Refusal> {
    match role {
        Role::Read => Err(denied("this connection may only read".to_owned())),
        Role::Append | Role::Admin | Role::Host => Ok(()),
    }
}

/// An admin removes anything. The host removes for its modules, so it names the topics that the
/// module may remove from, and the server holds it to them; they are never the store's own.
fn check_remove(role: Role, within: Option<&TopicPatterns>, now: bool) -> Result<(), Refusal> {
    let is_reserved = |pattern: &TopicPattern| match pattern {
        TopicPattern::Exact(topic) => topic.is_reserved(),
        pattern => pattern.to_string().starts_with("xs."),
    };
    match (role, within) {
        (Role::Admin, _) => Ok(()),
        (Role::Host, Some(topics)) if !now && !topics.as_slice().iter().any(is_reserved) => Ok(()),
        (Role::Host, _) => Err(denied(
            "the host of modules removes within topics it names, none of the store's own, and not \
             at once"
                .to_owned(),
        )),
        (Role::Read | Role::Append, _) => Err(denied("only an admin may remove frames".to_owned())),
    }
}

fn check_frame(role: Role, frame: &NewFrame) -> Result<(), Refusal> {
    if frame.origin.is_some() && role != Role::Host {
        return Err(denied("only the host of modules may set an origin".to_owned()));
    }
    if !frame.topic.is_reserved() {
        return Ok(());
    }
    let topic = frame.topic.as_str();
    let mut parts = topic.split('.');
    parts.next();
    let of_processor = parts.next().is_some_and(|kind| KINDS.contains(&kind));
    let allowed = match role {
        Role::Host => of_processor,
        // A name may hold dots: between the kind and the event lies at least one part.
        Role::Admin => {
            let event = parts.next_back();
            of_processor
                && matches!(event, Some("create" | "term" | "unpark" | "discard"))
                && parts.next().is_some()
        }
        Role::Read | Role::Append => false,
    };
    if allowed {
        return Ok(());
    }
    let whose = match role {
        Role::Admin => "an admin may append xs.<kind>.<name>.create, .term, .unpark and .discard",
        _ => "topics that begin with xs belong to the store",
    };
    Err(denied(format!("{topic} cannot be appended by the role {role}: {whose}")))
}

fn check_cursor(role: Role, change: &CursorChange) -> Result<(), Refusal> {
    let reserved = change.name.as_str().starts_with("xs.");
    if reserved && !matches!(role, Role::Admin | Role::Host) {
        let name = &change.name;
        return Err(denied(format!("cursor {name} belongs to a processor: use another name")));
    }
    Ok(())
}

fn denied(message: String) -> Refusal {
    Refusal::new(Code::Denied, message)
}

#[cfg(test)]
mod tests {
    use xs_engine::{Bound, CursorName, ExpectRevision, FrameId, Origin, Topic};

    use super::*;
    use crate::message::{AppendRequest, RemoveRequest};

    const ROLES: [Role; 4] = [Role::Read, Role::Append, Role::Admin, Role::Host];

    fn allowed(request: &Request) -> [bool; 4] {
        ROLES.map(|role| check(role, request).is_ok())
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
        ];
        for (topic, expected) in cases {
            let frame = NewFrame::new(Topic::parse(topic).unwrap());
            let append = |frame| Request::Append(AppendRequest::frames(vec![frame]));
            assert_eq!(allowed(&append(frame.clone())), expected, "{topic}");
            let origin =
                Origin { processor: FrameId::ZERO, input: None, input_offset: None, hops: 0 };
            let derived = append(NewFrame { origin: Some(origin), ..frame });
            assert_eq!(allowed(&derived), [false, false, false, expected[3]], "{topic}");
        }
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
        assert_eq!(allowed(&Request::Stats), [false, false, true, false]);
    }

    #[test]
    fn cursors_of_processors_are_reserved() {
        for (name, expected) in
            [("mine", [false, true, true, true]), ("xs.handler.a", [false, false, true, true])]
        {
            let name = CursorName::parse(name).unwrap();
            let change = CursorChange { name, expect: ExpectRevision::Any, set: None };
            assert_eq!(allowed(&Request::CursorSet(change)), expected);
        }
        assert_eq!(allowed(&Request::BlobPut), [false, true, true, true]);
        assert_eq!(allowed(&Request::CursorList), [true; 4]);
    }
}

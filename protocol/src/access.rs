//! Authorization: what each request requires. The only place that checks `xs.*` topics, origins,
//! reserved cursors, the topics of tokens and the use of blobs by hash. An op that is not named
//! here requires an admin.

use xs_engine::{
    BlobHash, Body, Condition, CursorChange, CursorName, Frame, FrameId, NewFrame, Origin, Topic,
    TopicPattern, TopicPatterns,
};

use crate::auth::{Access, KnownBlobs};
use crate::error::{Code, Detail, Refusal};
use crate::lifecycle::Event;
use crate::message::{CallRequest, Request, Role};

const KINDS: [&str; 3] = ["generator", "handler", "command"];
/// The topic in which a host of all modules reports the state of the file that configures them.
const HOST_CONFIG: &str = "xs.host.config";
/// Suffixes of the topics in which a command answers.
const ANSWERS: [&str; 3] = ["recv", "complete", "error"];

/// Refuses what a connection may not do, and narrows its reads to the topics it may see. `blobs`
/// are the blobs that a connection limited to some topics may use; `None` for other connections,
/// which may use all.
pub(crate) fn check(
    access: &Access,
    blobs: Option<&KnownBlobs>,
    request: &mut Request,
) -> Result<(), Refusal> {
    let role = access.role;
    match request {
        Request::Append(batch) => {
            check_writer(role)?;
            if batch.key.as_ref().is_some_and(|key| key.as_str().starts_with("xs.")) {
                // Reserved: the store uses none yet, but a client's key would collide with a later
                // one.
                return Err(denied("keys that begin with xs. are the store's own".to_owned()));
            }
            for frame in &batch.frames {
                check_frame(access, frame)?;
                if let Body::Stored(hash) = &frame.body {
                    check_blob(blobs, hash)?;
                }
            }
            batch.conditions.iter().try_for_each(|condition| check_condition(access, condition))?;
            batch.cursors.iter().try_for_each(|change| check_cursor_set(access, change))?;
            match batch.removes.is_empty() {
                true => Ok(()),
                false => check_remove(role, batch.removes_within.as_ref(), false),
            }
        }
        Request::Remove(remove) => check_remove(role, remove.within.as_ref(), remove.now),
        Request::CursorSet(change) => {
            check_writer(role)?;
            check_cursor_set(access, change)
        }
        Request::BlobPut => check_writer(role),
        Request::Call { call, .. } => {
            check_writer(role)?;
            check_call(access, call)
        }
        Request::Fetch(fetch) => narrow(access, &mut fetch.options.topics),
        Request::Subscribe(subscribe) => narrow(access, &mut subscribe.options.topics),
        Request::Last(last) => narrow(access, &mut last.topics),
        Request::Topics(topics) => narrow(access, topics),
        Request::CursorGet(name) => match sees_cursor(access, name) {
            true => Ok(()),
            false => Err(denied(format!("cursor {name} cannot be read with this token"))),
        },
        Request::BlobGet(get) => check_blob(blobs, &get.hash),
        // The answer is narrowed where it is made.
        Request::Get(_) | Request::CursorList | Request::BlobHas(_) => Ok(()),
        // The session handles these itself.
        Request::Hello(_)
        | Request::Ping(_)
        | Request::Pong(_)
        | Request::Credit(_)
        | Request::Unsubscribe
        | Request::BlobChunk { .. } => Ok(()),
        _ if role == Role::Admin => Ok(()),
        Request::Maintain(request) => Err(denied(format!("{} is for admins", request.name()))),
        _ => Err(denied(format!("{} is for admins", request.op().name()))),
    }
}

/// Whether a connection may see a cursor. Cursors of processors hold the states of handlers. A
/// limited connection sees the others whose names its patterns match, as if they were topics.
pub(crate) fn sees_cursor(access: &Access, name: &CursorName) -> bool {
    match access.role {
        Role::Host if access.alone.is_some() => keeps_own(access, name),
        Role::Admin | Role::Host => true,
        Role::Read | Role::Append => !is_processors(name) && access.read.holds(name.as_str()),
    }
}

/// Whether a connection may use a blob that it names by its hash.
pub(crate) fn check_blob(blobs: Option<&KnownBlobs>, hash: &BlobHash) -> Result<(), Refusal> {
    match blobs {
        Some(known) if !known.has(hash) => {
            let text = format!(
                "no blob {hash} that this token may use: put it, or read a frame that has it, on \
                 this connection first"
            );
            Err(Refusal::new(Code::UnknownBlob, text))
        }
        _ => Ok(()),
    }
}

fn narrow(access: &Access, topics: &mut TopicPatterns) -> Result<(), Refusal> {
    *topics = access.read.narrow(topics)?;
    Ok(())
}

fn check_writer(role: Role) -> Result<(), Refusal> {
    match role {
        Role::Read => Err(denied("this connection may only read".to_owned())),
        Role::Append | Role::Admin | Role::Host => Ok(()),
    }
}

/// An admin removes anything. The host removes on behalf of a module: it names the topics from
/// which the module may remove, and the server enforces this. Reserved topics are never among them.
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

/// A caller appends the call and waits for the answers, so both must be allowed: otherwise it would
/// wait for frames that it is never shown.
fn check_call(access: &Access, call: &CallRequest) -> Result<(), Refusal> {
    let topic = |event: &str| format!("{}.{event}", call.name);
    check_may_tell(access.role, call.origin.as_ref())?;
    if call.name.is_reserved() || !access.append.holds(&topic("call")) {
        return Err(denied(format!("{} cannot be appended with this token", topic("call"))));
    }
    match ANSWERS.map(topic).into_iter().find(|answer| !access.read.holds(answer)) {
        Some(answer) => Err(denied(format!(
            "{answer}, where {} answers, cannot be read with this token",
            call.name
        ))),
        None => Ok(()),
    }
}

/// A condition reveals the position of topics, so it requires the right to read them.
fn check_condition(access: &Access, condition: &Condition) -> Result<(), Refusal> {
    match condition {
        Condition::LastAtMost { topics, .. } | Condition::Empty(topics)
            if !access.read.covers(topics) =>
        {
            Err(denied(format!(
                "conditions on {topics} need to read them, which this token may not"
            )))
        }
        _ => Ok(()),
    }
}

fn check_topic(access: &Access, topic: &Topic) -> Result<(), Refusal> {
    if access.append.holds(topic.as_str()) {
        return Ok(());
    }
    Err(denied(format!("{topic} cannot be appended to with this token")))
}

fn check_frame(access: &Access, frame: &NewFrame) -> Result<(), Refusal> {
    let role = access.role;
    check_may_tell(role, frame.origin.as_ref())?;
    if !frame.topic.is_reserved() {
        return check_topic(access, &frame.topic);
    }
    let topic = frame.topic.as_str();
    let mut parts = topic.split('.');
    parts.next();
    let of_processor = parts.next().is_some_and(|kind| KINDS.contains(&kind));
    let allowed = match role {
        Role::Host if topic == HOST_CONFIG => access.alone.is_none(),
        Role::Host => of_processor && tells_of_own(access, topic),
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
        Role::Host if of_processor => "this host runs another processor alone",
        _ => "topics that begin with xs belong to the store",
    };
    Err(denied(format!("{topic} cannot be appended by the role {role}: {whose}")))
}

/// Only the host of modules may set an origin.
fn check_may_tell(role: Role, origin: Option<&Origin>) -> Result<(), Refusal> {
    match origin {
        Some(_) if role != Role::Host => {
            Err(denied("only the host of modules may set an origin".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Refuses an origin that names another processor than the one a host runs alone. `create` is the
/// frame that the origin names, if it exists: it must be a version of that processor.
pub(crate) fn check_origin(
    access: &Access,
    processor: FrameId,
    create: Option<&Frame>,
) -> Result<(), Refusal> {
    let Some(alone) = &access.alone else { return Ok(()) };
    let event = create.and_then(|frame| behind_own(alone, frame.topic())?.strip_prefix('.'));
    if event.and_then(Event::of) == Some(Event::Create) {
        return Ok(());
    }
    let text = format!("origin {processor} is no version of {alone}, which this host runs alone");
    Err(denied(text).with(Detail::Frame(processor)))
}

fn check_cursor_set(access: &Access, change: &CursorChange) -> Result<(), Refusal> {
    let name = &change.name;
    match access.role {
        Role::Host if !keeps_own(access, name) => {
            return Err(denied(format!("cursor {name} is none of the processor of this host")));
        }
        Role::Admin | Role::Host => return Ok(()),
        Role::Read | Role::Append => {}
    }
    if is_processors(name) {
        return Err(denied(format!("cursor {name} belongs to a processor: use another name")));
    }
    if !access.append.holds(name.as_str()) {
        return Err(denied(format!("cursor {name} cannot be set with this token")));
    }
    Ok(())
}

/// The rest of `text` after `xs.<kind>.<name>`, if that names the only processor that this host
/// runs.
fn behind_own<'a>(processor: &str, text: &'a str) -> Option<&'a str> {
    let (kind, rest) = text.strip_prefix("xs.")?.split_once('.')?;
    if KINDS.contains(&kind) { rest.strip_prefix(processor) } else { None }
}

/// Whether a host may report in this topic on what it runs. A name may contain dots, so the event
/// marks where it ends.
fn tells_of_own(access: &Access, topic: &str) -> bool {
    access.alone.as_ref().is_none_or(|processor| {
        let event = behind_own(processor, topic).and_then(|rest| rest.strip_prefix('.'));
        event.and_then(Event::of).is_some()
    })
}

/// Whether a host may keep this cursor for what it runs: the processor's own cursor, or one with a
/// suffix after a colon.
fn keeps_own(access: &Access, name: &CursorName) -> bool {
    access.alone.as_ref().is_none_or(|processor| {
        let rest = behind_own(processor, name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    })
}

/// Whether a cursor name is reserved for the position and state of processors.
fn is_processors(name: &CursorName) -> bool {
    name.as_str() == "xs" || name.as_str().starts_with("xs.")
}

fn denied(message: String) -> Refusal {
    Refusal::new(Code::Denied, message)
}

#[cfg(test)]
mod tests;

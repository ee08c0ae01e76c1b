//! Extensions of APPEND: conditions, an idempotency key, a bound on what it removes. Their tags are
//! below the optional range, so that a server that does not know them refuses them instead of
//! ignoring them.

use xs_engine::limits::CONDITIONS_MAX;
use xs_engine::{Condition, IdempotencyKey, TopicPatterns};

use super::AppendRequest;
use crate::error::{Code, Detail, Refusal};
use crate::gather::Gather;
use crate::message::coding::{Body, DecodeError, put_extension, put_patterns};

/// Conditions that must hold for the batch to be stored.
pub(super) const CONDITIONS: u16 = 1;
/// The key under which the batch is stored once.
pub(super) const KEY: u16 = 2;
/// The topics that removed frames must have.
const WITHIN: u16 = 3;

const LAST_AT_MOST: u8 = 1;
const EMPTY: u8 = 2;
const HEAD_IS: u8 = 3;

/// Writes the extensions of a batch.
pub(super) fn put(out: &mut Gather, batch: &AppendRequest) {
    if !batch.conditions.is_empty() {
        put_extension(out, CONDITIONS, |out| {
            out.put_u16(batch.conditions.len() as u16);
            out.put_u16(0);
            batch.conditions.iter().for_each(|condition| put_condition(out, condition));
        });
    }
    if let Some(key) = &batch.key {
        put_extension(out, KEY, |out| out.put_slice(key.as_str().as_bytes()));
    }
    put_within(out, batch.removes_within.as_ref());
}

/// Writes the topics that removed frames must have.
pub(in crate::message) fn put_within(out: &mut Gather, within: Option<&TopicPatterns>) {
    if let Some(topics) = within {
        put_extension(out, WITHIN, |out| put_patterns(out, topics));
    }
}

/// Reads the extensions of a removal.
pub(in crate::message) fn read_within(body: Body) -> Result<Option<TopicPatterns>, DecodeError> {
    let mut within = None;
    body.extensions_with(|tag, value| match tag {
        WITHIN => set_within(&mut within, value).map(|()| true),
        _ => Ok(false),
    })?;
    Ok(within)
}

fn set_within(within: &mut Option<TopicPatterns>, mut value: Body) -> Result<(), DecodeError> {
    if within.is_some() {
        return Err(value.wrong("topics twice").into());
    }
    *within = Some(value.patterns()?);
    Ok(value.end()?)
}

/// Reads the extensions into a batch that has none yet.
pub(super) fn read(body: Body, batch: &mut AppendRequest) -> Result<(), DecodeError> {
    let (mut conditions, mut key, mut within) = (None, None, None);
    body.extensions_with(|tag, value| {
        match tag {
            CONDITIONS if conditions.is_some() => {
                return Err(value.wrong("conditions twice").into());
            }
            CONDITIONS => conditions = Some(read_conditions(value)?),
            KEY if key.is_some() => return Err(value.wrong("a key twice").into()),
            KEY => key = Some(read_key(value)?),
            WITHIN => set_within(&mut within, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    batch.removes_within = within;
    batch.conditions = conditions.unwrap_or_default();
    batch.key = key;
    Ok(())
}

fn put_condition(out: &mut Gather, condition: &Condition) {
    match condition {
        Condition::LastAtMost { topics, offset } => {
            out.put_u8(LAST_AT_MOST);
            out.put_u64(*offset);
            put_patterns(out, topics);
        }
        Condition::Empty(topics) => {
            out.put_u8(EMPTY);
            put_patterns(out, topics);
        }
        Condition::HeadIs(head) => {
            out.put_u8(HEAD_IS);
            out.put_u64(*head);
        }
    }
}

fn read_conditions(mut body: Body) -> Result<Vec<Condition>, DecodeError> {
    let count = usize::from(body.u16("count of conditions")?);
    body.zeros(2)?;
    if count > CONDITIONS_MAX {
        let text = format!("{count} conditions are over the limit of {CONDITIONS_MAX}");
        let refusal = Refusal::new(Code::BatchTooLarge, text);
        return Err(refusal.with(Detail::Limit(CONDITIONS_MAX as u64)).into());
    }
    let mut conditions = Vec::with_capacity(count);
    for _ in 0..count {
        conditions.push(match body.u8("kind of condition")? {
            LAST_AT_MOST => {
                let offset = body.u64("offset of a condition")?;
                Condition::LastAtMost { topics: body.patterns()?, offset }
            }
            EMPTY => Condition::Empty(body.patterns()?),
            HEAD_IS => Condition::HeadIs(body.u64("head of a condition")?),
            _ => return Err(body.wrong("kind of condition").into()),
        });
    }
    body.end()?;
    Ok(conditions)
}

fn read_key(mut body: Body) -> Result<IdempotencyKey, DecodeError> {
    let text = body.text_of(body.left(), "key")?;
    Ok(IdempotencyKey::parse(text.as_str())?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xs_engine::TopicPatterns;

    use super::*;
    use crate::message::testing::body_of;

    fn read_all(bytes: Bytes) -> Result<AppendRequest, DecodeError> {
        let mut batch = AppendRequest::default();
        read(Body::new("APPEND", bytes), &mut batch).map(|()| batch)
    }

    fn full() -> AppendRequest {
        let topics = || TopicPatterns::parse("a.b,c.*").unwrap();
        AppendRequest {
            conditions: vec![
                Condition::LastAtMost { topics: topics(), offset: 7 },
                Condition::Empty(topics()),
                Condition::HeadIs(u64::MAX),
            ],
            key: Some(IdempotencyKey::parse("order 17").unwrap()),
            removes_within: Some(topics()),
            ..AppendRequest::default()
        }
    }

    #[test]
    fn they_round_trip_and_a_cut_never_gives_the_whole() {
        let body = body_of(|out| put(out, &full()));
        assert_eq!(read_all(body.clone()).unwrap(), full());
        for at in 0..body.len() {
            // A cut between two extensions yields a batch with fewer of them.
            let cut = read_all(body.slice(..at));
            assert!(cut.map_or(true, |batch| batch.removes_within.is_none()), "{at}");
        }
        assert_eq!(read_all(Bytes::new()).unwrap(), AppendRequest::default());
    }

    #[test]
    fn the_number_of_conditions_has_a_limit() {
        for (count, fits) in
            [(CONDITIONS_MAX - 1, true), (CONDITIONS_MAX, true), (CONDITIONS_MAX + 1, false)]
        {
            let conditions = vec![Condition::HeadIs(1); count];
            let batch = AppendRequest { conditions, ..AppendRequest::default() };
            let got = read_all(body_of(|out| put(out, &batch)));
            match got {
                Ok(got) => assert!(fits && got == batch),
                Err(DecodeError::Refused(refusal)) => {
                    assert!(!fits);
                    assert_eq!(refusal.code, Code::BatchTooLarge);
                    assert_eq!(refusal.details, [Detail::Limit(CONDITIONS_MAX as u64)]);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn none_comes_twice_and_keys_follow_their_rules() {
        let twice = body_of(|out| {
            put(out, &full());
            put(out, &full());
        });
        assert!(matches!(read_all(twice), Err(DecodeError::Protocol(_))));
        for (key, fits) in [
            (&b""[..], false),
            (b"k", true),
            (&[b'k'; 255], true),
            (&[b'k'; 256], false),
            (b"a\nb", false),
        ] {
            let body = body_of(|out| put_extension(out, KEY, |out| out.put_slice(key)));
            match read_all(body) {
                Ok(batch) => assert!(fits && batch.key.unwrap().as_str().as_bytes() == key),
                Err(DecodeError::Refused(refusal)) => {
                    assert!(!fits && refusal.code == Code::InvalidValue);
                }
                Err(error) => panic!("{error}"),
            }
        }
        let not_text = body_of(|out| put_extension(out, KEY, |out| out.put_slice(b"\xff")));
        assert!(matches!(read_all(not_text), Err(DecodeError::Protocol(_))));
    }
}

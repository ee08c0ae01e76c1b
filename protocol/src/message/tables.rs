//! Tests that the tables of the protocol agree in all three places: the code, docs/wire.toml for
//! programs, and docs/wire.md for people.

mod limits;

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::*;
use crate::access;
use crate::auth::Access;
use crate::codec::{FLAG_MORE, FLAG_PUSH, FLAG_RESPONSE, HEADER_LEN, MAJOR, PREFACE};
use crate::error::{Class, Code};

const WIRE_MD: &str = include_str!("../../../docs/wire.md");
const WIRE_TOML: &str = include_str!("../../../docs/wire.toml");

const ROLES: [Role; 4] = [Role::Read, Role::Append, Role::Admin, Role::Host];

fn tables() -> Table {
    WIRE_TOML.parse().unwrap()
}

fn number(value: &Value) -> u64 {
    u64::try_from(value.as_integer().unwrap()).unwrap()
}

fn words(value: Option<&Value>) -> BTreeSet<&str> {
    value.map_or_else(BTreeSet::new, |list| {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    })
}

/// The cells of every line of a table in docs/wire.md.
fn rows() -> Vec<Vec<&'static str>> {
    let lines = WIRE_MD.lines().filter(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn the_ops_are_the_same_three_times() {
    let tables = tables();
    let listed = tables["op"].as_array().unwrap();
    assert_eq!(listed.len(), Op::ALL.len());
    let rows = rows();
    for (&op, (range, entry)) in Op::ALL.iter().zip(Op::RANGES.iter().zip(listed)) {
        let name = op.name();
        assert_eq!((entry["name"].as_str().unwrap(), number(&entry["number"])), (name, op as u64));
        let versions: Vec<u64> = entry["versions"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(versions, [u64::from(range.min), u64::from(range.max)], "{name}");
        assert!(range.max == Op::VERSION && range.max - range.min <= 1, "{name}");
        let Ways { request, one_way, push, stream } = op.ways();
        let ways = [(request, "request"), (one_way, "one-way"), (push, "push"), (stream, "stream")];
        let expected = ways.into_iter().filter_map(|(is, word)| is.then_some(word));
        assert_eq!(words(entry.get("ways")), expected.collect(), "{name}");
        // On the page, the row of an op begins with its number, its name and its ways.
        let number = format!("{:#04x}", op as u8);
        let ways = ways.into_iter().take(3).filter_map(|(is, word)| is.then_some(word));
        let ways = ways.collect::<Vec<_>>().join(", ");
        let in_page = rows
            .iter()
            .any(|row| row.windows(3).any(|cells| cells == [number.as_str(), name, ways.as_str()]));
        assert!(in_page, "wire.md has no row {number} {name} {ways}");
    }
}

fn may(role: Role, mut request: Request) -> bool {
    access::check(&Access::of(role), None, &mut request).is_ok()
}

#[test]
fn the_roles_are_those_the_server_heeds() {
    let tables = tables();
    for role in ROLES {
        assert_eq!(number(&tables["roles"][role.as_str()]), role as u64);
    }
    let samples = vectors::requests();
    for entry in tables["op"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let of_op: Vec<_> =
            samples.iter().filter(|(.., request)| request.op().name() == name).collect();
        let allowed = ROLES.into_iter().filter(|&role| {
            of_op.iter().any(|(.., request)| match request {
                // Frames with an origin are the host's; a plain one stands for the others.
                Request::Append(batch) => {
                    let mut batch = batch.clone();
                    batch.frames.retain(|frame| frame.origin.is_none());
                    batch.removes.clear();
                    may(role, Request::Append(batch))
                }
                Request::Remove(remove) => {
                    let remove = RemoveRequest { now: false, ..remove.clone() };
                    may(role, Request::Remove(remove))
                }
                request => may(role, request.clone()),
            })
        });
        let allowed: BTreeSet<&str> = allowed.map(Role::as_str).collect();
        assert_eq!(words(entry.get("roles")), allowed, "{name}");
    }
}

#[test]
fn the_codes_are_the_same_three_times() {
    let tables = tables();
    let listed = tables["code"].as_array().unwrap();
    assert_eq!(listed.len(), Code::ALL.len());
    let classes = tables["class"].as_array().unwrap();
    let rows = rows();
    for (code, entry) in Code::ALL.iter().zip(listed) {
        assert_eq!(number(&entry["number"]), u64::from(code.number()));
        assert_eq!(entry["name"].as_str().unwrap(), code.name());
        let class = classes.iter().find(|class| class["name"] == entry["class"]).unwrap();
        assert_eq!(number(&class["number"]), u64::from(code.number() / 100));
        let may_retry = class["retry"].as_str().unwrap() == "later, unchanged";
        assert_eq!(may_retry, code.class().may_retry());
        let number = code.number().to_string();
        let in_page = rows.iter().any(|row| row.starts_with(&[number.as_str(), code.name()]));
        assert!(in_page, "wire.md has no row {number} {}", code.name());
    }
    assert_eq!(Code::Other(901).class(), Class::Storage, "an unknown class is an operator's");
}

#[test]
fn fixed_numbers_are_those_of_the_code() {
    let tables = tables();
    let fixed = [
        ("protocol", u64::from(VERSION)),
        ("record", u64::from(RECORD_VERSION)),
        ("major", u64::from(MAJOR)),
        ("header_bytes", HEADER_LEN as u64),
        ("optional_extensions_from", u64::from(coding::TAG_OPTIONAL)),
    ];
    for (name, expected) in fixed {
        assert_eq!(number(&tables[name]), expected, "{name}");
    }
    let preface: String = PREFACE.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(tables["preface"].as_str().unwrap(), preface);
    for (name, flag) in [("RESPONSE", FLAG_RESPONSE), ("PUSH", FLAG_PUSH), ("MORE", FLAG_MORE)] {
        assert_eq!(number(&tables["flags"][name]), u64::from(flag));
    }
}

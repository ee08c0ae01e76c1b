//! Local times close to clock changes, which the engine alone would get wrong by an hour.

use serde_json::{Value, json};

use super::web::eval;

/// Runs this test alone in a process with another time zone; returns whether this is that process.
fn is_in(zone: &str, test: &str) -> bool {
    if std::env::var_os("XS_TEST_ZONE").is_some() {
        return true;
    }
    let name = format!("isolate::dates::{test}");
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact"])
        .env("TZ", zone)
        .env("XS_TEST_ZONE", zone)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && told.contains("1 passed"), "{told}");
    false
}

async fn told(table: &[(&str, Value)]) {
    for (call, want) in table {
        let body = format!("const iso = (at) => at.toISOString(); return {{ v: {call} }}");
        assert_eq!(eval(&body).await, json!({ "v": want }), "{call}");
    }
}

/// Summer time began on 2024-03-31 at 02:00, which became 03:00, and ended on 2024-10-27 at 03:00,
/// which became 02:00.
#[tokio::test]
async fn local_times_are_right_beside_a_change_of_the_clock() {
    if !is_in("Europe/Berlin", "local_times_are_right_beside_a_change_of_the_clock") {
        return;
    }
    told(&[
        ("iso(new Date(2024, 2, 31, 1, 59))", json!("2024-03-31T00:59:00.000Z")),
        // There is no such time: the offset before the change applies.
        ("iso(new Date(2024, 2, 31, 2, 30))", json!("2024-03-31T01:30:00.000Z")),
        ("iso(new Date(2024, 2, 31, 3))", json!("2024-03-31T01:00:00.000Z")),
        ("iso(new Date(2024, 2, 31, 3, 30))", json!("2024-03-31T01:30:00.000Z")),
        ("iso(new Date(2024, 9, 27, 1, 30))", json!("2024-10-26T23:30:00.000Z")),
        // This time occurs twice: the first one counts.
        ("iso(new Date(2024, 9, 27, 2, 30))", json!("2024-10-27T00:30:00.000Z")),
        ("iso(new Date(2024, 9, 27, 3))", json!("2024-10-27T02:00:00.000Z")),
        ("iso(new Date('2024-03-31T03:00'))", json!("2024-03-31T01:00:00.000Z")),
        ("iso(new Date('2024-10-27T01:30:00.5'))", json!("2024-10-26T23:30:00.500Z")),
        ("iso(new Date('2024-10-27 01:30'))", json!("2024-10-26T23:30:00.000Z")),
        ("iso(new Date('Oct 27 2024 1:30 AM'))", json!("2024-10-26T23:30:00.000Z")),
        ("Date.parse('2024-10-27T02:30:00') / 1000", json!(1_729_989_000)),
        // A text with a zone or an offset is parsed as before.
        ("iso(new Date('2024-10-27T01:30:00+01:00'))", json!("2024-10-27T00:30:00.000Z")),
        ("iso(new Date('2024-10-27T01:30Z'))", json!("2024-10-27T01:30:00.000Z")),
        ("iso(new Date('2024-10-27'))", json!("2024-10-27T00:00:00.000Z")),
        ("iso(new Date('Sun, 27 Oct 2024 01:30:00 GMT'))", json!("2024-10-27T01:30:00.000Z")),
        (
            "iso(new Date(new Date('2024-10-27T00:30Z').toString()))",
            json!("2024-10-27T00:30:00.000Z"),
        ),
        (
            "iso(new Date(new Date('2024-10-27T01:30Z').toString()))",
            json!("2024-10-27T01:30:00.000Z"),
        ),
        (
            "(() => { const at = new Date(2024, 9, 27); at.setHours(3); return iso(at); })()",
            json!("2024-10-27T02:00:00.000Z"),
        ),
        (
            "(() => { const at = new Date(2024, 9, 26, 12); at.setDate(27); at.setHours(1, 30, 0, 0); \
             return [iso(at), at.getHours(), at.getTimezoneOffset()]; })()",
            json!(["2024-10-26T23:30:00.000Z", 1, -120]),
        ),
        (
            "(() => { const at = new Date(2024, 0, 31, 3); at.setMonth(2); return iso(at); })()",
            json!("2024-03-31T01:00:00.000Z"),
        ),
        (
            "(() => { const at = new Date(NaN); at.setHours(1); const nan = at.getTime(); \
             at.setFullYear(2024, 5, 1); return [nan || null, iso(at)]; })()",
            json!([null, "2024-05-31T22:00:00.000Z"]),
        ),
        // Every hour of the year, converted there and back.
        (
            "(() => { const wrong = []; for (let at = Date.UTC(2024, 0); at < Date.UTC(2025, 0); at += 3.6e6) { \
               const d = new Date(at), again = new Date(d.getFullYear(), d.getMonth(), d.getDate(), d.getHours()); \
               if (again.getTime() !== at) wrong.push(iso(d)); } return wrong; })()",
            json!(["2024-10-27T01:00:00.000Z"]),
        ),
    ])
    .await;
}

/// In all other respects, the corrected `Date` behaves like the engine's.
#[tokio::test]
async fn a_date_is_a_date() {
    if !is_in("Europe/Berlin", "a_date_is_a_date") {
        return;
    }
    told(&[
        ("new Date() instanceof Date && new Date().constructor === Date", json!(true)),
        ("[typeof Date(), Date.length, Date.name, new Date(99, 0).getFullYear()]", json!(["string", 7, "Date", 1999])),
        ("new (class Own extends Date { get own() { return this.getDate(); } })(2024, 0, 5).own", json!(5)),
        ("[new Date(5).getTime(), new Date(new Date(6)).getTime(), new Date(null).getTime()]", json!([5, 6, 0])),
        ("[Date.prototype.setHours.length, Date.prototype.setHours.name]", json!([4, "setHours"])),
        ("structuredClone(new Date(2024, 0)).getMonth()", json!(0)),
        ("Object.keys(Date).length + Object.keys(Date.prototype).length", json!(0)),
        ("(() => { try { Date.prototype.setDate.call({}, 1); } catch (e) { return e.name; } })()", json!("TypeError")),
    ])
    .await;
}

/// A zone that changes its clock at midnight, south of the equator.
#[tokio::test]
async fn days_begin_when_they_do() {
    if !is_in("America/Santiago", "days_begin_when_they_do") {
        return;
    }
    told(&[
        // 00:00 became 01:00.
        ("iso(new Date(2024, 8, 8))", json!("2024-09-08T04:00:00.000Z")),
        ("iso(new Date(2024, 8, 8, 1))", json!("2024-09-08T04:00:00.000Z")),
        ("iso(new Date('Sep 8 2024'))", json!("2024-09-08T04:00:00.000Z")),
        // 24:00 became 23:00.
        ("iso(new Date(2024, 3, 6, 23))", json!("2024-04-07T02:00:00.000Z")),
        ("iso(new Date(2024, 3, 7))", json!("2024-04-07T04:00:00.000Z")),
    ])
    .await;
}

//! Features of the language itself that the engine alone would get wrong.

use serde_json::json;

use super::web::eval;

/// The engine has no locale data: whatever it would have to make up is refused with an explanation.
#[tokio::test]
async fn what_needs_a_locale_is_refused() {
    for call in [
        "day.toLocaleString('de-DE', { weekday: 'long', year: 'numeric', month: 'long', day: 'numeric' })",
        "day.toLocaleDateString('en-US', { timeZone: 'America/New_York' })",
        "day.toLocaleTimeString(undefined, { hour12: true })",
        "(1234.5).toLocaleString('en-US', { style: 'currency', currency: 'USD' })",
        "1234n.toLocaleString('de-DE')",
        "[1.5].toLocaleString('de-DE')",
        "new Float64Array(1).toLocaleString('de-DE')",
        "'a'.localeCompare('b', undefined, { numeric: true })",
        "'i'.toLocaleUpperCase('tr')",
        "'I'.toLocaleLowerCase('tr')",
        "Temporal.Instant.from('2026-01-01T03:00Z').toLocaleString('de-DE')",
        "Temporal.PlainDate.from('2026-01-01').toLocaleString('de-DE')",
        "Temporal.Duration.from('PT1H').toLocaleString('de-DE')",
    ] {
        let body = format!("const day = new Date('2026-01-01T03:00Z'); return {{ v: {call} }}");
        let failed = eval(&body).await;
        let failed = failed["failed"].as_str().unwrap_or_else(|| panic!("{call}: {failed}"));
        assert!(failed.contains("takes no locale and no options in a module"), "{failed}");
    }
    for call in ["new Intl.NumberFormat('de-DE')", "new Intl.PluralRules('en').select(1)"] {
        let failed = eval(&format!("return {{ v: {call} }}")).await;
        assert_eq!(failed["failed"], "ReferenceError: Intl is not defined", "{call}");
    }
    // A calendar that the engine does not have is an error, not a wrong day.
    let failed = eval("return { v: Temporal.PlainDate.from('2026-01-01[u-ca=hebrew]').day }").await;
    assert!(failed["failed"].is_string(), "{failed}");
}

#[tokio::test]
async fn times_and_numbers_are_right_without_one() {
    for (call, want) in [
        ("typeof Intl", json!("undefined")),
        ("(1234.5).toLocaleString()", json!("1234.5")),
        ("[1.5, 2].toLocaleString()", json!("1.5,2")),
        ("['b', 'a'].sort((a, b) => a.localeCompare(b)).join()", json!("a,b")),
        ("'a'.toLocaleUpperCase()", json!("A")),
        ("typeof new Date(0).toLocaleString()", json!("string")),
        ("Temporal.PlainDate.from('2026-01-01').toLocaleString()", json!("2026-01-01")),
        ("Temporal.Now.instant() instanceof Temporal.Instant", json!(true)),
        (
            "Math.abs(Temporal.Now.zonedDateTimeISO().epochMilliseconds - Date.now()) < 60_000",
            json!(true),
        ),
        ("Temporal.Now.plainDateISO('Asia/Tokyo').toString().length", json!(10)),
        (
            "Temporal.Now.plainDateTimeISO().hour === new Date().getHours() || new Date().getMinutes() === 0",
            json!(true),
        ),
        ("/^(UTC|[+-]\\d\\d:\\d\\d)$/.test(Temporal.Now.timeZoneId())", json!(true)),
        (
            "Temporal.Instant.from('2026-01-01T03:00Z').toZonedDateTimeISO('America/New_York').toString()",
            json!("2025-12-31T22:00:00-05:00[America/New_York]"),
        ),
        (
            "Temporal.ZonedDateTime.from('2026-03-28T12:00[Europe/Paris]').add({ days: 1 }).offset",
            json!("+02:00"),
        ),
        ("Temporal.Instant.from('2026-01-01T03:00Z').toZonedDateTimeISO('+05:30').hour", json!(8)),
        (
            "Temporal.PlainDate.from('2026-01-31').add({ months: 1 }).toString()",
            json!("2026-02-28"),
        ),
        (
            "['-271821-04-20T00:00Z', '+275760-09-13T00:00Z'].map((at) => \
               Temporal.Instant.from(at).toZonedDateTimeISO('UTC').year).join()",
            json!("-271821,275760"),
        ),
        (
            "[-1, 0, 1].map((year) => Temporal.PlainDate.from({ year, month: 1, day: 1 }) \
               .toZonedDateTime('Asia/Tokyo').year).join()",
            json!("-1,0,1"),
        ),
    ] {
        assert_eq!(eval(&format!("return {{ v: {call} }}")).await, json!({ "v": want }), "{call}");
    }
    // Whatever arguments Temporal's helper gets, it returns or throws.
    let seen = eval(
        "const seen = new Set(); \
         for (const at of [NaN, 1 / 0, -1e300, 8.64e15, -8.64e15, 8.64e15 + 1, -1, '', {}, Symbol(), undefined]) \
           for (const zone of ['UTC', 'Asia/Tokyo', 'America/New_York', '+99:99', '', 'x'.repeat(1e5), {}, Symbol(), undefined]) \
             try { __v8xTemporalTimeZone(at, zone); seen.add('told'); } catch { seen.add('threw'); } \
         return { v: [...seen].sort() };",
    )
    .await;
    assert_eq!(seen, json!({ "v": ["threw", "told"] }));
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn a_clone_is_the_standards() {
    for (given, shown, want) in [
        (
            "new RangeError('far', { cause: [1] })",
            "[c instanceof RangeError, c.message, c.cause, c.stack === v.stack]",
            json!([true, "far", [1], true]),
        ),
        (
            "new (class extends Error { name = 'Own' })('m')",
            "[c.constructor === Error, c.message]",
            json!([true, "m"]),
        ),
        (
            "new AggregateError([new Error('one')], 'all')",
            "[c.constructor === Error, c.name, c.message, c.errors === undefined]",
            json!([true, "Error", "all", true]),
        ),
        (
            "new DOMException('gone', 'AbortError')",
            "[c instanceof DOMException, c.name, c.message, c.code]",
            json!([true, "AbortError", "gone", 20]),
        ),
        (
            "new DataView(new Uint8Array([1, 2, 3]).buffer, 1, 1)",
            "[c instanceof DataView, c.getUint8(0), c.byteLength]",
            json!([true, 2, 1]),
        ),
        ("[1, , 3]", "[c.length, 1 in c, c[2]]", json!([3, false, 3])),
        ("Object.assign([1], { more: 2 })", "[c[0], c.more]", json!([1, 2])),
        ("new Date(5)", "[c instanceof Date, c.getTime()]", json!([true, 5])),
        ("/a+/gi", "[c instanceof RegExp, String(c)]", json!([true, "/a+/gi"])),
        (
            "new Map([[{ a: 1 }, new Set([1, 'b'])]])",
            "[[...c.keys()], [...[...c.values()][0]]]",
            json!([[{ "a": 1 }], [1, "b"]]),
        ),
        (
            "[new String('s'), Object(1n), new Number(2), new Boolean(false)]",
            "c.map((x) => typeof x + String(x))",
            json!(["objects", "object1", "object2", "objectfalse"]),
        ),
        (
            "[undefined, null, NaN, -0, 1n]",
            "[c[0] === undefined, c[1], Object.is(c[2], NaN), Object.is(c[3], -0), String(c[4])]",
            json!([true, null, true, true, "1"]),
        ),
        (
            "JSON.parse('{\"__proto__\": 1}')",
            "[Object.keys(c), Object.getPrototypeOf(c) === Object.prototype]",
            json!([["__proto__"], true]),
        ),
        (
            "(() => { const o = { n: {} }; o.self = o; o.twice = o.n; return o; })()",
            "[c.self === c, c.twice === c.n, c.n !== v.n]",
            json!([true, true, true]),
        ),
        (
            "(() => { const b = new Uint8Array([1, 2]).buffer; return [new Uint8Array(b), new Uint16Array(b)]; })()",
            "[c[0].buffer === c[1].buffer, c[0][1], c[0].buffer !== v[0].buffer]",
            json!([true, 2, true]),
        ),
        (
            "new (class Point { x = 1; get y() { return 2; } })()",
            "[Object.keys(c), c.constructor === Object]",
            json!([["x"], true]),
        ),
        (
            "new File(['ab'], 'n', { type: 'a/b' })",
            "[c instanceof File, c.name, c.type, await c.text()]",
            json!([true, "n", "a/b", "ab"]),
        ),
        (
            "(() => { let deep = null; for (let n = 0; n < 100_000; n++) deep = { deep }; return deep; })()",
            "(() => { let n = 0, at = c; while (at) { at = at.deep; n++; } return n; })()",
            json!(100_000),
        ),
    ] {
        let body = format!("const v = {given}, c = structuredClone(v); return {{ v: {shown} }};");
        assert_eq!(eval(&body).await, json!({ "v": want }), "{given}");
    }
    for given in [
        "() => 1",
        "[Symbol('s')]",
        "{ at: { run() {} } }",
        "Promise.resolve()",
        "new WeakMap()",
        "new Proxy({}, {})",
        "{ url: new URL('http://a') }",
        "[new Response('x')]",
        "(function* () {})()",
        "(async function* () {})()",
        "{ at: [1].values() }",
        "new Map().entries()",
        "[1].values().map((n) => n)",
        "new FinalizationRegistry(() => {})",
        "new DisposableStack()",
        "Temporal.Now.instant()",
        "[Temporal.PlainDate.from('2026-01-01')]",
        "Temporal.Duration.from('PT1H')",
        "new Proxy(() => 1, {})",
        "new WeakRef({})",
        "Object(Symbol('s'))",
        "new Event('a')",
        "new MessageChannel().port1",
    ] {
        let body = format!(
            "try {{ structuredClone({given}); }} catch (e) {{ return {{ v: [e instanceof DOMException, e.name] }} }}"
        );
        assert_eq!(eval(&body).await, json!({ "v": [true, "DataCloneError"] }), "{given}");
    }
}

/// Regression test: cloning took several times the size of the original, and filled the heap.
#[tokio::test]
async fn a_clone_takes_little_more_than_what_it_is_of() {
    for (made, kept) in [
        ("Array.from({ length: 100_000 }, (_, n) => ({ n }))", "c[99_999].n === 99_999"),
        (
            "Array.from({ length: 50_000 }, (_, n) => ({ n, some: [n] }))",
            "c[49_999].some[0] === 49_999",
        ),
        (
            "new Map(Array.from({ length: 50_000 }, (_, n) => [n, { n }]))",
            "c.get(49_999).n === 49_999",
        ),
    ] {
        let body = format!("const v = {made}, c = structuredClone(v); return {{ v: {kept} }};");
        assert_eq!(eval(&body).await, json!({ "v": true }), "{made}");
    }
}

/// A transferred value is detached after the clone, and only if the clone succeeds.
#[tokio::test]
async fn what_a_clone_transfers_is_taken_away() {
    let body = "const bytes = new Uint8Array([1, 2, 3]), { buffer } = bytes, seen = []; \
        try { structuredClone({ bytes, no() {} }, { transfer: [buffer] }); } catch (e) { seen.push(e.name); } \
        seen.push(buffer.byteLength); \
        const made = structuredClone({ bytes, buffer }, { transfer: [buffer] }); \
        seen.push(buffer.byteLength, buffer.detached, made.bytes.buffer === made.buffer, [...made.bytes]); \
        for (const [value, transfer] of [[1, [buffer]], [1, [{}]], [1, [made.buffer, made.buffer]]]) \
          try { structuredClone(value, { transfer }); } catch (e) { seen.push(e.name); } \
        return { v: seen };";
    let no = "DataCloneError";
    let want = json!([no, 3, 0, true, true, [1, 2, 3], no, no, no]);
    assert_eq!(eval(body).await, json!({ "v": want }));
    let body = "const { port1, port2 } = new MessageChannel(); \
        const { port } = structuredClone({ port: port2 }, { transfer: [port2] }); \
        const told = new Promise((done) => port.onmessage = (e) => done(e.data)); \
        port1.postMessage('over'); const v = await told; port.close(); return { v };";
    assert_eq!(eval(body).await, json!({ "v": "over" }));
}

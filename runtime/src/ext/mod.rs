//! The extension that joins JavaScript and Rust: ops in Rust, their faces in runtime/js. Ops take
//! strings, numbers and buffers only: a richer value from user code could abort the process
//! (docs/adr/0002-what-crosses.md), and none of them panics.

mod batch;
mod bridge;
mod driver;
mod files;
mod frames;
mod input;
mod outbox;
mod outputs;
mod random;
mod sources;
mod store;
mod streams;

use std::rc::Rc;

use deno_core::Extension;

pub(crate) use bridge::{Bridge, stalled};

deno_core::extension!(
    xs_runtime,
    deps = [deno_webidl, deno_web, deno_fetch],
    ops = [
        driver::op_xs_next,
        driver::op_xs_control,
        driver::op_xs_alive,
        driver::op_xs_attempt,
        driver::op_xs_watch_signal,
        driver::op_xs_emit,
        driver::op_xs_emit_bytes,
        driver::op_xs_full,
        driver::op_xs_drained,
        driver::op_xs_undo,
        driver::op_xs_reply,
        driver::op_xs_committed,
        driver::op_xs_waits,
        driver::op_xs_fail,
        driver::op_xs_finish,
        driver::op_xs_config,
        driver::op_xs_env,
        store::op_xs_read,
        store::op_xs_call,
        store::op_xs_stream_next,
        store::op_xs_stream_close,
        store::op_xs_get,
        store::op_xs_last,
        store::op_xs_last_per_topic,
        store::op_xs_topics,
        store::op_xs_append,
        store::op_xs_append_bytes,
        store::op_xs_blob_put,
        store::op_xs_blob_text,
        store::op_xs_blob_bytes,
        store::op_xs_body_now,
        store::op_xs_log,
        store::op_xs_id_time,
        files::op_xs_fs_text,
        files::op_xs_fs_bytes,
        files::op_xs_fs_list,
        files::op_xs_fs_stat,
        files::op_xs_tail,
        input::op_xs_input,
        input::op_xs_input_left,
        random::op_xs_random,
        random::op_xs_uuid,
    ],
    lazy_loaded_js = [
        dir "js",
        "values.js",
        "frame.js",
        "context.js",
        "driver.js",
        "api.js",
        "ext:deno_telemetry/telemetry.ts" = "telemetry.js",
        "ext:deno_telemetry/util.ts" = "telemetry_util.js",
        "ext:deno_net/02_tls.js" = "tls.js",
    ],
    synthetic_esm = ["xs:module" = "ext:xs_runtime/api.js"],
    js = [dir "js", "main.js"],
);

/// The specifier that `import ... from "xs"` resolves to.
pub(crate) const XS_MODULE: &str = "xs:module";

/// Names that stay on the global object; runtime/js/globals.txt, one a line.
pub(crate) const GLOBALS: &str = include_str!("../../js/globals.txt");

/// All extensions of an isolate, in the order of their dependencies.
pub(crate) fn extensions() -> Vec<Extension> {
    let fetch = deno_fetch::Options {
        user_agent: concat!("xs/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..deno_fetch::Options::default()
    };
    let extensions = vec![
        deno_webidl::deno_webidl::init(),
        deno_web::deno_web::init(
            std::sync::Arc::<deno_web::BlobStore>::default(),
            None,
            false,
            deno_web::InMemoryBroadcastChannel::default(),
        ),
        deno_fetch::deno_fetch::init(fetch),
        xs_runtime::init(),
    ];
    extensions.into_iter().map(sources::embed).collect()
}

/// Gives the ops of a runtime what they work on.
pub(crate) fn install(runtime: &mut deno_core::JsRuntime, bridge: &Rc<Bridge>) {
    runtime.op_state().borrow_mut().put(Rc::clone(bridge));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An op that takes a richer type panics on a Symbol, and the process dies of it.
    #[test]
    fn ops_take_strings_numbers_and_bytes_only() {
        let sources = [
            include_str!("driver.rs"),
            include_str!("files.rs"),
            include_str!("input.rs"),
            include_str!("random.rs"),
            include_str!("store.rs"),
        ];
        let known = [
            "OpState",
            "Rc",
            "RefCell",
            "String",
            "Option",
            "Result",
            "JsErrorBox",
            "JsBuffer",
            "Uint8Array",
        ];
        let mut ops = 0;
        for source in sources {
            for op in source.split("#[op2").skip(1) {
                let (head, _) = op.split_once(" {\n").unwrap();
                let words = head.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                // What begins small is a name, a number or a truth value.
                let mut types = words.filter(|word| word.starts_with(|c: char| c.is_uppercase()));
                let other = types.find(|word| !known.contains(word));
                assert!(other.is_none() && !head.contains("serde"), "{other:?} in {head}");
                ops += 1;
            }
        }
        assert!(ops >= 40, "{ops}");
    }

    /// A script that is still a path would be looked for on the user's machine.
    #[test]
    fn every_script_is_in_the_binary() {
        for extension in extensions() {
            let (js, lazy) = (&extension.js_files, &extension.lazy_loaded_js_files);
            for file in js.iter().chain(lazy.iter()).chain(extension.lazy_loaded_esm_files.iter()) {
                assert!(file.is_runtime_loadable(), "{}", file.specifier);
            }
        }
    }
}

//! The extension that connects JavaScript and Rust: ops in Rust, their JavaScript side in
//! runtime/js. Ops take only strings, numbers and buffers: a richer value from user code could
//! abort the process (docs/adr/0002-what-crosses.md). No op panics.

mod batch;
mod blobs;
mod bridge;
mod child;
mod crypto;
mod driver;
mod files;
mod frames;
mod held;
mod input;
mod outbox;
mod outputs;
mod pipes;
mod place;
mod remove;
mod requests;
mod script;
mod socket;
mod sources;
mod store;
mod streams;
mod tail;
mod times;
mod trial;
mod watch;

use std::rc::Rc;
use std::time::Duration;

use deno_core::{Extension, OpState};
use deno_permissions::PermissionsContainer;

use crate::permissions;

pub(crate) use bridge::{Bridge, stalled};
pub(crate) use frames::{Encoded, encode_behind};
pub(crate) use input::{KEY as INPUT_KEY, place_behind};

deno_core::extension!(
    xs_runtime,
    deps = [deno_webidl, deno_web, deno_fetch],
    ops = [
        driver::op_xs_next,
        driver::op_xs_places,
        driver::op_xs_control,
        driver::op_xs_alive,
        driver::op_xs_attempt,
        driver::op_xs_watch_signal,
        driver::op_xs_check_frame,
        driver::op_xs_emit,
        driver::op_xs_results,
        driver::op_xs_emit_bytes,
        driver::op_xs_emit_stored,
        driver::op_xs_full,
        driver::op_xs_drained,
        driver::op_xs_is_over,
        driver::op_xs_undo,
        driver::op_xs_reply,
        driver::op_xs_committed,
        driver::op_xs_waits,
        driver::op_xs_fail,
        driver::op_xs_finish,
        driver::op_xs_config,
        driver::op_xs_why_not,
        driver::op_xs_env,
        driver::op_xs_env_line,
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
        store::op_xs_append_stored,
        store::op_xs_append_if,
        remove::op_xs_remove,
        remove::op_xs_remove_later,
        requests::op_xs_collect,
        requests::op_xs_requests,
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
        tail::op_xs_tail,
        input::op_xs_input,
        place::op_xs_left,
        blobs::op_xs_blob_open,
        blobs::op_xs_bytes_next,
        blobs::op_xs_bytes_close,
        blobs::op_xs_upload,
        blobs::op_xs_upload_write,
        blobs::op_xs_upload_end,
        blobs::op_xs_upload_drop,
        child::op_xs_spawn,
        child::op_xs_child_status,
        child::op_xs_child_kill,
        child::op_xs_child_write,
        child::op_xs_child_close,
        pipes::op_xs_child_output,
        pipes::op_xs_child_unwanted,
        crypto::op_xs_random,
        crypto::op_xs_uuid,
        crypto::op_xs_digest,
        crypto::op_xs_hmac,
        crypto::op_xs_hmac_verify,
        socket::op_xs_socket,
        socket::op_xs_socket_next,
        socket::op_xs_socket_text,
        socket::op_xs_socket_bytes,
        socket::op_xs_socket_close,
        socket::op_xs_socket_drop,
        socket::op_xs_socket_leave,
        script::op_xs_script_next,
        script::op_xs_script_answer,
        script::op_xs_script_body,
        script::op_xs_script_cancelled,
        script::op_xs_show,
        script::op_xs_show_bytes,
        times::op_xs_cron_next,
        trial::op_xs_trial,
        trial::op_xs_trial_asked,
        trial::op_xs_trial_answer,
        trial::op_xs_trial_ended,
        trial::op_xs_trial_now,
        trial::op_xs_ask,
        watch::op_xs_watch,
    ],
    lazy_loaded_js = [
        dir "js",
        "values.js",
        "bytes.js",
        "child.js",
        "clone.js",
        "crypto.js",
        "dates.js",
        "fetch.js",
        "frame.js",
        "locales.js",
        "script.js",
        "socket.js",
        "timers.js",
        "test.js",
        "trial.js",
        "context.js",
        "direct.js",
        "handler.js",
        "runs.js",
        "driver.js",
        "api.js",
        "ext:deno_telemetry/telemetry.ts" = "telemetry.js",
        "ext:deno_telemetry/util.ts" = "telemetry_util.js",
        "ext:deno_net/02_tls.js" = "tls.js",
    ],
    synthetic_esm = [
        "xs:module" = "ext:xs_runtime/api.js",
        "xs:script" = "ext:xs_runtime/script.js",
        "xs:test" = "ext:xs_runtime/test.js",
    ],
    js = [dir "js", "main.js"],
);

/// The specifier that `import ... from "xs"` resolves to.
pub(crate) const XS_MODULE: &str = "xs:module";

/// The specifier that `import ... from "xs/test"` resolves to.
pub(crate) const XS_TEST_MODULE: &str = "xs:test";

/// The specifier from which a script's entry module imports its runner.
pub(crate) const XS_SCRIPT_MODULE: &str = "xs:script";

/// Names that stay on the global object: runtime/js/globals.txt, one per line. Temporal asks
/// `__v8xTemporalTimeZone` for the rules of time zones.
pub(crate) const GLOBALS: &str = include_str!("../../js/globals.txt");

/// Prefixes of ops for web features that no global leads to.
const UNREACHED: [&str; 3] = ["op_broadcast_", "op_geometry_", "op_lock_manager_"];
/// The only web class that is implemented in Rust and shown to modules.
const CONSOLE: &str = "Console";

/// How many idle connections of `fetch` to one host are kept, and for how long.
const IDLE_PER_HOST_MAX: usize = 16;
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Removes what no module can reach: each op and each class costs time in every new isolate.
fn prune(mut extension: Extension) -> Extension {
    let reached = |name: &str| !UNREACHED.iter().any(|start| name.starts_with(start));
    extension.ops.to_mut().retain(|op| reached(op.name));
    extension.objects.to_mut().retain(|class| class.name.0 == CONSOLE);
    extension
}

/// All extensions of an isolate, in dependency order.
pub(crate) fn extensions() -> Vec<Extension> {
    let fetch = deno_fetch::Options {
        user_agent: concat!("xs/", env!("CARGO_PKG_VERSION")).to_owned(),
        client_builder_hook: Some(|mut builder| {
            builder.pool_max_idle_per_host(IDLE_PER_HOST_MAX).pool_idle_timeout(IDLE_MAX);
            builder
        }),
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
    extensions.into_iter().map(prune).map(sources::embed).collect()
}

/// Gives a runtime's ops their state. The module's clock starts here, however long ago the runtime
/// was made.
pub(crate) fn install(runtime: &mut deno_core::JsRuntime, bridge: &Rc<Bridge>) {
    let state = runtime.op_state();
    let mut state = state.borrow_mut();
    state.put(deno_web::StartTime::default());
    state.put(Rc::clone(bridge));
    permit(&mut state, permissions::nothing());
}

/// Sets what the network ops may reach from here on. They panic without permissions, and the client
/// of `fetch` keeps those it was created with, so an existing one is dropped.
pub(crate) fn permit(state: &mut OpState, permissions: PermissionsContainer) {
    drop(state.try_take::<deno_fetch::Client>());
    state.put(permissions);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An op that takes a richer type panics on a Symbol, which ends the process.
    #[test]
    fn ops_take_strings_numbers_and_bytes_only() {
        let sources = [
            include_str!("blobs.rs"),
            include_str!("child.rs"),
            include_str!("crypto.rs"),
            include_str!("driver.rs"),
            include_str!("files.rs"),
            include_str!("input.rs"),
            include_str!("pipes.rs"),
            include_str!("remove.rs"),
            include_str!("requests.rs"),
            include_str!("script.rs"),
            include_str!("socket.rs"),
            include_str!("store.rs"),
            include_str!("times.rs"),
            include_str!("trial.rs"),
            include_str!("watch.rs"),
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
                // Lowercase words are names, numbers or booleans.
                let mut types = words.filter(|word| word.starts_with(|c: char| c.is_uppercase()));
                let other = types.find(|word| !known.contains(word));
                assert!(other.is_none() && !head.contains("serde"), "{other:?} in {head}");
                ops += 1;
            }
        }
        assert!(ops >= 70, "{ops}");
    }

    /// A script stored as a path would be looked up on the user's machine.
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

//! The JavaScript engine: how the process is prepared for it, how a runtime is made, and the only
//! three calls from Rust into JavaScript. Everything else goes through ops.

use std::rc::Rc;
use std::sync::Once;

use deno_core::error::{CoreError, JsError};
use deno_core::{JsRuntime, RuntimeOptions, v8};

use super::thread::Driver;
use super::{FailureKind, Kind, ModuleError};
use crate::ext;
use crate::loader::GraphLoader;

/// Unless this is set, v8x caches the bytecode of every source in the user's home, and runs what it
/// finds there.
pub(crate) const NO_BYTECODE_CACHE: &str = "V82JSC_NO_BC_CACHE";
/// The engine's flag for its stack size, in KiB.
const STACK_FLAG: &str = "--stack-size=3072";

/// Re-executes the program, prepared for JavaScript; returns at once if it already is. Call it
/// first in `main` of a program that is not started by a supervisor, which prepares its children.
///
/// # Errors
/// When the program cannot be re-executed.
pub fn prepare_by_exec() -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    if std::env::var_os(NO_BYTECODE_CACHE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut again = std::process::Command::new(program);
    Err(again.args(std::env::args_os().skip(1)).env(NO_BYTECODE_CACHE, "1").exec())
}

/// Refuses to run JavaScript in a process that was not prepared for it.
pub(super) fn require_prepared() -> Result<(), ModuleError> {
    static READY: Once = Once::new();
    if std::env::var_os(NO_BYTECODE_CACHE).is_none() {
        return Err(ModuleError::new(
            FailureKind::Throw,
            "the process was not prepared for JavaScript: call prepare_by_exec() first in main",
        ));
    }
    READY.call_once(|| {
        deno_core::v8_set_flags(vec![String::new(), STACK_FLAG.to_owned()]);
        JsRuntime::init_platform(None);
    });
    Ok(())
}

/// A runtime with the extensions of xs, before any module code runs.
pub(super) fn runtime(loader: Rc<GraphLoader>, heap_bytes: usize) -> Result<JsRuntime, CoreError> {
    JsRuntime::try_new(RuntimeOptions {
        module_loader: Some(loader),
        extensions: ext::extensions(),
        create_params: Some(v8::CreateParams::default().heap_limits(0, heap_bytes)),
        ..RuntimeOptions::default()
    })
}

/// Reduces the global object to the allowed list and returns the driver taken from it. The clock of
/// a module under trial starts at `trial_ms`.
pub(super) fn boot(js: &mut JsRuntime, trial_ms: Option<u64>) -> Result<Driver, CoreError> {
    let list = serde_json::Value::from(ext::GLOBALS);
    let trial = trial_ms.map_or_else(|| "null".to_owned(), |ms| ms.to_string());
    let value = js.execute_script("xs:boot", format!("__xs_boot({list}, {trial})"))?;
    deno_core::scope!(scope, js);
    let value = v8::Local::new(scope, value);
    let object =
        v8::Local::<v8::Object>::try_from(value).expect("runtime/js/driver.js ends with an object");
    Ok(Driver { object: v8::Global::new(scope, object) })
}

/// The static fields of the module's default export, as JSON.
pub(super) fn define(
    js: &mut JsRuntime,
    driver: &Driver,
    namespace: &v8::Global<v8::Object>,
    kind: Kind,
    name: &str,
) -> Result<String, Box<JsError>> {
    deno_core::scope!(scope, js);
    let namespace = v8::Local::new(scope, namespace).into();
    let kind = string(scope, kind.as_str());
    let name = string(scope, name);
    call(scope, driver, "define", &[namespace, kind, name])
}

/// Starts the loop in runtime/js/driver.js; it runs whenever the event loop is polled.
pub(super) fn start(js: &mut JsRuntime, driver: &Driver) -> Result<(), Box<JsError>> {
    deno_core::scope!(scope, js);
    call(scope, driver, "start", &[]).map(|_| ())
}

fn string<'s>(scope: &mut v8::PinScope<'s, '_>, text: &str) -> v8::Local<'s, v8::Value> {
    match v8::String::new(scope, text) {
        Some(text) => text.into(),
        None => v8::undefined(scope).into(),
    }
}

/// Calls one of the driver's functions and returns its result as text.
fn call(
    scope: &mut v8::PinScope<'_, '_>,
    driver: &Driver,
    name: &str,
    args: &[v8::Local<'_, v8::Value>],
) -> Result<String, Box<JsError>> {
    v8::tc_scope!(let scope, scope);
    let object = v8::Local::new(scope, &driver.object);
    let key = string(scope, name);
    let function = object.get(scope, key);
    let function = function.and_then(|value| v8::Local::<v8::Function>::try_from(value).ok());
    let function = function.expect("runtime/js/driver.js has the function");
    match function.call(scope, object.into(), args) {
        Some(value) => Ok(value.to_rust_string_lossy(scope)),
        None => {
            let exception = scope.exception().unwrap_or_else(|| v8::undefined(scope).into());
            Err(JsError::from_v8_exception(scope, exception))
        }
    }
}

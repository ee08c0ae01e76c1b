//! Runs the parser on its own thread, with a stack large enough for any source that is not nested
//! too deeply. The thread is named after the source, so that a source which crashes the process all
//! the same is not parsed again by the next process.

use std::collections::BTreeSet;

use parking_lot::{Condvar, Mutex, RwLock};
use xs_engine::BlobHash;

use super::nesting::too_deep;
use crate::isolate::{FailureKind, ModuleError};
use crate::loader::location;
use crate::name::source_thread_name;

/// Bytes of the stack; only pages that are touched use memory.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Maximum number of such threads at the same time.
const THREADS_MAX: usize = 4;

/// Names of threads on which an earlier process crashed.
static AVOIDED: RwLock<BTreeSet<String>> = RwLock::new(BTreeSet::new());
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Refuses from now on to parse on threads with these names.
pub(crate) fn avoid(threads: &[String]) {
    AVOIDED.write().extend(threads.iter().cloned());
}

/// Runs work that recurses with the nesting of a source.
///
/// # Errors
/// [`FailureKind::Syntax`] when the source is nested too deeply, or has crashed a process.
pub(crate) fn with_room<T, E>(
    file: &str,
    source: &str,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E>
where
    T: Send,
    E: Send + From<ModuleError>,
{
    let error =
        |text: &str, at| location::error_at(FailureKind::Syntax, text.into(), file, source, at);
    if let Some(at) = too_deep(source) {
        return Err(error("SyntaxError: it is nested too deeply", at).into());
    }
    let name = source_thread_name(BlobHash::of(source.as_bytes()));
    if AVOIDED.read().contains(&name) {
        let text = "it crashed the process that runs the modules when it was parsed";
        return Err(error(text, 0).into());
    }
    let _turn = Turn::take();
    let mut work = Some(work);
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let once = || work.take().map(|work| work());
        match thread.spawn_scoped(scope, once) {
            Ok(thread) => {
                thread.join().unwrap_or_else(|_| Some(Err(error("the parser failed", 0).into())))
            }
            // No thread could be started; most sources need little stack, so the caller's thread
            // does the work.
            Err(_) => None,
        }
    });
    match (done, work) {
        (Some(done), _) => done,
        (None, Some(work)) => work(),
        (None, None) => Err(error("the parser failed", 0).into()),
    }
}

/// A slot for one of the threads.
struct Turn;

impl Turn {
    fn take() -> Self {
        let mut running = RUNNING.lock();
        ENDED.wait_while(&mut running, |running| *running >= THREADS_MAX);
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock() -= 1;
        ENDED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::typescript::compile;

    /// Each source is nested as deeply as is accepted; traversing its tree needs the most stack.
    #[test]
    fn there_is_room_for_all_that_is_not_too_deep() {
        let nested = [
            ("[", "1", "]"),
            ("(", "1", ")"),
            ("{", "", "}"),
            ("({a:", "1", "})"),
            ("`${", "1", "}`"),
            ("!", "1", ""),
            ("- ", "1", ""),
            ("a=>", "1", ""),
            ("1+", "1", ""),
            ("", "a", ".b"),
            ("", "a", "()"),
            ("if(a)", "b", ""),
            ("a?b:", "1", ""),
            ("typeof ", "1", ""),
            ("new ", "a", ""),
            ("f(", "1", ")"),
            ("let a:A<", "B", ">"),
            ("while(a)", "b", ""),
            ("if(a){}else ", "b", ""),
            ("2**", "1", ""),
            ("(()=>{", "", "})"),
            ("", "a", "?.b"),
            ("", "a", " as b"),
            ("", "a", "!"),
            ("class A{b=", "1", "}"),
            ("a=", "1", ""),
            ("function f(){", "", "}"),
            ("", "a", "``"),
            ("a&&", "b", ""),
            ("a??", "b", ""),
        ];
        for file in ["handlers/a.ts", "handlers/a.js"] {
            for (before, inner, after) in nested {
                let whole = |n: usize| format!("{}{inner}{}", before.repeat(n), after.repeat(n));
                let (mut low, mut high) = (0, 1 << 18);
                while low + 1 < high {
                    let middle = usize::midpoint(low, high);
                    if too_deep(&whole(middle)).is_some() { high = middle } else { low = middle }
                }
                assert!(
                    (100..high - 1).contains(&low) || low + 1 == high,
                    "{before}{after}: {low}"
                );
                // The result does not matter, only that the stack does not overflow.
                let _ = compile(file, &whole(low));
            }
        }
    }

    #[test]
    fn what_is_too_deep_is_an_error_at_its_place() {
        let error = compile("handlers/a.ts", &"[".repeat(300_000)).unwrap_err();
        assert_eq!((error.kind, error.line), (FailureKind::Syntax, Some(1)));
        assert!(error.message.contains("nested too deep"), "{error}");
        assert!(error.column.is_some_and(|column| column > 1_000));
    }

    #[test]
    fn what_crashed_a_process_is_not_parsed_again() {
        let source = "export default { crashed: 'a process' };";
        compile("handlers/a.ts", source).unwrap();
        avoid(&[source_thread_name(BlobHash::of(source.as_bytes()))]);
        let error = compile("handlers/a.ts", source).unwrap_err();
        assert!(error.message.contains("crashed"), "{error}");
        compile("handlers/a.ts", &source.replace("process", "host")).unwrap();
    }
}

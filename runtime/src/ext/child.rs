//! Programs that modules run, where the operator allows it. A program has its own process group and
//! no environment variables except PATH and those it is given, and is killed with its whole group
//! when its module ends. When the program itself ends, the rest of its group is killed at once:
//! later the group's id could belong to another group.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;

use deno_core::{JsBuffer, OpState, op2};
use deno_error::JsErrorBox;
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::bridge::{Bridge, bridge, type_error};
use crate::permissions::Denial;

/// Concurrent programs of one module.
const CHILDREN_MAX: usize = 64;
/// Total bytes of a program's arguments and variables.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Signals by the names that modules use.
const SIGNALS: [(&str, libc::c_int); 8] = [
    ("SIGTERM", libc::SIGTERM),
    ("SIGKILL", libc::SIGKILL),
    ("SIGINT", libc::SIGINT),
    ("SIGHUP", libc::SIGHUP),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGPIPE", libc::SIGPIPE),
];

/// The programs of one isolate. Dropping it kills them.
#[derive(Default)]
pub(super) struct Children {
    open: RefCell<HashMap<u32, Rc<Running>>>,
    next: Cell<u32>,
}

struct Running {
    /// `None` once it is killed.
    group: Cell<Option<Pid>>,
    stdin: tokio::sync::Mutex<Option<ChildStdin>>,
    status: RefCell<Option<ExitStatus>>,
    ended: Notify,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    command: String,
    args: Vec<String>,
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// Starts a program and returns its number.
#[op2(fast)]
pub(super) fn op_xs_spawn(
    state: &mut OpState,
    #[string] request: String,
) -> Result<u32, JsErrorBox> {
    if request.len() > REQUEST_BYTES_MAX {
        let text =
            format!("spawn() takes at most {REQUEST_BYTES_MAX} bytes of arguments and variables");
        return Err(JsErrorBox::range_error(text));
    }
    let request: Request = serde_json::from_str(&request).map_err(|error| {
        type_error(format!("spawn() was called with invalid arguments: {error}"))
    })?;
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    if bridge.spec.trial.is_some() {
        let text = "a trial runs no programs; test what reads their output apart from spawn()";
        return Err(JsErrorBox::generic(text));
    }
    if !bridge.granted().may_run(&request.command) {
        return Err(bridge.denied(&Denial::Running(request.command)));
    }
    if bridge.children.open.borrow().len() >= CHILDREN_MAX {
        let text = format!(
            "{CHILDREN_MAX} programs are already running; await the status of some of them first"
        );
        return Err(JsErrorBox::range_error(text));
    }
    // Registered before the child exists, so that its exit is not missed.
    let ends = signal(SignalKind::child()).map_err(|error| {
        JsErrorBox::generic(format!("cannot watch for the end of programs: {error}"))
    })?;
    let mut child = command(&bridge, &request).spawn().map_err(|error| {
        JsErrorBox::generic(format!("cannot run {:?}: {error}", request.command))
    })?;
    let group = child.id().and_then(|id| Pid::from_raw(libc::pid_t::try_from(id).ok()?));
    let running = Rc::new(Running {
        group: Cell::new(group),
        stdin: tokio::sync::Mutex::new(child.stdin.take()),
        status: RefCell::default(),
        ended: Notify::new(),
    });
    let mut leader = Leader { running: Rc::clone(&running), child };
    let outputs = (leader.child.stdout.take(), leader.child.stderr.take());
    let (Some(stdout), Some(stderr)) = outputs else {
        return Err(JsErrorBox::generic("the output of the program is not available"));
    };
    let number = bridge.children.next.get();
    bridge.children.next.set(number.wrapping_add(1));
    bridge.children.open.borrow_mut().insert(number, running);
    bridge.pipes.add(number, stdout, stderr);
    drop(deno_core::unsync::spawn(wait(Rc::clone(&bridge), number, leader, ends)));
    Ok(number)
}

fn command(bridge: &Bridge, request: &Request) -> Command {
    let mut command = Command::new(&request.command);
    command
        .args(&request.args)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(&request.env)
        .current_dir(
            request
                .cwd
                .as_ref()
                .map_or_else(|| bridge.spec.base.clone(), |dir| bridge.spec.base.join(dir)),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        // The program dies with this thread, which is the module's, whatever ends the thread.
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// A program, which leads its group: until it is waited for, no other group can get its id.
struct Leader {
    running: Rc<Running>,
    child: Child,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.running.end();
    }
}

async fn wait(bridge: Rc<Bridge>, number: u32, mut leader: Leader, mut ends: Signal) {
    while leader.running.group.get().is_some_and(is_running) {
        if ends.recv().await.is_none() {
            break;
        }
    }
    leader.running.end();
    let status = leader.child.wait().await;
    *leader.running.status.borrow_mut() = status.ok();
    bridge.children.open.borrow_mut().remove(&number);
    bridge.pipes.ended(number);
    leader.running.ended.notify_waiters();
}

/// Whether a child is still running; does not reap it.
fn is_running(child: Pid) -> bool {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::Pid(child), how), Ok(None) | Err(Errno::INTR))
}

/// Waits for a program to end and returns its exit code, or the signal that ended it, as JSON.
#[op2]
#[string]
pub(super) async fn op_xs_child_status(state: Rc<RefCell<OpState>>, number: u32) -> String {
    let running = bridge(&state).children.open.borrow().get(&number).cloned();
    let Some(running) = running else { return status_text(None) };
    let ended = running.ended.notified();
    let known = running.status.borrow().is_some();
    if !known {
        ended.await;
    }
    let status = *running.status.borrow();
    status_text(status)
}

fn status_text(status: Option<ExitStatus>) -> String {
    let signal = status.and_then(|status| status.signal());
    let name = signal.map(|signal| {
        let known = SIGNALS.iter().find(|(_, number)| *number == signal);
        known.map_or_else(|| format!("SIG{signal}"), |(name, _)| (*name).to_owned())
    });
    json!({ "code": status.and_then(|status| status.code()), "signal": name }).to_string()
}

/// Sends a signal to a program's process group.
#[op2(fast)]
pub(super) fn op_xs_child_kill(
    state: &mut OpState,
    number: u32,
    #[string] signal: &str,
) -> Result<(), JsErrorBox> {
    let known = SIGNALS.iter().find(|(name, _)| *name == signal);
    let Some((_, signal)) = known else {
        return Err(type_error(format!("there is no signal {signal:?}; use \"SIGTERM\"")));
    };
    let bridge = state.borrow::<Rc<Bridge>>();
    if let Some(running) = bridge.children.open.borrow().get(&number) {
        running.signal(*signal);
    }
    Ok(())
}

/// Writes to a program's standard input, once there is room for it.
#[op2]
pub(super) async fn op_xs_child_write(
    state: Rc<RefCell<OpState>>,
    number: u32,
    #[buffer] bytes: JsBuffer,
) -> Result<(), JsErrorBox> {
    let running = bridge(&state).children.open.borrow().get(&number).cloned();
    let Some(running) = running else { return Err(JsErrorBox::generic("the program has ended")) };
    let mut stdin = running.stdin.lock().await;
    let Some(pipe) = stdin.as_mut() else {
        return Err(JsErrorBox::generic("the program's input is closed"));
    };
    let written = tokio::select! {
        written = pipe.write_all(&bytes) => written,
        () = running.ended.notified() => return Err(JsErrorBox::generic("the program has ended")),
    };
    written.map_err(|error| JsErrorBox::generic(format!("writing to the program: {error}")))
}

/// Closes a program's standard input.
#[op2]
pub(super) async fn op_xs_child_close(state: Rc<RefCell<OpState>>, number: u32) {
    let running = bridge(&state).children.open.borrow().get(&number).cloned();
    if let Some(running) = running {
        running.stdin.lock().await.take();
    }
}

impl Running {
    fn signal(&self, signal: libc::c_int) {
        if let Some(group) = self.group.get() {
            // SAFETY: kill takes only numbers. The group is the child's own until it is ended.
            unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) };
        }
    }

    /// Kills the rest of the group, once. Its leader must not have been waited for.
    fn end(&self) {
        self.signal(libc::SIGKILL);
        self.group.set(None);
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for running in self.open.get_mut().values() {
            running.end();
        }
    }
}

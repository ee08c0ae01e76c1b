//! The subcommands. Most take the arguments, send requests through the protocol's client, and
//! print; how the connection was made does not concern them. `maintain` works on files.

mod append;
mod archive;
mod bodies;
mod call;
mod cas;
mod cat;
mod causes;
mod cursor;
mod dev;
mod doctor;
mod each;
mod eval;
mod filter;
mod frames;
mod input;
mod lines;
mod link;
mod maintain;
mod modules;
mod position;
mod replay;
mod stats;
mod status;
mod sure;
mod test;
mod token;
mod tools;
mod top;
mod transfer;

use std::time::Duration;

pub(crate) use modules::{MODULE_TOPICS, module_states};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use xs_protocol::Address;

use crate::again::asked_again;
use crate::args::{Args, CasSubcommand, ImportArgs, ModulesSubcommand, Subcommand};
use crate::connect::{Need, Session};
use crate::exit::{Exit, Fault};
use crate::host;
use crate::output::{Output, notice};
use crate::serve;
use crate::signals;

use self::input::Input;

/// Time for a stopped reader to save its position, and for the reader of its output to take the
/// rest.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let (addr, token_file) = (args.addr, args.reach.token_file);
    match args.subcommand {
        Subcommand::Serve(serve) => serve::run(serve, addr, &CancellationToken::new()).await,
        Subcommand::Host(args) => host::run_away(args, addr, token_file).await,
        Subcommand::Version => status::version(),
        Subcommand::Ping(ping) => status::ping(&ping, addr).await,
        Subcommand::Dev(dev) => dev::run(dev).await,
        Subcommand::Test(tests) => test::run(&tests).await,
        Subcommand::Modules(modules) => match modules::without_store(modules).await {
            Ok(ended) => ended,
            Err(modules) => with_store(addr, Subcommand::Modules(modules)).await,
        },
        Subcommand::Doctor => doctor::run(addr).await,
        Subcommand::Verify(verify) => maintain::verify(&verify, addr).await,
        Subcommand::Repair(repair) => maintain::repair(&repair, addr).await,
        Subcommand::Backup(backup) => maintain::backup(&backup, addr).await,
        Subcommand::Fork(fork) => maintain::fork(&fork, addr).await,
        Subcommand::Restore(restore) => maintain::restore(&restore, addr).await,
        Subcommand::Upgrade(upgrade) => maintain::upgrade(&upgrade, addr).await,
        Subcommand::Compact(compact) => maintain::compact(&compact, addr).await,
        Subcommand::Gc(gc) => maintain::gc(&gc, addr).await,
        Subcommand::Call(call) if call.name.is_none() => call::usage(),
        Subcommand::Id(id) => tools::id(&id),
        Subcommand::Completions(completions) => tools::completions(&completions),
        Subcommand::Man(man) => tools::man(&man),
        Subcommand::Import(import) => self::import(addr, import).await,
        Subcommand::Token(token) => token::run(token, addr),
        Subcommand::Export(export) => {
            // An invalid topic is invalid in any store.
            export.parts().map_err(|text| Fault::new(Exit::Usage, text))?;
            with_store(addr, Subcommand::Export(export)).await
        }
        subcommand => with_store(addr, subcommand).await,
    }
}

/// Imports into a store, which is created only once there is certainly something to import.
async fn import(addr: Option<Address>, mut import: ImportArgs) -> anyhow::Result<Exit> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Unpacked files are deleted on return.
    let _unpacked = tokio::select! {
        unpacked = transfer::at_hand(&mut import) => unpacked?,
        () = either(&mut interrupt, &mut terminate) => return Ok(Exit::Interrupted),
    };
    let store = import.store.take().or(addr);
    with_store(store, Subcommand::Import(import)).await
}

/// Runs a subcommand that works on a store, until it ends or the user stops it.
async fn with_store(addr: Option<Address>, subcommand: Subcommand) -> anyhow::Result<Exit> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let keeps_on = matches!(&subcommand, Subcommand::Eval(eval) if eval::is_prompt(eval));
    let grace = if has_to_finish(&subcommand) { GRACE } else { Duration::ZERO };
    let closing = CancellationToken::new();
    signals::insist(!keeps_on, grace + GRACE, closing.clone())?;
    let mut input = Input::of(&subcommand);
    let session = tokio::select! {
        biased;
        () = either(&mut interrupt, &mut terminate) => return Ok(Exit::Interrupted),
        session = open(addr, &subcommand, input.as_mut()) => session?,
    };
    let stop = CancellationToken::new();
    let ended = {
        let work = on_store(&session, subcommand, input, &stop);
        tokio::pin!(work);
        let stopped = async {
            tokio::select! {
                _ = interrupt.recv(), if !keeps_on => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::select! {
            // Polled first: a signal that ends the commands of `each` arrives here too, and is
            // their reason.
            biased;
            () = stopped => {
                stop.cancel();
                tokio::select! {
                    ended = tokio::time::timeout(grace, work) => {
                        ended.unwrap_or_else(|_| Ok(cut_off(grace)))
                    }
                    () = asked_again(async || either(&mut interrupt, &mut terminate).await) => {
                        Ok(Exit::Interrupted)
                    }
                }
            }
            ended = &mut work => ended,
        }
    };
    closing.cancel();
    let ended = match ended {
        Err(error) => Err(session.told(error).await),
        ended => ended,
    };
    let closed = session.close().await;
    ended.and_then(|exit| closed.map(|()| exit))
}

/// Reports that a subcommand did not end within its grace period.
fn cut_off(grace: Duration) -> Exit {
    if !grace.is_zero() {
        notice(&format!("stopped; work in progress did not end within {} s", grace.as_secs()));
    }
    Exit::Interrupted
}

/// Connects, within the time limit of the whole subcommand.
async fn open(
    addr: Option<Address>,
    subcommand: &Subcommand,
    input: Option<&mut Input>,
) -> anyhow::Result<Session> {
    let need = async {
        match input {
            Some(input) => input.need().await,
            None => Ok(need(subcommand)),
        }
    };
    let opening = Session::open_when(addr, need);
    let limit = match subcommand {
        Subcommand::Call(call) if !call.help => call.timeout,
        _ => None,
    };
    let Some(limit) = limit else { return opening.await };
    match tokio::time::timeout(limit, opening).await {
        Ok(session) => session,
        Err(_) => Fault::fail(Exit::TimedOut, format!("the server did not answer in {limit:?}")),
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// Whether it must save a position, or store lines it has read, before it ends.
const fn has_to_finish(subcommand: &Subcommand) -> bool {
    match subcommand {
        Subcommand::Each(_) => true,
        Subcommand::Append(append) => append.lines,
        Subcommand::Cat(cat) => cat.cursor.is_some(),
        Subcommand::Tail(tail) => tail.cursor.is_some(),
        _ => false,
    }
}

fn need(subcommand: &Subcommand) -> Need {
    match subcommand {
        Subcommand::Append(append) if append.lines => Need::Feed,
        Subcommand::Append(_)
        | Subcommand::Import(_)
        | Subcommand::Cas(CasSubcommand::Put { .. }) => Need::Create,
        Subcommand::Call(call) if call.help => Need::Existing,
        Subcommand::Call(_) => Need::Server,
        Subcommand::Tail(_) | Subcommand::Each(_) | Subcommand::Eval(_) | Subcommand::Top(_) => {
            Need::Follow
        }
        Subcommand::Cat(cat) if cat.follows() => Need::Follow,
        Subcommand::Modules(ModulesSubcommand::Logs { follow: true, .. }) => Need::Follow,
        _ => Need::Existing,
    }
}

async fn on_store(
    session: &Session,
    subcommand: Subcommand,
    input: Option<Input>,
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    let client = &session.client;
    let mut output = Output::stdout();
    let out = &mut output;
    let exit = match subcommand {
        Subcommand::Append(append) => append::run(client, append, input, stop, out).await,
        Subcommand::Cat(cat) => cat::run(session, &cat, stop, out).await,
        Subcommand::Tail(tail) => cat::run(session, &tail.into(), stop, out).await,
        Subcommand::Each(each) => each::run(session, &each, stop).await,
        Subcommand::Eval(eval) => eval::run(session, &eval).await,
        Subcommand::Replay(args) => replay::run(client, &args, out).await,
        Subcommand::Remove(remove) => transfer::remove(client, remove, out).await,
        Subcommand::Export(export) => transfer::export(client, &export, out).await,
        Subcommand::Import(import) => transfer::import(client, &import, out).await,
        Subcommand::Top(top) => {
            let asked = modules::Asked { client, served: session.is_served() };
            top::run(asked, &session.address.to_string(), &top, stop, out).await
        }
        Subcommand::Stats => stats::run(client, out).await,
        Subcommand::Cursor(cursor) => cursor::run(client, cursor, out).await,
        Subcommand::Last(last) => frames::last(client, &last, out).await,
        Subcommand::Get(get) => frames::get(client, &get, out).await,
        Subcommand::Why(why) => causes::why(client, &why, out).await,
        Subcommand::Effects(effects) => causes::effects(client, &effects, out).await,
        Subcommand::Cas(CasSubcommand::Get { hash }) => cas::get(client, &hash, out).await,
        Subcommand::Cas(CasSubcommand::Put { .. }) => cas::put(client, input, out).await,
        Subcommand::Call(call) if call.help => {
            let asked = modules::Asked { client, served: session.is_served() };
            call::describe(asked, &call, out).await
        }
        Subcommand::Call(call) => call::run(client, call, out).await,
        Subcommand::Topics(topics) => frames::topics(client, &topics, out).await,
        Subcommand::Modules(subcommand) => {
            let asked = modules::Asked { client, served: session.is_served() };
            modules::run(asked, subcommand, out).await
        }
        _ => unreachable!("taken where no store is needed"),
    }?;
    output.flush()?;
    Ok(exit)
}

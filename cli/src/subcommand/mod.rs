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
mod plan;
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

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use modules::{MODULE_TOPICS, modules_overview};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use xs_protocol::Address;

use crate::again::asked_again;
use crate::args::{
    CasSubcommand, ImportArgs, ModulesStoreSubcommand, ModulesSubcommand, StoreSubcommand,
    Subcommand,
};
use crate::connect::Session;
use crate::exit::{Exit, ExitError};
use crate::host;
use crate::output::{Output, notice};
use crate::serve;
use crate::signals;

use self::input::Input;
use self::modules::Asked;
use self::plan::Plan;

/// Time for a stopped reader to save its position, and for the reader of its output to take the
/// rest.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the subcommand.
pub(crate) async fn run(
    subcommand: Subcommand,
    addr: Option<Address>,
    token_file: Option<PathBuf>,
) -> anyhow::Result<Exit> {
    match subcommand {
        Subcommand::Serve(serve) => serve::run(serve, addr, &CancellationToken::new()).await,
        Subcommand::Host(args) => host::run_away(args, addr, token_file).await,
        Subcommand::Version => status::version(),
        Subcommand::Ping(ping) => status::ping(&ping, addr).await,
        Subcommand::Dev(dev) => dev::run(dev).await,
        Subcommand::Test(tests) => test::run(&tests).await,
        Subcommand::Modules(ModulesSubcommand::New { kind, name, dir }) => {
            modules::make(kind, &name, &dir)
        }
        Subcommand::Modules(ModulesSubcommand::Check { dir, allow }) => {
            modules::check(dir, allow).await
        }
        Subcommand::Modules(ModulesSubcommand::Store(modules)) => on_modules(addr, modules).await,
        Subcommand::Doctor => doctor::run(addr).await,
        Subcommand::Verify(verify) => maintain::verify(&verify, addr).await,
        Subcommand::Repair(repair) => maintain::repair(&repair, addr).await,
        Subcommand::Backup(backup) => maintain::backup(&backup, addr).await,
        Subcommand::Fork(fork) => maintain::fork(&fork, addr).await,
        Subcommand::Restore(restore) => maintain::restore(&restore, addr).await,
        Subcommand::Upgrade(upgrade) => maintain::upgrade(&upgrade, addr).await,
        Subcommand::Compact(compact) => maintain::compact(&compact, addr).await,
        Subcommand::Gc(gc) => maintain::gc(&gc, addr).await,
        Subcommand::Id(id) => tools::id(&id),
        Subcommand::Completions(completions) => tools::completions(&completions),
        Subcommand::Man(man) => tools::man(&man),
        Subcommand::Token(token) => token::run(token, addr),
        Subcommand::Store(StoreSubcommand::Call(call)) if call.name.is_none() => call::usage(),
        Subcommand::Store(StoreSubcommand::Import(import)) => self::import(addr, import).await,
        Subcommand::Store(subcommand) => on_store(addr, subcommand).await,
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
    on_store(store, StoreSubcommand::Import(import)).await
}

async fn on_store(addr: Option<Address>, subcommand: StoreSubcommand) -> anyhow::Result<Exit> {
    if let StoreSubcommand::Export(export) = &subcommand {
        // An invalid topic is invalid in any store.
        export.parts().map_err(|text| ExitError::new(Exit::Usage, text))?;
    }
    let plan = Plan::of(&subcommand);
    with_store(addr, plan, async |session, input, stop, out| {
        perform(session, subcommand, input, stop, out).await
    })
    .await
}

async fn on_modules(
    addr: Option<Address>,
    subcommand: ModulesStoreSubcommand,
) -> anyhow::Result<Exit> {
    let plan = Plan::of_modules(&subcommand);
    with_store(addr, plan, async |session, _, _, out| {
        modules::run(asked(session), subcommand, out).await
    })
    .await
}

/// Opens a store and works on it until the work ends or the user stops it.
async fn with_store<W>(addr: Option<Address>, mut plan: Plan, work: W) -> anyhow::Result<Exit>
where
    W: AsyncFnOnce(
        &Session,
        Option<Input>,
        &CancellationToken,
        &mut Output,
    ) -> anyhow::Result<Exit>,
{
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let keeps_on = plan.ignores_interrupt;
    let grace = if plan.has_to_finish { GRACE } else { Duration::ZERO };
    let closing = CancellationToken::new();
    signals::insist(!keeps_on, grace + GRACE, closing.clone())?;
    let session = tokio::select! {
        biased;
        () = either(&mut interrupt, &mut terminate) => return Ok(Exit::Interrupted),
        session = open(addr, &mut plan) => session?,
    };
    let stop = CancellationToken::new();
    let ended = {
        let mut output = Output::stdout();
        let work = async {
            let exit = work(&session, plan.input, &stop, &mut output).await?;
            output.flush()?;
            anyhow::Ok(exit)
        };
        tokio::pin!(work);
        let stopped = async {
            tokio::select! {
                _ = interrupt.recv(), if !keeps_on => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::select! {
            // Polled first: a signal that ends the commands of `each` also arrives here, and is the
            // reason for their end.
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
async fn open(addr: Option<Address>, plan: &mut Plan) -> anyhow::Result<Session> {
    if plan.awaits_server {
        return Session::await_server(addr).await;
    }
    let limit = plan.limit;
    let opening = Session::open_when(addr, plan.need());
    let Some(limit) = limit else { return opening.await };
    match tokio::time::timeout(limit, opening).await {
        Ok(session) => session,
        Err(_) => {
            ExitError::fail(Exit::TimedOut, format!("the server did not answer in {limit:?}"))
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// The store to ask about modules.
const fn asked(session: &Session) -> Asked<'_> {
    Asked { client: &session.client, served: session.is_served() }
}

async fn perform(
    session: &Session,
    subcommand: StoreSubcommand,
    input: Option<Input>,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let client = &session.client;
    match subcommand {
        StoreSubcommand::Append(append) => append::run(client, append, input, stop, out).await,
        StoreSubcommand::Cat(cat) => cat::run(session, &cat, stop, out).await,
        StoreSubcommand::Tail(tail) => cat::run(session, &tail.into(), stop, out).await,
        StoreSubcommand::Each(each) => each::run(session, &each, stop).await,
        StoreSubcommand::Eval(eval) => eval::run(session, &eval).await,
        StoreSubcommand::Replay(args) => replay::run(client, &args, out).await,
        StoreSubcommand::Remove(remove) => transfer::remove(client, remove, out).await,
        StoreSubcommand::Export(export) => transfer::export(client, &export, out).await,
        StoreSubcommand::Import(import) => transfer::import(client, &import, stop, out).await,
        StoreSubcommand::Top(top) => {
            top::run(asked(session), &session.address.to_string(), &top, stop, out).await
        }
        StoreSubcommand::Stats => stats::run(client, out).await,
        StoreSubcommand::Cursor(cursor) => cursor::run(client, cursor, out).await,
        StoreSubcommand::Last(last) => frames::last(client, &last, out).await,
        StoreSubcommand::Get(get) => frames::get(client, &get, out).await,
        StoreSubcommand::Why(why) => causes::why(client, &why, out).await,
        StoreSubcommand::Effects(effects) => causes::effects(client, &effects, out).await,
        StoreSubcommand::Cas(CasSubcommand::Get { hash }) => cas::get(client, &hash, out).await,
        StoreSubcommand::Cas(CasSubcommand::Put { .. }) => cas::put(client, input, out).await,
        StoreSubcommand::Call(call) if call.help => {
            call::describe(asked(session), &call, out).await
        }
        StoreSubcommand::Call(call) => call::run(client, call, out).await,
        StoreSubcommand::Topics(topics) => frames::topics(client, &topics, out).await,
    }
}

//! What each subcommand does with a connection. Each takes what was typed, asks the store through
//! the protocol's client, and prints; how the connection came about is not its business.

mod append;
mod bodies;
mod call;
mod cas;
mod cat;
mod frames;
mod lines;
mod modules;
mod status;
mod sure;

use tokio::signal::unix::{SignalKind, signal};
use xs_protocol::Address;

use crate::args::{Args, CasSubcommand, ModulesSubcommand, Subcommand};
use crate::connect::{Need, Session};
use crate::exit::Exit;
use crate::output::Output;
use crate::serve;

/// Runs what was typed.
pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let addr = args.addr;
    match args.subcommand {
        Subcommand::Serve(serve) => serve::run(serve, addr).await,
        Subcommand::Version => status::version(),
        Subcommand::Ping(ping) => status::ping(&ping, addr).await,
        Subcommand::Modules(modules) => match modules::without_store(modules).await {
            Ok(ended) => ended,
            Err(modules) => with_store(addr, Subcommand::Modules(modules)).await,
        },
        subcommand => with_store(addr, subcommand).await,
    }
}

/// Runs a subcommand that works on a store, until it ends or the user stops it.
async fn with_store(addr: Option<Address>, subcommand: Subcommand) -> anyhow::Result<Exit> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let session = Session::open(addr, need(&subcommand)).await?;
    let ended = tokio::select! {
        ended = on_store(&session, subcommand) => ended,
        _ = interrupt.recv() => Ok(Exit::Interrupted),
        _ = terminate.recv() => Ok(Exit::Interrupted),
    };
    let closed = session.close().await;
    ended.and_then(|exit| closed.map(|()| exit))
}

fn need(subcommand: &Subcommand) -> Need {
    match subcommand {
        Subcommand::Append(append) if append.lines => Need::Feed,
        Subcommand::Append(_) | Subcommand::Cas(CasSubcommand::Put { .. }) => Need::Create,
        Subcommand::Call(_) => Need::Server,
        Subcommand::Tail(_) => Need::Follow,
        Subcommand::Cat(cat) if cat.follows() => Need::Follow,
        Subcommand::Modules(ModulesSubcommand::Logs { follow: true, .. }) => Need::Follow,
        _ => Need::Existing,
    }
}

async fn on_store(session: &Session, subcommand: Subcommand) -> anyhow::Result<Exit> {
    let client = &session.client;
    let mut output = Output::stdout();
    let out = &mut output;
    let exit = match subcommand {
        Subcommand::Append(append) => append::run(client, append, out).await,
        Subcommand::Cat(cat) => cat::run(client, &cat, out).await,
        Subcommand::Tail(tail) => cat::run(client, &tail.into(), out).await,
        Subcommand::Last(last) => frames::last(client, &last, out).await,
        Subcommand::Get(get) => frames::get(client, &get, out).await,
        Subcommand::Cas(CasSubcommand::Get { hash }) => cas::get(client, &hash, out).await,
        Subcommand::Cas(CasSubcommand::Put { file }) => cas::put(client, file, out).await,
        Subcommand::Call(call) => call::run(client, call, out).await,
        Subcommand::Topics(topics) => frames::topics(client, &topics, out).await,
        Subcommand::Modules(subcommand) => {
            let asked = modules::Asked { client, served: session.is_served() };
            modules::run(asked, subcommand, out).await
        }
        Subcommand::Serve(_) | Subcommand::Host(_) | Subcommand::Ping(_) | Subcommand::Version => {
            unreachable!("taken where no store is needed")
        }
    }?;
    output.flush()?;
    Ok(exit)
}

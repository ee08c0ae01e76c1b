//! `xs host`: keeps the Host running apart from its server. This process runs no module. It
//! connects, presents the token, and copies bytes between the server and the Host, which never gets
//! the token; it reconnects for as long as the server may come back.

use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tracing::info;
use xs_engine::Topic;
use xs_protocol::{
    Address, Class, ClientError, ClientOptions, Code, HostClaim, Relay, RelayEnd, SOCKET_NAME,
};
use xs_runtime::supervise::{Connect, Link, Lost, NoWay, Refused, Supervisor};

use super::{Told, check_modules};
use crate::again::asked_again;
use crate::args::HostArgs;
use crate::connect::{default_address, explain, no_server, unserved};
use crate::exit::{self, Exit, ExitError};
use crate::manager::Manager;
use crate::reach::{TOKEN_VARIABLE, options};
use crate::signals::{Asked, Signals};
use crate::variables;

/// Runs modules until SIGTERM, SIGINT, or a permanent refusal by the server. `token_file`: the file
/// of the token, which no module may read.
pub(crate) async fn run(
    args: HostArgs,
    addr: Option<Address>,
    token_file: Option<PathBuf>,
) -> anyhow::Result<Exit> {
    crate::log::start(args.log);
    // Modules run as the same user and must not read this process's environment.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let mut signals = Signals::new()?;
    check_modules(&args.modules)?;
    // The Host reads it; errors in it are reported here, at once.
    variables::of_file(&args.env)?;
    let address = addr.map_or_else(default_address, Ok)?;
    let told = Told {
        modules: &args.modules,
        allow: args.allow,
        env: &args.env,
        log: args.log,
        shut: shut(&address, token_file)?,
        hidden: vec![TOKEN_VARIABLE.to_owned()],
    };
    let name = concat!("xs-host/", env!("CARGO_PKG_VERSION")).to_owned();
    let connect = connect(address.clone(), ClientOptions { name, ..options() });
    let hosts = Supervisor::start(told.options()?, connect);
    info!(modules = %args.modules.display(), server = %address, "running modules");
    let mut manager = Manager::find();
    manager.tell(&format!("READY=1\nSTATUS=running modules for {address}"));
    let refused = loop {
        tokio::select! {
            asked = signals.asked() => if let Asked::Stop(name) = asked {
                info!(signal = name, "stopping");
                break None;
            },
            why = hosts.refused() => break Some(why),
            () = manager.beat() => manager.tell("WATCHDOG=1"),
        }
    };
    manager.tell("STOPPING=1\nSTATUS=stopping");
    tokio::select! {
        () = hosts.stop() => refused.map_or(Ok(Exit::Ok), |why| Err(fault(why))),
        () = asked_again(async || signals.stop().await) => {
            ExitError::fail(Exit::Interrupted, "stopped at once by a second signal")
        }
    }
}

/// Paths that no module may read: the token file, and the store if it is on this machine.
fn shut(address: &Address, token_file: Option<PathBuf>) -> std::io::Result<Vec<PathBuf>> {
    let store = match address {
        Address::Unix(socket) if socket.ends_with(SOCKET_NAME) => socket.parent(),
        _ => None,
    };
    let store = store.map(Path::to_owned);
    token_file.into_iter().chain(store).map(std::path::absolute).collect()
}

/// The permanent refusal as an error, with its exit code.
fn fault(why: Refused) -> anyhow::Error {
    match why.downcast::<ExitError>() {
        Ok(fault) => (*fault).into(),
        Err(why) => anyhow::Error::from_boxed(why),
    }
}

/// Connects to the server at an address.
fn connect(address: Address, options: ClientOptions) -> Connect {
    let instance = scru128::new().to_bytes();
    Box::new(move |alone| {
        let (address, options) = (address.clone(), options.clone());
        async move {
            let alone = alone.map(|name| Topic::parse(&name)).transpose();
            let alone = alone.map_err(|error| NoWay::Ever(error.into()))?;
            let opened = Relay::open(&address, options, HostClaim { instance, alone }).await;
            opened.map(link).map_err(|error| no_way(&address, error))
        }
        .boxed()
    })
}

/// Connects a started Host to the server.
fn link(relay: Relay) -> Link {
    Box::new(|stream| {
        let (lost, told) = oneshot::channel();
        tokio::spawn(forward(relay, stream, lost));
        let lost: Lost = async {
            match told.await {
                Ok(why) => why,
                // The Host ended, not the server.
                Err(_) => std::future::pending().await,
            }
        }
        .boxed();
        lost
    })
}

async fn forward(relay: Relay, mut stream: UnixStream, lost: oneshot::Sender<String>) {
    if let RelayEnd::Server(why) = relay.run(&mut stream).await {
        // There is no receiver when the Host is being stopped.
        let _ = lost.send(why);
    }
}

/// Whether to retry, and the message.
fn no_way(address: &Address, error: ClientError) -> NoWay {
    let forever = match &error {
        ClientError::Refused(refusal) => match refusal.code {
            Code::VersionMismatch => true,
            code => matches!(code.class(), Class::Access | Class::Invalid),
        },
        ClientError::Untrusted { .. } | ClientError::NoCa { .. } | ClientError::Protocol(_) => true,
        _ => false,
    };
    if let Some(dir) = unserved(address, &error) {
        return NoWay::Yet(no_server(dir));
    }
    let too_old = error.code() == Some(Code::UnknownExtension);
    let error = explain(error);
    if !forever {
        return NoWay::Yet(exit::text(&error));
    }
    let text = match too_old {
        true => format!("{address}: a server of this age takes no Host from elsewhere: renew it"),
        false => format!("{address}: {}", exit::text(&error)),
    };
    NoWay::Ever(Box::new(ExitError::new(exit::of(&error), text)))
}

#[cfg(test)]
mod tests {
    use xs_protocol::Refusal;

    use super::*;

    #[test]
    fn the_token_and_a_store_that_is_here_are_shut() {
        let at = |address: &str| shut(&Address::parse(address).unwrap(), Some("/t/token".into()));
        assert_eq!(at("/s/store").unwrap(), [Path::new("/t/token"), Path::new("/s/store")]);
        for address in [":1", "xss://example.com:1", "/run/other.sock"] {
            assert_eq!(at(address).unwrap(), [Path::new("/t/token")], "{address}");
        }
    }

    #[test]
    fn what_may_change_by_itself_is_waited_for() {
        let address = Address::parse("xss://example.com:1").unwrap();
        let refused = |code| ClientError::from(Refusal::new(code, "because"));
        let broken = ClientError::Disconnected("it hung up".into());
        for error in [refused(Code::OtherHost), refused(Code::Draining), broken] {
            assert!(matches!(no_way(&address, error), NoWay::Yet(_)));
        }
        for (code, exit) in [
            (Code::Unauthenticated, Exit::Denied),
            (Code::Denied, Exit::Denied),
            (Code::OwnHost, Exit::Denied),
            (Code::UnknownExtension, Exit::Failed),
        ] {
            let NoWay::Ever(error) = no_way(&address, refused(code)) else { panic!("{code}") };
            assert!(error.to_string().starts_with("xss://example.com:1: "), "{error}");
            assert_eq!(exit::of(&fault(error)), exit, "{code}");
        }
        let nobody = Address::parse("./store").unwrap();
        let (kind, reason) = (std::io::ErrorKind::NotFound, "no".to_owned());
        let error = ClientError::Connect { address: nobody.to_string(), kind, reason };
        let NoWay::Yet(text) = no_way(&nobody, error) else { panic!("it is waited for") };
        assert!(text.contains("xs serve ./store"), "{text}");
    }
}

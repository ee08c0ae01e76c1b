//! The Host of `serve --modules`: its server is this process.

use std::path::Path;

use futures::FutureExt as _;
use xs_protocol::{Admission, Role, Server};
use xs_runtime::supervise::{Connect, Link, Supervisor};

use super::Told;
use crate::args::ServeArgs;

/// Starts a Host for the modules of a directory, connected to `server` over a socket pair.
pub(crate) fn start(
    modules: &Path,
    store: &Path,
    args: &ServeArgs,
    server: &Server,
) -> anyhow::Result<Supervisor> {
    let told = Told {
        modules,
        allow: args.allow,
        env: &args.env,
        log: args.log,
        shut: vec![store.to_owned()],
        hidden: Vec::new(),
    };
    let server = server.clone();
    let connect: Connect = Box::new(move |alone| {
        let server = server.clone();
        let admission =
            alone.map_or(Admission::Role(Role::Host), |name| Admission::Alone(name.into()));
        let link: Link = Box::new(move |stream| {
            drop(server.adopt(stream, admission));
            // The server ends only with this process.
            std::future::pending().boxed()
        });
        std::future::ready(Ok(link)).boxed()
    });
    Ok(Supervisor::start(told.options()?, connect))
}

//! Where a server listens and how connections are admitted: decided before anything is opened, so
//! that a server that may not listen as configured does not start at all.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use xs_protocol::{Address, Admission, Listener, Role, SOCKET_NAME, Server, ServerTls, TokenGuard};

use super::inherited::{self, Inherited};
use crate::args::ServeArgs;
use crate::clock::now_ms;
use crate::exit::{Exit, ExitError};

/// The listening addresses and their credentials.
pub(super) struct Plan {
    addresses: Vec<Address>,
    /// Sockets inherited from the parent process.
    inherited: Vec<Inherited>,
    tls: Option<ServerTls>,
    /// Checks tokens on TCP; present when anything listens on TCP.
    guard: Option<Arc<TokenGuard>>,
}

impl Plan {
    /// Makes the plan for the store in `dir`.
    ///
    /// # Errors
    /// A usage error says what is missing: a certificate, a token, or both.
    pub(super) fn make(args: &ServeArgs, dir: &Path) -> anyhow::Result<Self> {
        let usage = |text: String| ExitError::new(Exit::Usage, text);
        let tls = match (&args.tls.tls_cert, &args.tls.tls_key) {
            (Some(cert), Some(key)) => Some(
                ServerTls::open(cert, key)
                    .map_err(|error| usage(format!("--tls-cert, --tls-key: {error}")))?,
            ),
            _ => None,
        };
        let end = tls.as_ref().and_then(ServerTls::not_after);
        if end.is_some_and(|end| end <= now()) {
            tracing::warn!("the certificate has expired: clients will refuse to connect");
        }
        let inherited = inherited::all();
        inherited.iter().try_for_each(Inherited::check_owner).map_err(usage)?;
        let mut all = args.listen.clone();
        all.extend(inherited.iter().map(Inherited::address));
        let guard = match all.iter().all(|address| matches!(address, Address::Unix(_))) {
            true => None,
            false => {
                let guard = TokenGuard::open(dir).map_err(|error| usage(error.to_string()))?;
                Some(Arc::new(guard))
            }
        };
        let tokens = guard.as_ref().map_or(0, |guard| guard.usable());
        for address in &all {
            check(address, tls.is_some(), tokens).map_err(usage)?;
        }
        Ok(Self { addresses: args.listen.clone(), inherited, tls, guard })
    }

    /// The token guard, if tokens are checked.
    pub(super) fn guard(&self) -> Option<Arc<TokenGuard>> {
        self.guard.clone()
    }

    /// The certificate, if TLS is used.
    pub(super) fn tls(&self) -> Option<ServerTls> {
        self.tls.clone()
    }

    /// Whether the store's own socket belongs to the parent process, which keeps listening on it.
    pub(super) fn leaves_socket(&self, dir: &Path) -> bool {
        self.inherited.iter().any(|socket| socket.is_at(&dir.join(SOCKET_NAME)))
    }

    /// Starts listening: on the store's socket, where the owner is admin, on the configured
    /// addresses, and on the inherited sockets. Returns the addresses, with the chosen ports.
    ///
    /// # Errors
    /// The error of the first address that cannot be listened on.
    pub(super) async fn listen(self, dir: &Path, server: &Server) -> anyhow::Result<Vec<String>> {
        let own = Address::Unix(dir.join(SOCKET_NAME));
        let mut addresses = if self.leaves_socket(dir) { vec![] } else { vec![own] };
        addresses.extend(self.addresses.iter().cloned());
        let mut listening = Vec::new();
        for address in addresses {
            let listener = match (&address, &self.tls) {
                (Address::Tcp(_) | Address::Tls { .. }, Some(tls)) => {
                    Listener::bind_tls(&address, tls.clone()).await
                }
                _ => Listener::bind(&address).await,
            };
            let listener = listener.map_err(|error| {
                anyhow::anyhow!("{error}").context(format!("cannot listen on {address}"))
            })?;
            listening.push(listener.address().to_string());
            server.listen(listener, admission(self.guard.as_ref(), &address));
        }
        for socket in self.inherited {
            let address = socket.address();
            let listener = match socket {
                Inherited::Unix(listener, path) => Listener::given_unix(listener, &path),
                Inherited::Tcp(listener, _) => Listener::given_tcp(listener, self.tls.clone()),
            };
            let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
            listening.push(listener.address().to_string());
            server.listen(listener, admission(self.guard.as_ref(), &address));
        }
        Ok(listening)
    }
}

/// How connections to an address are admitted.
fn admission(guard: Option<&Arc<TokenGuard>>, address: &Address) -> Admission {
    match (guard, address.to_listen()) {
        (Some(guard), Some(socket)) => {
            let or = socket.ip().is_loopback().then_some(Role::Admin);
            Admission::Token { guard: Arc::clone(guard), or }
        }
        _ => Admission::Role(Role::Admin),
    }
}

/// Seconds since the Unix epoch.
fn now() -> i64 {
    i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX)
}

/// Whether a server with this many tokens may listen on an address.
fn check(address: &Address, has_tls: bool, tokens: usize) -> Result<(), String> {
    if matches!(address, Address::Unix(_)) {
        return Ok(());
    }
    let Some(socket) = address.to_listen() else {
        return Err(format!("{address}: not an IP address to listen on"));
    };
    if matches!(address, Address::Tls { .. }) && !has_tls {
        return Err(format!("{address} needs --tls-cert and --tls-key"));
    }
    if socket.ip().is_loopback() {
        return Ok(());
    }
    let mut missing = Vec::new();
    if !has_tls {
        missing.push("TLS (--tls-cert and --tls-key)");
    }
    if tokens == 0 {
        missing.push("a token (xs token create)");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{address} is not a loopback address: other machines could reach the store, so it needs {}",
        missing.join(" and ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_tls_and_a_token_are_needed() {
        for (address, has_tls, tokens, missing) in [
            ("./store", false, 0, None),
            (":1", false, 0, None),
            ("[::1]:1", true, 0, None),
            ("xss://localhost:1", true, 0, None),
            ("xss://localhost:1", false, 1, Some("--tls-cert")),
            ("0.0.0.0:1", true, 1, None),
            ("xss://0.0.0.0:1", true, 1, None),
            ("0.0.0.0:1", false, 1, Some("--tls-cert")),
            ("0.0.0.0:1", true, 0, Some("xs token create")),
            ("[::]:1", false, 0, Some("--tls-key) and a token")),
            ("xss://example.com:1", true, 1, Some("an IP address")),
        ] {
            let found = check(&Address::parse(address).unwrap(), has_tls, tokens);
            match missing {
                None => assert_eq!(found, Ok(()), "{address}"),
                Some(text) => assert!(found.unwrap_err().contains(text), "{address}"),
            }
        }
    }
}

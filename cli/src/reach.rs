//! This process's credentials and the CAs it trusts: set once, at its start.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::OnceLock;

use xs_protocol::limits::TOKEN_BYTES_MAX;
use xs_protocol::{ClientOptions, ClientTls, Secret};

use crate::args::ReachArgs;
use crate::exit::{Exit, ExitError};

/// The environment variable that holds a token.
pub(crate) const TOKEN_VARIABLE: &str = "XS_TOKEN";

static OPTIONS: OnceLock<ClientOptions> = OnceLock::new();

/// Reads the options from the command line and the environment.
///
/// # Errors
/// A usage error when a file cannot be used.
pub(crate) fn prepare(args: &ReachArgs) -> anyhow::Result<()> {
    let usage = |text: String| ExitError::new(Exit::Usage, text);
    let token = match &args.token_file {
        Some(path) => Some(read_token(path).map_err(usage)?),
        None => std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()),
    };
    if let Some(token) = &token {
        check(token).map_err(usage)?;
    }
    let token = token.map(Secret::from);
    let tls = args.tls_ca.as_deref().map(ClientTls::trusting).transpose();
    let tls = tls.map_err(|error| usage(error.to_string()))?;
    // A second call has no effect: there is one command line.
    let _ = OPTIONS.set(ClientOptions { token, tls, ..ClientOptions::default() });
    Ok(())
}

/// The options for connecting to a server.
pub(crate) fn options() -> ClientOptions {
    OPTIONS.get().cloned().unwrap_or_default()
}

fn read_token(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("--token-file {}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    // A line ending may follow the token.
    file.take(TOKEN_BYTES_MAX as u64 + 2).read_to_string(&mut text).map_err(failed)?;
    match text.trim() {
        "" => {
            let text = "contains no token; xs token create makes one where the store is";
            Err(format!("--token-file {} {text}", path.display()))
        }
        token => Ok(token.to_owned()),
    }
}

fn check(token: &str) -> Result<(), String> {
    let plain = token.len() <= TOKEN_BYTES_MAX && token.bytes().all(|b| b.is_ascii_graphic());
    if plain { Ok(()) } else { Err("malformed token".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "xst_abc\r\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "xst_abc");
        std::fs::write(&path, " \n").unwrap();
        assert!(read_token(&path).unwrap_err().contains("contains no token"));
        assert!(read_token(dir.path()).is_err());
        for bad in ["a b", "a\nb", "\u{e4}", "a".repeat(TOKEN_BYTES_MAX + 1).as_str()] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("xst_abc").is_ok());
    }
}

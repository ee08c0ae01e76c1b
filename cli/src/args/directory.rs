//! Words of a command line that name directories or stores. A word that is an address is refused as
//! a directory: whoever types one means a server, and would otherwise have made a directory with
//! the name of a server.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use xs_protocol::{Address, AddressError};

/// A directory, and nothing that a server listens at.
pub(super) fn directory() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|word| path(&word))
}

/// A store, by its directory or by the address of its server.
pub(super) fn store() -> impl TypedValueParser<Value = Address> {
    OsStringValueParser::new().try_map(|word: OsString| address(&word))
}

/// The same for a word whose meaning follows from those beside it.
///
/// # Errors
/// A sentence that says what names a server.
pub(super) fn path(word: &OsStr) -> Result<PathBuf, String> {
    let text = word.to_string_lossy();
    match address(word) {
        Ok(Address::Unix(_)) => Ok(PathBuf::from(word)),
        Ok(_) => Err(format!("not a directory; use -a {text} for a server")),
        Err(AddressError::Port(_) | AddressError::Host(_)) => {
            Err(format!("this looks like host:port; use ./{text} for a directory, -a for a server"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What stands for a store.
///
/// # Errors
/// What is missing to make it an address.
pub(super) fn address(word: &OsStr) -> Result<Address, AddressError> {
    match word.to_str() {
        Some(text) => Address::parse(text),
        None => Ok(Address::of_path(Path::new(word))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_no_directory() {
        for word in ["store", "./a:1", "/a/b", "..", "~x", "a.sock"] {
            assert_eq!(path(OsStr::new(word)), Ok(PathBuf::from(word)));
        }
        for (word, said) in [
            (":4100", "-a :4100"),
            ("localhost:4100", "-a localhost:4100"),
            ("xss://h:1", "-a xss://h:1"),
            ("host:4100", "./host:4100"),
            ("a:b", "./a:b"),
            ("http://h", "a scheme that xs does not speak"),
            ("", "empty"),
        ] {
            let error = path(OsStr::new(word)).unwrap_err();
            assert!(error.contains(said), "{word}: {error}");
        }
        assert!(matches!(address(OsStr::new(":1")), Ok(Address::Tcp(_))));
    }
}

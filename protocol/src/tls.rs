//! TLS 1.3 for both sides, with certificates and keys from files. The system's root certificates
//! are not trusted and client certificates are not requested: a client trusts the CAs it was given,
//! a server its tokens.
//!
//! The cryptography is aws-lc-rs, which the `fetch` of the JavaScript runtime depends on anyway.
//! With a second provider in the same binary rustls could not choose a default.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, Error, InvalidMessage, RootCertStore, ServerConfig};

use crate::certificate;
use crate::file_version::{FileVersion, Watched};
use crate::limits::PEM_BYTES_MAX;

/// The ALPN protocol of both sides, so that bytes meant for another protocol are never accepted.
const ALPN: &[u8] = b"xsp/1";
/// Permission bits of users other than the owner and the group.
const ANYBODY: u32 = 0o007;

/// An error in certificates or keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A file is longer than certificates need.
    #[error("{path} is longer than {PEM_BYTES_MAX} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A key is readable by everyone.
    #[error("{path} has mode {mode:03o}: anybody can read this key; chmod 600 it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file does not contain what it should.
    #[error("{path} holds no {what} in PEM form: {reason}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The item that is missing.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The certificate and key are unusable, or do not match.
    #[error("{cert} and {key} cannot be used together: {reason}")]
    Pair {
        /// The file of the certificate.
        cert: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The server's side: its certificate, reloaded when the files change.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

/// The certificate and the key in use.
struct Certificates {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Arc<CertifiedKey>>,
    /// Both files. Locked while they are read, which may take long; no handshake waits for it.
    files: Mutex<Watched<[Option<FileVersion>; 2]>>,
}

impl ServerTls {
    /// Loads a certificate chain and its key. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsError> {
        let (cert, key) = (cert.as_ref(), key.as_ref());
        let found = [cert, key].map(FileVersion::of);
        let certificates = Arc::new(Certificates {
            current: Mutex::new(Arc::new(load(cert, key)?)),
            files: Mutex::new(Watched::new(found)),
            cert: cert.to_owned(),
            key: key.to_owned(),
        });
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[&TLS13]).map_err(|error| {
            TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), reason: error.to_string() }
        })?;
        let resolver = Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Without tickets each connection presents the certificate, so a replaced one is soon out
        // of use.
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), certificates })
    }

    /// Reloads the files if they have changed; returns whether it did. While certificate and key do
    /// not match, as between the replacement of one and the other, the last valid pair stays in
    /// use.
    ///
    /// Blocks while the files are read, here or by another caller. Handshakes go on meanwhile.
    ///
    /// # Errors
    /// [`TlsError`], once for each change.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        self.refresh_by(load)
    }

    fn refresh_by(
        &self,
        load: fn(&Path, &Path) -> Result<CertifiedKey, TlsError>,
    ) -> Result<bool, TlsError> {
        let Certificates { cert, key, current, files } = &*self.certificates;
        let mut files = files.lock();
        let found = [cert, key].map(|path| FileVersion::of(path));
        if !files.is_due(found) {
            return Ok(false);
        }
        let loaded = load(cert, key);
        if let Err(error @ TlsError::Io { .. }) = loaded {
            return if files.note_unread(found) { Err(error) } else { Ok(false) };
        }
        files.note_read(found);
        *current.lock() = Arc::new(loaded?);
        Ok(true)
    }

    /// When the certificate in use expires, in seconds since 1970; `None` when that cannot be
    /// determined.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        let current = self.certificates.current.lock();
        current.cert.first().and_then(|certificate| certificate::not_after(certificate))
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificates.fmt(f)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.lock()))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// The client's side: the CAs it trusts.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// Trusts the certificates of a PEM file and no others.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn trusting(path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let path = path.as_ref();
        let wrong =
            |reason: String| TlsError::Pem { path: path.to_owned(), what: "certificates", reason };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| wrong(error.to_string()))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls(..)")
    }
}

/// Why a handshake failed, when the cause is the peer, its certificate or its protocol, so that a
/// retry would not help. `None`: the transport failed.
pub(crate) fn untrusted(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the server's certificate has expired".to_owned(),
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "the server's certificate is not from a CA that this client was told to trust"
            .to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the server's certificate is for another name".to_owned(),
        // The cause has no public type to match on.
        Error::InvalidCertificate(CertificateError::Other(cause))
            if format!("{:?}", cause.0) == "CaUsedAsEndEntity" =>
        {
            "the server's certificate is a CA itself, as openssl req -x509 makes them; make a CA, \
             and a certificate from it (xs help operations, TLS)"
                .to_owned()
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS there".to_owned()
        }
        other => format!("TLS: {other}"),
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn load(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(cert)?;
    let (bytes, mode) = read(key)?;
    if mode & ANYBODY != 0 {
        return Err(TlsError::Exposed { path: key.to_owned(), mode });
    }
    let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| TlsError::Pem {
        path: key.to_owned(),
        what: "private key",
        reason: said(&error),
    })?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|error| TlsError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason| TlsError::Pem { path: path.to_owned(), what: "certificates", reason };
    let (bytes, _) = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if all.is_empty() => Err(wrong("there is none".to_owned())),
        Ok(all) => Ok(all),
        Err(error) => Err(wrong(said(&error))),
    }
}

fn said(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "there is none".to_owned(),
        other => other.to_string(),
    }
}

/// The contents of a file and its permissions.
fn read(path: &Path) -> Result<(Vec<u8>, u32), TlsError> {
    let failed = |error| TlsError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(TlsError::TooLong { path: path.to_owned() });
    }
    Ok((bytes, mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    use super::*;

    #[test]
    fn files_that_could_not_be_read_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        let put = |path: &Path, text: String| {
            let unfinished = path.with_extension("tmp");
            fs::write(&unfinished, text).unwrap();
            fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(unfinished, path).unwrap();
        };
        let renew = || {
            let Made { cert: made, signing_key } =
                generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            put(&cert, made.pem());
            put(&key, signing_key.serialize_pem());
            made.der().clone()
        };
        renew();
        let tls = ServerTls::open(&cert, &key).unwrap();
        let renewed = renew();
        let busy = |path: &Path, _: &Path| {
            let error = io::Error::other("too many open files");
            Err(TlsError::Io { path: path.to_owned(), error })
        };
        assert!(tls.refresh_by(busy).is_err(), "it is told of");
        assert!(!tls.refresh_by(busy).unwrap(), "once");
        assert!(tls.refresh().unwrap(), "the files are still the same");
        assert_eq!(tls.certificates.current.lock().cert, [renewed]);
        assert!(!tls.refresh().unwrap());
    }
}

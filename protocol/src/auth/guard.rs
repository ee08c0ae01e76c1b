//! Checks tokens: decides who may connect, notices when the token file changes, and decides whether
//! an open connection may stay.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Mutex as AsyncMutex;

use super::throttle::{Answer, Throttle};
use super::{Access, TOKENS_NAME, TokenError, TokenFile, TokenHash};
use crate::error::{Code, Detail, Refusal};
use crate::file_version::{FileVersion, Watched};
use crate::limits::FAILURE_DELAY_MAX;
use crate::message::Role;

/// The tokens of a store that is being served.
#[derive(Debug)]
pub struct TokenGuard {
    path: PathBuf,
    /// Locked while the file is read, which may take long; nothing else waits for it.
    file: Mutex<Watched<Option<FileVersion>>>,
    /// Whose turn it is to read the file on a blocking thread.
    turn: Arc<AsyncMutex<()>>,
    /// Never locked while the file is read: admission needs it.
    state: RwLock<State>,
    throttle: Mutex<Throttle>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// `None` while there is no file.
    tokens: Option<Arc<TokenFile>>,
    /// The time of the last check for expired tokens.
    checked_ms: u64,
    /// Whether the tokens in use are those of the file. They are not while it is invalid or cannot
    /// be read; the last valid ones then stay in use.
    is_current: bool,
    /// Incremented when connections must be checked again.
    version: u64,
}

/// Whether a client may connect.
#[derive(Debug)]
pub(crate) enum AuthDecision {
    /// Yes, with these rights.
    Granted(Access),
    /// No; the refusal is to be sent at this instant.
    Refused(Refusal, Instant),
}

impl TokenGuard {
    /// Reads the tokens of the store in `dir`, if it has any. Blocks.
    ///
    /// # Errors
    /// [`TokenError`] when the file exists and is invalid.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, TokenError> {
        let dir = dir.as_ref();
        let path = dir.join(TOKENS_NAME);
        let file = Mutex::new(Watched::new(FileVersion::of(&path)));
        let tokens = TokenFile::load(&path)?.map(Arc::new);
        let state = State { tokens, checked_ms: now_ms(), is_current: true, version: 0 };
        let (turn, state, throttle) = (Arc::default(), RwLock::new(state), Mutex::default());
        Ok(Self { path, file, turn, state, throttle, refused: AtomicU64::new(0) })
    }

    /// Number of tokens that have not expired.
    #[must_use]
    pub fn usable(&self) -> usize {
        let now = now_ms();
        let state = self.state.read();
        let tokens = state.tokens.as_deref().map_or(&[][..], TokenFile::tokens);
        tokens.iter().filter(|token| !token.is_expired(now)).count()
    }

    /// Whether the tokens in use are those of the file. They are not while the file is invalid; the
    /// last valid ones stay in use then.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.state.read().is_current
    }

    /// Number of clients refused since the store was opened.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Checks whether the file has changed. Returns a version that has grown when connections must
    /// be checked again, because the file has changed or a token has expired. It may have several
    /// callers, each of which compares with the version it saw last.
    ///
    /// Blocks while the file is read, here or by another caller. Clients are admitted meanwhile.
    pub fn refresh(&self) -> u64 {
        self.refresh_by(|path| TokenFile::load(path))
    }

    /// [`refresh`](Self::refresh) on a blocking thread: a file that cannot be read in time takes
    /// one of them, however many wait for it.
    pub(crate) async fn refresh_aside(self: &Arc<Self>) -> u64 {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let guard = Arc::clone(self);
        let refresh = move || {
            let version = guard.refresh();
            drop(turn);
            version
        };
        // It fails only by a panic, which was printed; the last tokens hold.
        let refreshed = tokio::task::spawn_blocking(refresh).await;
        refreshed.unwrap_or_else(|_| self.state.read().version)
    }

    /// Whether the file has changed since it was read last, or is being read.
    pub(crate) fn is_stale(&self) -> bool {
        self.file.try_lock().is_none_or(|file| file.is_new(FileVersion::of(&self.path)))
    }

    fn refresh_by(&self, load: fn(&Path) -> Result<Option<TokenFile>, TokenError>) -> u64 {
        let mut file = self.file.lock();
        let found = FileVersion::of(&self.path);
        let version = self.state.write().note_expired(now_ms());
        if !file.is_due(found) {
            return version;
        }
        let loaded = load(&self.path);
        let mut state = self.state.write();
        match loaded {
            Err(error @ TokenError::Io { .. }) => {
                if file.note_unread(found) {
                    tracing::error!(%error, "the tokens cannot be read; the last ones hold");
                }
                state.is_current = false;
                return state.version;
            }
            Ok(tokens) => {
                let count = tokens.as_ref().map_or(0, |file| file.tokens().len());
                state.tokens = tokens.map(Arc::new);
                state.is_current = true;
                state.version += 1;
                tracing::info!(count, "the tokens have changed");
            }
            Err(error) => {
                tracing::error!(%error, "the changed tokens are not taken; the last ones hold");
                state.is_current = false;
            }
        }
        file.note_read(found);
        state.version
    }

    /// Whether a client with a token may connect, by the tokens read last. `or`: its role if the
    /// store has no token file.
    pub(crate) fn admit(
        &self,
        token: &str,
        or: Option<Role>,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> AuthDecision {
        let state = self.state.read();
        let found = match (&state.tokens, or) {
            (None, Some(role)) => return AuthDecision::Granted(Access::of(role)),
            (tokens, _) => {
                let hash = TokenHash::of(token);
                tokens.as_ref().and_then(|file| file.find(&hash))
            }
        };
        let refusal = match found {
            Some(token) if !token.is_expired(now_ms()) => {
                return AuthDecision::Granted(token.access());
            }
            Some(token) => format!("the token {} has expired", token.name),
            None if token.is_empty() => {
                "a token is needed (--token-file or $XS_TOKEN); xs token create makes one"
                    .to_owned()
            }
            None => "the token is not known here; it may have been revoked".to_owned(),
        };
        drop(state);
        self.refused.fetch_add(1, Ordering::Relaxed);
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        tracing::warn!(%peer, reason = refusal, "a client was refused");
        match self.throttle.lock().failed(peer, now) {
            Answer::At(at) => {
                AuthDecision::Refused(Refusal::new(Code::Unauthenticated, refusal), at)
            }
            Answer::TooMany => {
                let ms = u32::try_from(FAILURE_DELAY_MAX.as_millis()).unwrap_or(u32::MAX);
                let refusal = Refusal::new(Code::Busy, "too many failed attempts; try again later");
                AuthDecision::Refused(refusal.with(Detail::RetryAfterMs(ms)), now)
            }
        }
    }

    /// Whether a client that connected with `access` may stay.
    pub(crate) fn recheck(&self, access: &Access, or: Option<Role>) -> Result<(), Refusal> {
        let state = self.state.read();
        let text = match (&state.tokens, access.token) {
            (None, None) if or.is_some() => return Ok(()),
            (_, None) => "the store has tokens now: connect with one".to_owned(),
            (tokens, Some(hash)) => match tokens.as_ref().and_then(|file| file.find(&hash)) {
                Some(token) if token.is_expired(now_ms()) => {
                    format!("the token {} has expired", token.name)
                }
                Some(token) if !token.access().widens(access) => {
                    format!("what the token {} may do has changed: connect anew", token.name)
                }
                Some(_) => return Ok(()),
                None => "the token was revoked".to_owned(),
            },
        };
        Err(Refusal::new(Code::Unauthenticated, text))
    }
}

impl State {
    /// Counts the tokens that have expired since the last check as a change; returns the version.
    fn note_expired(&mut self, now: u64) -> u64 {
        let since = std::mem::replace(&mut self.checked_ms, now);
        let ended = self.tokens.as_deref().is_some_and(|file| {
            file.tokens().iter().any(|token| token.is_expired(now) && !token.is_expired(since))
        });
        self.version += u64::from(ended);
        self.version
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use super::*;
    use crate::auth::{NewToken, Secret};

    fn create(dir: &Path, name: &str, expires_ms: Option<u64>) -> Secret {
        let new = NewToken {
            name: name.to_owned(),
            grant: Role::Append.into(),
            created_ms: now_ms(),
            expires_ms,
        };
        TokenFile::create(dir, new).unwrap().1
    }

    fn admit(guard: &TokenGuard, token: &str) -> Result<Access, Code> {
        if guard.is_stale() {
            guard.refresh();
        }
        match guard.admit(token, None, None, Instant::now()) {
            AuthDecision::Granted(access) => Ok(access),
            AuthDecision::Refused(refusal, _) => Err(refusal.code),
        }
    }

    #[test]
    fn tokens_are_taken_while_they_are_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let guard = TokenGuard::open(dir.path()).unwrap();
        assert_eq!(guard.refresh(), 0);
        assert_eq!(admit(&guard, ""), Err(Code::Unauthenticated));
        let open = guard.admit("", Some(Role::Admin), None, Instant::now());
        let AuthDecision::Granted(open) = open else { panic!("refused") };
        guard.recheck(&open, Some(Role::Admin)).unwrap();
        let secret = create(dir.path(), "a", None);
        let access = admit(&guard, secret.reveal()).unwrap();
        guard.recheck(&access, None).unwrap();
        assert_eq!(guard.usable(), 1);
        let refused = guard.recheck(&open, Some(Role::Admin)).unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated, "with the first token, all need one");
        let refused = guard.admit("", Some(Role::Admin), None, Instant::now());
        assert!(matches!(refused, AuthDecision::Refused(..)));
        let before = guard.refresh();
        assert_eq!(before, 1, "it was noticed when somebody came");
        TokenFile::revoke(dir.path(), "a").unwrap();
        assert_eq!((guard.refresh(), guard.refresh()), (2, 2));
        assert_eq!(guard.recheck(&access, None).unwrap_err().code, Code::Unauthenticated);
        assert_eq!(admit(&guard, secret.reveal()), Err(Code::Unauthenticated));
        let refused = guard.admit("", Some(Role::Admin), None, Instant::now());
        assert!(
            matches!(refused, AuthDecision::Refused(..)),
            "an empty file still asks for tokens"
        );
    }

    #[test]
    fn tokens_end_at_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let late = create(dir.path(), "late", Some(now_ms() + 3_600_000));
        let over = create(dir.path(), "over", Some(now_ms()));
        let guard = TokenGuard::open(dir.path()).unwrap();
        assert!(admit(&guard, late.reveal()).is_ok());
        assert_eq!(admit(&guard, over.reveal()), Err(Code::Unauthenticated));
        assert_eq!(guard.usable(), 1);
        guard.state.write().checked_ms = now_ms() - 10_000;
        assert_eq!(guard.refresh(), 1, "a token ended since");
    }

    #[test]
    fn a_damaged_file_leaves_the_last_good_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let secret = create(dir.path(), "a", None);
        let guard = TokenGuard::open(dir.path()).unwrap();
        let path = dir.path().join(TOKENS_NAME);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, "nonsense").unwrap();
        assert!(guard.refresh() == 0 && !guard.is_current());
        assert!(admit(&guard, secret.reveal()).is_ok());
        assert!(TokenGuard::open(dir.path()).is_err());
        fs::write(&path, good).unwrap();
        assert!(guard.refresh() == 1 && guard.is_current());
    }

    #[test]
    fn a_file_that_could_not_be_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let secret = create(dir.path(), "a", None);
        let guard = TokenGuard::open(dir.path()).unwrap();
        TokenFile::revoke(dir.path(), "a").unwrap();
        let busy = |path: &Path| {
            let error = io::Error::other("too many open files");
            Err(TokenError::Io { path: path.to_owned(), error })
        };
        assert_eq!((guard.refresh_by(busy), guard.refresh_by(busy)), (0, 0));
        assert!(!guard.is_current());
        assert!(guard.refresh() == 1 && guard.is_current(), "the file is still the same");
        assert_eq!(admit(&guard, secret.reveal()), Err(Code::Unauthenticated));
    }
}

//! The tokens of a store, kept in one small text file in its directory: a version line, then one
//! line for each token. It can be read and edited by hand; `xs token` replaces it atomically, so
//! that a server sees either the old file or the new one.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use subtle::Choice;
use xs_engine::{TopicPattern, TopicPatterns};

use super::{Access, Grant, Scope, Secret, TokenHash};
use crate::limits::{TOKEN_NAME_BYTES_MAX, TOKENS_BYTES_MAX, TOKENS_MAX};
use crate::message::Role;

/// File name of the tokens inside a store's directory.
pub const TOKENS_NAME: &str = "tokens";
/// The first line of a file of this version.
const HEADER: &str = "xs tokens 1";
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// An error in tokens or their file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Users other than its owner may access the file.
    #[error("{path} has mode {mode:03o}: others could read or change it; chmod 600 it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file has another version, or is not a token file.
    #[error("{path} does not begin with the line {HEADER:?}: it is of a newer xs, or no tokens")]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// A line of the file is invalid.
    #[error("{path}, line {line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The file is, or would become, longer than the limit.
    #[error("tokens may take {TOKENS_BYTES_MAX} bytes and be {TOKENS_MAX}; revoke some")]
    TooMany,
    /// A token of that name exists.
    #[error("there is a token {0} already; revoke it, or take another name")]
    NameTaken(String),
    /// There is no token of that name.
    #[error("there is no token {0}; xs token list names those there are")]
    Unknown(String),
    /// A value breaks a rule.
    #[error("{0}")]
    Invalid(String),
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Topics it may read.
    pub read: Scope,
    /// Topics it may append to.
    pub append: Scope,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it expires, in milliseconds since 1970; `None`: never.
    pub expires_ms: Option<u64>,
    hash: TokenHash,
}

/// The parameters of a new token.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// 1 to 64 of `a-z A-Z 0-9 _ - .`; unique in the store.
    pub name: String,
    /// What it grants.
    pub grant: Grant,
    /// Now, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it expires, in milliseconds since 1970; `None`: never.
    pub expires_ms: Option<u64>,
}

impl NewToken {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`TokenError::Invalid`] says which parameter is wrong.
    pub fn check(&self) -> Result<(), TokenError> {
        let Self { name, grant, .. } = self;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if name.is_empty() || name.len() > TOKEN_NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(TokenError::Invalid(format!(
                "the name of a token is 1 to {TOKEN_NAME_BYTES_MAX} of a-z A-Z 0-9 _ - and ."
            )));
        }
        let (read, append) = grant.scopes();
        [read, append].into_iter().flatten().try_for_each(check_scope)
    }
}

impl Token {
    pub(crate) fn access(&self) -> Access {
        let (read, append) = (self.read.clone(), self.append.clone());
        Access { role: self.role, read, append, token: Some(self.hash), alone: None }
    }

    /// Whether it has expired.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }
}

/// The tokens of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFile {
    tokens: Vec<Token>,
}

impl TokenFile {
    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// [`TokenError`] when it cannot be read, other users may access it, or it is malformed.
    pub fn load(path: impl AsRef<Path>) -> Result<Option<Self>, TokenError> {
        let path = path.as_ref();
        let failed = |error| TokenError::Io { path: path.to_owned(), error };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & OTHERS != 0 {
            return Err(TokenError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(TOKENS_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > TOKENS_BYTES_MAX {
            return Err(TokenError::TooMany);
        }
        Self::parse(&text, path).map(Some)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, TokenError> {
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, line)| line.trim_end() != HEADER) {
            return Err(TokenError::Version { path: path.to_owned() });
        }
        let mut file = Self::default();
        for (index, line) in lines {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let read = read_line(line).and_then(|token| file.add(token));
            read.map_err(|error| TokenError::Line {
                path: path.to_owned(),
                line: index + 1,
                what: error.to_string(),
            })?;
        }
        Ok(file)
    }

    /// The tokens, in order of creation.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Creates a token and stores its hash in the store in `dir`. The secret is stored nowhere.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn create(dir: impl AsRef<Path>, new: NewToken) -> Result<(Token, Secret), TokenError> {
        let dir = dir.as_ref();
        let path = dir.join(TOKENS_NAME);
        let secret = Secret::generate().map_err(|error| TokenError::Io { path, error })?;
        let token = check(new, secret.hash())?;
        edit(dir, |file| file.add(token.clone()))?;
        Ok((token, secret))
    }

    /// Removes a token from the store in `dir`.
    ///
    /// # Errors
    /// [`TokenError::Unknown`] when no token has that name.
    pub fn revoke(dir: impl AsRef<Path>, name: &str) -> Result<Token, TokenError> {
        let dir = dir.as_ref();
        edit(dir, |file| match file.tokens.iter().position(|token| token.name == name) {
            Some(at) => Ok(file.tokens.remove(at)),
            None => Err(TokenError::Unknown(name.to_owned())),
        })
    }

    /// Finds the token with a hash. It compares with every token, each in constant time, so the
    /// duration reveals only how many tokens there are.
    pub(super) fn find(&self, hash: &TokenHash) -> Option<&Token> {
        self.find_by(|kept| kept.is(hash))
    }

    fn find_by(&self, mut is: impl FnMut(&TokenHash) -> Choice) -> Option<&Token> {
        let mut found = None;
        for token in &self.tokens {
            if is(&token.hash).into() {
                found = Some(token);
            }
        }
        found
    }

    fn add(&mut self, token: Token) -> Result<(), TokenError> {
        if self.tokens.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        if self.tokens.iter().any(|other| other.name == token.name) {
            return Err(TokenError::NameTaken(token.name));
        }
        if self.find(&token.hash).is_some() {
            return Err(TokenError::Invalid("two tokens have the same hash".to_owned()));
        }
        self.tokens.push(token);
        Ok(())
    }
}

impl fmt::Display for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        writeln!(f, "# Made by xs token; the secrets themselves are not here.")?;
        for token in &self.tokens {
            write!(f, "name={} role={}", token.name, token.role)?;
            if matches!(token.role, Role::Read | Role::Append) {
                write!(f, " read={} append={}", token.read, token.append)?;
            }
            write!(f, " created_ms={}", token.created_ms)?;
            if let Some(at) = token.expires_ms {
                write!(f, " expires_ms={at}")?;
            }
            writeln!(f, " sha256={}", token.hash)?;
        }
        Ok(())
    }
}

/// Edits the token file of a store: under a lock, and atomically for readers.
fn edit<T>(
    dir: &Path,
    change: impl FnOnce(&mut TokenFile) -> Result<T, TokenError>,
) -> Result<T, TokenError> {
    let path = dir.join(TOKENS_NAME);
    let failed = |error| TokenError::Io { path: path.clone(), error };
    // The lock is on the directory itself: the store's lock is held by its server.
    let held = File::open(dir).map_err(failed)?;
    held.lock().map_err(failed)?;
    let mut file = TokenFile::load(&path)?.unwrap_or_default();
    let changed = change(&mut file)?;
    let mut text = String::new();
    let _ = write!(text, "{file}");
    if text.len() as u64 > TOKENS_BYTES_MAX {
        return Err(TokenError::TooMany);
    }
    let unfinished = dir.join(format!("{TOKENS_NAME}.tmp"));
    let replace = || {
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut to = OpenOptions::new();
        let mut to = to.write(true).create_new(true).mode(0o600).open(&unfinished)?;
        to.write_all(text.as_bytes())?;
        // The user that serves the store must be able to read it, even when root edits it.
        let (made, dir) = (to.metadata()?, held.metadata()?);
        if (made.uid(), made.gid()) != (dir.uid(), dir.gid()) && made.uid() == 0 {
            fchown(&to, Some(dir.uid()), Some(dir.gid()))?;
        }
        to.sync_all()?;
        fs::rename(&unfinished, &path)?;
        held.sync_all()
    };
    replace().map_err(failed)?;
    Ok(changed)
}

fn check(new: NewToken, hash: TokenHash) -> Result<Token, TokenError> {
    new.check()?;
    let NewToken { name, grant, created_ms, expires_ms } = new;
    let role = grant.role();
    let (read, append) = grant.scopes();
    let [read, append] = [read, append].map(|one| one.cloned().unwrap_or_else(|| Scope::of(role)));
    Ok(Token { name, role, read, append, created_ms, expires_ms, hash })
}

fn check_scope(scope: &Scope) -> Result<(), TokenError> {
    let Scope::Topics(patterns) = scope else { return Ok(()) };
    let reserved = |pattern: &&TopicPattern| match pattern {
        TopicPattern::Exact(topic) | TopicPattern::Below(topic) => topic.is_reserved(),
        TopicPattern::All => false,
    };
    match patterns.as_slice().iter().find(reserved) {
        Some(pattern) => {
            Err(TokenError::Invalid(format!("{pattern}: xs and xs.* are for admins alone")))
        }
        None => Ok(()),
    }
}

fn read_line(line: &str) -> Result<Token, TokenError> {
    let invalid = |text: String| TokenError::Invalid(text);
    let mut fields = Fields::default();
    for field in line.split_ascii_whitespace() {
        // The word is not repeated in the error: it may be a secret that was pasted by mistake.
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| invalid("a word that is no key=value".to_owned()))?;
        let slot = fields.slot(key).ok_or_else(|| invalid(format!("{key:?} is not known")))?;
        if slot.replace(value).is_some() {
            return Err(invalid(format!("{key} is there twice")));
        }
    }
    let needed = |field: Option<&str>, key: &str| {
        field.map(str::to_owned).ok_or_else(|| invalid(format!("{key} is missing")))
    };
    let time = |text: &str| {
        text.parse::<u64>().map_err(|_| invalid(format!("{text:?} is no time in milliseconds")))
    };
    let role = needed(fields.role, "role")?;
    let role: Role = role.parse().map_err(|error| invalid(format!("{error}")))?;
    let [read, append] = [fields.read, fields.append].map(|one| one.map(read_scope).transpose());
    let hash = TokenHash::parse(&needed(fields.sha256, "sha256")?);
    let new = NewToken {
        name: needed(fields.name, "name")?,
        grant: Grant::of(role, read?, append?)?,
        created_ms: time(&needed(fields.created_ms, "created_ms")?)?,
        expires_ms: fields.expires_ms.map(time).transpose()?,
    };
    check(new, hash.ok_or_else(|| invalid("sha256 is not 64 digits of base 16".to_owned()))?)
}

fn read_scope(text: &str) -> Result<Scope, TokenError> {
    if text == "-" {
        return Ok(Scope::Nothing);
    }
    let patterns = TopicPatterns::parse(text);
    patterns.map(Scope::Topics).map_err(|error| TokenError::Invalid(error.to_string()))
}

/// The fields of a line as they were found.
#[derive(Default)]
struct Fields<'a> {
    name: Option<&'a str>,
    role: Option<&'a str>,
    read: Option<&'a str>,
    append: Option<&'a str>,
    created_ms: Option<&'a str>,
    expires_ms: Option<&'a str>,
    sha256: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn slot(&mut self, key: &str) -> Option<&mut Option<&'a str>> {
        Some(match key {
            "name" => &mut self.name,
            "role" => &mut self.role,
            "read" => &mut self.read,
            "append" => &mut self.append,
            "created_ms" => &mut self.created_ms,
            "expires_ms" => &mut self.expires_ms,
            "sha256" => &mut self.sha256,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn new(name: &str, role: Role) -> NewToken {
        let name = name.to_owned();
        NewToken { name, grant: role.into(), created_ms: 5, expires_ms: None }
    }

    fn scope(text: &str) -> Option<Scope> {
        Some(read_scope(text).unwrap())
    }

    #[test]
    fn the_owner_of_the_store_can_read_them_whoever_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut owner = fs::metadata(dir.path()).unwrap().uid();
        if owner == 0 {
            owner = 10_001;
            std::os::unix::fs::chown(dir.path(), Some(owner), Some(owner)).unwrap();
        }
        TokenFile::create(dir.path(), new("a", Role::Admin)).unwrap();
        TokenFile::create(dir.path(), new("b", Role::Admin)).unwrap();
        TokenFile::revoke(dir.path(), "a").unwrap();
        assert_eq!(fs::metadata(dir.path().join(TOKENS_NAME)).unwrap().uid(), owner);
    }

    #[test]
    fn tokens_come_back_as_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENS_NAME);
        assert_eq!(TokenFile::load(&path).unwrap(), None);
        let limited = NewToken {
            grant: Grant::Append { read: scope("-"), append: scope("a.*,b") },
            expires_ms: Some(9),
            ..new("device.1", Role::Append)
        };
        let mut made = Vec::new();
        for new in [limited, new("reader", Role::Read), new("all", Role::Admin)] {
            let (token, secret) = TokenFile::create(dir.path(), new).unwrap();
            assert!(!fs::read_to_string(&path).unwrap().contains(secret.reveal()));
            made.push((token, secret));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let file = TokenFile::load(&path).unwrap().unwrap();
        for (token, secret) in &made {
            assert_eq!(file.find(&secret.hash()), Some(token));
        }
        assert_eq!(file.find(&TokenHash::of("other")), None);
        let taken = TokenFile::create(dir.path(), new("all", Role::Read)).unwrap_err();
        assert!(matches!(taken, TokenError::NameTaken(_)), "{taken}");
        assert_eq!(TokenFile::revoke(dir.path(), "reader").unwrap(), made[1].0);
        let gone = TokenFile::revoke(dir.path(), "reader").unwrap_err();
        assert!(matches!(gone, TokenError::Unknown(_)), "{gone}");
        let names: Vec<_> = TokenFile::load(&path).unwrap().unwrap().tokens;
        assert_eq!(names, [made[0].0.clone(), made[2].0.clone()]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_token_is_compared_whichever_is_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let made: Vec<Secret> = ["a", "b", "c"]
            .map(|name| TokenFile::create(dir.path(), new(name, Role::Read)).unwrap().1)
            .into();
        let file = TokenFile::load(dir.path().join(TOKENS_NAME)).unwrap().unwrap();
        let stranger = Secret::generate().unwrap();
        for (shown, at) in made.iter().zip(0..).chain([(&stranger, made.len())]) {
            let (hash, mut compared) = (shown.hash(), 0);
            let found = file.find_by(|kept| {
                compared += 1;
                kept.is(&hash)
            });
            assert_eq!(found, file.tokens().get(at));
            assert_eq!(compared, made.len(), "{at}");
        }
    }

    #[test]
    fn a_file_that_others_may_open_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        TokenFile::create(dir.path(), new("a", Role::Read)).unwrap();
        let path = dir.path().join(TOKENS_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = TokenFile::load(&path).unwrap_err();
        assert!(matches!(error, TokenError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_line() {
        let hash = TokenHash::of("x");
        let good = format!("name=a role=append read=a.* append=b created_ms=1 sha256={hash}");
        let parse = |text: &str| TokenFile::parse(text, Path::new("tokens"));
        let file = parse(&format!("{HEADER}\n\n# note\n{good}\n")).unwrap();
        assert_eq!(parse(&file.to_string()).unwrap(), file);
        for (from, to, what) in [
            ("name=a", "name=a/b", "the name of a token"),
            ("name=a ", "", "name is missing"),
            ("role=append", "role=root", "not a role"),
            ("role=append", "role=admin", "takes no topics"),
            ("role=append", "role=read", "appends nowhere"),
            ("read=a.*", "read=a..*", "topic"),
            ("read=a.*", "read=xs.*", "for admins alone"),
            ("append=b", "append=xs", "for admins alone"),
            ("read=a.*", "read=a read=b", "twice"),
            ("read=a.*", "owner=a", "not known"),
            ("read=a.*", "reada", "no key=value"),
            ("created_ms=1", "created_ms=-1", "no time"),
            ("sha256=", "sha256=0", "64 digits"),
        ] {
            let line = good.replace(from, to);
            assert_ne!(line, good);
            let error = parse(&format!("{HEADER}\n{line}")).unwrap_err();
            let TokenError::Line { line: 2, what: found, .. } = &error else { panic!("{error}") };
            assert!(found.contains(what), "{found}");
        }
        let twice = parse(&format!("{HEADER}\n{good}\n{}", good.replace("name=a", "name=b")));
        assert!(twice.unwrap_err().to_string().contains("same hash"));
        for text in ["", "xs tokens 2\n", "tokens", "\u{feff}xs tokens 1"] {
            assert!(matches!(parse(text), Err(TokenError::Version { .. })), "{text}");
        }
    }

    #[test]
    fn the_number_of_tokens_has_a_limit() {
        let mut file = TokenFile::default();
        let token = |n: usize| {
            let hash = TokenHash::of(&n.to_string());
            check(new(&format!("t{n}"), Role::Read), hash).unwrap()
        };
        (0..TOKENS_MAX).for_each(|n| file.add(token(n)).unwrap());
        assert!(matches!(file.add(token(TOKENS_MAX)), Err(TokenError::TooMany)));
        assert!((file.to_string().len() as u64) < TOKENS_BYTES_MAX);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENS_NAME);
        let text = "\n".repeat(TOKENS_BYTES_MAX as usize + 1);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .unwrap();
        assert!(matches!(TokenFile::load(&path), Err(TokenError::TooMany)));
    }

    #[test]
    fn many_may_be_made_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    TokenFile::create(dir, new(&format!("t{n}"), Role::Read)).unwrap()
                });
            }
        });
        let file = TokenFile::load(dir.path().join(TOKENS_NAME)).unwrap().unwrap();
        assert_eq!(file.tokens.len(), 8);
    }
}

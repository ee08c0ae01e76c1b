//! A table in SQLite with a write-ahead log: no server, no socket, no subscribers, and one writer
//! at a time. What a program pays that keeps its events in its own file.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::rc::Rc;

use anyhow::bail;
use bytes::Bytes;
use rusqlite::{Connection, params};

use super::{Feed, Link, Promise, Setup, System, topics_from};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS frames(id INTEGER PRIMARY KEY, topic INTEGER \
     NOT NULL, body BLOB NOT NULL);\
     CREATE INDEX IF NOT EXISTS topics ON frames(topic, id);\
     CREATE TABLE IF NOT EXISTS blobs(id INTEGER PRIMARY KEY, body BLOB NOT NULL);";
const INSERT: &str = "INSERT INTO frames(topic, body) VALUES(?1, ?2)";

#[derive(Debug)]
pub(crate) struct Sqlite {
    setup: Setup,
}

#[derive(Clone)]
pub(crate) struct SqliteLink {
    connection: Rc<RefCell<Connection>>,
}

/// There are no feeds.
#[derive(Debug)]
pub(crate) struct NoFeed;

impl System for Sqlite {
    type Link = SqliteLink;
    const NAME: &'static str = "SQLite";
    const IN_PROCESS: bool = true;

    fn settings(promise: Promise) -> &'static str {
        match promise {
            Promise::Process => "in process; journal_mode=WAL, synchronous=NORMAL",
            Promise::Power => "in process; journal_mode=WAL, synchronous=FULL",
        }
    }

    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let this = Self { setup: setup.clone() };
        this.link().await?;
        Ok(this)
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    async fn link(&self) -> anyhow::Result<SqliteLink> {
        let connection = Connection::open(self.setup.dir.join("frames.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        let sync = if self.setup.promise == Promise::Power { "FULL" } else { "NORMAL" };
        connection.pragma_update(None, "synchronous", sync)?;
        connection.execute_batch(SCHEMA)?;
        Ok(SqliteLink { connection: Rc::new(RefCell::new(connection)) })
    }

    fn kill(self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for SqliteLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteLink").finish_non_exhaustive()
    }
}

impl Link for SqliteLink {
    type Feed = NoFeed;
    type Name = u64;

    fn append(&self, topic: u64, body: Bytes) -> impl Future<Output = anyhow::Result<()>> {
        let connection = Rc::clone(&self.connection);
        async move {
            let connection = connection.borrow();
            connection.prepare_cached(INSERT)?.execute(params![topic, &body[..]])?;
            Ok(())
        }
    }

    fn append_all(
        &self,
        topic: u64,
        bodies: Vec<Bytes>,
    ) -> impl Future<Output = anyhow::Result<()>> {
        let connection = Rc::clone(&self.connection);
        async move {
            let mut connection = connection.borrow_mut();
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached(INSERT)?;
                for (topic, body) in topics_from(topic).zip(&bodies) {
                    insert.execute(params![topic, &body[..]])?;
                }
            }
            Ok(transaction.commit()?)
        }
    }

    async fn read(&self, topic: Option<u64>, seen: &Cell<u64>) -> anyhow::Result<()> {
        let connection = self.connection.borrow();
        let filter = if topic.is_some() { "WHERE topic = ?1" } else { "WHERE ?1 IS NULL" };
        let text = format!("SELECT id, topic, body FROM frames {filter} ORDER BY id");
        let mut select = connection.prepare_cached(&text)?;
        let mut rows = select.query(params![topic])?;
        while let Some(row) = rows.next()? {
            // Other systems return bodies that outlive the next one, so this one is copied.
            std::hint::black_box(Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?));
            seen.set(seen.get() + 1);
        }
        Ok(())
    }

    async fn last(&self, topic: u64) -> anyhow::Result<()> {
        let connection = self.connection.borrow();
        let text = "SELECT body FROM frames WHERE topic = ?1 ORDER BY id DESC LIMIT 1";
        let mut select = connection.prepare_cached(text)?;
        std::hint::black_box(select.query_row(params![topic], |row| row.get::<_, Vec<u8>>(0))?);
        Ok(())
    }

    async fn follow(&self) -> anyhow::Result<NoFeed> {
        bail!("SQLite has no subscribers")
    }

    async fn put(&self, number: u64, blob: Bytes) -> anyhow::Result<u64> {
        let connection = self.connection.borrow();
        let text = "INSERT OR REPLACE INTO blobs(id, body) VALUES(?1, ?2)";
        connection.prepare_cached(text)?.execute(params![number, &blob[..]])?;
        Ok(number)
    }

    async fn get(&self, name: &u64) -> anyhow::Result<u64> {
        let connection = self.connection.borrow();
        let mut select = connection.prepare_cached("SELECT body FROM blobs WHERE id = ?1")?;
        Ok(select.query_row(params![name], |row| row.get::<_, Vec<u8>>(0))?.len() as u64)
    }
}

impl Feed for NoFeed {
    async fn next(&mut self, _each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        bail!("SQLite has no subscribers")
    }
}

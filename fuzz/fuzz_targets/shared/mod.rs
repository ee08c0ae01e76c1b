//! A server for fuzz targets, and the conversation with it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};
use xs_engine::{
    BlobHash, Bound, Cursor, CursorName, Frame, FrameId, ReadOptions, Removal, StoreUuid, Topic,
    TopicPatterns,
};
use xs_protocol::codec::PREFACE;
use xs_protocol::{
    AppendRequest, Appended, BlobSink, BlobSource, CallRequest, Called, Code, CursorSummary, Done,
    DoneImport, Feed, HostClaim, HostGuard, ImportOutcome, ImportRequest, Imported, LastRequest,
    Pulled, Refusal, Role, Server, ServerOptions, Service, StoreIdentity, TopicsPage, Wake,
};

/// The HELLO in protocol/vectors/client.json.
const HELLO: &[u8] = b"\x2a\0\0\0\x01\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\x01\0\x01\0\x01\0\0\0\0\0\
    \0\0\0\0\0\0\x20\0\x06\0test/1\0\0";
const BLOB_LEN: u64 = 200_000;

/// The runtime of the process.
pub static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// A store that has one blob under every hash and nothing else.
pub struct Empty;

struct Zeros(u64);

struct Count(u64);

fn no<T>() -> Result<T, Refusal> {
    Err(Refusal::new(Code::Internal, "nothing here"))
}

impl Service for Empty {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { uuid: StoreUuid::from_bytes([7; 16]), epoch: 1, head: 2 }
    }

    fn append(&self, _: AppendRequest, done: Done) {
        done(no());
    }

    fn import(&self, import: ImportRequest, done: DoneImport) {
        let outcomes = vec![ImportOutcome::New; import.frames.len()];
        done(Ok(Imported { outcomes, durable: false, head: 2 }));
    }

    fn remove_now(&self, batch: AppendRequest) -> Result<Appended, Refusal> {
        Ok(Appended { removed: vec![Removal::Removed; batch.removes.len()], ..Appended::default() })
    }

    fn host_comes(&self, _: HostClaim, _: Wake) -> Result<HostGuard, Refusal> {
        Ok(Box::new(()))
    }

    fn stats(&self) -> Result<String, Refusal> {
        Ok("{}".to_owned())
    }

    fn commit(&self) {}

    fn read(&self, _: &ReadOptions) -> Result<Box<dyn Feed>, Refusal> {
        Ok(Box::new(Zeros(0)))
    }

    fn follow(&self, _: &ReadOptions, _: Wake) -> Result<Box<dyn Feed>, Refusal> {
        Ok(Box::new(Zeros(0)))
    }

    fn get(&self, _: Bound) -> Result<Option<Frame>, Refusal> {
        Ok(None)
    }

    fn last(&self, _: &LastRequest) -> Result<Vec<Frame>, Refusal> {
        Ok(Vec::new())
    }

    fn topics(
        &self,
        _: &TopicPatterns,
        _: Option<&Topic>,
        _: usize,
    ) -> Result<TopicsPage, Refusal> {
        Ok((Vec::new(), None))
    }

    fn has_blob(&self, _: &BlobHash) -> Result<bool, Refusal> {
        Ok(true)
    }

    fn blob(&self, _: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal> {
        Ok(Some(Box::new(Zeros(BLOB_LEN))))
    }

    fn bodies(&self, _: &[Frame], _: u64, _: &mut Vec<(u32, Bytes)>) {}

    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal> {
        Ok(Box::new(Count(0)))
    }

    fn cursor(&self, _: &CursorName) -> Result<Option<Cursor>, Refusal> {
        Ok(None)
    }

    fn cursors(&self) -> Result<Vec<CursorSummary>, Refusal> {
        Ok(Vec::new())
    }

    fn call(&self, _: CallRequest, _: Wake) -> BoxFuture<'static, Result<Called, Refusal>> {
        let called = Called { id: FrameId::first_of_ms(1), feed: Box::new(Zeros(0)) };
        Box::pin(async { Ok(called) })
    }
}

impl Feed for Zeros {
    fn pull(&mut self, _: &mut Vec<Frame>, _: usize) -> Result<Pulled, Refusal> {
        self.0 += 1;
        Ok(if self.0 == 1 { Pulled::CaughtUp { head: 2 } } else { Pulled::Idle })
    }

    fn scanned_to(&self) -> u64 {
        2
    }
}

impl BlobSource for Zeros {
    fn len(&self) -> u64 {
        BLOB_LEN
    }

    fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        let count = max.min(usize::try_from(self.0).unwrap_or(usize::MAX));
        self.0 -= count as u64;
        Ok(Bytes::from(vec![0; count]))
    }
}

impl BlobSink for Count {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.0 += bytes.len() as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal> {
        Ok((BlobHash::of(b""), self.0))
    }
}

/// Sends a valid HELLO and then the messages, on a connection whose role depends on `mode`, and
/// reads until the server has closed it.
pub fn converse(mode: u8, messages: &[u8]) {
    let role = [Role::Read, Role::Append, Role::Admin, Role::Host][usize::from(mode % 4)];
    RUNTIME.block_on(async {
        let server = Server::new(Arc::new(Empty), ServerOptions::default());
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let served = server.adopt(theirs, role);
        let (mut from, mut to) = tokio::io::split(ours);
        let send = async {
            for part in [&PREFACE[..], HELLO, messages] {
                // The server may already have closed.
                if to.write_all(part).await.is_err() {
                    break;
                }
            }
            let _ = to.shutdown().await;
        };
        let receive = async {
            let mut answers = vec![0; 64 * 1024];
            while from.read(&mut answers).await.is_ok_and(|count| count > 0) {}
        };
        tokio::join!(send, receive);
        served.await.expect("a connection does not panic");
    });
}

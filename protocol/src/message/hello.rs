//! HELLO: who connects, what versions and ops both sides have in common, and the limits.

use std::fmt;
use std::str::FromStr;

use xs_engine::{StoreUuid, Topic};

use super::Op;
use super::coding::{Body, DecodeError, put_extension};
use crate::error::{Code, ProtocolError, Refusal};
use crate::gather::{Gather, cut};
use crate::limits::{self, PEER_NAME_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::service::StoreIdentity;

/// The version of the protocol this build speaks.
pub const VERSION: u16 = 1;
/// The version of the FRAME record this build reads and sends: that of docs/format.md.
pub const RECORD_VERSION: u16 = 1;

/// The extension by which a client claims to run the modules of the store. Its tag is below the
/// optional range: a server that cannot tell two Hosts apart must refuse one.
const HOST: u16 = 1;

/// The role of a connection. It depends on how it connected: no message can raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Read everything.
    Read,
    /// Also append to topics outside `xs.*`, put blobs, move cursors, call commands.
    Append,
    /// Every op and every topic to read; also append `xs.<kind>.<name>.create`, `.term`, `.unpark`
    /// and `.discard`: the owner of the Unix socket.
    Admin,
    /// As append, and also `xs.<kind>.*` and origins: the process that runs modules.
    Host,
}

impl Role {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Append => "append",
            Self::Admin => "admin",
            Self::Host => "host",
        }
    }
}

impl Role {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Read),
            1 => Some(Self::Append),
            2 => Some(Self::Admin),
            3 => Some(Self::Host),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: read, append, admin or host")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        [Self::Read, Self::Append, Self::Admin, Self::Host]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}

/// The limits of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Bytes of a message, header included.
    pub message_bytes: u32,
    /// Unanswered requests; beyond that the server stops reading.
    pub requests: u32,
    /// Concurrent subscriptions, uploads, downloads and calls.
    pub streams: u32,
    /// Bytes of a chunk of a blob.
    pub chunk_bytes: u32,
    /// Bytes of an upload that may be sent before the first grant.
    pub upload_window: u32,
    /// Frames and cursor changes in one APPEND.
    pub batch_records: u32,
}

impl PeerLimits {
    /// The limits of this build's server.
    pub(crate) const OURS: Self = Self {
        message_bytes: limits::MESSAGE_BYTES_MAX,
        requests: limits::REQUESTS_MAX,
        streams: limits::STREAMS_MAX,
        chunk_bytes: limits::CHUNK_BYTES_MAX as u32,
        upload_window: limits::UPLOAD_WINDOW,
        batch_records: xs_engine::limits::BATCH_RECORDS_MAX as u32,
    };
}

/// The range of versions of one op that a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpRange {
    /// The op's number.
    pub op: u8,
    /// Oldest version.
    pub min: u16,
    /// Newest version.
    pub max: u16,
}

/// Sent in HELLO by a client that runs the modules of the store: it is the Host, or the part of it
/// that runs one processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostClaim {
    /// Random bytes that identify the Host: all its connections send the same, and no others do.
    pub instance: [u8; 16],
    /// The processor that runs over this connection alone; `None`: all processors that have no
    /// connection of their own.
    pub alone: Option<Topic>,
}

impl HostClaim {
    fn put(&self, out: &mut Gather) {
        out.put_slice(&self.instance);
        out.put_str(self.alone.as_ref().map_or("", Topic::as_str));
    }

    fn read(mut value: Body) -> Result<Self, DecodeError> {
        let instance = value.uuid("instance of the host")?;
        let alone = value.text("processor of the host")?;
        value.end()?;
        let alone = match alone.as_str() {
            "" => None,
            name => Some(Topic::parse(name)?),
        };
        Ok(Self { instance, alone })
    }
}

/// A client's HELLO.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HelloRequest {
    /// Oldest and newest version of the protocol it speaks.
    pub(crate) versions: (u16, u16),
    /// Oldest and newest version of the FRAME record it reads.
    pub(crate) records: (u16, u16),
    /// Feature bits; none has a meaning yet.
    pub(crate) features: u64,
    /// Bytes of the longest message it accepts.
    pub(crate) message_bytes: u32,
    /// Its name in the server's log.
    pub(crate) name: String,
    /// Its token; empty when it has none.
    pub(crate) token: String,
    /// Its claim to run modules, if it has one.
    pub(crate) host: Option<HostClaim>,
}

impl fmt::Debug for HelloRequest {
    /// Omits the token: messages may end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { versions, records, features, message_bytes, name, token, host } = self;
        f.debug_struct("HelloRequest")
            .field("versions", versions)
            .field("records", records)
            .field("features", features)
            .field("message_bytes", message_bytes)
            .field("name", name)
            .field("token", if token.is_empty() { &"" } else { &".." })
            .field("host", host)
            .finish()
    }
}

impl HelloRequest {
    pub(crate) fn put(&self, out: &mut Gather) {
        for version in [self.versions.0, self.versions.1, self.records.0, self.records.1] {
            out.put_u16(version);
        }
        out.put_u64(self.features);
        out.put_u32(self.message_bytes);
        out.put_str(cut(&self.name, PEER_NAME_BYTES_MAX));
        out.put_str(&self.token);
        if let Some(host) = &self.host {
            put_extension(out, HOST, |out| host.put(out));
        }
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let versions = (body.u16("version")?, body.u16("version")?);
        let records = (body.u16("record version")?, body.u16("record version")?);
        let features = body.u64("features")?;
        let message_bytes = body.u32("message bytes")?;
        let name = body.text("name")?.as_str().to_owned();
        let token = body.text("token")?.as_str().to_owned();
        if name.len() > PEER_NAME_BYTES_MAX || token.len() > TOKEN_BYTES_MAX {
            return Err(body.wrong("name or token too long").into());
        }
        let mut host = None;
        body.extensions_with(|tag, value| match tag {
            HOST if host.is_some() => Err(value.wrong("host twice").into()),
            HOST => HostClaim::read(value).map(|claim| host = Some(claim)).map(|()| true),
            _ => Ok(false),
        })?;
        Ok(Self { versions, records, features, message_bytes, name, token, host })
    }

    /// Refuses a client that shares no version with the server.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let speaks = |range: (u16, u16), ours| range.0 <= ours && ours <= range.1;
        if !speaks(self.versions, VERSION) || !speaks(self.records, RECORD_VERSION) {
            let text = format!(
                "the server speaks version {VERSION} with records of version {RECORD_VERSION}, \
                 the client versions {:?} with records {:?}",
                self.versions, self.records
            );
            return Err(Refusal::new(Code::VersionMismatch, text));
        }
        Ok(())
    }
}

/// A server's HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HelloReply {
    pub(crate) version: u16,
    pub(crate) records: u16,
    pub(crate) role: Role,
    pub(crate) features: u64,
    pub(crate) store: StoreIdentity,
    pub(crate) limits: PeerLimits,
    pub(crate) name: String,
    pub(crate) ops: Vec<OpRange>,
}

impl HelloReply {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u16(self.version);
        out.put_u16(self.records);
        out.put_u8(self.role as u8);
        out.put_slice(&[0; 3]);
        out.put_u64(self.features);
        out.put_slice(self.store.uuid.as_bytes());
        out.put_u64(self.store.epoch);
        out.put_u64(self.store.head);
        let PeerLimits {
            message_bytes,
            requests,
            streams,
            chunk_bytes,
            upload_window,
            batch_records,
        } = self.limits;
        for limit in [message_bytes, requests, streams, chunk_bytes, upload_window, batch_records] {
            out.put_u32(limit);
        }
        out.put_str(cut(&self.name, PEER_NAME_BYTES_MAX));
        out.put_u16(self.ops.len() as u16);
        for range in &self.ops {
            out.put_u8(range.op);
            out.put_u8(0);
            out.put_u16(range.min);
            out.put_u16(range.max);
        }
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, ProtocolError> {
        let version = body.u16("version")?;
        let records = body.u16("record version")?;
        let role = Role::from_byte(body.u8("role")?).ok_or_else(|| body.wrong("role"))?;
        body.zeros(3)?;
        let features = body.u64("features")?;
        let store = StoreIdentity {
            uuid: StoreUuid::from_bytes(body.uuid("uuid")?),
            epoch: body.u64("epoch")?,
            head: body.u64("head")?,
        };
        let limits = PeerLimits {
            message_bytes: body.u32("limit")?,
            requests: body.u32("limit")?,
            streams: body.u32("limit")?,
            chunk_bytes: body.u32("limit")?,
            upload_window: body.u32("limit")?,
            batch_records: body.u32("limit")?,
        };
        let name = body.text("name")?.as_str().to_owned();
        let count = body.u16("count of ops")?;
        let mut ops = Vec::with_capacity(usize::from(count).min(Op::ALL.len()));
        for _ in 0..count {
            let op = body.u8("op")?;
            body.zeros(1)?;
            ops.push(OpRange { op, min: body.u16("op version")?, max: body.u16("op version")? });
        }
        Ok(Self { version, records, role, features, store, limits, name, ops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn requests_round_trip_and_versions_are_compared() {
        let mut hello = HelloRequest {
            versions: (1, 2),
            records: (1, 1),
            features: 0,
            message_bytes: 1 << 20,
            name: "test".to_owned(),
            token: "secret".to_owned(),
            host: None,
        };
        assert!(!format!("{hello:?}").contains("secret"));
        let body = body_of(|out| hello.put(out));
        assert_eq!(HelloRequest::read(Body::new("HELLO", body.clone())).unwrap(), hello);
        each_cut_fails(&body, |bytes| HelloRequest::read(Body::new("HELLO", bytes)));
        for alone in [None, Some(Topic::parse("a.b").unwrap())] {
            hello.host = Some(HostClaim { instance: [7; 16], alone });
            let body = body_of(|out| hello.put(out));
            assert_eq!(HelloRequest::read(Body::new("HELLO", body)).unwrap(), hello);
        }
        hello.host = None;
        assert!(hello.check().is_ok());
        hello.versions = (2, 3);
        assert_eq!(hello.check().unwrap_err().code, Code::VersionMismatch);
    }

    #[test]
    fn replies_round_trip() {
        let reply = HelloReply {
            version: 1,
            records: 1,
            role: Role::Host,
            features: 0,
            store: StoreIdentity { uuid: StoreUuid::from_bytes([7; 16]), epoch: 3, head: 99 },
            limits: PeerLimits::OURS,
            name: "xs/0".to_owned(),
            ops: Op::RANGES.to_vec(),
        };
        let body = body_of(|out| reply.put(out));
        assert_eq!(HelloReply::read(Body::new("HELLO", body.clone())).unwrap(), reply);
        each_cut_fails(&body, |bytes| HelloReply::read(Body::new("HELLO", bytes)));
    }
}

//! An export as one byte stream: zstd around a tar with the bodies as `cas/<hash>`, followed by
//! `frames.jsonl`, the same content that a [`Dump`] has in a directory. The same events give the
//! same bytes. Any tar can unpack it; this module unpacks only entries that belong to an export,
//! and checks bodies against their names.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use xs_engine::BlobHash;

use crate::dump::{Dump, other_bytes};

/// Maximum number of body names remembered, 32 bytes each. A body whose name was forgotten may be
/// in the archive twice.
const NAMES_MAX: usize = 1 << 20;
/// Block size of a tar.
const BLOCK_BYTES: usize = 512;
/// Bytes per read.
const PIECE_BYTES: usize = 64 * 1024;
/// The magic number of zstd.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The compression level.
const LEVEL: i32 = 3;

/// Writes an archive.
pub(crate) struct Writer<W: Write> {
    to: zstd::Encoder<'static, W>,
    /// The lines, buffered because a tar entry starts with its length.
    lines: BufWriter<File>,
    names: HashSet<BlobHash>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive. Lines are buffered in an unnamed file in `dir` until the end.
    pub(crate) fn new(to: W, dir: &Path) -> io::Result<Self> {
        let mut to = zstd::Encoder::new(to, LEVEL)?;
        to.include_checksum(true)?;
        let lines = BufWriter::new(tempfile::tempfile_in(dir)?);
        Ok(Self { to, lines, names: HashSet::new() })
    }

    /// Adds the line of a frame, whose body must already be in the archive unless it has none or it
    /// is lost.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        self.lines.write_all(line.as_bytes())?;
        self.lines.write_all(b"\n")
    }

    /// Whether a body is in the archive.
    pub(crate) fn has(&self, hash: &BlobHash) -> bool {
        self.names.contains(hash)
    }

    /// Starts a body, written in chunks.
    pub(crate) fn body(&mut self, hash: &BlobHash, len: u64) -> io::Result<Body<'_, W>> {
        let name = format!("cas/{}", STANDARD.encode(hash.to_string()));
        self.to.write_all(header(&name, len)?.as_bytes())?;
        Ok(Body { archive: self, hash: *hash, len, written: 0, hasher: Sha256::new() })
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        let mut lines = self.lines.into_inner().map_err(io::IntoInnerError::into_error)?;
        let len = lines.stream_position()?;
        lines.seek(SeekFrom::Start(0))?;
        self.to.write_all(header("frames.jsonl", len)?.as_bytes())?;
        io::copy(&mut lines, &mut self.to)?;
        pad(&mut self.to, len)?;
        self.to.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.to.finish()
    }
}

/// A body being written to an archive.
pub(crate) struct Body<'a, W: Write> {
    archive: &'a mut Writer<W>,
    hash: BlobHash,
    len: u64,
    written: u64,
    hasher: Sha256,
}

impl<W: Write> Body<'_, W> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.hasher.update(bytes);
        self.archive.to.write_all(bytes)
    }

    /// Verifies it. After an error the archive is unusable.
    pub(crate) fn finish(self) -> io::Result<()> {
        let hash = BlobHash::from_bytes(self.hasher.finalize().into());
        if hash != self.hash || self.written != self.len {
            return Err(other_bytes(&self.hash));
        }
        pad(&mut self.archive.to, self.len)?;
        if self.archive.names.len() >= NAMES_MAX {
            self.archive.names.clear();
        }
        self.archive.names.insert(hash);
        Ok(())
    }
}

fn header(name: &str, len: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(len);
    header.set_cksum();
    Ok(header)
}

fn pad(to: &mut impl Write, len: u64) -> io::Result<()> {
    let over = usize::try_from(len % BLOCK_BYTES as u64).unwrap_or_default();
    to.write_all(&[0; BLOCK_BYTES][..(BLOCK_BYTES - over) % BLOCK_BYTES])
}

/// Unpacks an archive into an empty directory, until its end or `stop`.
///
/// # Errors
/// It is not such an archive, is truncated or damaged, holds something else, or cannot be written.
pub(crate) fn unpack(
    from: impl Read,
    dump: &Dump,
    stop: &CancellationToken,
    mut count: impl FnMut(u64),
) -> io::Result<()> {
    let mut from = BufReader::with_capacity(PIECE_BYTES, from);
    if !from.fill_buf()?.starts_with(&MAGIC) {
        return Err(wrong("not an archive written by xs export --archive".to_owned()));
    }
    dump.make()?;
    let mut archive = tar::Archive::new(zstd::Decoder::with_buffer(from)?);
    let mut has_frames = false;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").to_owned();
        let place = match (entry.header().entry_type(), name.as_str()) {
            (tar::EntryType::Directory, "" | "cas/" | "cas")
            | (tar::EntryType::Regular, "export.json") => continue,
            (tar::EntryType::Regular, "frames.jsonl") => {
                has_frames = true;
                (dump.frames(), None)
            }
            (tar::EntryType::Regular, name) => match name.strip_prefix("cas/").and_then(named) {
                Some(hash) => (dump.blob(&hash), Some(hash)),
                None => {
                    return Err(wrong(format!(
                        "it contains {name:?}, which does not belong in an export"
                    )));
                }
            },
            _ => return Err(wrong(format!("it contains {name:?}, which is not a file"))),
        };
        let (path, hash) = place;
        let mut file = File::create(path)?;
        let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
        loop {
            if stop.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = entry.read(&mut piece)?;
            if len == 0 {
                break;
            }
            hasher.update(&piece[..len]);
            file.write_all(&piece[..len])?;
            count(len as u64);
        }
        let found = BlobHash::from_bytes(hasher.finalize().into());
        if hash.is_some_and(|hash| hash != found) {
            return Err(wrong(format!("the content of {name} does not match its hash")));
        }
    }
    if !has_frames {
        return Err(wrong("it has no frames.jsonl: it is truncated, or not an export".to_owned()));
    }
    // The rest of the last block, which includes the checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// The hash encoded in the name of a body.
fn named(name: &str) -> Option<BlobHash> {
    let hash = BlobHash::parse(std::str::from_utf8(&STANDARD.decode(name).ok()?).ok()?).ok()?;
    (STANDARD.encode(hash.to_string()) == name).then_some(hash)
}

fn wrong(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(bodies: &[&[u8]], lines: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Vec::new(), dir.path()).unwrap();
        for bytes in bodies {
            let hash = BlobHash::of(bytes);
            assert!(!writer.has(&hash));
            let mut body = writer.body(&hash, bytes.len() as u64).unwrap();
            bytes.chunks(5).for_each(|piece| body.write(piece).unwrap());
            body.finish().unwrap();
            assert!(writer.has(&hash));
        }
        lines.iter().for_each(|line| writer.line(line).unwrap());
        writer.finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> io::Result<(tempfile::TempDir, Dump)> {
        let dir = tempfile::tempdir().unwrap();
        let dump = Dump::at(dir.path());
        unpack(bytes, &dump, &CancellationToken::new(), |_| ())?;
        Ok((dir, dump))
    }

    #[test]
    fn what_is_packed_is_unpacked_and_packed_the_same_again() {
        let block = [7; BLOCK_BYTES];
        let bodies: [&[u8]; 3] = [b"a body", &block, b""];
        let bytes = archive(&bodies, &["{}", "{\"a\":1}"]);
        assert_eq!(bytes, archive(&bodies, &["{}", "{\"a\":1}"]));
        let (_dir, dump) = unpacked(&bytes).unwrap();
        assert_eq!(std::fs::read_to_string(dump.frames()).unwrap(), "{}\n{\"a\":1}\n");
        for body in bodies {
            assert_eq!(std::fs::read(dump.blob(&BlobHash::of(body))).unwrap(), body);
        }
    }

    #[test]
    fn what_is_cut_off_damaged_or_foreign_is_refused() {
        let bytes = archive(&[&[9; 3000], b"x"], &["{}"]);
        for end in (0..bytes.len()).step_by(7) {
            assert!(unpacked(&bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            // Some bits of the zstd header have no effect.
            if let Ok((_dir, dump)) = unpacked(&damaged) {
                assert_eq!(std::fs::read(dump.frames()).unwrap(), b"{}\n", "byte {at}");
            }
        }
        let foreign = |name: &str, kind: tar::EntryType| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = header("x", 0).unwrap();
            header.set_entry_type(kind);
            // Written directly, since `set_path` refuses names that lead outside.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, io::empty()).unwrap();
            zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap()
        };
        for (name, kind) in [
            ("../x", tar::EntryType::Regular),
            ("/etc/x", tar::EntryType::Regular),
            ("cas/../../x", tar::EntryType::Regular),
            ("cas/x", tar::EntryType::Regular),
            ("frames.jsonl", tar::EntryType::Symlink),
            ("cas", tar::EntryType::Symlink),
        ] {
            assert!(unpacked(&foreign(name, kind)).is_err(), "{name}");
        }
        let hash = BlobHash::of(b"one");
        let mut lying = Writer::new(Vec::new(), Path::new("/tmp")).unwrap();
        let mut body = lying.body(&hash, 3).unwrap();
        body.write(b"two").unwrap();
        assert!(body.finish().is_err());
    }
}

//! Allocation, cache advice, filesystem kinds, randomness. None of it needs `unsafe`.

use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, SeekFrom, seek};
use rustix::io::Errno;

/// Pages that allocate space are synced in pieces of this size: larger ones would delay the syncs
/// of concurrent appends.
const PAGES_SYNCED: u64 = 1024 * 1024;
/// Written one by one: the page cache keeps what one call writes as one folio, of which a store
/// through a map then dirties all, and each sync writes all of it again.
const PAGE_LEN: usize = 4096;

/// Allocates space for a part of a file, so that later writes cannot fail for lack of it. Existing
/// content stays.
pub(crate) fn allocate(file: &File, part: Range<u64>) -> io::Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    match fallocate(file, &part) {
        // A filesystem that cannot preallocate gives space to what is written.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_again(file, part),
        other => Ok(other?),
    }
}

/// Allocates space for a part of a file that holds nothing yet, filled with zeros, so that a later
/// sync has no extents to convert.
pub(crate) fn allocate_zeros(file: &File, part: Range<u64>) -> io::Result<()> {
    match fallocate(file, &part) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, part),
        Err(errno) => Err(errno.into()),
    }
}

fn fallocate(file: &File, part: &Range<u64>) -> Result<(), Errno> {
    loop {
        let (at, len) = (part.start, part.end - part.start);
        match rustix::fs::fallocate(file, FallocateFlags::empty(), at, len) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn write_zeros(file: &File, part: Range<u64>) -> io::Result<()> {
    write_pages(file, part, |_, _| Ok(()))
}

/// Rewrites a part of a file with its own content; holes become zeros.
fn write_again(file: &File, part: Range<u64>) -> io::Result<()> {
    let read = |at: u64, page: &mut [u8]| {
        page.fill(0);
        let mut done = 0;
        while done < page.len() {
            match file.read_at(&mut page[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    write_pages(file, part, read)
}

/// Writes a part of a file page by page. `fill` fills a buffer that holds zeros or the previous
/// page.
fn write_pages(
    file: &File,
    part: Range<u64>,
    mut fill: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut page = [0; PAGE_LEN];
    let mut at = part.start;
    while at < part.end {
        let piece = (part.end - at).min(PAGE_LEN as u64);
        let page = &mut page[..piece as usize];
        fill(at, page)?;
        file.write_all_at(page, at)?;
        at += piece;
        if at.is_multiple_of(PAGES_SYNCED) || at == part.end {
            file.sync_data()?;
        }
    }
    Ok(())
}

/// Free bytes of the filesystem of a path; `u64::MAX` if unknown.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(u64::MAX, |told| told.f_bavail.saturating_mul(told.f_frsize))
}

/// Maximum bytes of a folio: the page cache drops all of it or none.
pub(crate) const FOLIO_MAX: u64 = 2 * 1024 * 1024;

/// Asks the kernel to drop the clean pages of a part of a file, so that reads see what the disk
/// has. After a failed sync the page cache holds bytes the disk never got.
pub(crate) fn drop_cache(file: &File, part: Range<u64>) -> io::Result<()> {
    let from = part.start - part.start % FOLIO_MAX;
    let len = part.end.checked_next_multiple_of(FOLIO_MAX).map(|end| end.saturating_sub(from));
    // No length means up to the end.
    Ok(rustix::fs::fadvise(file, from, len.and_then(NonZeroU64::new), Advice::DontNeed)?)
}

/// Maximum extents to look up; a file with more is treated as full of data.
const STRETCHES_MAX: usize = 256;

/// Where the data of a file of `len` bytes ends: after it is a hole, or space that is allocated
/// but unwritten, and both read as zeros. `len` where the filesystem cannot tell.
pub(crate) fn data_end(file: &File, len: u64) -> u64 {
    let mut end = 0;
    for _ in 0..STRETCHES_MAX {
        let data = match seek(file, SeekFrom::Data(end)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return end,
            Err(_) => return len,
        };
        match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if hole < len => end = hole,
            _ => return len,
        }
    }
    len
}

/// Whether stores into a map of a file in `dir` are as safe as writes: the filesystem writes in
/// place, so allocated space cannot run out later.
pub(crate) fn is_mappable(dir: &Path) -> bool {
    const EXT4: i64 = 0xEF53;
    const XFS: i64 = 0x5846_5342;
    matches!(kind_of(dir), Some(EXT4 | XFS | TMPFS))
}

/// Whether `dir` is in memory: there even a load from a hole through a map needs space, and kills
/// the process when there is none.
pub(crate) fn is_memory(dir: &Path) -> bool {
    kind_of(dir) == Some(TMPFS)
}

const TMPFS: i64 = 0x0102_1994;

fn kind_of(dir: &Path) -> Option<i64> {
    #[allow(clippy::unnecessary_cast, reason = "the type of f_type differs by platform")]
    rustix::fs::statfs(dir).ok().map(|stat| stat.f_type as i64)
}

/// Bytes from the kernel's generator.
pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_again_stays() {
        let file = tempfile::tempfile().unwrap();
        let len = PAGE_LEN as u64 * 3;
        let mut want: Vec<u8> = (0..len - 100).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&want, 0).unwrap();
        write_again(&file, 0..len + 5).unwrap();
        want.resize(len as usize + 5, 0);
        let mut got = vec![1; want.len()];
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got == want);
        assert_eq!(file.metadata().unwrap().len(), len + 5);
    }

    #[test]
    fn data_ends_where_only_zeros_follow() {
        let file = tempfile::tempfile().unwrap();
        const LEN: u64 = 1 << 20;
        allocate(&file, 0..LEN).unwrap();
        let ends_in = |file: &File, range: Range<u64>| {
            let end = data_end(file, LEN);
            assert!(range.contains(&end) || end == LEN, "{end}");
            let mut rest = vec![1; (LEN - end) as usize];
            file.read_exact_at(&mut rest, end).unwrap();
            assert!(rest.iter().all(|&byte| byte == 0));
        };
        ends_in(&file, 0..1);
        file.write_all_at(&[7; 100], 5000).unwrap();
        ends_in(&file, 5100..LEN);
        file.write_all_at(&[7], 300_000).unwrap();
        ends_in(&file, 300_001..LEN);
        file.write_all_at(&[7], LEN - 1).unwrap();
        assert_eq!(data_end(&file, LEN), LEN);
    }
}

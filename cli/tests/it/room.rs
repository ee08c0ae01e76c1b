//! A server whose disk fills up: its operator learns of it, and of the end of it.

use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use crate::metrics::{address, get};
use crate::support::{Sandbox, Server, eventually, text};

/// Serves from a small filesystem in memory that only the server sees; `None` when this process may
/// not mount any.
fn serve_in(place: &Sandbox, mib: u32) -> Option<Server> {
    let mut mount = Command::new("unshare");
    mount.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        // Not with the macros, whose output is hidden when a test passes.
        let line = "skipped: a server whose disk is full: no mount without root\n";
        io::stdout().lock().write_all(line.as_bytes()).unwrap();
        return None;
    }
    fs::create_dir(place.store()).unwrap();
    let script = format!("mount -t tmpfs -o size={mib}m tmpfs \"$XS_ADDR\" && exec \"$@\"");
    let log = fs::File::create(place.path("log")).unwrap();
    let (xs, store) = (place.command(&[]), place.store());
    let args = ["serve", text(&store), "--listen", ":0", "--metrics", ":0"];
    let child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(xs.get_program())
        .args(args)
        .env("XS_ADDR", place.store())
        .stderr(log)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Some(Server::from(child))
}

#[test]
fn a_full_disk_is_reported_until_a_blob_is_stored() {
    let place = Sandbox::new();
    let Some(server) = serve_in(&place, 160) else { return };
    let (log, http) = (|| place.log(), address(&place));
    let addr = eventually(|| {
        let log = place.log();
        let line = log.lines().find(|line| line.contains(" serving "))?;
        Some(
            line.split("127.0.0.1:")
                .nth(1)?
                .split(|c: char| !c.is_ascii_digit())
                .next()?
                .to_owned(),
        )
    });
    let addr = format!("127.0.0.1:{addr}");
    let readiness = || get(&http, "/readyz");
    eventually(|| (readiness().0 == 200).then_some(()));
    // A segment for small events exists before the disk is full.
    place.ok(&["append", "-a", &addr, "t", "first"]);
    // Data that zstd cannot compress.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    });
    let large: Vec<u8> = noise.take(160 << 20).collect();
    let put = |bytes: &[u8]| place.xs_with(&["cas", "put", "-a", &addr], bytes);
    let refused = put(&large);
    assert!(refused.err.contains("the disk is full"), "{}", refused.err);
    assert_eq!(readiness(), (503, readiness().1));
    assert!(readiness().1.contains("room: the disk is full"), "{}", readiness().1);
    place.ok(&["append", "-a", &addr, "t", "small"]);
    assert_eq!(readiness().0, 503, "a small event says nothing of blobs");
    assert_eq!(log().matches("the disk is full: appends are refused").count(), 1, "{}", log());
    assert_eq!(put(&large[..200_000]).code, 0);
    assert_eq!(readiness().0, 200, "{}", readiness().1);
    assert_eq!(log().matches("the store has room again").count(), 1, "{}", log());
    assert!(server.stop().success());
}

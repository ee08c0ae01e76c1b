//! Refuses system calls that no module needs and through which a compromised process could reach
//! beyond itself. A deny list, not an allow list: the latter would break with the next libc, and
//! files and addresses are guarded separately.

use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule,
};

/// Refused with any arguments.
const REFUSED: &[c_long] = &[
    // Other processes.
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_kcmp,
    libc::SYS_personality,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Incoming connections: Landlock guards explicitly bound ports, but a socket that listens
    // unbound gets a port of its own.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_listen,
    // File access that bypasses the guards.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    // The kernel.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_userfaultfd,
];
/// Also refused to a module that starts no programs.
#[cfg(target_arch = "x86_64")]
const PROGRAMS: &[c_long] =
    &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_fork, libc::SYS_kill, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_kill];
/// The allowed socket families: network addresses, and what libc needs to look them up. A Unix
/// socket would reach the store itself, with the owner's rights.
const FAMILIES: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Refuses these calls from now on, on this thread and all its descendants. Returns the status, for
/// people.
///
/// # Errors
/// When the kernel supports filters and rejects these.
pub(super) fn refuse(programs: bool) -> io::Result<String> {
    let has = std::fs::read_to_string("/proc/self/status")?.contains("Seccomp:");
    if has {
        filters(programs).map_err(|error| io::Error::other(format!("seccomp: {error}")))?;
    }
    Ok(if has { "on" } else { "not in this kernel" }.to_owned())
}

fn filters(programs: bool) -> Result<(), Error> {
    let mut refused: Vec<(c_long, Vec<SeccompRule>)> =
        REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let other = |family: &i32| condition(0, Len::Dword, Op::Ne, family.unsigned_abs().into());
    let families = FAMILIES.iter().map(other).collect::<Result<Vec<_>, _>>()?;
    refused.push((libc::SYS_socket, vec![SeccompRule::new(families)?]));
    // A module's programs are killed with it and may signal each other; Landlock scopes, where
    // available, keep their signals among them.
    if !programs {
        // A process may signal its own threads: abort() does so.
        let itself = u64::from(std::process::id());
        let others = SeccompRule::new(vec![condition(0, Len::Dword, Op::Ne, itself)?])?;
        refused.push((libc::SYS_tgkill, vec![others]));
        let thread: u64 = libc::CLONE_THREAD.unsigned_abs().into();
        let process = condition(0, Len::Qword, Op::MaskedEq(thread), 0)?;
        refused.push((libc::SYS_clone, vec![SeccompRule::new(vec![process])?]));
        refused.extend(PROGRAMS.iter().map(|&call| (call, Vec::new())));
    }
    install(refused, libc::EPERM)?;
    if !programs {
        // The flags of clone3 are behind a pointer, which a filter cannot follow. On ENOSYS, libc
        // creates threads with the older call.
        install(vec![(libc::SYS_clone3, Vec::new())], libc::ENOSYS)?;
    }
    Ok(())
}

fn condition(argument: u8, len: Len, op: Op, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(argument, len, op, value)?)
}

fn install(refused: Vec<(c_long, Vec<SeccompRule>)>, errno: i32) -> Result<(), Error> {
    let filter = SeccompFilter::new(
        refused.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use rustix::io::Errno;
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, accept, bind, listen, recv, sendto, socket,
    };

    use super::*;

    /// Runs in a thread, since filters apply to the thread that installs them and end with it.
    fn confined(programs: bool, work: impl FnOnce() + Send + 'static) {
        let has = std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:");
        let thread = std::thread::spawn(move || {
            refuse(programs).unwrap();
            if has {
                work();
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_socket_without_a_port_does_not_listen() {
        for programs in [false, true] {
            confined(programs, || {
                for family in [AddressFamily::INET, AddressFamily::INET6] {
                    let Ok(socket) = socket(family, SocketType::STREAM, None) else { continue };
                    assert_eq!(listen(&socket, 1), Err(Errno::PERM));
                    assert_eq!(accept(&socket).err(), Some(Errno::PERM));
                }
            });
        }
    }

    /// A resolver sends queries and receives answers.
    #[test]
    fn datagrams_are_let_through() {
        confined(false, || {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let near = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
            bind(&near, &any).unwrap();
            let at = rustix::net::getsockname(&near).unwrap();
            sendto(&near, b"hello", SendFlags::empty(), &at).unwrap();
            let mut got = [0; 8];
            assert_eq!(recv(&near, &mut got[..], RecvFlags::empty()).unwrap().0, 5);
        });
    }
}

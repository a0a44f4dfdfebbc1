//! A tracer of system calls on `ptrace`, which needs no other program and no right but that over one's own children.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitStatus};

use libc::{c_int, c_long, pid_t};

/// What a process asked for, granted or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Where it connects or sends to: an address, or the path of a socket.
    Connects(String),
    /// A file or folder that is created, opened to be written to, renamed or removed.
    Writes(PathBuf),
}

/// Which arguments of a call are paths that it changes: for each, the place of the folder that it is relative to (none:
/// the working folder), and of the path.
type Paths = &'static [(Option<usize>, usize)];

const CHANGES: &[(c_long, Paths)] = &[
    (libc::SYS_mkdirat, &[(Some(0), 1)]),
    (libc::SYS_mknodat, &[(Some(0), 1)]),
    (libc::SYS_unlinkat, &[(Some(0), 1)]),
    (libc::SYS_renameat2, &[(Some(0), 1), (Some(2), 3)]),
    (libc::SYS_renameat, &[(Some(0), 1), (Some(2), 3)]),
    (libc::SYS_linkat, &[(Some(2), 3)]),
    (libc::SYS_symlinkat, &[(Some(1), 2)]),
    (libc::SYS_truncate, &[(None, 0)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, &[(None, 0)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, &[(None, 0)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, &[(None, 0)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, &[(None, 0)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, &[(None, 0)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, &[(None, 0), (None, 1)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, &[(None, 1)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, &[(None, 1)]),
];

const OPENED_TO_WRITE: u64 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64;

/// Runs a command, and every thread and process that it starts, to their ends.
pub fn trace(command: &mut Command) -> (ExitStatus, BTreeSet<Access>) {
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec, the child makes one system call and takes no memory.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let child = command.spawn().expect("ptrace must be allowed for the test's own children").id() as pid_t;
    let (mut accesses, mut seen, mut status) = (BTreeSet::new(), BTreeSet::new(), None);
    while let Some((process, of_process)) = next_change() {
        if !libc::WIFSTOPPED(of_process) {
            if process == child {
                status = Some(ExitStatus::from_raw(of_process));
            }
            continue;
        }
        let is_new = seen.insert(process);
        if is_new && process == child {
            let follow = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
            let options = follow | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
            ask(libc::PTRACE_SETOPTIONS, process, 0, options as usize);
        }
        let signal = match libc::WSTOPSIG(of_process) {
            // A system call, as PTRACE_O_TRACESYSGOOD marks it.
            call if call == libc::SIGTRAP | 0x80 => {
                if let Some((number, arguments)) = call_that_begins(process) {
                    accesses.extend(of_call(process, number, &arguments));
                }
                0
            }
            // Of ptrace itself: a fork, an exec, the first stop of a new thread.
            libc::SIGTRAP => 0,
            libc::SIGSTOP if is_new => 0,
            other => other,
        };
        ask(libc::PTRACE_SYSCALL, process, 0, signal as usize);
    }
    (status.expect("the command ended"), accesses)
}

/// The next thread that stopped or ended. Of this thread's own children only: other tests have theirs.
fn next_change() -> Option<(pid_t, c_int)> {
    let mut status = 0;
    #[allow(unsafe_code)]
    // SAFETY: `status` lives as long as the call.
    let process = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    (process > 0).then_some((process, status))
}

/// A request to ptrace. One that fails is about a process that was killed meanwhile, whose end comes next.
fn ask(request: libc::c_uint, process: pid_t, address: usize, data: usize) -> c_long {
    #[allow(unsafe_code)]
    // SAFETY: where the request makes the kernel write, `data` points to a place of `address` bytes.
    unsafe {
        libc::ptrace(request, process, address, data)
    }
}

/// The number and the arguments of a call that a stopped thread is about to make.
fn call_that_begins(process: pid_t) -> Option<(c_long, [u64; 6])> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    ask(libc::PTRACE_GET_SYSCALL_INFO, process, size, info.as_mut_ptr() as usize);
    #[allow(unsafe_code)]
    // SAFETY: zeros are a value of it; the kernel has written the part `entry` where `op` says so.
    unsafe {
        let info = info.assume_init();
        let is_entry = info.op == libc::PTRACE_SYSCALL_INFO_ENTRY;
        is_entry.then_some((info.u.entry.nr as c_long, info.u.entry.args))
    }
}

fn of_call(process: pid_t, number: c_long, arguments: &[u64; 6]) -> Vec<Access> {
    let path = |folder: Option<usize>, at: usize| {
        let folder = folder.map_or(libc::AT_FDCWD, |at| arguments[at] as c_int);
        Access::Writes(path_of(process, folder, arguments[at]))
    };
    let opens = |flags: u64, folder: Option<usize>, at: usize| match flags & OPENED_TO_WRITE {
        0 => Vec::new(),
        _ => vec![path(folder, at)],
    };
    match number {
        libc::SYS_connect => vec![connects(process, arguments[1], arguments[2])],
        // Without an address, it is that of an earlier `connect`.
        libc::SYS_sendto if arguments[4] != 0 => vec![connects(process, arguments[4], arguments[5])],
        libc::SYS_sendmsg => of_message(process, arguments[1]).into_iter().collect(),
        libc::SYS_sendmmsg => {
            let message = |i| arguments[1] + i * size_of::<libc::mmsghdr>() as u64;
            (0..arguments[2]).filter_map(|i| of_message(process, message(i))).collect()
        }
        libc::SYS_openat => opens(arguments[2], Some(0), 1),
        // The flags are the first number of a struct.
        libc::SYS_openat2 => opens(word(process, arguments[2]), Some(0), 1),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => opens(arguments[1], None, 0),
        _ => {
            let paths = CHANGES.iter().find(|(call, _)| *call == number).map_or(&[][..], |(_, paths)| paths);
            paths.iter().map(|&(folder, at)| path(folder, at)).collect()
        }
    }
}

/// A message begins with the place and the length of its address.
fn of_message(process: pid_t, message: u64) -> Option<Access> {
    let (address, length) = (word(process, message), word(process, message + 8) & u64::from(u32::MAX));
    (address != 0).then(|| connects(process, address, length))
}

fn connects(process: pid_t, address: u64, length: u64) -> Access {
    let bytes = memory(process, address, length.min(128) as usize);
    let port = || u16::from_be_bytes([bytes[2], bytes[3]]);
    let family = bytes.get(..2).map(|b| c_int::from(u16::from_ne_bytes([b[0], b[1]])));
    Access::Connects(match (family, bytes.len()) {
        (Some(libc::AF_INET), 8..) => {
            let host: [u8; 4] = bytes[4..8].try_into().unwrap();
            SocketAddr::from((host, port())).to_string()
        }
        (Some(libc::AF_INET6), 24..) => {
            let host: [u8; 16] = bytes[8..24].try_into().unwrap();
            SocketAddr::from((host, port())).to_string()
        }
        // A name without a file begins with a zero byte.
        (Some(libc::AF_UNIX), 3..) => {
            let name = bytes[2..].split(|&b| b == 0).find(|part| !part.is_empty());
            String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
        }
        (other, _) => format!("an address of family {other:?}"),
    })
}

fn path_of(process: pid_t, folder: c_int, address: u64) -> PathBuf {
    let bytes = memory(process, address, libc::PATH_MAX as usize);
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let path = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let base = match folder {
        libc::AT_FDCWD => format!("/proc/{process}/cwd"),
        descriptor => format!("/proc/{process}/fd/{descriptor}"),
    };
    resolved(&fs::read_link(base).unwrap_or_default().join(path))
}

/// Without links, `.` and `..`, but in its last part, which may be a link that is replaced.
fn resolved(path: &Path) -> PathBuf {
    let (Some(folder), Some(Component::Normal(name))) = (path.parent(), path.components().next_back()) else {
        return path.to_path_buf();
    };
    folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf()).join(name)
}

fn word(process: pid_t, address: u64) -> u64 {
    memory(process, address, 8).try_into().map_or(u64::MAX, u64::from_ne_bytes)
}

/// What lies in a process's memory, up to so many bytes: fewer where the memory ends before.
fn memory(process: pid_t, address: u64, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; most];
    let read = File::open(format!("/proc/{process}/mem")).and_then(|file| file.read_at(&mut bytes, address));
    bytes.truncate(read.unwrap_or(0));
    bytes
}

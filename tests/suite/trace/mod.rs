//! What the program reaches, by a trace of its system calls: no other machine, and no file outside of the run folder, the
//! cache and the folder for temporary files.

mod tracer;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tracer::{Access, trace};

use crate::support::*;

/// Devices that keep nothing.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/tty"];

/// Sockets of this machine's own name service, which the C library asks for the user's name and home. A `python3` that is
/// a shell script (pyenv's) starts a shell, and the shell asks.
const NAME_SERVICE: [&str; 2] = ["/var/run/nscd/socket", "/run/nscd/socket"];

/// What a command accessed outside of these folders.
fn elsewhere(command: &mut Command, folders: &[&Path]) -> Vec<Access> {
    let output = tempfile::NamedTempFile::new().unwrap();
    command.stdin(std::process::Stdio::null());
    command.stdout(output.reopen().unwrap()).stderr(output.reopen().unwrap());
    let (status, accesses) = trace(command);
    assert!(status.success(), "{command:?}: {}", std::fs::read_to_string(output.path()).unwrap());
    assert!(!accesses.is_empty() || folders.is_empty(), "{command:?} wrote nothing, so that nothing was tested");
    let is_allowed = |access: &Access| match access {
        Access::Writes(path) => {
            folders.iter().any(|folder| path.starts_with(folder))
                || DEVICES.iter().any(|device| path == Path::new(device))
        }
        Access::Connects(to) => {
            to.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
                || NAME_SERVICE.contains(&to.as_str())
        }
    };
    accesses.into_iter().filter(|access| !is_allowed(access)).collect()
}

#[test]
fn a_run_writes_to_its_own_folders_and_asks_no_other_machine() {
    let library = selfrepair_model::provision::locate_library().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let [home, temporary, out] = ["home", "tmp", "out"].map(|name| dir.join(name));
    for folder in [&home, &temporary] {
        std::fs::create_dir(folder).unwrap();
    }
    let of_out = out.to_str().unwrap();
    let settings = TINY_SETTINGS.iter().flat_map(|setting| ["--set", setting]);
    let run: Vec<&str> = ["run", "all", "--out", of_out].into_iter().chain(settings).collect();
    let cases: [(&[&str], &[&Path]); 5] = [
        (&run, &[&out, &temporary]),
        (&["sql", "--out", of_out, "select count(*) from ablations"], &[&temporary]),
        (&["status", "--out", of_out], &[]),
        (&["model", TINY], &[&temporary]),
        (&["doctor"], &[]),
    ];
    for (args, folders) in cases {
        let mut command = pipeline();
        command.args(args).env("HOME", &home).env("TMPDIR", &temporary).env("ORT_DYLIB_PATH", &library.path);
        for name in ["XDG_CACHE_HOME", "XDG_STATE_HOME", "ORT_DISABLE_TELEMETRY"] {
            command.env_remove(name);
        }
        let found = elsewhere(&mut command, folders);
        assert!(found.is_empty(), "{args:?}: {found:#?}");
    }
}

/// Python does what the program must not, in a thread and in a process of its own. Nothing listens at that address, and
/// nothing is sent beyond this machine.
#[test]
fn the_tracer_sees_connections_and_writes_of_threads_and_children() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let script = "
import os, socket, subprocess, sys, threading
def thread():
    os.mkdir('made')
    with open('made/file', 'w') as file: file.write('a')
    os.rename('made/file', 'made/other')
    open('made/other').read()
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'a', ('127.0.0.2', 9))
    socket.socket(socket.AF_UNIX).connect_ex('none')
thread = threading.Thread(target=thread); thread.start(); thread.join()
child = 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((\"127.0.0.3\", 53))'
subprocess.run([sys.executable, '-c', child], check=True)
os.unlink('made/other')
";
    let mut command = Command::new("python3");
    command.args(["-B", "-c", script]).current_dir(&dir);
    let (status, found) = trace(&mut command);
    assert!(status.success());
    let writes = ["made", "made/file", "made/other"].map(|name| Access::Writes(dir.join(name)));
    let connects = ["127.0.0.2:9", "none", "127.0.0.3:53"].map(|to| Access::Connects(to.to_string()));
    for expected in writes.iter().chain(&connects) {
        assert!(found.contains(expected), "{expected:?} is not among {found:?}");
    }
    assert!(!found.contains(&Access::Writes(dir.join("none"))), "{found:?}");
}

//! Full disks and folders that are not writable.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use super::*;

/// Runs a shell script that may mount file systems, which are gone when it ends. `None` where the machine allows no
/// namespaces of mounts; that is said, and then only the limit on file sizes stands in for a full disk.
fn where_mounting_is_allowed(script: &str) -> Option<Output> {
    for flags in ["-m", "-Urm"] {
        let allowed = Command::new("unshare").args([flags, "sh", "-c", "mount -t tmpfs none /mnt"]).output();
        if allowed.is_ok_and(|o| o.status.success()) {
            return Some(Command::new("unshare").args([flags, "sh", "-c", script]).output().unwrap());
        }
    }
    println!("this machine allows no mounts (unshare -Urm); tested with a limit on file sizes only");
    None
}

/// `pipeline run STAGE` as a shell command.
fn command(stage: &str, out: &Path) -> String {
    in_shell(&everything(stage, out))
}

fn expected() -> (tempfile::TempDir, Vec<(String, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    succeeded(everything("all", dir.path()).output().unwrap());
    let expected = contents(dir.path());
    (dir, expected)
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_the_run_resumes_when_there_is_room() {
    let (whole, expected) = expected();
    let size: u64 = files(whole.path()).iter().map(|p| p.metadata().unwrap().len().next_multiple_of(4096)).sum();
    let mut dice = Dice::new();
    let count = cases(4, 30);
    for case in 0..count {
        let dir = tempfile::tempdir().unwrap();
        let (disk, copy) = (dir.path().join("disk"), dir.path().join("copy"));
        fs::create_dir(&disk).unwrap();
        let run = command("all", &disk.join("out"));
        // From almost nothing to almost enough.
        let kilobytes = 64 + size as usize / 1024 * (case * 100 / count + dice.below(100 / count + 1)) / 110;
        let (disk, copy) = (disk.display(), copy.display());
        let script = format!(
            "mount -t tmpfs -o size={kilobytes}k none {disk} || exit 9
             {run} >&2 && exit 8
             mount -o remount,size=1g {disk} || exit 9
             {run} && cp -r {disk}/out {copy}"
        );
        let Some(output) = where_mounting_is_allowed(&script) else { return };
        let said = text(&output.stderr);
        assert!(output.status.success(), "{kilobytes} kB of {size} bytes: {:?}\n{said}", output.status);
        assert!(said.contains("No space left on device") && said.contains("error: "), "{said}");
        assert!(said.contains(&format!("{disk}/out/")), "no file is named: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_same(&dir.path().join("copy"), &expected, &format!("a disk of {kilobytes} kB"));
    }
    println!("full disks survived: {count}");
}

/// Works everywhere: a file may not grow beyond a limit.
#[test]
fn a_file_that_cannot_be_written_is_named_and_nothing_else_is_damaged() {
    let (whole, expected) = expected();
    let largest = files(whole.path()).iter().map(|p| p.metadata().unwrap().len()).max().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let count = cases(4, 20) as u64;
    for case in 0..count {
        // In blocks of 512 bytes.
        let blocks = largest * case / count / 512;
        let script = format!("ulimit -f {blocks}; exec {}", command("all", dir.path()));
        let error = failed(Command::new("sh").args(["-c", &script]).output().unwrap());
        assert!(error.contains("File too large") && error.contains(&dir.path().display().to_string()), "{error}");
    }
    succeeded(everything("all", dir.path()).output().unwrap());
    assert_same(dir.path(), &expected, "limits on file sizes");
    println!("limits on file sizes survived: {count}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let (corpus, all) = (command("corpus", &disk.join("out")), command("analyze", &disk.join("out")));
    let disk = disk.display();
    let script = format!(
        "mount -t tmpfs none {disk} && {corpus} && mount -o remount,ro {disk} || exit 9
         {all} && exit 8
         mount -o remount,rw {disk} && {all}"
    );
    let Some(output) = where_mounting_is_allowed(&script) else { return };
    let said = text(&output.stderr);
    assert!(output.status.success(), "{:?} {said}", output.status);
    assert!(said.contains("error: cannot write") && said.contains("Read-only file system"), "{said}");
}

/// Root may write anywhere, so that a run of root's is given to nobody.
#[test]
fn a_folder_without_permission_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let as_somebody = |out: &Path| {
        let mut command = everything("corpus", out);
        if is_root {
            command.uid(65534);
        }
        command.output()
    };
    match as_somebody(&closed.join("out")) {
        Ok(output) => {
            let error = failed(output);
            assert!(error.contains(&format!("cannot create {}", closed.join("out").display())), "{error}");
            assert!(error.contains("Permission denied"), "{error}");
        }
        Err(e) => println!("nobody may not run this program here ({e}); tested without permissions only"),
    }

    // What stands in the way of a folder is no folder.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = failed(everything("corpus", &file.join("out")).output().unwrap());
    assert!(error.contains(&format!("cannot create {}", file.join("out").display())), "{error}");
}

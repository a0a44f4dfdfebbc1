//! Memory limits of control groups, versions 1 and 2, which Slurm, systemd and containers use.
//!
//! A group is limited by each of its ancestors, so all groups up to the root are read.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Bytes that the groups of this process leave it; `None` if none of them has a limit. `root` is `/`, but for tests.
pub fn left(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let mut least = None;
    for (version, path) in groups.lines().filter_map(group) {
        let (mount, inside) = mount(&mounts, version).unwrap_or_else(|| (version.usual_mount().into(), "/".into()));
        // A container's group can be the mount's root, which then is a part of the group's path.
        let below = Path::new(path).strip_prefix(&inside).unwrap_or(Path::new(path));
        let mount = root.join(mount.strip_prefix("/").unwrap_or(&mount));
        let own = below.components().filter(|c| matches!(c, Component::Normal(_)));
        let mut folder = own.fold(mount.clone(), |folder, part| folder.join(part));
        loop {
            least = [least, version.left_in(&folder)].into_iter().flatten().min();
            if folder == mount || !folder.pop() {
                break;
            }
        }
    }
    least
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

/// A line of `/proc/self/cgroup` that is about memory: `0::/a/b`, or `5:memory:/a/b` of version 1.
fn group(line: &str) -> Option<(Version, &str)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    match (number, controllers) {
        ("0", "") => Some((Version::Two, path)),
        _ if controllers.split(',').any(|c| c == "memory") => Some((Version::One, path)),
        _ => None,
    }
}

/// Where the groups of a version are mounted, and which group is that mount's root (`man 5 proc`: mountinfo).
fn mount(mounts: &str, version: Version) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (of_mount, of_system) = line.split_once(" - ")?;
        let (mut mount, mut system) = (of_mount.split(' '), of_system.split(' '));
        let (inside, path) = (mount.nth(3)?, mount.next()?);
        let (kind, options) = (system.next()?, system.nth(1)?);
        let found = match version {
            Version::Two => kind == "cgroup2",
            Version::One => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
        };
        found.then(|| (PathBuf::from(path), PathBuf::from(inside)))
    })
}

impl Version {
    fn usual_mount(self) -> &'static str {
        match self {
            Version::One => "/sys/fs/cgroup/memory",
            Version::Two => "/sys/fs/cgroup",
        }
    }

    /// The limit of one group, less what is in use. Pages of files count as in use, but the system lets them go.
    fn left_in(self, group: &Path) -> Option<u64> {
        let (limits, used, [inactive, active]) = match self {
            Version::One => {
                (&["memory.limit_in_bytes"][..], "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"])
            }
            Version::Two => (&["memory.max", "memory.high"][..], "memory.current", ["inactive_file", "active_file"]),
        };
        // "max", and a number near the largest in version 1, mean that there is none.
        let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = limits.iter().filter_map(|file| number(file)).filter(|&n| n < 1 << 60).min()?;
        let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let statistic = |key: &str| -> u64 {
            let fields = statistics.lines().filter_map(|line| line.split_once(' '));
            fields.filter(|(k, _)| *k == key).find_map(|(_, n)| n.trim().parse().ok()).unwrap_or(0)
        };
        let files = statistic(inactive).saturating_add(statistic(active));
        Some(limit.saturating_sub(number(used).unwrap_or(0).saturating_sub(files)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root folder with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn a_nested_group_of_version_2_is_limited_by_the_smallest_above_it() {
        let own = "sys/fs/cgroup/system.slice/slurm/job_7/step_0";
        let file = |name: &str| format!("{own}/{name}");
        let files = [
            ("proc/self/cgroup", "0::/system.slice/slurm/job_7/step_0\n"),
            (&file("memory.max"), "max\n"),
            (&file("memory.current"), "1000\n"),
            ("sys/fs/cgroup/system.slice/slurm/job_7/memory.max", "5000\n"),
            ("sys/fs/cgroup/system.slice/slurm/job_7/memory.current", "2000\n"),
            ("sys/fs/cgroup/system.slice/slurm/job_7/memory.stat", "anon 900\ninactive_file 300\nactive_file 700\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "9000\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "8900\n"),
        ];
        assert_eq!(left(root(&files).path()), Some(100));
        assert_eq!(left(root(&files[..6]).path()), Some(4000));
        assert_eq!(left(root(&files[..3]).path()), None);
        let high = (&*file("memory.high"), "1500\n");
        assert_eq!(left(root(&[&files[..], &[high]].concat()).path()), Some(100));
        assert_eq!(left(root(&[&files[..3], &[high]].concat()).path()), Some(500));
    }

    #[test]
    fn groups_of_version_1_and_containers_that_are_the_root_of_their_mount_are_found() {
        let cgroup = "11:cpu,cpuacct:/docker/ab\n5:hugetlb,memory:/docker/ab\n0::/docker/ab\n";
        let limit = |folder: &str| format!("{folder}/memory.limit_in_bytes");
        let usage = |folder: &str| format!("{folder}/memory.usage_in_bytes");
        // Without a mount that is known: the usual one, of the host and of a container.
        for folder in ["sys/fs/cgroup/memory/docker/ab", "sys/fs/cgroup/memory"] {
            let files =
                [("proc/self/cgroup", cgroup), (&limit(folder), "1572864000\n"), (&usage(folder), "572864000\n")];
            assert_eq!(left(root(&files).path()), Some(1_000_000_000), "{folder}");
        }
        let none = [("proc/self/cgroup", cgroup), (&limit("sys/fs/cgroup/memory"), "9223372036854771712\n")];
        assert_eq!(left(root(&none).path()), None);
        // With one whose root is the container's group; the process is in a group below it.
        let mounts = "35 31 0:32 /docker/ab /mnt/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
        let files = [
            ("proc/self/cgroup", "5:memory:/docker/ab/inner\n"),
            ("proc/self/mountinfo", mounts),
            (&limit("mnt/memory/inner"), "7000\n"),
            (&usage("mnt/memory/inner"), "1000\n"),
            ("mnt/memory/inner/memory.stat", "total_inactive_file 500\n"),
        ];
        assert_eq!(left(root(&files).path()), Some(6500));
    }

    #[test]
    fn nothing_and_nonsense_are_no_limit() {
        assert_eq!(left(root(&[]).path()), None);
        let files = [
            ("proc/self/cgroup", "0::/../../a\nnonsense\n:::\n"),
            ("proc/self/mountinfo", "- - -\n1 2\n"),
            ("sys/fs/cgroup/a/memory.max", "many\n"),
        ];
        assert_eq!(left(root(&files).path()), None);
        // A group outside the namespace is shown by `..`.
        let files = [("proc/self/cgroup", "0::/../../a\n"), ("sys/fs/cgroup/a/memory.max", "70\n")];
        assert_eq!(left(root(&files).path()), Some(70));
    }
}

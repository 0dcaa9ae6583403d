//! What the platform says of itself: read when something failed, to say why.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sys::{
    resource::{RLIM_INFINITY, Resource, getrlimit},
    statvfs::{FsFlags, statvfs},
};

/// Version 1 of memory cgroups says this or more for "no limit".
const CGROUP_V1_UNLIMITED_BYTES: u64 = 1 << 60;

/// `None` and `false` also stand for what cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `vm.memfd_noexec`: at 2, memory files that could be executed are refused.
    pub(super) memfd_noexec: Option<u32>,
    /// A seccomp filter decides on system calls.
    pub(super) seccomp: bool,
    /// There is SELinux.
    pub(super) selinux: bool,
    /// The label or profile that the process runs under, if that confines it.
    pub(super) label: Option<String>,
    /// The directory's file system refuses to run what lies there.
    pub(super) directory_noexec: bool,
    /// RLIMIT_AS, if there is one.
    pub(super) address_space_bytes: Option<u64>,
    /// RLIMIT_FSIZE, if there is one.
    pub(super) file_size_bytes: Option<u64>,
    /// The tightest limit of the process's memory cgroups, if there is one.
    pub(super) cgroup_memory_bytes: Option<u64>,
    /// `vm.max_map_count`.
    pub(super) mappings_max: Option<u64>,
    /// `vm.mmap_min_addr`.
    pub(super) mapped_from: Option<u64>,
    /// Free pages of 2 MiB in the system's pool.
    pub(super) huge_pages_free: Option<u64>,
}

impl Facts {
    /// Those of this process, and of the directory that a nameless file would lie in.
    pub(super) fn read(directory: Option<&Path>) -> Self {
        let limit = |resource| getrlimit(resource).ok().map(|(soft, _)| soft).filter(|&soft| soft != RLIM_INFINITY);
        Self {
            directory_noexec: directory
                .and_then(|it| statvfs(it).ok())
                .is_some_and(|it| it.flags().contains(FsFlags::ST_NOEXEC)),
            address_space_bytes: limit(Resource::RLIMIT_AS),
            file_size_bytes: limit(Resource::RLIMIT_FSIZE),
            ..Self::read_files(Path::new("/"))
        }
    }

    /// What stands in files below `root`, which is `/` but in tests.
    fn read_files(root: &Path) -> Self {
        Self {
            memfd_noexec: number(&root.join("proc/sys/vm/memfd_noexec")),
            seccomp: seccomp(&root.join("proc/self/status")),
            selinux: root.join("sys/fs/selinux/enforce").exists(),
            label: label(&root.join("proc/self/attr/current")),
            cgroup_memory_bytes: cgroup_memory_bytes(root),
            mappings_max: number(&root.join("proc/sys/vm/max_map_count")),
            mapped_from: number(&root.join("proc/sys/vm/mmap_min_addr")),
            huge_pages_free: number(&root.join("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")),
            ..Self::default()
        }
    }
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn seccomp(status: &Path) -> bool {
    let text = fs::read_to_string(status).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix("Seccomp:")).any(|mode| mode.trim() == "2")
}

fn label(attribute: &Path) -> Option<String> {
    let text = fs::read_to_string(attribute).ok()?;
    let label = text.trim_matches(['\0', '\n', ' ']);
    let confines = !label.is_empty() && !label.starts_with("unconfined") && !label.contains(":unconfined_t:");
    confines.then(|| label.to_owned())
}

/// The tightest of the limits of the process's own cgroup and of those around it, in both versions.
fn cgroup_memory_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = text.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, group) = (fields.next(), fields.next().unwrap_or(""), fields.next().unwrap_or("/"));
        match controllers {
            "" => limits(&root.join("sys/fs/cgroup"), group, "memory.max"),
            _ if controllers.split(',').any(|it| it == "memory") => {
                limits(&root.join("sys/fs/cgroup/memory"), group, "memory.limit_in_bytes")
            }
            _ => Vec::new(),
        }
    });
    limits.min()
}

fn limits(mount: &Path, group: &str, file: &str) -> Vec<u64> {
    let group: PathBuf = mount.join(group.trim_start_matches('/'));
    // Within a container the path may be one that only the host sees; then what is mounted is the group itself.
    let around = group.ancestors().take_while(|it| it.starts_with(mount));
    around.filter_map(|it| number(&it.join(file))).filter(|&bytes| bytes < CGROUP_V1_UNLIMITED_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_platform_that_says_nothing_has_no_facts() {
        assert_eq!(Facts::read_files(root(&[]).path()), Facts::default());
    }

    #[test]
    fn facts_are_read_from_where_the_kernel_writes_them() {
        let root = root(&[
            ("proc/sys/vm/memfd_noexec", "2\n"),
            ("proc/sys/vm/max_map_count", "65530\n"),
            ("proc/self/status", "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
            ("proc/self/attr/current", "docker-default (enforce)\n"),
            ("sys/fs/selinux/enforce", "1"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "12\n"),
        ]);
        let expected = Facts {
            memfd_noexec: Some(2),
            seccomp: true,
            selinux: true,
            label: Some("docker-default (enforce)".to_owned()),
            mappings_max: Some(65530),
            huge_pages_free: Some(12),
            ..Facts::default()
        };
        assert_eq!(Facts::read_files(root.path()), expected);
    }

    #[test]
    fn an_unconfined_process_has_no_label() {
        for text in ["unconfined\n", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0", "\0", ""] {
            let root = root(&[("proc/self/attr/current", text), ("proc/self/status", "Seccomp:\t0\n")]);
            assert_eq!(Facts::read_files(root.path()), Facts::default(), "{text:?}");
        }
    }

    #[test]
    fn the_tightest_memory_cgroup_counts_in_both_versions() {
        let limit = |files: &[(&str, &str)]| Facts::read_files(root(files).path()).cgroup_memory_bytes;
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let (outer, inner) = ("sys/fs/cgroup/a/memory.max", "sys/fs/cgroup/a/b/memory.max");
        assert_eq!(limit(&[group, (outer, "max\n"), (inner, "max\n")]), None);
        assert_eq!(limit(&[group, (outer, "1000\n"), (inner, "max\n")]), Some(1000));
        assert_eq!(limit(&[group, (outer, "1000\n"), (inner, "400\n")]), Some(400));
        // The path is the host's, the mount the container's.
        assert_eq!(limit(&[group, ("sys/fs/cgroup/memory.max", "700\n")]), Some(700));
        let group = ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n");
        let file = "sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        assert_eq!(limit(&[group, (file, "500\n")]), Some(500));
        assert_eq!(limit(&[group, (file, "9223372036854771712\n")]), None);
    }

    #[test]
    fn this_process_has_facts() {
        let facts = Facts::read(Some(Path::new("/dev/shm")));
        assert!(facts.mappings_max.is_some_and(|it| it > 0));
        assert_eq!(facts.directory_noexec, statvfs("/dev/shm").unwrap().flags().contains(FsFlags::ST_NOEXEC));
    }
}

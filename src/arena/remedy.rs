//! What to do about what the platform refused. Pure: a table of causes, from an attempt and the facts.

use nix::errno::Errno;

use super::{
    Attempt, StrategyKind,
    facts::Facts,
    geometry::{Geometry, HUGE_BYTES},
    strategy::Step,
};

/// The likely cause of a failed attempt, and what to do; `None` if there is nothing to say that the error does not.
pub(super) fn for_attempt(attempt: &Attempt, facts: &Facts, geometry: Geometry) -> Option<String> {
    use StrategyKind::*;
    let errno = attempt.errno?;
    match (attempt.strategy, attempt.step, errno) {
        (_, Step::Create | Step::Reopen, Errno::EMFILE) => Some("raise the limit on open files (RLIMIT_NOFILE)".into()),
        (_, Step::Create | Step::Reopen, Errno::ENFILE) => {
            Some("raise fs.file-max: the system's files are used up".into())
        }
        (_, Step::Reopen, Errno::ENOENT | Errno::EACCES | Errno::EPERM) => {
            Some("mount /proc, and let the process open its own /proc/self/fd".into())
        }
        (_, Step::Grow, Errno::EFBIG) => Some(file_size(facts, geometry)),
        (File, Step::Create, _) => Some(directory(errno).into()),
        (MemfdHuge | Memfd | MemfdPlain, Step::Create, _) => memory_file(attempt.strategy, errno, facts),
        (MemfdHuge, Step::MapWindow | Step::Commit, Errno::ENOMEM | Errno::EFAULT) => Some(huge_pages(facts, geometry)),
        (File, Step::MapCode, Errno::EPERM | Errno::EACCES) if facts.directory_noexec => Some(
            "the directory's file system is mounted noexec: name another in arena.directory, or remount it with exec"
                .into(),
        ),
        (_, Step::MapCode, Errno::EPERM | Errno::EACCES) => Some(executable(attempt.strategy, facts)),
        (Protect, Step::MapCode | Step::OpenWindow, Errno::ENOMEM) => Some(mappings(facts)),
        (_, Step::MapWindow | Step::MapCode, Errno::ENOMEM) => Some(addresses(facts)),
        (_, Step::MapWindow | Step::MapCode, Errno::ENOSYS | Errno::EPERM) if facts.seccomp => Some(filter("mmap")),
        (_, Step::Commit, Errno::EINVAL) => Some("Linux 5.14 or newer is needed (MADV_POPULATE_WRITE)".into()),
        (_, Step::Commit, Errno::ENOMEM | Errno::EFAULT) => {
            Some("free memory, or give the file system of the directory more room".into())
        }
        _ => None,
    }
}

/// What to do when addresses cannot be reserved.
pub(super) fn addresses(facts: &Facts) -> String {
    match facts.address_space_bytes {
        Some(bytes) => format!(
            "the limit on addresses (RLIMIT_AS) is {bytes} bytes: lift it (LimitAS=infinity, ulimit -v unlimited), or \
             lower arena.reserve_max_bytes"
        ),
        None => "lower arena.reserve_max_bytes; with vm.overcommit_memory = 2 raise vm.overcommit_ratio; look at \
                 vm.max_map_count"
            .into(),
    }
}

/// What to do when there are no addresses below 2 GiB.
pub(super) fn low_addresses(errno: Errno, facts: &Facts) -> String {
    let now = facts.mapped_from.map_or(String::new(), |bytes| format!(", which is {bytes} now"));
    match errno {
        Errno::EPERM => format!("lower vm.mmap_min_addr{now}, or let a security module's policy map so low"),
        Errno::ENOMEM => addresses(facts),
        _ => "objects that need such addresses are refused with EXEC_MEMORY_DENIED: lower arena.low_bytes, or set it to 0"
            .into(),
    }
}

/// What to do when the memory cgroup is smaller than what may be committed.
pub(super) fn cgroup(limit_bytes: u64) -> String {
    format!(
        "the kernel ends the process when it passes the {limit_bytes} bytes of its memory cgroup: raise them \
         (MemoryMax=, memory.max, --memory), or lower cache.budget_bytes"
    )
}

/// What to do when there are too few mappings for protection that changes page by page.
pub(super) fn mappings(facts: &Facts) -> String {
    let now = facts.mappings_max.map_or(String::new(), |count| format!(", which is {count} now"));
    format!("every change of protection may need a mapping of its own: raise vm.max_map_count{now}")
}

fn memory_file(kind: StrategyKind, errno: Errno, facts: &Facts) -> Option<String> {
    let text = match errno {
        Errno::EACCES if facts.memfd_noexec == Some(2) => {
            "vm.memfd_noexec is 2, which refuses memory files that could be executed: set it to 1 (sysctl -w \
             vm.memfd_noexec=1), or name a directory in arena.directory"
        }
        Errno::EACCES | Errno::EPERM | Errno::ENOSYS if facts.seccomp => return Some(filter("memfd_create")),
        Errno::ENOSYS => "the kernel has no memory files: name a directory on a tmpfs in arena.directory",
        Errno::EACCES | Errno::EPERM if facts.label.is_some() => return Some(policy(facts)),
        Errno::EINVAL if kind == StrategyKind::Memfd => {
            "nothing to do: the noexec seal needs Linux 6.3, and is one hardening among others"
        }
        Errno::EINVAL | Errno::ENODEV | Errno::ENOENT | Errno::EOPNOTSUPP if kind == StrategyKind::MemfdHuge => {
            "the kernel has no pool of 2 MiB pages: set arena.huge_pages to collapse or never"
        }
        _ => return None,
    };
    Some(text.into())
}

fn directory(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => "arena.directory must name a directory that exists",
        Errno::EACCES | Errno::EPERM => "let the daemon's user create files in arena.directory",
        Errno::EROFS => "the file system of arena.directory is read-only: name another (ReadWritePaths=)",
        Errno::ENOSPC | Errno::EDQUOT => "the file system of arena.directory is full",
        _ => "name another directory in arena.directory, best on a tmpfs",
    }
}

fn file_size(facts: &Facts, geometry: Geometry) -> String {
    let now = facts.file_size_bytes.map_or(String::new(), |bytes| format!(" from {bytes}"));
    format!(
        "raise the limit on file sizes (RLIMIT_FSIZE){now} to at least {} bytes (LimitFSIZE=infinity), which are \
         sparse, or lower arena.reserve_max_bytes",
        geometry.file_bytes()
    )
}

fn huge_pages(facts: &Facts, geometry: Geometry) -> String {
    let pages = geometry.file_bytes() / HUGE_BYTES;
    let now = facts.huge_pages_free.map_or(String::new(), |free| format!(", of which {free} are free now"));
    format!(
        "the pool must hold {pages} pages of 2 MiB for the whole reservation{now}: raise vm.nr_hugepages, or lower \
         arena.reserve_max_bytes"
    )
}

fn executable(kind: StrategyKind, facts: &Facts) -> String {
    if facts.selinux || facts.label.is_some() {
        return policy(facts);
    }
    match kind {
        StrategyKind::Protect => "memory that was writable must not become executable here: systemd's \
                                  MemoryDenyWriteExecute=, or prctl(PR_SET_MDWE); a memory file would not need that"
            .into(),
        _ if facts.seccomp => filter("mmap"),
        _ => "the file system of the file is mounted noexec, or a security module refuses executable memory".into(),
    }
}

fn policy(facts: &Facts) -> String {
    let label = facts.label.as_deref().unwrap_or("without a label");
    if facts.selinux {
        format!(
            "SELinux may refuse it to {label}: look for it with ausearch -m avc, and allow map and execute on tmpfs \
             files (memory files), or execmem (mprotect)"
        )
    } else {
        format!(
            "the profile {label} may refuse it: look for it in the kernel log, and allow to map files executable (m)"
        )
    }
}

fn filter(call: &str) -> String {
    format!("a seccomp filter refuses {call}: allow it in the profile of the container or service")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(strategy: StrategyKind, step: Step, errno: Errno, facts: &Facts) -> String {
        let attempt = Attempt { strategy, step, errno: Some(errno) };
        for_attempt(&attempt, facts, Geometry::new(64 << 20, 64, 1).unwrap()).unwrap_or_default()
    }

    #[test]
    fn every_known_cause_has_its_remedy() {
        use StrategyKind::*;
        let none = Facts::default();
        let facts = |change: fn(&mut Facts)| {
            let mut facts = Facts::default();
            change(&mut facts);
            facts
        };
        let seccomp = facts(|it| it.seccomp = true);
        let selinux = facts(|it| (it.selinux, it.label) = (true, Some("system_u:system_r:init_t:s0".into())));
        let apparmor = facts(|it| it.label = Some("docker-default (enforce)".into()));
        let table = [
            (MemfdPlain, Step::Create, Errno::EACCES, facts(|it| it.memfd_noexec = Some(2)), "vm.memfd_noexec=1"),
            (Memfd, Step::Create, Errno::EPERM, seccomp.clone(), "seccomp filter refuses memfd_create"),
            (Memfd, Step::Create, Errno::ENOSYS, seccomp.clone(), "seccomp filter refuses memfd_create"),
            (Memfd, Step::Create, Errno::ENOSYS, none.clone(), "no memory files"),
            (Memfd, Step::Create, Errno::EINVAL, none.clone(), "Linux 6.3"),
            (Memfd, Step::Create, Errno::EMFILE, none.clone(), "RLIMIT_NOFILE"),
            (Memfd, Step::Create, Errno::ENFILE, none.clone(), "fs.file-max"),
            (MemfdHuge, Step::Create, Errno::EINVAL, none.clone(), "arena.huge_pages"),
            (MemfdHuge, Step::MapWindow, Errno::ENOMEM, facts(|it| it.huge_pages_free = Some(3)), "96 pages of 2 MiB"),
            (Memfd, Step::Grow, Errno::EFBIG, facts(|it| it.file_size_bytes = Some(9)), "from 9 to at least 201326592"),
            (Memfd, Step::Reopen, Errno::ENOENT, none.clone(), "mount /proc"),
            (Memfd, Step::MapWindow, Errno::ENOMEM, facts(|it| it.address_space_bytes = Some(5)), "RLIMIT_AS) is 5"),
            (Memfd, Step::MapCode, Errno::ENOMEM, none.clone(), "vm.overcommit_memory"),
            (Memfd, Step::MapWindow, Errno::EPERM, seccomp.clone(), "seccomp filter refuses mmap"),
            (Memfd, Step::MapCode, Errno::EPERM, seccomp, "seccomp filter refuses mmap"),
            (Memfd, Step::MapCode, Errno::EACCES, selinux, "SELinux may refuse it to system_u:system_r:init_t:s0"),
            (Memfd, Step::MapCode, Errno::EACCES, apparmor, "profile docker-default (enforce)"),
            (Memfd, Step::MapCode, Errno::EACCES, none.clone(), "security module"),
            (Memfd, Step::Commit, Errno::EINVAL, none.clone(), "Linux 5.14"),
            (Memfd, Step::Commit, Errno::ENOMEM, none.clone(), "free memory"),
            (File, Step::MapCode, Errno::EPERM, facts(|it| it.directory_noexec = true), "mounted noexec"),
            (File, Step::Create, Errno::ENOENT, none.clone(), "a directory that exists"),
            (File, Step::Create, Errno::EROFS, none.clone(), "read-only"),
            (Protect, Step::MapCode, Errno::EACCES, none.clone(), "MemoryDenyWriteExecute"),
            (Protect, Step::MapCode, Errno::ENOMEM, facts(|it| it.mappings_max = Some(7)), "max_map_count, which is 7"),
        ];
        for (strategy, step, errno, facts, expected) in table {
            let text = remedy(strategy, step, errno, &facts);
            assert!(text.contains(expected), "{strategy} {step} {errno}: {text}");
        }
    }

    #[test]
    fn what_is_not_known_has_no_remedy() {
        let facts = Facts::default();
        assert_eq!(remedy(StrategyKind::Memfd, Step::Advise, Errno::EIO, &facts), "");
        let attempt = Attempt { strategy: StrategyKind::Memfd, step: Step::Rerun, errno: None };
        assert_eq!(for_attempt(&attempt, &facts, Geometry::new(1, 64, 1).unwrap()), None);
    }
}

//! What a daemon has of the machine: memory, threads, descriptors, processes.

use std::fs;

use crate::support::{children, until};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Possessions {
    /// Of the daemon and its children, each page that they share counted once.
    pub bytes: u64,
    pub threads: usize,
    pub descriptors: usize,
    pub children: usize,
}

impl Possessions {
    /// As soon as two looks in a row see the same, and no child that has ended.
    pub async fn when_quiet(pid: u32) -> Possessions {
        let mut before = None;
        until("a daemon that is quiet", async || {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            let now = Self::now(pid).map(|it| Possessions { bytes: 0, ..it });
            let is_same = now.is_some() && std::mem::replace(&mut before, now.clone()) == now;
            if is_same { Self::now(pid) } else { None }
        })
        .await
    }

    /// As soon as there are no more threads, descriptors and children than before.
    pub async fn when_no_more(pid: u32, before: &Possessions) -> Possessions {
        let is_no_more = |now: &Possessions| {
            now.threads <= before.threads && now.descriptors <= before.descriptors && now.children <= before.children
        };
        until(&format!("no more than {before:?}"), async || Self::now(pid).filter(is_no_more)).await
    }

    /// None while a child has ended and is not yet waited for.
    fn now(pid: u32) -> Option<Possessions> {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let children = children(pid);
        let mut bytes = memory_bytes(pid)?;
        for child in &children {
            bytes += memory_bytes(*child)?;
        }
        Some(Possessions { bytes, threads: count("task"), descriptors: count("fd"), children: children.len() })
    }
}

/// A process's share of the memory that is no file's, which other daemons would share. None if it has ended.
fn memory_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let of = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    Some((of("Pss_Anon:")? + of("Pss_Shmem:")?) * 1024)
}

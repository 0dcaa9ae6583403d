//! Huge pages: putting memory on them, and how much lies on them.

use std::{fs, io, ops::Range};

use nix::errno::Errno;

use super::{
    StrategyKind,
    geometry::{AreaId, HUGE_BYTES},
    mapping::Views,
    system::Advice,
};

/// What smaps calls memory that is mapped by huge pages: of memory files, of other files, private, from the pool.
const FIELDS: [&str; 5] =
    ["ShmemPmdMapped:", "FilePmdMapped:", "AnonHugePages:", "Shared_Hugetlb:", "Private_Hugetlb:"];

impl Views {
    /// Puts a chunk of [`HUGE_BYTES`] of an area on one huge page, as it is run. Takes milliseconds, during which those
    /// who run or write there may wait for one page fault; contents stay. All pages of the chunk are committed and
    /// stay so until this returns: what is not would become memory that no count knows.
    ///
    /// # Errors
    /// `EINVAL` where the kernel cannot, `ENOMEM` or `EAGAIN` where it has no huge page, `EBUSY` where a page is held.
    pub(super) fn collapse(&self, area: AreaId, chunk: u32) -> Result<(), Errno> {
        if self.strategy() == StrategyKind::MemfdHuge {
            return Ok(());
        }
        let start = u64::from(chunk) * HUGE_BYTES;
        let bytes = start..start + HUGE_BYTES;
        // Pages that are not mapped yet do not count as there.
        self.advise_run(area, bytes.clone(), Advice::PopulateRead)?;
        self.advise_run(area, bytes.clone(), Advice::HugePages(true))?;
        let collapsed = self.advise_run(area, bytes.clone(), Advice::Collapse);
        // A huge page stays; what the kernel does of its own accord does not begin. And mappings stay few, as those
        // with different advice are different mappings.
        let restored = self.advise_run(area, bytes, Advice::HugePages(false));
        collapsed.and(restored)
    }

    /// Bytes of the arenas that are mapped by huge pages where they run. Reads `/proc/self/smaps`, which walks all
    /// memory of the process: not for each request.
    pub(super) fn huge_bytes(&self) -> io::Result<u64> {
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let low = self.low_range().and_then(Result::ok).map_or(0, |range| sum(&smaps, &range));
        Ok(low + sum(&smaps, &self.run_range()))
    }
}

/// The sum over all mappings that begin in a range.
fn sum(smaps: &str, range: &Range<u64>) -> u64 {
    let (mut bytes, mut ours) = (0, false);
    for line in smaps.lines() {
        let Some((word, rest)) = line.split_once(char::is_whitespace) else { continue };
        if let Some((start, _)) = word.split_once('-') {
            ours = u64::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
        } else if ours && FIELDS.contains(&word) {
            let kib = rest.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
            bytes += kib.unwrap_or(0) << 10;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{
        ArenaConfig,
        geometry::{Geometry, PAGE_BYTES, PartKind},
        memory::TRAP,
        pool::Backing,
        system,
        testing::smaps,
    };

    const PAGES: u32 = (HUGE_BYTES / PAGE_BYTES) as u32;
    const CODE: AreaId = AreaId { arena: 0, kind: PartKind::Code };

    fn views() -> Views {
        let mut views =
            Views::map(Geometry::new(4 * HUGE_BYTES, 64, 1).unwrap(), &ArenaConfig::new(1, 1)).expect("mappings");
        // As in a daemon: permanent mappings must not stand in the way.
        views.seal();
        views
    }

    /// What the system says that the memory takes.
    fn pss_bytes(views: &Views) -> u64 {
        let window = views.write_address(CODE) as u64;
        let window = window..window + views.geometry().window_bytes();
        let ours = |start| views.run_range().contains(&start) || window.contains(&start);
        smaps().into_iter().filter(|it| ours(it.range.start)).map(|it| it.pss_bytes).sum()
    }

    /// How many pages of the first two chunks the file has. Where a huge page was split, the system has mapped none of
    /// them until they are used again, so that Pss is too low for a while.
    fn resident_pages(views: &Views) -> u32 {
        let pages = system::mincore(views.write_address(CODE), 2 * HUGE_BYTES as usize);
        pages.into_iter().filter(|&it| it).count() as u32
    }

    fn mappings(views: &Views) -> usize {
        smaps().into_iter().filter(|it| views.run_range().contains(&it.range.start)).count()
    }

    fn byte_at(views: &Views, offset: u64) -> u8 {
        views.read_run(CODE, offset..offset + 1)[0]
    }

    #[test]
    fn the_sum_has_every_kind_of_huge_page_of_our_mappings_alone() {
        let smaps = "\
7f0000200000-7f0000400000 r-xs 00000000 00:01 7 /memfd:codecached (deleted)
Rss:                2048 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         4 kB
VmFlags: rd ex sh mr me ms dc dd nh sl
7f0000400000-7f0000600000 rw-s 00200000 00:01 7 /memfd:codecached (deleted)
AnonHugePages:         2 kB
Shared_Hugetlb:        1 kB
Private_Hugetlb:       8 kB
7f0000600000-7f0000800000 rw-s 00200000 00:01 7 /memfd:other
ShmemPmdMapped:     2048 kB
";
        assert_eq!(sum(smaps, &(0x7f00_0020_0000..0x7f00_0060_0000)), (2048 + 4 + 2 + 1 + 8) << 10);
        assert_eq!(sum("", &(0..1)), 0);
    }

    #[test]
    fn a_collapsed_chunk_keeps_its_contents_and_gives_single_pages_back() {
        let views = views();
        views.commit(CODE, 0..2 * PAGES).unwrap();
        views.fill(CODE, 0..PAGE_BYTES, 0x90);
        let mappings_before = mappings(&views);
        if let Err(errno) = views.collapse(CODE, 0) {
            // A kernel without huge pages, or without one that is free.
            assert!(matches!(errno, Errno::EINVAL | Errno::ENOMEM | Errno::EAGAIN), "{errno}");
            return;
        }
        assert_eq!((views.huge_bytes().unwrap(), pss_bytes(&views)), (HUGE_BYTES, 2 * HUGE_BYTES));
        assert_eq!(mappings(&views), mappings_before);
        assert_eq!((byte_at(&views, 0), byte_at(&views, PAGE_BYTES)), (0x90, TRAP));
        // Written through the window, seen where it runs.
        views.fill(CODE, 5 * PAGE_BYTES..6 * PAGE_BYTES, 0x91);
        assert_eq!(byte_at(&views, 5 * PAGE_BYTES), 0x91);
        assert_eq!(views.huge_bytes().unwrap(), HUGE_BYTES);

        views.decommit(CODE, 7..9).unwrap();
        assert_eq!((views.huge_bytes().unwrap(), resident_pages(&views)), (0, 2 * PAGES - 2));
        assert_eq!((byte_at(&views, 5 * PAGE_BYTES), byte_at(&views, 9 * PAGE_BYTES)), (0x91, TRAP));
        views.decommit(CODE, 0..2 * PAGES).unwrap();
        assert_eq!((resident_pages(&views), pss_bytes(&views)), (0, 0));
    }
}

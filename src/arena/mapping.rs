//! The mappings: one range that code runs in, one window that it is written through, the same memory behind both.
#![allow(unsafe_code)] // Maps, advises, seals and unmaps memory.

use std::{
    ffi::c_void,
    fs::File,
    num::NonZeroUsize,
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr::{self, NonNull},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
        resource::{Resource, getrlimit},
    },
    unistd::ftruncate,
};

use super::{
    MapError,
    geometry::{AreaId, GUARD_BYTES, Geometry, HUGE_BYTES, PartKind},
};

/// Refuses execve of the file whatever `vm.memfd_noexec` says; Linux 6.3.
const MFD_NOEXEC_SEAL: u32 = 0x8;
/// Makes mappings permanent; Linux 6.10.
const SYS_MSEAL: libc::c_long = 462;
/// Places, [`HUGE_BYTES`] apart, among which the start of a range is drawn: its distance to others says nothing.
const PLACES: u64 = 512;

/// Addresses of our own, inaccessible until something is mapped over a part of them.
struct Reservation {
    /// What was reserved, in whole.
    start: usize,
    bytes: usize,
    /// Where what we use begins: aligned to [`HUGE_BYTES`], at a random place, with a guard before and after.
    base: usize,
}

impl Reservation {
    fn new(used_bytes: u64) -> Result<Self, MapError> {
        let total_bytes = used_bytes + 2 * GUARD_BYTES + (PLACES + 1) * HUGE_BYTES;
        let reserve = |errno| MapError::Reserve { bytes: total_bytes, errno };
        let bytes = NonZeroUsize::new(total_bytes as usize).ok_or(reserve(Errno::EINVAL))?;
        let place = random()? % PLACES;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: The kernel chooses addresses that nobody uses.
        let start = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, flags) }.map_err(reserve)?;
        let start = start.as_ptr().expose_provenance();
        let base = (start as u64 + GUARD_BYTES).next_multiple_of(HUGE_BYTES) + place * HUGE_BYTES;
        Ok(Self { start, bytes: bytes.get(), base: base as usize })
    }

    /// Maps a part of the file over a part of this range.
    fn map(&self, offset: u64, bytes: u64, prot: ProtFlags, file: impl AsFd, file_offset: u64) -> Result<(), Errno> {
        let address = self.base + offset as usize;
        assert!(address + bytes as usize <= self.start + self.bytes, "invariant: the geometry stays in its range");
        let (address, bytes) = (NonZeroUsize::new(address), NonZeroUsize::new(bytes as usize).ok_or(Errno::EINVAL)?);
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: The range is ours, checked above, and nothing refers to it: `Views` hands out no address before
        // all parts are mapped, and maps each once.
        unsafe { mmap(address, bytes, prot, flags, file, file_offset as libc::off_t) }.map(drop)
    }

    fn advise(&self, advice: MmapAdvise) -> Result<(), Errno> {
        let start = NonNull::new(ptr::with_exposed_provenance_mut::<c_void>(self.start)).ok_or(Errno::EFAULT)?;
        // SAFETY: The range is ours, and no advice given here changes contents.
        unsafe { madvise(start, self.bytes, advice) }
    }

    fn seal(&self) -> Result<(), Errno> {
        // SAFETY: The range is ours; sealing changes no contents and no permission.
        let sealed = unsafe { libc::syscall(SYS_MSEAL, self.start, self.bytes, 0) };
        Errno::result(sealed).map(drop)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(start) = NonNull::new(ptr::with_exposed_provenance_mut::<c_void>(self.start)) else { return };
        // What is sealed stays: EPERM. Its memory has been given back by then, only addresses are spent.
        // SAFETY: The range is ours, and whoever used an address of it kept the `Views` alive.
        let _ = unsafe { munmap(start, self.bytes) };
    }
}

/// Both views of all arenas.
pub(super) struct Views {
    geometry: Geometry,
    run: Reservation,
    window: Reservation,
    noexec_file: bool,
    /// How sealing the mappings went; `ENODATA` before it was tried.
    sealed: Result<(), Errno>,
}

impl Views {
    /// Maps everything. No page is ever writable and executable at one address, nor can be made so: what is executable
    /// comes from a descriptor that cannot write. No descriptor is left open.
    pub(super) fn map(geometry: Geometry, _config: &super::ArenaConfig) -> Result<Self, MapError> {
        let file_bytes = geometry.file_bytes();
        let (file, noexec_file) = create_file(file_bytes)?;
        let views = Self {
            geometry,
            run: Reservation::new(geometry.run_bytes())?,
            window: Reservation::new(geometry.window_bytes())?,
            noexec_file,
            sealed: Err(Errno::ENODATA),
        };
        views.map_writable(&file)?;
        seal_file(&file)?;
        views.map_readable(&reopen_readable(&file)?)?;
        views.advise().map_err(|errno| MapError::Advise { errno })?;
        Ok(views)
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Makes all mappings permanent. Best effort: where it is refused, the descriptors' rights alone keep what is
    /// executable from becoming writable.
    pub(super) fn seal(&mut self) {
        self.sealed = self.run.seal().and_then(|()| self.window.seal());
    }

    /// The addresses of all arenas.
    pub(super) fn run_range(&self) -> Range<u64> {
        let start = self.run.base as u64;
        start..start + self.geometry.run_bytes()
    }

    /// Where an area's bytes run, are read, or are used as variables.
    pub(super) fn run_address(&self, area: AreaId) -> usize {
        self.run.base + self.geometry.run_offset(area) as usize
    }

    /// Where an area's bytes are written.
    pub(super) fn write_address(&self, area: AreaId) -> usize {
        match area.kind {
            PartKind::Code | PartKind::Rodata => self.window.base + self.geometry.file_offset(area) as usize,
            PartKind::Data => self.run_address(area),
        }
    }

    pub(super) fn strategy(&self) -> &'static str {
        "memfd-noexec"
    }
    pub(super) fn attempts(&self) -> Vec<String> {
        Vec::new()
    }
    pub(super) fn open_writer(&self, _arena: u32) -> Result<(), Errno> {
        Ok(())
    }
    pub(super) fn close_writer(&self, _arena: u32) {}
    pub(super) fn make_runnable(&self, _area: AreaId, _bytes: Range<u64>) -> Result<(), Errno> {
        Ok(())
    }
    pub(super) fn make_writable(&self, _area: AreaId, _bytes: Range<u64>) -> Result<(), Errno> {
        Ok(())
    }

    /// What the platform gave, for people.
    pub(super) fn describe(&self) -> String {
        let file = if self.noexec_file { "memfd with noexec seal" } else { "memfd without noexec seal" };
        match self.sealed {
            Ok(()) => format!("{file}, sealed mappings"),
            Err(errno) => format!("{file}, mappings not sealed ({errno})"),
        }
    }

    fn map_writable(&self, file: &OwnedFd) -> Result<(), MapError> {
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let bytes = self.geometry.window_bytes();
        self.window.map(0, bytes, writable, file, 0).map_err(|errno| MapError::MapWindow { bytes, errno })?;
        self.map_areas(PartKind::Data, writable, file)
    }

    fn map_readable(&self, file: &File) -> Result<(), MapError> {
        self.map_areas(PartKind::Code, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC, file)?;
        self.map_areas(PartKind::Rodata, ProtFlags::PROT_READ, file)
    }

    fn map_areas(&self, kind: PartKind, prot: ProtFlags, file: impl AsFd) -> Result<(), MapError> {
        let bytes = self.geometry.area_bytes;
        self.geometry.areas().filter(|area| area.kind == kind).try_for_each(|area| {
            let (at, in_file) = (self.geometry.run_offset(area), self.geometry.file_offset(area));
            self.run.map(at, bytes, prot, &file, in_file).map_err(|errno| MapError::MapArea { kind, bytes, errno })
        })
    }

    fn advise(&self) -> Result<(), Errno> {
        for range in [&self.run, &self.window] {
            range.advise(MmapAdvise::MADV_DONTFORK)?;
            range.advise(MmapAdvise::MADV_DONTDUMP)?;
            // So that committing a page commits that page alone. A kernel without huge pages refuses, and need not know.
            let _ = range.advise(MmapAdvise::MADV_NOHUGEPAGE);
        }
        Ok(())
    }
}

/// A sparse file without a name, and whether execve of it is forbidden.
fn create_file(bytes: u64) -> Result<(OwnedFd, bool), MapError> {
    let (limit_bytes, _) = getrlimit(Resource::RLIMIT_FSIZE).map_err(|errno| MapError::ReadLimit { errno })?;
    if bytes > limit_bytes {
        return Err(MapError::FileLimit { needed_bytes: bytes, limit_bytes });
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let (file, noexec) = match memfd_create("codecached", flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => (memfd_create("codecached", flags), false),
        created => (created, true),
    };
    let file = file.map_err(|errno| MapError::CreateFile { errno })?;
    ftruncate(&file, bytes as libc::off_t).map_err(|errno| MapError::GrowFile { bytes, errno })?;
    Ok((file, noexec))
}

/// Nobody can change the size any more: a mapped page cannot vanish and turn an access into SIGBUS.
fn seal_file(file: &OwnedFd) -> Result<(), MapError> {
    let seal = |seals| fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| MapError::SealFile { errno });
    seal(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)?;
    seal(SealFlag::F_SEAL_SEAL).map(drop)
}

/// From a descriptor that can write, an executable mapping could later be made writable by mprotect.
fn reopen_readable(file: &OwnedFd) -> Result<File, MapError> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|error| MapError::Reopen { error })
}

fn random() -> Result<u64, MapError> {
    let mut bytes = [0; 8];
    // SAFETY: The buffer is ours and has the length that is named.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few bytes come whole or not at all.
    Errno::result(read).map_err(|errno| MapError::Random { errno })?;
    Ok(u64::from_ne_bytes(bytes))
}

//! Access to the bytes behind the mappings: the one file where spans become pointers.
//!
//! Whoever writes, commits or gives back code or read-only data has the arena's window open ([`Views::open_writer`]).
//! Running code may write data at any time, so no Rust reference to data ever exists, only copies through pointers.
#![allow(unsafe_code)] // Turns spans into slices and pointers, calls the canary.

use std::{ffi::c_void, ops::Range, ptr, slice};

use nix::errno::Errno;

use super::{
    geometry::{AreaId, PAGE_BYTES, PartKind},
    mapping::Views,
    pool::Backing,
    shard::Grant,
    system::Advice,
};

/// `int3`: what code memory without an owner is filled with.
pub(super) const TRAP: u8 = 0xCC;
/// `mov eax, imm32; ret`, the immediate at bytes 1 to 4.
const CANARY: [u8; 6] = [0xB8, 0, 0, 0, 0, 0xC3];

impl Views {
    /// The first `size_bytes` of the code and the read-only data, to write them. A part without a span is empty.
    pub(super) fn code_and_rodata_mut<'a>(
        &'a self,
        grant: &'a mut Grant,
        size_bytes: [u64; 2],
    ) -> (&'a mut [u8], &'a mut [u8]) {
        let [code, rodata] =
            [(PartKind::Code, size_bytes[0]), (PartKind::Rodata, size_bytes[1])].map(|(kind, size)| {
                let bytes = self.span_bytes(grant, kind);
                if bytes.is_empty() {
                    return <&mut [u8]>::default();
                }
                assert!(size <= bytes.end - bytes.start, "invariant: a span is as long as what it was taken for");
                let start = self.write_pointer(AreaId { arena: grant.arena, kind }, &bytes);
                // SAFETY: The bytes are mapped, writable and committed; `Pool` gives no byte to two grants; the grant is
                // borrowed mutably for as long as the slice lives, and its code is not published before that ends.
                unsafe { slice::from_raw_parts_mut(start, size as usize) }
            });
        (code, rodata)
    }

    /// Copies `code` to the start of the code and writes traps behind it, unless they are there: where it is `clean`.
    ///
    /// # Panics
    /// If `code` is longer than the span.
    pub(super) fn write_code(&self, grant: &Grant, code: &[u8], clean: bool) {
        let bytes = self.span_bytes(grant, PartKind::Code);
        let span_len = (bytes.end - bytes.start) as usize;
        assert!(code.len() <= span_len, "{} bytes of code for a span of {span_len} bytes", code.len());
        let start = self.write_pointer(AreaId { arena: grant.arena, kind: PartKind::Code }, &bytes);
        // SAFETY: The span has room for it, see above, is mapped writable, and only the caller has its grant.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), start, code.len()) };
        if !clean {
            let rest = start.wrapping_add(code.len());
            // SAFETY: From the end of what was just written to the end of the same span.
            unsafe { ptr::write_bytes(rest, TRAP, span_len - code.len()) };
        }
    }

    /// Copies `initial` into the data and writes zeroes behind it. Nothing may run that uses the data, and no other
    /// thread may do the same.
    ///
    /// # Panics
    /// If `initial` is longer than the span.
    pub(super) fn write_data(&self, grant: &Grant, initial: &[u8]) {
        let bytes = self.span_bytes(grant, PartKind::Data);
        let span_len = (bytes.end - bytes.start) as usize;
        assert!(initial.len() <= span_len, "{} initial bytes for {span_len} bytes of data", initial.len());
        let start = self.write_pointer(AreaId { arena: grant.arena, kind: PartKind::Data }, &bytes);
        // SAFETY: The span has room for it, see above, is mapped writable, and no reference to it ever exists.
        unsafe { ptr::copy_nonoverlapping(initial.as_ptr(), start, initial.len()) };
        let rest = start.wrapping_add(initial.len());
        // SAFETY: From the end of what was just written to the end of the same span.
        unsafe { ptr::write_bytes(rest, 0, span_len - initial.len()) };
    }

    /// Copies the start of the data out. Nothing may run that uses the data.
    ///
    /// # Panics
    /// If `into` is longer than the span.
    pub(super) fn read_data(&self, grant: &Grant, into: &mut [u8]) {
        let bytes = self.span_bytes(grant, PartKind::Data);
        assert!(into.len() as u64 <= bytes.end - bytes.start, "{} bytes of data are not there", into.len());
        let start = self.write_pointer(AreaId { arena: grant.arena, kind: PartKind::Data }, &bytes);
        // SAFETY: The span has so many bytes, see above, is mapped readable, and no reference to it ever exists.
        unsafe { ptr::copy_nonoverlapping(start, into.as_mut_ptr(), into.len()) };
    }

    /// Writes 8 bytes of read-only data that is published. Nothing may run that reads them.
    ///
    /// # Panics
    /// If they are not within the span.
    pub(super) fn write_rodata_word(&self, grant: &Grant, offset_bytes: u64, word: u64) {
        let bytes = self.span_bytes(grant, PartKind::Rodata);
        let field = bytes.start + offset_bytes..bytes.start + offset_bytes + 8;
        assert!(field.end <= bytes.end, "invariant: a span is as long as what it was taken for");
        let start = self.write_pointer(AreaId { arena: grant.arena, kind: PartKind::Rodata }, &field);
        // SAFETY: Within the span of a grant whose owner lends it, mapped writable; no reference to it exists, since
        // those of a draft end before it is published.
        unsafe { ptr::copy_nonoverlapping(word.to_le_bytes().as_ptr(), start, 8) };
    }

    /// A copy of some bytes of the code, counted from its start, as a core would read them.
    pub(super) fn read_code(&self, grant: &Grant, wanted: Range<u64>) -> Vec<u8> {
        let bytes = self.span_bytes(grant, PartKind::Code);
        assert!(wanted.end <= bytes.end - bytes.start, "invariant: a span is as long as what it was taken for");
        let area = AreaId { arena: grant.arena, kind: PartKind::Code };
        self.read_run(area, bytes.start + wanted.start..bytes.start + wanted.end)
    }

    /// A copy of bytes of code or read-only data, as a core would read them.
    pub(super) fn read_run(&self, area: AreaId, bytes: Range<u64>) -> Vec<u8> {
        self.assert_inside(area, &bytes);
        let start = ptr::with_exposed_provenance::<u8>(self.run_address(area) + bytes.start as usize);
        let mut copy = vec![0; (bytes.end - bytes.start) as usize];
        // SAFETY: The span is mapped readable; published code is written by nobody before its owner drops it.
        unsafe { ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), copy.len()) };
        copy
    }

    /// Fills bytes of an area that belong to the caller, or to nobody yet.
    pub(super) fn fill(&self, area: AreaId, bytes: Range<u64>, byte: u8) {
        let start = self.write_pointer(area, &bytes);
        // SAFETY: The bytes lie in the area, which is mapped writable. The caller has their grant or the pool's lock,
        // so nobody else has a reference to them.
        unsafe { ptr::write_bytes(start, byte, (bytes.end - bytes.start) as usize) };
    }

    /// Writes a function that returns `value` at this byte of an area, in a page that the caller owns.
    pub(super) fn write_canary(&self, area: AreaId, start: u64, value: u32) {
        let mut code = CANARY;
        code[1..5].copy_from_slice(&value.to_le_bytes());
        let pointer = self.write_pointer(area, &(start..start + code.len() as u64));
        // SAFETY: Committed and mapped writable; the caller owns the page and has no reference to it.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), pointer, code.len()) };
    }

    /// Calls what [`Self::write_canary`] wrote there.
    pub(super) fn call_canary(&self, area: AreaId, start: u64) -> u32 {
        let address = ptr::with_exposed_provenance::<c_void>(self.run_address(area) + start as usize);
        // SAFETY: Where the function runs that the caller has written, a whole one of this signature, in a page that
        // nobody else writes.
        let function = unsafe { std::mem::transmute::<*const c_void, extern "C" fn() -> u32>(address) };
        function()
    }

    /// Gives all memory back, committed by us or by stray reads of code.
    fn decommit_all(&self) {
        for area in self.geometry().areas() {
            let pages = (self.geometry().area_bytes_of(area.arena) / PAGE_BYTES) as u32;
            // Nobody is left to be told.
            let _ = self.decommit(area, 0..pages);
        }
    }

    fn page_bytes(&self, pages: &Range<u32>) -> Range<u64> {
        let unit = self.geometry().unit_pages;
        let whole = pages.start.is_multiple_of(unit) && pages.end.is_multiple_of(unit);
        assert!(whole, "invariant: pages are committed and given back in whole units");
        u64::from(pages.start) * PAGE_BYTES..u64::from(pages.end) * PAGE_BYTES
    }

    /// A span's bytes within its area; empty if the part has none.
    fn span_bytes(&self, grant: &Grant, kind: PartKind) -> Range<u64> {
        self.geometry().bytes_of(&grant.granules(kind))
    }

    fn write_pointer(&self, area: AreaId, bytes: &Range<u64>) -> *mut u8 {
        self.assert_inside(area, bytes);
        debug_assert!(self.is_open(area), "invariant: who writes has opened the window");
        ptr::with_exposed_provenance_mut(self.write_address(area) + bytes.start as usize)
    }

    fn assert_inside(&self, area: AreaId, bytes: &Range<u64>) {
        let area_bytes = self.geometry().area_bytes_of(area.arena);
        assert!(bytes.start <= bytes.end && bytes.end <= area_bytes, "invariant: spans lie in areas");
    }
}

/// The pages of [`Views`] for who has not opened the window: opens it for each change.
pub(super) struct Opening<'a>(&'a Views);

impl Opening<'_> {
    fn open<T>(&self, area: AreaId, change: impl FnOnce(&Views) -> Result<T, Errno>) -> Result<T, Errno> {
        self.0.open_writer(area.arena)?;
        let changed = change(self.0);
        self.0.close_writer(area.arena);
        changed
    }
}

impl Backing for Opening<'_> {
    fn commit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
        self.open(area, |views| views.commit(area, pages))
    }

    fn decommit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
        self.open(area, |views| views.decommit(area, pages))
    }
}

impl Views {
    /// These pages, for who has not opened the window.
    pub(super) fn opening(&self) -> Opening<'_> {
        Opening(self)
    }
}

impl Backing for Views {
    /// Through the writable view, so that the first write finds its page mapped, and what the system cannot give is
    /// an error here and no signal later. All or nothing.
    fn commit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
        if let Err(errno) = self.advise_written(area, self.page_bytes(&pages), Advice::PopulateWrite) {
            // What came before the failure; if even that fails there is nothing better to say than the first error.
            let _ = self.decommit(area, pages);
            return Err(errno);
        }
        if area.kind == PartKind::Code {
            self.fill(area, self.page_bytes(&pages), TRAP);
        }
        Ok(())
    }

    /// A hole in the file: `fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)`, but without a descriptor. Private
    /// memory becomes writable before, so that it can be committed again.
    fn decommit(&self, area: AreaId, pages: Range<u32>) -> Result<(), Errno> {
        let bytes = self.page_bytes(&pages);
        self.make_writable(area, bytes.clone())?;
        let advice = if self.strategy().is_dual_mapping() { Advice::Remove } else { Advice::DontNeed };
        self.advise_written(area, bytes, advice)
    }
}

impl Drop for Views {
    fn drop(&mut self) {
        self.open_all();
        // Sealed mappings outlive this value, their memory shall not.
        self.decommit_all();
    }
}

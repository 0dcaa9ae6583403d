//! Functions that choose their implementation before they are called for the first time (`STT_GNU_IFUNC`).
//!
//! Whoever means such a function, by a call, through a slot or in data, is led to one stub, whose address is the
//! function's address for all. It jumps through a slot among the read-only data, into which goes what the resolver
//! returns. Until then the slot leads to the trap bytes of its own stub, so that a call that comes too early is a trap
//! in the function's name.

use std::collections::HashMap;

use super::image::{Addresses, PartKind};
use super::layout::Layout;
use super::relocation::Relocation;
use super::relocations::SLOT_BYTES;
use super::stubs::{JUMP_BYTES, STUB, STUB_BYTES};
use super::{CodeError, Location, Resolver};

/// All of an image, in the order of their first symbols.
#[derive(Default)]
pub(super) struct Chosen {
    all: Vec<Function>,
    /// By where the resolver is: functions with one resolver are one function.
    by_resolver: HashMap<u64, usize>,
}

struct Function {
    resolver: Resolver,
    stub_offset_bytes: u64,
}

impl Chosen {
    /// Where the stub of the function with this resolver is; makes room for it when it is asked for first.
    pub(super) fn stub(&mut self, resolver_offset_bytes: u64, layout: &mut Layout) -> Result<u64, CodeError> {
        if let Some(&known) = self.by_resolver.get(&resolver_offset_bytes) {
            return Ok(self.all[known].stub_offset_bytes);
        }
        let stub_offset_bytes = layout.take(PartKind::Code, STUB_BYTES, STUB_BYTES)?;
        let slot_offset_bytes = layout.take(PartKind::Rodata, SLOT_BYTES, SLOT_BYTES)?;
        self.by_resolver.insert(resolver_offset_bytes, self.all.len());
        let resolver = Resolver { function_offset_bytes: resolver_offset_bytes, slot_offset_bytes };
        self.all.push(Function { resolver, stub_offset_bytes });
        Ok(stub_offset_bytes)
    }

    pub(super) fn resolvers(&self) -> impl Iterator<Item = Resolver> {
        self.all.iter().map(|function| function.resolver)
    }

    /// Where the displacement of each stub and its slot are.
    pub(super) fn fields(&self) -> impl Iterator<Item = (u64, u64)> {
        let field = |it: &Function| it.stub_offset_bytes + STUB_DISPLACEMENT as u64;
        self.all.iter().map(move |it| (field(it), it.resolver.slot_offset_bytes))
    }

    /// Writes the stubs, still without their displacements.
    pub(super) fn write_stubs(&self, code: &mut [u8]) {
        for function in &self.all {
            code[function.stub_offset_bytes as usize..][..STUB.len()].copy_from_slice(&STUB);
        }
    }

    /// Writes displacements and slots of an image that runs at `at`.
    pub(super) fn apply(&self, at: Addresses, code: &mut [u8], rodata: &mut [u8]) -> Result<(), CodeError> {
        for Function { resolver, stub_offset_bytes } in &self.all {
            let stub_end = i128::from(at.code) + i128::from(stub_offset_bytes + JUMP_BYTES);
            let value = i128::from(at.rodata) + i128::from(resolver.slot_offset_bytes) - stub_end;
            let displacement = i32::try_from(value).map_err(|_| CodeError::RelocationOverflow {
                relocation: Relocation::Plt32.name(),
                value,
                at: Location::default(),
            })?;
            let field = *stub_offset_bytes as usize + STUB_DISPLACEMENT;
            code[field..][..4].copy_from_slice(&displacement.to_le_bytes());
            let trap = (stub_end as u64).to_le_bytes();
            rodata[resolver.slot_offset_bytes as usize..][..trap.len()].copy_from_slice(&trap);
        }
        Ok(())
    }
}

/// Where the displacement of a stub's jump stands in it.
const STUB_DISPLACEMENT: usize = 2;

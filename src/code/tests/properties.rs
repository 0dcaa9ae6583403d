use object::elf::*;

use super::builder::{Builder, archive};
use super::*;

const USED: u32 = 0xc001_0002;
const NEEDED: u32 = 0xc000_8002;
const SHADOW_STACK: u32 = 0xc000_0002;

/// A property note of (type, data) pairs, each padded to 8 bytes.
fn note(properties: &[(u32, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, data) in properties {
        list.extend(kind.to_le_bytes());
        list.extend((data.len() as u32).to_le_bytes());
        list.extend_from_slice(data);
        list.resize(list.len().next_multiple_of(8), 0);
    }
    let mut note = [4, list.len() as u32, 5].map(u32::to_le_bytes).concat();
    note.extend(b"GNU\0");
    note.extend(list);
    note
}

fn object(notes: &[Vec<u8>]) -> Vec<u8> {
    let mut object = Builder::with_text(&[0xc3]);
    object.function("f", 0, 1);
    for note in notes {
        object.section(".note.gnu.property", SHT_NOTE, SHF_ALLOC.0, 8, note);
    }
    object.build()
}

fn needed(notes: &[Vec<u8>]) -> u32 {
    parse(&object(notes)).unwrap().levels_needed()
}

#[test]
fn levels_that_are_needed_are_read_and_those_that_are_only_used_are_not() {
    assert_eq!(needed(&[]), 0);
    assert_eq!(needed(&[note(&[(NEEDED, &[7, 0, 0, 0])])]), 7);
    let among_others = note(&[(SHADOW_STACK, &[3, 0, 0, 0]), (NEEDED, &[1, 0, 0, 0x80]), (USED, &[0xff, 0, 0, 0])]);
    assert_eq!(needed(&[among_others]), 0x8000_0001);
    assert_eq!(needed(&[note(&[(USED, &[0xff; 4])]), note(&[])]), 0);
}

#[test]
fn what_a_compiler_writes_is_read() {
    // gcc -mneeded -march=x86-64-v3
    #[rustfmt::skip]
    let written = [
        4, 0, 0, 0, 0x10, 0, 0, 0, 5, 0, 0, 0, b'G', b'N', b'U', 0,
        0x02, 0x80, 0x00, 0xc0, 4, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(needed(&[written.to_vec()]), 0b0111);
    assert_eq!(note(&[(NEEDED, &[7, 0, 0, 0])]), written);
}

#[test]
fn levels_of_all_notes_and_all_members_are_joined() {
    let (first, second) = (note(&[(NEEDED, &[1, 0, 0, 0])]), note(&[(NEEDED, &[4, 0, 0, 0])]));
    assert_eq!(needed(&[first.clone(), second.clone()]), 5);
    let mut other = Builder::with_text(&[0xc3]);
    other.function("g", 0, 1);
    other.section(".note.gnu.property", SHT_NOTE, SHF_ALLOC.0, 8, &second);
    let (first, other) = (object(&[first]), other.build());
    let both = archive(&[("a.o".to_owned(), &first), ("b.o".to_owned(), &other)]);
    assert_eq!(parse(&both).unwrap().levels_needed(), 5);
}

#[test]
fn notes_of_others_and_sections_of_another_type_say_nothing() {
    let mut of_others = note(&[(NEEDED, &[7, 0, 0, 0])]);
    of_others[12..16].copy_from_slice(b"XYZ\0");
    assert_eq!(needed(&[of_others]), 0);
    let mut object = Builder::with_text(&[0xc3]);
    object.section(".note.gnu.property", SHT_PROGBITS, 0, 8, &note(&[(NEEDED, &[7, 0, 0, 0])]));
    object.section(".note.other", SHT_NOTE, 0, 8, &note(&[(NEEDED, &[7, 0, 0, 0])]));
    assert_eq!(parse(&object.build()).unwrap().levels_needed(), 0);
}

#[test]
fn a_note_that_cannot_be_read_is_refused_with_its_section() {
    let whole = note(&[(NEEDED, &[7, 0, 0, 0])]);
    let mut long_property = whole.clone();
    long_property[20] = 0x40;
    let mut long_note = whole.clone();
    long_note[4] = 0x40;
    let cut = whole[..whole.len() - 8].to_vec();
    let (narrow, wide) = (note(&[(NEEDED, &[7, 0])]), note(&[(NEEDED, &[7; 8])]));
    for broken in [long_property, long_note, cut, narrow, wide, whole[..10].to_vec()] {
        let error = parse(&object(std::slice::from_ref(&broken))).unwrap_err();
        let text = "malformed object: a property note cannot be read in section .note.gnu.property";
        assert_eq!(error.to_string(), text, "{broken:?}");
    }
    let mut odd = Builder::with_text(&[0xc3]);
    odd.section(".note.gnu.property", SHT_NOTE, SHF_ALLOC.0, 16, &whole);
    assert!(parse(&odd.build()).unwrap_err().to_string().contains("a property note cannot be read"));
}

#[test]
fn sections_that_share_one_note_are_refused_before_they_cost_more_than_they_have_bytes() {
    let many = note(&vec![(NEEDED, &[1, 0, 0, 0][..]); 64]);
    let mut object = Builder::with_text(&[0xc3]);
    let first = object.section(".note.gnu.property", SHT_NOTE, SHF_ALLOC.0, 8, &many);
    let others: Vec<u16> =
        (0..40).map(|_| object.section(".note.gnu.property", SHT_NOTE, SHF_ALLOC.0, 8, &[])).collect();
    let mut blob = object.build();
    let table = u64::from_le_bytes(blob[40..48].try_into().unwrap()) as usize;
    let extent: Vec<u8> = blob[table + usize::from(first) * 64 + 0x18..][..16].to_vec();
    others.iter().for_each(|&index| super::builder::patch_section(&mut blob, index, 0x18, &extent));
    assert!(parse(&blob).unwrap_err().to_string().contains("sections share their contents"));
}

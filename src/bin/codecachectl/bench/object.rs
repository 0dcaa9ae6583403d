//! An object that is installed again and again, each time with another name in it.

use std::{fs, path::Path};

use crate::failure::Failure;

/// The name that is changed, in an object of one function: the digits after the letter.
const NAME: &[u8] = b"f0000000";
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

#[derive(Debug)]
pub(super) struct Object {
    bytes: Vec<u8>,
    /// Where the digits are.
    digits_at: usize,
}

impl Object {
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes =
            fs::read(path).map_err(|error| Failure::local(format!("cannot read {}: {error}", path.display())))?;
        Self::new(bytes).ok_or_else(|| {
            Failure::misuse(format!(
                "{} has no function f0000000, whose digits are changed so that no two blobs are equal",
                path.display()
            ))
        })
    }

    fn new(bytes: Vec<u8>) -> Option<Self> {
        let digits_at = bytes.windows(NAME.len()).position(|window| window == NAME)? + 1;
        Some(Self { bytes, digits_at })
    }

    /// The object of a slot and a count: different for 46,000 slots and 1.6 million counts.
    pub(super) fn numbered(&self, slot: u64, count: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let base = DIGITS.len() as u64;
        let (name_bytes, count_bytes) = (NAME.len() - 1, 4);
        let mut rest = slot * base.pow(count_bytes) + count % base.pow(count_bytes);
        for digit in bytes[self.digits_at..][..name_bytes].iter_mut().rev() {
            (*digit, rest) = (DIGITS[(rest % base) as usize], rest / base);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_and_count_has_a_name_of_its_own_and_the_rest_stays() {
        let object = Object::new(b"\x7fELF f0000000\0f".to_vec()).unwrap();
        assert_eq!(object.numbered(1, 2), b"\x7fELF f0010002\0f");
        assert_eq!(object.numbered(4096, 36 * 36 - 1), b"\x7fELF f35s00zz\0f");
    }

    #[test]
    fn an_object_without_the_name_is_none() {
        assert!(Object::new(b"\x7fELF f000000".to_vec()).is_none());
    }
}

//! What an entry is called: a namespace and a key.

use std::{fmt, sync::Arc};

/// Bytes of a key at most: room for a hash, or a hash with a readable prefix.
pub const KEY_MAX_BYTES: usize = 256;
/// Bytes of a namespace at most: those of a DNS label, which namespaces often mirror.
pub const NAMESPACE_MAX_BYTES: usize = 63;
/// The namespace of requests that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Ends the namespace in a name's bytes. No namespace holds it, so names sort by namespace, then key.
const SEPARATOR: u8 = 0;

/// Why a namespace or a key cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The namespace is not `[a-z0-9-]{1,63}`.
    #[error("namespace must be 1 to 63 characters of a-z, 0-9 and '-'")]
    Namespace,
    /// The key is empty or longer than [`KEY_MAX_BYTES`].
    #[error("key has {0} bytes, must have 1 to 256")]
    Key(usize),
}

/// A namespace, checked. Costs nothing to make: requests by handle need no [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace<'a>(&'a str);

impl<'a> Namespace<'a> {
    /// Takes `text`; empty means [`DEFAULT_NAMESPACE`].
    ///
    /// # Errors
    /// [`NameError::Namespace`].
    pub fn new(text: &'a str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        match text {
            "" => Ok(Self(DEFAULT_NAMESPACE)),
            _ if text.len() <= NAMESPACE_MAX_BYTES && text.bytes().all(allowed) => Ok(Self(text)),
            _ => Err(NameError::Namespace),
        }
    }

    /// The characters.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Bytes that the name of every key of this namespace that starts with `prefix` starts with, and no other.
    pub(super) fn name_prefix(self, prefix: &[u8]) -> Vec<u8> {
        [self.0.as_bytes(), &[SEPARATOR], prefix].concat()
    }
}

/// A namespace and a key, checked. Cheap to clone; sorts by namespace, then key.
#[derive(Clone, PartialEq, Eq)]
pub struct Name {
    bytes: Arc<[u8]>,
    namespace_bytes: usize,
}

impl Name {
    /// Joins a namespace and a key.
    ///
    /// # Errors
    /// [`NameError::Key`].
    pub fn new(namespace: Namespace<'_>, key: &[u8]) -> Result<Self, NameError> {
        if key.is_empty() || key.len() > KEY_MAX_BYTES {
            return Err(NameError::Key(key.len()));
        }
        Ok(Self { bytes: namespace.name_prefix(key).into(), namespace_bytes: namespace.0.len() })
    }

    /// The client's own bytes.
    pub fn key(&self) -> &[u8] {
        &self.bytes[self.namespace_bytes + 1..]
    }

    /// Whether the name lies in `namespace`.
    pub fn is_in(&self, namespace: Namespace<'_>) -> bool {
        &self.bytes[..self.namespace_bytes] == namespace.0.as_bytes()
    }

    /// A number for the namespace: the same for all its keys, and another one for others, but for a chance of nothing.
    pub(super) fn tenant(&self, key: &[u8; 32]) -> u64 {
        let hash = blake3::keyed_hash(key, &self.bytes[..self.namespace_bytes]);
        let mut number = [0; 8];
        number.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(number)
    }

    /// What the index sorts by.
    pub(super) fn as_bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.bytes[..self.namespace_bytes].escape_ascii();
        write!(f, "{namespace}/{}", self.key().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, key: &[u8]) -> Name {
        Name::new(Namespace::new(namespace).unwrap(), key).unwrap()
    }

    #[test]
    fn an_empty_namespace_is_the_default_one() {
        assert_eq!(name("", b"k"), name("default", b"k"));
    }

    #[test]
    fn namespaces_with_other_characters_or_too_many_are_refused() {
        for bad in ["A", "a_b", "a\0", "ü", &"a".repeat(64)] {
            assert_eq!(Namespace::new(bad), Err(NameError::Namespace), "{bad:?}");
        }
        assert!(Namespace::new(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn the_number_of_a_namespace_is_that_of_all_its_keys_and_told_by_the_key_of_the_process_alone() {
        let number = |key: u8, namespace: &str, of: &[u8]| name(namespace, of).tenant(&[key; 32]);
        assert_eq!(number(1, "a", b"x"), number(1, "a", b"y"));
        assert_ne!(number(1, "a", b"x"), number(1, "b", b"x"));
        assert_ne!(number(1, "a", b"x"), number(2, "a", b"x"));
    }

    #[test]
    fn keys_are_any_1_to_256_bytes() {
        let namespace = Namespace::new("n").unwrap();
        assert_eq!(Name::new(namespace, b""), Err(NameError::Key(0)));
        assert_eq!(Name::new(namespace, &[0; 257]), Err(NameError::Key(257)));
        assert_eq!(name("n", &[0; 256]).key(), [0; 256]);
    }

    #[test]
    fn a_key_with_zero_bytes_cannot_reach_into_another_namespace() {
        assert_ne!(name("a", b"b\0c"), name("a-b", b"c"));
        let prefix = Namespace::new("a").unwrap().name_prefix(b"");
        assert!(name("a", b"x").as_bytes().starts_with(&prefix));
        assert!(!name("ab", b"x").as_bytes().starts_with(&prefix));
    }
}

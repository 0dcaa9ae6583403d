use super::image::{Image, Part, PartKind, Sizes, Symbol};
use super::{CodeError, Limits};

/// Entry points of a flat blob at most: the bound of the API.
const ENTRIES_MAX: usize = 4096;
/// Start of flat code: a cache line, so that constants inside of the blob are as aligned as they are in it.
const ALIGN_BYTES: u64 = 64;

/// Name of an entry point of a flat blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatEntry {
    /// 1 byte up to [`Limits::symbol_name_max_bytes`], unique in the blob.
    pub name: String,
    /// Bytes from the start of the blob; below its length.
    pub offset_bytes: u64,
}

pub(super) fn parse(blob: &[u8], entries: Vec<FlatEntry>, limits: &Limits) -> Result<Image, CodeError> {
    limits.hold_blob(blob)?;
    Limits::hold("bytes of the image", blob.len() as u64, limits.image_max_bytes)?;
    if entries.is_empty() || entries.len() > ENTRIES_MAX {
        return Err(CodeError::EntryCount { count: entries.len(), max: ENTRIES_MAX });
    }
    check_entries(blob, &entries, limits)?;
    let mut exports: Vec<Symbol> = entries.into_iter().map(symbol).collect();
    exports.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let code = Part { size_bytes: blob.len() as u64, align_bytes: ALIGN_BYTES };
    let sizes = Sizes { code, ..Sizes::default() };
    Image::without_links(sizes, blob.to_vec(), exports)
}

fn check_entries(blob: &[u8], entries: &[FlatEntry], limits: &Limits) -> Result<(), CodeError> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&index| &entries[index].name);
    let repeated = order.windows(2).find(|pair| entries[pair[0]].name == entries[pair[1]].name).map(|pair| pair[1]);
    for (index, entry) in entries.iter().enumerate() {
        let what = if entry.name.is_empty() {
            "its name is empty"
        } else if entry.name.len() as u64 > u64::from(limits.symbol_name_max_bytes) {
            "its name is too long"
        } else if entry.offset_bytes >= blob.len() as u64 {
            "its offset is not in the blob"
        } else if repeated == Some(index) {
            "its name is given twice"
        } else {
            continue;
        };
        let name = super::error::shown(entry.name.as_bytes());
        return Err(CodeError::InvalidEntry { index, name, offset_bytes: entry.offset_bytes, what });
    }
    Ok(())
}

fn symbol(entry: FlatEntry) -> Symbol {
    Symbol {
        name: entry.name.into(),
        part: PartKind::Code,
        is_function: true,
        offset_bytes: entry.offset_bytes,
        size_bytes: 0,
        signature: None,
    }
}

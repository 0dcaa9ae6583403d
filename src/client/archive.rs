//! Several objects as one blob: an archive, as `ar` makes them in its GNU form.

/// Bytes of the header of a member.
const HEADER_BYTES: usize = 60;
/// Names up to this length stand in the header, behind it a slash.
const SHORT_NAME_MAX_BYTES: usize = 15;

/// An archive of `members` by name, in this order. Names are for error messages only, and need not differ.
pub fn archive<'a>(members: impl IntoIterator<Item = (&'a str, &'a [u8])> + Clone) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    let mut long_names = Vec::new();
    let mut headers = Vec::new();
    for (name, bytes) in members.clone() {
        let name = name.replace(['/', '\n'], "_");
        let field = if name.len() <= SHORT_NAME_MAX_BYTES {
            format!("{name}/")
        } else {
            let at = long_names.len();
            long_names.extend_from_slice(format!("{name}/\n").as_bytes());
            format!("/{at}")
        };
        headers.push(header(&field, bytes.len()));
    }
    if !long_names.is_empty() {
        put(&mut archive, &header("//", long_names.len()), &long_names);
    }
    for (header, (_, bytes)) in headers.iter().zip(members) {
        put(&mut archive, header, bytes);
    }
    archive
}

/// Time, owner and mode are as `ar D` writes them, so that equal objects make equal archives.
fn header(name: &str, bytes: usize) -> String {
    let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{bytes:<10}`\n", 0, 0, 0, 644);
    debug_assert_eq!(header.len(), HEADER_BYTES, "invariant: every field has its width");
    header
}

/// Members start at even offsets.
fn put(archive: &mut Vec<u8>, header: &str, bytes: &[u8]) {
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(bytes);
    if !bytes.len().is_multiple_of(2) {
        archive.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use object::read::archive::ArchiveFile;

    use super::*;

    #[test]
    fn what_is_put_into_an_archive_is_read_from_it_again() {
        let long = "a name that is longer than a header holds.o";
        let members = [("a.o", &b"odd"[..]), (long, b"even"), ("b/c.o", b"")];
        let archive = archive(members);
        let read = ArchiveFile::parse(&*archive).unwrap();
        let found: Vec<_> = read
            .members()
            .map(|member| {
                let member = member.unwrap();
                (String::from_utf8_lossy(member.name()).into_owned(), member.data(&*archive).unwrap().to_vec())
            })
            .collect();
        let expected = [("a.o", &b"odd"[..]), (long, b"even"), ("b_c.o", b"")];
        assert_eq!(found, expected.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    }
}

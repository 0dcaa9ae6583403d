//! Whether code can run on this processor.

use super::failure::{Failure, Reason};
use crate::code::{CpuFeatures, Image, Missing};

/// Names that one install may require: some times as many as there are.
const REQUIRED_MAX: usize = 256;
/// Bytes of such a name; the longest known has 15.
const NAME_MAX_BYTES: usize = 64;

/// Who needs what is missing.
pub(super) const REQUEST: &str = "the install requires";
/// The same, of an object.
pub(super) const OBJECT: &str = "the object's property note says that it needs";

/// Checks the form of the names that an install requires.
///
/// # Errors
/// INVALID_FIELD.
pub(super) fn check_names(names: &[String]) -> Result<(), Failure> {
    let field = "required_cpu_features";
    if names.len() > REQUIRED_MAX {
        return Err(Failure::field(field, format!("are {}, at most {REQUIRED_MAX}", names.len())));
    }
    match names.iter().position(|name| !(1..=NAME_MAX_BYTES).contains(&name.len())) {
        Some(at) => Err(Failure::field(field, format!("name {at} must have 1 to {NAME_MAX_BYTES} bytes"))),
        None => Ok(()),
    }
}

/// Refuses what requires more than is there.
///
/// # Errors
/// TARGET_MISMATCH.
pub(super) fn hold_names(host: &CpuFeatures, names: &[String]) -> Result<(), Failure> {
    refuse(&host.missing_names(names.iter().map(String::as_str)), REQUEST)
}

/// Refuses an image whose objects say that they need more than is there.
///
/// # Errors
/// TARGET_MISMATCH.
pub(super) fn hold_image(host: &CpuFeatures, image: &Image) -> Result<(), Failure> {
    refuse(&host.missing_levels(image.levels_needed()), OBJECT)
}

/// All that is missing, one by one.
pub(super) fn failures(missing: Vec<Missing>, who: &str) -> impl Iterator<Item = Failure> {
    missing.into_iter().filter_map(move |it| refuse(&[it], who).err())
}

fn refuse(missing: &[Missing], who: &str) -> Result<(), Failure> {
    /// Those that are named: more would not fit beside the details of an error.
    const NAMED_MAX: usize = 8;
    if missing.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = missing.iter().take(NAMED_MAX).map(Missing::to_string).collect();
    let rest = if missing.len() > named.len() { ", ..." } else { "" };
    let named = format!("{}{rest}", named.join(", "));
    let message = format!("this processor does not have what {who}: {named}; compile for what GetCapabilities lists");
    Err(Failure::new(Reason::TargetMismatch, message).with("missing", named))
}

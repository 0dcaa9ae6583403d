//! Not yet.
/// Not yet.
pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}

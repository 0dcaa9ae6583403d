//! The example client, built and run as a user would.

mod support;

use std::process::Command;

use support::Daemon;

#[test]
fn the_example_installs_what_cc_makes_and_calls_it() {
    let daemon = Daemon::start();
    // Cargo builds the examples beside the test binaries.
    let program = std::env::current_exe().unwrap().with_file_name("../examples/install_and_call");
    let output = Command::new(&program).args(["--server", &daemon.target]).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.trim().is_empty());
}

//! The emulated driver and NCCL library, for programs that tests start.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder with the emulated libraries, built again when a source is younger.
pub(crate) fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-gpu");
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/emulator/build.sh");
    let output = Command::new(build).arg(&folder).output().unwrap();
    assert!(
        output.status.success(),
        "this test needs a C++ compiler called c++: {}",
        text(&output)
    );
    folder
}

/// All that a program wrote.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

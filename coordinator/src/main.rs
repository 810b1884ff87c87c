//! The coordinator as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("coordinator", |config, process| {
        coordinator::run(config, transport::Hub::new(), process)
    })
}

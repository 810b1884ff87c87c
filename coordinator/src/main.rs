//! The coordinator as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("coordinator", |config, process| {
        let hub = transport::Hub::trusting(&process.trust);
        coordinator::run(config, hub, process)
    })
}

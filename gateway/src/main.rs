//! The `gateway` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("gateway", |config, process| {
        let hub = transport::Hub::trusting(&process.trust);
        gateway::run(config, hub, process)
    })
}

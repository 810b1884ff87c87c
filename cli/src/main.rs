//! The `amoe` program: serve a model, generate from it, measure a server, make synthetic checkpoints.

mod bench;
mod certs;
mod chaos;
mod generate;
mod gpu;
mod http;
mod keys;
mod local;
mod logits;
mod operator;
mod place;
mod plan;
mod profile;
mod route;
mod serve;
mod simulate;
mod stdout;
mod synth;
mod top;

use std::process::ExitCode;

use chassis::last_word;
use clap::{Parser, Subcommand};

/// Serves mixture-of-experts models from attention nodes and expert nodes.
#[derive(Debug, Parser)]
#[command(name = "amoe", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a checkpoint over OpenAI HTTP and gRPC, all roles in this process.
    Serve(Box<serve::Flags>),
    /// Generate text from a prompt, once, without a server.
    Generate(Box<generate::Flags>),
    /// Load any server that speaks OpenAI's HTTP API and say how fast it answers.
    Bench(bench::Flags),
    /// Make the certificates of a cluster.
    Certs(certs::Flags),
    /// Break a cluster again and again under load and say whether clients noticed.
    Chaos(chaos::Flags),
    /// Make API keys.
    Keys(keys::Flags),
    /// Show, compare and change where a cluster's experts lie.
    Plan(plan::Flags),
    /// Place experts on nodes by a trace and cost curves, and say what that is worth.
    Place(place::Flags),
    /// Measure what expert work costs on this machine.
    Profile(profile::Flags),
    /// Choose replicas for one batch of one layer, from JSON to JSON.
    Route(route::Flags),
    /// Run a scenario in virtual time, with the decisions of a live cluster.
    Simulate(simulate::Flags),
    /// Write a checkpoint with random weights and skewed routing.
    Synth(synth::Flags),
    /// Watch a cluster in the terminal: nodes, loads, queues and decisions, anew every second.
    Top(top::Flags),
}

fn main() -> ExitCode {
    let outcome = match Flags::parse().command {
        Command::Serve(flags) => serve::run(*flags),
        Command::Generate(flags) => generate::run(*flags),
        Command::Bench(flags) => bench::run(&flags),
        Command::Certs(flags) => certs::run(&flags),
        Command::Chaos(flags) => chaos::run(&flags),
        Command::Keys(flags) => keys::run(&flags),
        Command::Plan(flags) => plan::run(&flags),
        Command::Place(flags) => place::run(&flags),
        Command::Profile(flags) => profile::run(&flags),
        Command::Route(flags) => route::run(&flags),
        Command::Simulate(flags) => simulate::run(&flags),
        Command::Synth(flags) => synth::run(&flags),
        Command::Top(flags) => top::run(&flags),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_word::say("amoe", &last_word::sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Flags;

    #[test]
    fn flags_of_all_commands_go_together() {
        Flags::command().debug_assert();
    }
}

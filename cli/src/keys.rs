//! `amoe keys`: API keys, made once and kept by their owners only.

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use trust::new_key;

use crate::stdout;

/// Flags of `amoe keys`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(subcommand)]
    wish: Wish,
}

#[derive(Debug, Subcommand)]
enum Wish {
    /// Make a key: it goes to standard error, once, and its entry for the key file to standard output.
    New {
        /// The owner, as logs and metrics are to say it.
        #[arg(long, default_value = "default")]
        name: String,
        /// What the key opens.
        #[arg(long, required = true, value_delimiter = ',')]
        scope: Vec<Scope>,
    },
}

/// Scopes by their names.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scope {
    /// Asking the model.
    Inference,
    /// Reading metrics and the state of the cluster.
    Metrics,
    /// Changing the cluster, and reading it.
    Admin,
}

impl From<Scope> for trust::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Inference => Self::Inference,
            Scope::Metrics => Self::Metrics,
            Scope::Admin => Self::Admin,
        }
    }
}

/// Makes a key and shows it, so that `amoe keys new … >> keys.toml` keeps the right half.
#[expect(clippy::print_stderr, reason = "what is shown once must not end up in the file")]
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let Wish::New { name, scope } = &flags.wish;
    let scopes: Vec<_> = scope.iter().map(|&scope| scope.into()).collect();
    let key = new_key(name, &scopes).map_err(|reason| anyhow!(reason))?;
    eprintln!("{}", key.secret);
    stdout::print(key.entry + "\n")
}

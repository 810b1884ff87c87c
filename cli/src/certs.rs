//! `amoe certs`: the certificates of a cluster that nobody else makes any for.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use trust::{Party, authority::Authority};

use crate::stdout;

/// Flags of `amoe certs`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(subcommand)]
    wish: Wish,
}

#[derive(Debug, Subcommand)]
enum Wish {
    /// Make an authority in a folder, if it holds none, and a certificate for each kind of process.
    ///
    /// Again in the same folder it renews the certificates; processes that run take them over. Keep `ca.key`
    /// where no process of the cluster can read it: who has it can be anybody.
    Init {
        /// Where the files go: `ca.pem`, and `NAME.pem` and `NAME.key` for each.
        folder: PathBuf,
        /// Names and addresses by which clients reach the gateway, for `public.pem`.
        #[arg(
            long,
            value_name = "HOST",
            value_delimiter = ',',
            default_value = "localhost,127.0.0.1,::1"
        )]
        hosts: Vec<String>,
        /// How long the certificates last.
        #[arg(long, value_name = "DAYS", default_value_t = 365, allow_negative_numbers = true)]
        days: i64,
    },
}

/// Writes the files and says which.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let Wish::Init { folder, hosts, days } = &flags.wish;
    ensure!((-3650..=3650).contains(days), "flag `--days` is {days}, expected at most 3650");
    let authority = Authority::open(folder)?;
    for party in Party::ALL {
        authority.certify(party, *days)?;
    }
    authority.certify_public(hosts, *days)?;
    let names: Vec<_> = Party::ALL.iter().map(|party| party.name()).collect();
    let (names, folder) = (names.join(", "), folder.display());
    stdout::print(format_args!(
        "{folder} holds certificates of {names} and public, and of their authority\n"
    ))
}

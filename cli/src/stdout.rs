//! What a command answers, on standard output.

use std::{fmt::Display, io::Write};

use anyhow::{Context, Result};

/// Prints `text` and whatever is before it.
///
/// # Errors
/// Standard output is full, or its reader has left: for a long answer that happens, and is no reason to panic.
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).context("cannot write the answer")
}

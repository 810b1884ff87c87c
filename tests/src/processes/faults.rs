//! What befalls processes that go on running: a slow device, a full disk, a clock that is set.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};

use super::{Processes, Security, signal};

/// A process that is made slow until [`Throttle::end`].
#[derive(Debug)]
pub struct Throttle {
    id: u32,
    shell: Child,
}

/// Stops and continues the process that is its argument.
const THROTTLE: &str = "while kill -STOP $0; do sleep 0.04; kill -CONT $0; sleep 0.01; done";

/// Gives a program the wall clock that a file says, and leaves it the clock that cannot be set.
const CLOCK: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

// === impl Throttle ===

impl Throttle {
    /// Lets the process run as before.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub async fn end(mut self) -> Result<()> {
        self.shell.kill().await?;
        signal(self.id, "CONT").await
    }
}

// === impl Processes ===

impl Processes {
    /// The same with logs, of all there is to say, on a disk that is full.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn muted(attention: usize, experts: usize) -> Result<Self> {
        let mut all = Self::new()?;
        all.muted = true;
        all.led(attention, experts, &[]).await
    }

    /// A cluster like [`Processes::cluster`], or like [`Processes::secured`], whose wall clock can be set.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn with_clock(attention: usize, experts: usize, secured: bool) -> Result<Self> {
        let mut all = Self::new()?;
        all.stepped = true;
        all.step_clock("+0s")?;
        if secured {
            all.security = Some(Security::new(all.gateway.ip())?);
        }
        // However busy the machine is, no lease ends and no plan changes but by a clock that is wrong.
        let differs = [("CLUSTER__LEASE_MS", "8000"), ("PLACEMENT__REVIEW_MS", "0")];
        all.joined(attention, experts, &differs).await
    }

    /// Sets the wall clock of all roles at once: so far from the true time, as in `+1h` or `-3m`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn step_clock(&self, offset: &str) -> Result<()> {
        // Renamed into place: a process that looks meanwhile sees one or the other.
        let beside = self.folder.path().join("clock.new");
        fs::write(&beside, offset)?;
        Ok(fs::rename(beside, self.clock())?)
    }

    fn clock(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// Starts a program into what this cluster suffers from.
    pub(super) fn disturb(&self, command: &mut Command) -> Result<()> {
        if self.muted {
            let full = || OpenOptions::new().write(true).open("/dev/full");
            command.stdout(full()?).stderr(full()?);
        }
        if self.stepped {
            command.env("LD_PRELOAD", CLOCK);
            command.env("FAKETIME_TIMESTAMP_FILE", self.clock()).env("FAKETIME_NO_CACHE", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Ok(())
    }

    /// Stops a process where it is; it is still there, and does nothing.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn freeze(&mut self, name: &str) -> Result<()> {
        self.program(name)?.signal("STOP").await
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn thaw(&mut self, name: &str) -> Result<()> {
        self.program(name)?.signal("CONT").await
    }

    /// Lets a process run for a fifth of the time only, as if its device had become slow.
    ///
    /// # Errors
    /// When it is not running.
    pub fn throttle(&mut self, name: &str) -> Result<Throttle> {
        let id = self.program(name)?.running()?.id().context("has ended already")?;
        let mut command = Command::new("sh");
        command.args(["-c", THROTTLE, &id.to_string()]).stderr(Stdio::null()).kill_on_drop(true);
        Ok(Throttle { id, shell: command.spawn()? })
    }

    /// Fills the disk of a process, as far as it sees: its files grow no more, and what lies beyond their first page
    /// is written no more.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn fill_disk(&mut self, name: &str) -> Result<()> {
        self.limit_files(name, "--fsize=4096:").await
    }

    /// Makes room on it again.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn free_disk(&mut self, name: &str) -> Result<()> {
        self.limit_files(name, "--fsize=unlimited:").await
    }

    async fn limit_files(&mut self, name: &str, limit: &str) -> Result<()> {
        let id = self.program(name)?.running()?.id().context("has ended already")?.to_string();
        let limited = Command::new("prlimit").args(["--pid", &id, limit]).status().await?;
        ensure!(limited.success(), "prlimit: {limited}");
        Ok(())
    }
}

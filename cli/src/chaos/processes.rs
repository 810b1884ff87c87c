//! Child processes on the loopback network: started, stopped, killed, frozen and started again, by name.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hyper::StatusCode;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::http;

/// A process that is neither ready nor gone after this long hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(50);
/// A process that says nothing for this long is not ready, whatever it is.
const PROBE: Duration = Duration::from_millis(500);

/// A program, the way it was started, and its process while it runs.
#[derive(Debug)]
struct Program {
    command: Command,
    /// A page that answers 200 when the program is ready.
    probe: String,
    log: PathBuf,
    child: Option<Child>,
}

/// The processes of a cluster. Those that still run when it is dropped are killed.
#[derive(Debug)]
pub(super) struct Processes {
    folder: TempDir,
    programs: BTreeMap<String, Program>,
    port: u16,
}

/// What a program does with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Finishes what it has and ends.
    Term,
    /// Stands still.
    Stop,
    /// Goes on.
    Cont,
}

/// A process that is made slow until [`Throttle::end`].
#[derive(Debug)]
pub(super) struct Throttle {
    shell: Child,
}

/// Lets its argument run for about a millisecond of every hundred.
const THROTTLE: &str = "while kill -STOP $0; do sleep 0.1; kill -CONT $0; sleep 0.001; done";

impl Throttle {
    /// Stops slowing the process down; it may have been left standing still.
    pub(super) async fn end(mut self) -> Result<()> {
        Ok(self.shell.kill().await?)
    }
}

// === impl Signal ===

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Stop => "STOP",
            Self::Cont => "CONT",
        }
    }
}

// === impl Program ===

impl Program {
    fn running(&mut self) -> Result<&mut Child> {
        self.child.as_mut().context("is not running")
    }

    fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        self.child = Some(self.command.spawn().context("cannot be started")?);
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        loop {
            if let Some(status) = self.running()?.try_wait()? {
                bail!("ended with {status} before it was ready; it said: {}", self.last_words());
            }
            let page = timeout(PROBE, http::get(&self.probe)).await;
            if matches!(page, Ok(Ok((StatusCode::OK, _)))) {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }

    /// Sent by the shell, which has it built in: the call itself would be unsafe code.
    async fn signal(&mut self, signal: Signal) -> Result<()> {
        let id = self.running()?.id().context("has ended already")?;
        let line = format!("kill -{} {id}", signal.name());
        let sent = Command::new("sh").args(["-c", &line]).status().await?;
        ensure!(sent.success(), "cannot be sent SIG{}: {sent}", signal.name());
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing").to_owned()
    }
}

// === impl Processes ===

impl Processes {
    /// None yet. Their files lie in a temporary folder.
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("amoe-chaos-").tempdir()?;
        Ok(Self { folder, programs: BTreeMap::new(), port: 20_000 })
    }

    /// Where their files lie.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An address that no other program uses: this process has an address of the loopback network to
    /// itself, and takes ports below those that the system hands out.
    pub(super) fn address(&mut self) -> SocketAddr {
        let [_, a, b, c] = std::process::id().to_be_bytes();
        self.port += 1;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 64 | a, b, c)), self.port)
    }

    /// Adds a program that is ready when `probe` answers 200. Nothing of this process's environment reaches it.
    pub(super) fn add(
        &mut self,
        name: &str,
        path: &Path,
        args: &[String],
        environment: impl IntoIterator<Item = (String, String)>,
        probe: String,
    ) {
        let mut command = Command::new(path);
        command.args(args).env_clear().envs(environment).stdin(Stdio::null()).kill_on_drop(true);
        let log = self.folder().join(format!("{name}.log"));
        self.programs.insert(name.to_owned(), Program { command, probe, log, child: None });
    }

    fn program(&mut self, name: &str) -> Result<&mut Program> {
        self.programs.get_mut(name).with_context(|| format!("no process is called {name}"))
    }

    /// Starts a process as it was started before.
    pub(super) fn start(&mut self, name: &str) -> Result<()> {
        self.program(name)?.start().with_context(|| name.to_owned())
    }

    /// Waits until a process is ready.
    pub(super) async fn ready(&mut self, name: &str) -> Result<()> {
        let ready = timeout(PATIENCE, self.program(name)?.ready()).await;
        ready.with_context(|| format!("{name} does not become ready"))?.context(name.to_owned())
    }

    /// Kills a process, which gets no chance to say good-bye.
    pub(super) async fn kill(&mut self, name: &str) -> Result<()> {
        let program = self.program(name)?;
        program.running()?.kill().await?;
        program.child = None;
        Ok(())
    }

    /// Sends a process a signal.
    pub(super) async fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        self.program(name)?.signal(signal).await.with_context(|| name.to_owned())
    }

    /// Lets a process run for a hundredth of the time.
    pub(super) fn throttle(&mut self, name: &str) -> Result<Throttle> {
        let id = self.program(name)?.running()?.id().context("has ended already")?;
        let mut command = Command::new("sh");
        command.args(["-c", THROTTLE, &id.to_string()]).stderr(Stdio::null()).kill_on_drop(true);
        Ok(Throttle { shell: command.spawn()? })
    }

    /// Waits until a process has ended by itself; how it ended, and the last that it said.
    pub(super) async fn ended(&mut self, name: &str) -> Result<(ExitStatus, String)> {
        let program = self.program(name)?;
        let ended = timeout(PATIENCE, program.running()?.wait()).await;
        let status = ended.with_context(|| format!("{name} does not stop"))??;
        program.child = None;
        Ok((status, program.last_words()))
    }

    /// Asks a process to stop, and waits until it has finished what it had and ended with 0.
    pub(super) async fn drain(&mut self, name: &str) -> Result<()> {
        self.signal(name, Signal::Term).await?;
        let (status, said) = self.ended(name).await?;
        ensure!(status.success(), "{name} ended with {status} after SIGTERM; it said: {said}");
        Ok(())
    }

    /// Keeps the files, for whoever wants to know what went wrong.
    pub(super) fn keep(mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder().to_owned()
    }
}

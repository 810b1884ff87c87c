//! The shape that all binaries share: flags, configuration, log, runtime, admin door, drain, exit code.

use std::{
    error::Error,
    ffi::OsString,
    fmt::Display,
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, FromArgMatches, Parser};
use prometheus::Registry;
use serde::de::DeserializeOwned;
use trust::{Keys, Trust, TrustConfig};

use crate::{
    Readiness, Shutdown, VERSION,
    admin::{self, Admin, AdminConfig, AdminError, Pages},
    config::{ConfigError, Layers},
    last_word, metrics,
    routes::Routes,
    shutdown::ShutdownConfig,
    telemetry::{self, TelemetryConfig},
    traces::{Tracer, TracingConfig, TracingError},
};

#[cfg(test)]
mod tests;

/// Whatever ends a process.
type Cause = Box<dyn Error + Send + Sync>;

/// Exit code for wrong flags or a refused configuration (`EX_USAGE`).
const USAGE: u8 = 64;
/// Exit code for everything else that goes wrong.
const FAILURE: u8 = 1;
/// How long tasks that ignored the drain may hold up the exit.
const ABANDON: Duration = Duration::from_millis(500);

/// What a role gets from the process it runs in; `amoe serve` hands one to all its roles.
#[derive(Clone, Debug)]
pub struct Process {
    pub registry: Registry,
    pub readiness: Readiness,
    pub shutdown: Shutdown,
    /// Pages of the admin door beside the usual ones.
    pub pages: Pages,
    /// Whom it trusts.
    pub trust: Trust,
    /// Takes spans of requests that are traced.
    pub tracer: Tracer,
}

impl Process {
    /// A process that drains on SIGTERM and SIGINT. Must be called inside a tokio runtime.
    pub fn new(role: &str, shutdown: &ShutdownConfig, trust: &TrustConfig) -> Result<Self, Cause> {
        let readiness = Readiness::default();
        let logged = readiness.clone();
        tokio::spawn(async move { logged.log().await });
        let registry = metrics::registry(role)?;
        // Roles are called as their parties are; what is no party of a cluster may have any certificate.
        let trust = Trust::open(role.parse().ok(), trust, &registry)?;
        let process = Self {
            registry,
            readiness,
            shutdown: Shutdown::on_signals(shutdown)?,
            pages: Pages::new(&trust),
            trust,
            tracer: Tracer::default(),
        };
        process.pages.add(process.routes());
        Ok(process)
    }

    /// The same process, its admin door too, with other keys than those of its configuration. Comes before
    /// anybody adds pages.
    #[must_use]
    pub fn with_keys(mut self, keys: Keys) -> Self {
        self.trust = self.trust.with_keys(keys);
        self.pages = Pages::new(&self.trust);
        self.pages.add(self.routes());
        self
    }

    /// The same process, with traces of its requests as `config` says. Must be called inside a tokio runtime.
    pub fn with_tracing(
        mut self,
        role: &str,
        config: &TracingConfig,
    ) -> Result<Self, TracingError> {
        self.tracer = Tracer::start(role, config, &self.registry)?;
        Ok(self)
    }

    /// `/metrics`, `/health`, `/livez` and `/readyz` of this process.
    pub fn routes(&self) -> Routes {
        admin::routes(self.registry.clone(), self.readiness.clone(), self.shutdown.clone())
    }

    /// Opens the admin door; it closes when the returned value is dropped.
    pub async fn open_admin(&self, config: &AdminConfig) -> Result<Admin, AdminError> {
        admin::serve(config, self.pages.clone(), &self.trust).await
    }
}

/// The sections of a configuration file that every role has: `[admin]`, `[telemetry]`, `[tracing]`, `[shutdown]`, and
/// `[tls]` and `[keys]` if it wants to.
#[derive(Clone, Debug, Default)]
pub struct ProcessConfig {
    pub admin: AdminConfig,
    pub telemetry: TelemetryConfig,
    pub tracing: TracingConfig,
    pub shutdown: ShutdownConfig,
    pub trust: TrustConfig,
}

/// The sections of a configuration file that belong to one role.
///
/// Give the type `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error and not a default.
pub trait RoleConfig: DeserializeOwned {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// One sentence that names the key and what was expected.
    fn check(&self) -> Result<(), String>;
}

/// Reads and checks the whole configuration of a role; what is wrong with it is one sentence.
pub fn load<C: RoleConfig>(path: Option<&Path>) -> Result<(ProcessConfig, C), ConfigError> {
    let mut layers = Layers::read(path)?;
    let process = ProcessConfig {
        admin: layers.take("admin")?,
        telemetry: layers.take("telemetry")?,
        tracing: layers.take("tracing")?,
        shutdown: layers.take("shutdown")?,
        trust: TrustConfig { tls: layers.take("tls")?, keys: layers.take("keys")? },
    };
    let origin = layers.origin();
    let config: C = layers.decode()?;
    let checked = config.check().and_then(|()| {
        telemetry::filter(&process.telemetry).map(drop).map_err(|error| error.to_string())?;
        process.tracing.check().map_err(|error| error.to_string())
    });
    checked.map_err(|reason| ConfigError::Nonsense { origin, reason })?;
    Ok((process, config))
}

/// The `main` of a role: everything around `run`, which serves until its shutdown is requested and then drains.
///
/// Exits 0 after a full drain, 64 for wrong flags or configuration, 1 for anything else, with one sentence on
/// standard error.
pub fn main<C, E, F>(role: &'static str, run: impl FnOnce(C, Process) -> F) -> ExitCode
where
    C: RoleConfig,
    E: Into<Cause>,
    F: Future<Output = Result<(), E>>,
{
    match enter(role, std::env::args_os(), run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            last_word::say(role, &exit.sentence);
            ExitCode::from(exit.code)
        }
    }
}

#[derive(Debug, Parser)]
#[command(version = VERSION)]
struct Flags {
    /// The TOML file that describes this process; AMOE_SECTION__KEY in the environment goes over it.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
}

/// Why the process ends before it served, or without having drained.
#[derive(Debug, PartialEq, Eq)]
struct Exit {
    code: u8,
    sentence: String,
}

impl Exit {
    fn usage(error: impl Display) -> Self {
        Self { code: USAGE, sentence: error.to_string() }
    }

    fn failure(error: impl Into<Cause>) -> Self {
        let error: Cause = error.into();
        Self { code: FAILURE, sentence: last_word::sentence(&*error) }
    }
}

fn enter<C, E, F>(
    role: &'static str,
    arguments: impl IntoIterator<Item = OsString>,
    run: impl FnOnce(C, Process) -> F,
) -> Result<(), Exit>
where
    C: RoleConfig,
    E: Into<Cause>,
    F: Future<Output = Result<(), E>>,
{
    let Some(flags) = parse(role, arguments)? else {
        return Ok(());
    };
    let (process, config) = load::<C>(flags.config.as_deref()).map_err(Exit::usage)?;
    if flags.check_config {
        return Ok(());
    }
    start(role, &process, |process| run(config, process))
}

/// The flags, or nothing when the user only wanted to read the help or the version.
fn parse(
    role: &'static str,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Option<Flags>, Exit> {
    let matches = Flags::command().name(role).try_get_matches_from(arguments);
    match matches.and_then(|matches| Flags::from_arg_matches(&matches)) {
        Ok(flags) => Ok(Some(flags)),
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            Err(Exit::usage(text.trim_start_matches("error: ").trim_end()))
        }
        Err(help) => help.print().map(|()| None).map_err(Exit::failure),
    }
}

fn start<E, F>(
    role: &'static str,
    config: &ProcessConfig,
    run: impl FnOnce(Process) -> F,
) -> Result<(), Exit>
where
    E: Into<Cause>,
    F: Future<Output = Result<(), E>>,
{
    telemetry::init(&config.telemetry).map_err(Exit::failure)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(role)
        .build()
        .map_err(Exit::failure)?;
    let outcome = runtime.block_on(async {
        let process = Process::new(role, &config.shutdown, &config.trust).map_err(Exit::failure)?;
        let process = process.with_tracing(role, &config.tracing).map_err(Exit::failure)?;
        let _admin = process.open_admin(&config.admin).await.map_err(Exit::failure)?;
        let served = process.shutdown.guard(run(process.clone())).await;
        process.tracer.flush().await;
        served.map_err(Exit::failure)?.map_err(Exit::failure)
    });
    runtime.shutdown_timeout(ABANDON);
    outcome
}

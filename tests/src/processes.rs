//! Roles as processes of their own: started as the examples say, on addresses that nobody else has, over etcd.

mod faults;
mod gpu;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hyper::StatusCode;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    checkpoint,
    client::{Client, get},
    security::Security,
};

pub use faults::Throttle;
use gpu::Emulated;
pub use gpu::refusal;

/// Nothing in a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nor does a program that runs to its end, be it with a cluster of its own.
const RUN: Duration = Duration::from_secs(480);
/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(30);
/// A template that shows what it was given; the demo model has none.
const TEMPLATE: &str = "{% for tool in tools or [] %}<can {{ tool.function.name }}>{% endfor %}\
                        {% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// A program, the way it was started, and its process while it runs.
#[derive(Debug)]
struct Program {
    command: Command,
    /// A page that answers 200 when the program is ready.
    probe: String,
    child: Option<Child>,
}

/// Child processes by name. Those that still run when it is dropped are killed.
#[derive(Debug)]
pub struct Processes {
    folder: TempDir,
    programs: BTreeMap<String, Program>,
    gateway: SocketAddr,
    /// Where the processes listen for each other.
    ports: BTreeMap<String, SocketAddr>,
    security: Option<Security>,
    /// Whether logs go where nothing can be written.
    muted: bool,
    /// Whether the wall clock of all roles can be stepped.
    stepped: bool,
    /// Where their traces go.
    collector: Option<String>,
    /// The GPU that nodes of some roles compute on.
    gpu: Option<Emulated>,
}

/// An address that no other test and no other program uses: each test process has an address of the
/// loopback network to itself, and ports below those that the system hands out.
fn address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let ip = IpAddr::V4(Ipv4Addr::new(127, 64 | a, b, c));
    SocketAddr::new(ip, PORT.fetch_add(1, Ordering::Relaxed))
}

/// A binary of this workspace, which cargo puts beside the folder of the test.
fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.ancestors().nth(2).context("a test lies in target/PROFILE/deps")?.join(name);
    ensure!(
        path.is_file(),
        "{} is not built; `PROTOC=$(cargo xtask protoc) cargo build --workspace --bins --features \
         coordinator/etcd` builds what this test starts",
        path.display()
    );
    Ok(path)
}

fn unknown(name: &str) -> String {
    format!("no process is called {name}")
}

fn example(role: &str) -> PathBuf {
    checkpoint(&format!("../deploy/examples/{role}.toml"))
}

/// The demo checkpoint with a chat template.
fn chatty_checkpoint(folder: &Path) -> Result<PathBuf> {
    let chatty = folder.join("demo");
    std::fs::create_dir(&chatty)?;
    for file in std::fs::read_dir(checkpoint("../models/demo"))? {
        let file = file?;
        symlink(file.path(), chatty.join(file.file_name()))?;
    }
    std::fs::write(chatty.join("chat_template.jinja"), TEMPLATE)?;
    Ok(chatty)
}

/// Sends a process a signal. By the shell, which has it built in: the call itself would be unsafe code.
async fn signal(id: u32, name: &str) -> Result<()> {
    let kill = format!("kill -{name} {id}");
    let sent = Command::new("sh").args(["-c", &kill]).status().await?;
    ensure!(sent.success(), "cannot be sent SIG{name}: {sent}");
    Ok(())
}

// === impl Program ===

impl Program {
    fn new(path: &Path, args: &[&str], probe: String) -> Self {
        let mut command = Command::new(path);
        // What whoever runs the test has set must not reach the roles.
        command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        Self { command, probe, child: None }
    }

    fn running(&mut self) -> Result<&mut Child> {
        self.child.as_mut().context("is not running")
    }

    async fn ready(&mut self) -> Result<()> {
        loop {
            if let Some(status) = self.running()?.try_wait()? {
                bail!("ended with {status} before it was ready");
            }
            if matches!(get(&self.probe, None).await, Ok((StatusCode::OK, _))) {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }

    async fn signal(&mut self, name: &str) -> Result<()> {
        signal(self.running()?.id().context("has ended already")?, name).await
    }
}

// === impl Processes ===

impl Processes {
    fn new() -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir()?,
            programs: BTreeMap::new(),
            gateway: address(),
            ports: BTreeMap::new(),
            security: None,
            muted: false,
            stepped: false,
            collector: None,
            gpu: None,
        })
    }

    /// A cluster of one process, `amoe serve`, that is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn single() -> Result<Self> {
        let mut all = Self::new()?;
        let model = chatty_checkpoint(all.folder.path())?;
        let (host, port) = (all.gateway.ip().to_string(), all.gateway.port().to_string());
        let model = model.display().to_string();
        let mut args = vec!["serve", &model, "--host", &host, "--port", &port];
        args.extend(["--served-model-name", "demo", "--threads", "1", "--log", "warn"]);
        let probe = format!("http://{}/readyz", all.gateway);
        all.programs.insert("amoe".into(), Program::new(&binary("amoe")?, &args, probe));
        all.start("amoe")?;
        all.ready("amoe").await?;
        Ok(all)
    }

    /// A cluster that is ready: `etcd`, `coordinator`, `gateway`, `attention-N` and `expert-N`.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn cluster(attention: usize, experts: usize) -> Result<Self> {
        Self::cluster_with(attention, experts, &[]).await
    }

    /// The same with a coordinator whose configuration differs.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn cluster_with(
        attention: usize,
        experts: usize,
        coordinator: &[(&str, &str)],
    ) -> Result<Self> {
        Self::new()?.joined(attention, experts, coordinator).await
    }

    /// The same with certificates and keys, and HTTPS for clients.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn secured(attention: usize, experts: usize) -> Result<Self> {
        let mut all = Self::new()?;
        all.security = Some(Security::new(all.gateway.ip())?);
        all.joined(attention, experts, &[]).await
    }

    /// The same without etcd: the coordinator keeps its state in a file.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn filed(attention: usize, experts: usize) -> Result<Self> {
        let all = Self::new()?;
        let file = all.folder.path().join("coordinator.redb").display().to_string();
        all.led(attention, experts, &[("STORE__KIND", "embedded"), ("STORE__PATH", &file)]).await
    }

    /// The same with traces of those requests that ask for them, sent to a collector.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn traced(attention: usize, experts: usize, collector: &str) -> Result<Self> {
        let mut all = Self::new()?;
        all.collector = Some(collector.to_owned());
        all.joined(attention, experts, &[]).await
    }

    async fn joined(
        mut self,
        attention: usize,
        experts: usize,
        coordinator: &[(&str, &str)],
    ) -> Result<Self> {
        let etcd = self.add_etcd();
        let endpoints = format!("[\"{etcd}\"]");
        let mut differs = vec![("STORE__KIND", "etcd"), ("STORE__ENDPOINTS", &endpoints)];
        differs.extend_from_slice(coordinator);
        self.led(attention, experts, &differs).await
    }

    /// All but what the coordinator stores its state in.
    async fn led(
        mut self,
        attention: usize,
        experts: usize,
        coordinator: &[(&str, &str)],
    ) -> Result<Self> {
        let all = &mut self;
        let coordinator = all.add_coordinator(experts, coordinator)?;
        all.add_gateway(&coordinator)?;
        for (role, count) in [("attention", attention), ("expert", experts)] {
            for number in 0..count {
                all.add_node(role, number, &coordinator)?;
            }
        }
        let names: Vec<_> = all.programs.keys().cloned().collect();
        for name in &names {
            all.start(name)?;
        }
        for name in &names {
            all.ready(name).await?;
        }
        Ok(self)
    }

    fn add_etcd(&mut self) -> String {
        let (client, peer) = (format!("http://{}", address()), format!("http://{}", address()));
        let data = self.folder.path().join("etcd").display().to_string();
        let members = format!("default={peer}");
        let mut args = vec!["--data-dir", &data, "--initial-cluster", &members];
        args.extend(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        args.extend(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        args.extend(["--log-level", "panic"]);
        let mut program = Program::new(Path::new("etcd"), &args, format!("{client}/health"));
        // It is found there; everything else is found by its path.
        program.command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        self.programs.insert("etcd".into(), program);
        client
    }

    fn add_coordinator(&mut self, experts: usize, differs: &[(&str, &str)]) -> Result<String> {
        let listen = self.port("coordinator").to_string();
        let experts = experts.to_string();
        let mut settings = vec![
            ("CONTROL__LISTEN", &*listen),
            ("CONTROL__LEADER_LEASE_MS", "1000"),
            ("CLUSTER__EXPERT_NODES_MIN", &experts),
            ("CLUSTER__HEARTBEAT_MS", "100"),
            ("CLUSTER__LEASE_MS", "2000"),
        ];
        settings.extend_from_slice(differs);
        self.add("coordinator", "coordinator", &settings)?;
        Ok(listen)
    }

    fn add_gateway(&mut self, coordinator: &str) -> Result<()> {
        let model = chatty_checkpoint(self.folder.path())?.display().to_string();
        let (address, coordinators) = (self.gateway.to_string(), format!("[\"{coordinator}\"]"));
        self.add(
            "gateway",
            "gateway",
            &[
                ("SERVER__ADDRESS", &address),
                ("CLUSTER__COORDINATORS", &coordinators),
                ("MODEL__PATH", &model),
            ],
        )
    }

    /// One more node of a role, `attention` or `expert`, that is not started yet.
    ///
    /// # Errors
    /// When there is no coordinator.
    pub fn add_late(&mut self, role: &str, number: usize) -> Result<()> {
        let coordinator = self.listens("coordinator")?.to_string();
        self.add_node(role, number, &coordinator)
    }

    fn add_node(&mut self, role: &str, number: usize, coordinator: &str) -> Result<()> {
        let (name, binary) = (format!("{role}-{number}"), format!("{role}-node"));
        let (listen, coordinators) = (self.port(&name).to_string(), format!("[\"{coordinator}\"]"));
        let model = self.folder.path().join("demo").display().to_string();
        let mut settings = vec![
            ("NODE__NAME", &*name),
            ("NODE__LISTEN", &listen),
            ("CLUSTER__COORDINATORS", &coordinators),
            ("MODEL__PATH", &model),
        ];
        if role == "expert" {
            // What is measured while all of them start says nothing.
            settings.push(("NODE__PROFILE", "false"));
        }
        self.add(&name, &binary, &settings)?;
        if let Some(gpu) = self.gpu.clone() {
            gpu.give(role, &mut self.program(&name)?.command);
        }
        Ok(())
    }

    /// A role with its example's configuration and what differs from it.
    fn add(&mut self, name: &str, role: &str, differs: &[(&str, &str)]) -> Result<()> {
        let (config, admin) = (example(role).display().to_string(), address());
        let probe = format!("http://{admin}/readyz");
        // A write beyond a limit on files is to fail, and not to end the process by a signal.
        let (shell, role_binary) = (Path::new("/bin/sh"), binary(role)?.display().to_string());
        let args = ["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", &role_binary, "--config", &config];
        let mut program = Program::new(shell, &args, probe);
        program.command.env("AMOE_ADMIN__ADDRESS", admin.to_string());
        program.command.env("AMOE_TELEMETRY__LOG", if self.muted { "debug" } else { "warn" });
        self.disturb(&mut program.command)?;
        for (key, value) in self.security.iter().flat_map(|security| security.settings(role)) {
            program.command.env(format!("AMOE_{key}"), value);
        }
        if let Some(collector) = &self.collector {
            program.command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
            program.command.env("AMOE_TRACING__RATIO", "0");
        }
        for (key, value) in differs {
            program.command.env(format!("AMOE_{key}"), value);
        }
        self.programs.insert(name.to_owned(), program);
        Ok(())
    }

    /// Runs `amoe` to its end; what it printed.
    ///
    /// # Errors
    /// It failed, and what it said then.
    pub async fn amoe(args: &[String]) -> Result<String> {
        let mut command = Command::new(binary("amoe")?);
        // It may start etcd, which is found there.
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.args(args).env_clear().env("PATH", path).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(RUN, command.output()).await.context("amoe hangs")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "amoe ended with {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn port(&mut self, name: &str) -> SocketAddr {
        *self.ports.entry(name.to_owned()).or_insert_with(address)
    }

    fn program(&mut self, name: &str) -> Result<&mut Program> {
        self.programs.get_mut(name).with_context(|| unknown(name))
    }

    /// Where the gateway listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.gateway
    }

    /// Where a process listens for others, `host:port`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn listens(&self, name: &str) -> Result<SocketAddr> {
        self.ports.get(name).copied().with_context(|| unknown(name))
    }

    /// Where the admin doors of all roles are, by the names of their processes.
    pub fn admin_doors(&self) -> impl Iterator<Item = (&str, String)> {
        let roles = self.programs.iter().filter(|(name, _)| *name != "etcd");
        roles.map(|(name, program)| (&**name, program.probe.replace("/readyz", "")))
    }

    /// The certificates and keys of a secured cluster.
    ///
    /// # Errors
    /// When it is none.
    pub fn security(&self) -> Result<&Security> {
        self.security.as_ref().context("the cluster is not secured")
    }

    /// A client of the gateway, with what the gateway wants of clients.
    ///
    /// # Errors
    /// A file of a secured cluster cannot be used.
    pub fn client(&self) -> Result<Client> {
        match &self.security {
            None => Client::new(self.gateway),
            Some(security) => {
                let dial = security.client(self.gateway.ip())?;
                Client::with(self.gateway, dial, Some(&security.inference))
            }
        }
    }

    /// Starts a process as it was started before.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn start(&mut self, name: &str) -> Result<()> {
        let program = self.program(name)?;
        let child = program.command.spawn().with_context(|| match name {
            "etcd" => "cannot start `etcd`: install Debian's package etcd-server".to_owned(),
            _ => format!("cannot start {name}"),
        })?;
        program.child = Some(child);
        Ok(())
    }

    /// Waits until a process is ready.
    ///
    /// # Errors
    /// When it ends instead, or hangs.
    pub async fn ready(&mut self, name: &str) -> Result<()> {
        let ready = timeout(PATIENCE, self.program(name)?.ready()).await;
        ready.with_context(|| format!("{name} does not become ready"))?.context(name.to_owned())
    }

    /// Waits until a process that was not asked to has ended; its exit code.
    ///
    /// # Errors
    /// When it goes on, or was ended by a signal.
    pub async fn gives_up(&mut self, name: &str) -> Result<i32> {
        let program = self.program(name)?;
        let ended = timeout(PATIENCE, program.running()?.wait()).await;
        let status = ended.with_context(|| format!("{name} goes on"))??;
        status.code().with_context(|| format!("{name} ended with {status}"))
    }

    /// Kills a process, which gets no chance to say good-bye.
    ///
    /// # Errors
    /// When it was not running.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        let program = self.program(name)?;
        program.running()?.kill().await?;
        program.child = None;
        Ok(())
    }

    /// A page of a process's admin door.
    ///
    /// # Errors
    /// When there is no such program, or it does not answer.
    pub async fn page(&self, name: &str, path: &str) -> Result<(StatusCode, String)> {
        let program = self.programs.get(name).with_context(|| unknown(name))?;
        get(&program.probe.replace("/readyz", path), None).await
    }

    /// The sum of a metric's samples; none while the process does not answer.
    ///
    /// # Errors
    /// When there is no such program.
    pub async fn read(&self, name: &str, metric: &str) -> Result<Option<f64>> {
        let program = self.programs.get(name).with_context(|| unknown(name))?;
        let key = self.security.as_ref().map(|security| &*security.metrics);
        let page = get(&program.probe.replace("/readyz", "/metrics"), key).await;
        Ok(page.ok().map(|(_, text)| crate::metric(&text, metric)))
    }

    /// Waits until the sum of a metric's samples is as wanted.
    ///
    /// # Errors
    /// When it never is.
    pub async fn until(
        &self,
        name: &str,
        metric: &str,
        wanted: impl Fn(f64) -> bool,
    ) -> Result<()> {
        let reached = async {
            while !self.read(name, metric).await?.is_some_and(&wanted) {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        match timeout(PATIENCE, reached).await {
            Ok(reached) => reached,
            Err(_) => bail!("{metric} of {name} stays at {:?}", self.read(name, metric).await?),
        }
    }

    /// Asks the processes to stop, in this order and then the others, without waiting in between.
    ///
    /// # Errors
    /// When one was not running.
    pub async fn terminate(&mut self, order: &[&str]) -> Result<()> {
        let others = self.programs.keys().filter(|name| !order.contains(&name.as_str()));
        let names: Vec<String> =
            order.iter().map(|&name| name.to_owned()).chain(others.cloned()).collect();
        for name in names {
            self.program(&name)?.signal("TERM").await.context(name)?;
        }
        Ok(())
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// When one of ours does not, or not with 0.
    pub async fn ended(mut self) -> Result<()> {
        for (name, program) in &mut self.programs {
            let ended = timeout(PATIENCE, program.running()?.wait()).await;
            let status = ended.with_context(|| format!("{name} does not stop"))??;
            // etcd ends by the signal itself.
            ensure!(status.success() || name == "etcd", "{name} ended with {status}");
        }
        Ok(())
    }
}

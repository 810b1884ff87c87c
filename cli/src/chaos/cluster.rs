//! The cluster that is disturbed: who runs in it, and how each is configured.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use model::ModelSpec;

use super::processes::Processes;

/// How many there are of each.
const ETCDS: usize = 3;
const COORDINATORS: usize = 2;
const GATEWAYS: usize = 2;
const ATTENTION_NODES: usize = 2;
const EXPERT_NODES: usize = 4;
/// An expert node that is not there from the start.
pub(super) const SPARE: &str = "expert-spare";
/// A node that starts with weights that are broken.
pub(super) const BROKEN: &str = "expert-broken";
/// A template that shows what it was given, for models that have none.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// A cluster of processes of this machine.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) processes: Processes,
    gateways: Vec<SocketAddr>,
    binaries: PathBuf,
    model: PathBuf,
    /// Replicas that each expert node has room for.
    slots: usize,
    /// Where the coordinators are, and etcd's members, as lists of TOML.
    coordinators: String,
    stores: String,
}

/// The names of all processes of a role.
pub(super) fn names(role: &str) -> Vec<String> {
    let count = match role {
        "etcd" => ETCDS,
        "coordinator" => COORDINATORS,
        "gateway" => GATEWAYS,
        "attention" => ATTENTION_NODES,
        _ => EXPERT_NODES,
    };
    (0..count).map(|number| format!("{role}-{number}")).collect()
}

/// All that run from the start, in the order in which they need each other.
fn everybody() -> Vec<String> {
    ["etcd", "coordinator", "expert", "attention", "gateway"].map(names).concat()
}

/// A list of TOML.
fn list(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", items.join(", "))
}

// === impl Cluster ===

impl Cluster {
    /// Describes a cluster in which every expert has so many replicas. Nothing runs yet.
    pub(super) fn new(model: &Path, replicas: usize) -> Result<Self> {
        let model = model.canonicalize().with_context(|| {
            format!("{}: no such folder, expected a checkpoint", model.display())
        })?;
        let shape = ModelSpec::read(&model)?.shape();
        let experts = shape.moe_layers.len() * usize::from(shape.experts);
        let binaries = std::env::current_exe()?;
        let binaries = binaries.parent().context("this program lies in a folder")?.to_owned();
        let mut cluster = Self {
            processes: Processes::new()?,
            gateways: Vec::new(),
            binaries,
            model,
            // Room for what one lost node had, even where no expert has a second replica; and a little more,
            // because not every free slot is on a node that lacks the expert that still wants one.
            slots: (experts * replicas.max(2)).div_ceil(EXPERT_NODES) + shape.moe_layers.len(),
            coordinators: String::new(),
            stores: String::new(),
        };
        cluster.add_etcd();
        cluster.add_coordinators(replicas)?;
        cluster.add_gateways()?;
        for name in names("attention") {
            cluster.add_node("attention-node", &name, &cluster.model.clone(), &[])?;
        }
        for name in names("expert").into_iter().chain([SPARE.to_owned()]) {
            cluster.add_expert(&name, &cluster.model.clone())?;
        }
        cluster.add_broken()?;
        Ok(cluster)
    }

    /// Where the gateways answer.
    pub(super) fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(|address| format!("http://{address}")).collect()
    }

    /// Starts everybody and waits until all are ready.
    pub(super) async fn start(&mut self) -> Result<()> {
        for name in everybody() {
            self.processes.start(&name)?;
        }
        for name in everybody() {
            self.processes.ready(&name).await?;
        }
        Ok(())
    }

    /// Stops everybody, gateways first, so that they finish what they have.
    pub(super) async fn stop(&mut self) -> Result<()> {
        for name in everybody().iter().rev().filter(|name| !name.starts_with("etcd")) {
            self.processes.drain(name).await?;
        }
        Ok(())
    }

    /// What a member of etcd has stored.
    pub(super) fn data(&self, member: &str) -> PathBuf {
        self.processes.folder().join(format!("{member}.data"))
    }

    fn add_etcd(&mut self) {
        let names = names("etcd");
        let places: Vec<_> =
            names.iter().map(|_| (self.processes.address(), self.processes.address())).collect();
        let members: Vec<_> = names
            .iter()
            .zip(&places)
            .map(|(name, (_, peer))| format!("{name}=http://{peer}"))
            .collect();
        let members = members.join(",");
        for (name, (client, peer)) in names.iter().zip(&places) {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let data = self.data(name).display().to_string();
            let args = [
                ["--name", name],
                ["--data-dir", &data],
                ["--initial-cluster", &members],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
                ["--log-level", "error"],
            ];
            let args = args.concat().iter().map(ToString::to_string).collect::<Vec<_>>();
            // It is found there; everything else is found by its path.
            let path = std::env::var_os("PATH").unwrap_or_default().to_string_lossy().into_owned();
            let environment = [("PATH".to_owned(), path)];
            let probe = format!("{client}/health");
            self.processes.add(name, Path::new("etcd"), &args, environment, probe);
        }
        self.stores = list(places.iter().map(|(client, _)| format!("http://{client}")));
    }

    fn add_coordinators(&mut self, replicas: usize) -> Result<()> {
        let addresses: Vec<_> =
            names("coordinator").iter().map(|_| self.processes.address().to_string()).collect();
        self.coordinators = list(addresses.iter().cloned());
        let (experts, fill) = (EXPERT_NODES.to_string(), (replicas > 1).to_string());
        for (name, address) in names("coordinator").iter().zip(&addresses) {
            let stores = self.stores.clone();
            self.add_role(
                name,
                "coordinator",
                &[
                    ("CONTROL__LISTEN", address),
                    ("CONTROL__LEADER_LEASE_MS", "1000"),
                    ("CLUSTER__EXPERT_NODES_MIN", &experts),
                    ("CLUSTER__HEARTBEAT_MS", "200"),
                    ("CLUSTER__LEASE_MS", "2000"),
                    ("PLACEMENT__FILL_SPARE_SLOTS", &fill),
                    ("STORE__KIND", "etcd"),
                    ("STORE__ENDPOINTS", &stores),
                ],
            )?;
        }
        Ok(())
    }

    fn add_gateways(&mut self) -> Result<()> {
        let template = self.processes.folder().join("chat_template.jinja");
        std::fs::write(&template, TEMPLATE)?;
        let template = template.display().to_string();
        let (model, coordinators) = (self.model.display().to_string(), self.coordinators.clone());
        for name in names("gateway") {
            let address = self.processes.address();
            self.gateways.push(address);
            self.add_role(
                &name,
                "gateway",
                &[
                    ("CLUSTER__NAME", &name),
                    ("CLUSTER__COORDINATORS", &coordinators),
                    ("SERVER__ADDRESS", &address.to_string()),
                    ("MODEL__PATH", &model),
                    ("MODEL__CHAT_TEMPLATE", &template),
                ],
            )?;
        }
        Ok(())
    }

    fn add_expert(&mut self, name: &str, model: &Path) -> Result<()> {
        let slots = self.slots.to_string();
        // What is measured while others compute on the same cores says nothing.
        let settings = [("NODE__EXPERT_SLOTS", &*slots), ("NODE__PROFILE", "false")];
        self.add_node("expert-node", name, model, &settings)
    }

    fn add_node(
        &mut self,
        role: &str,
        name: &str,
        model: &Path,
        differs: &[(&str, &str)],
    ) -> Result<()> {
        let listen = self.processes.address().to_string();
        let (model, coordinators) = (model.display().to_string(), self.coordinators.clone());
        let mut settings = vec![
            ("NODE__NAME", name),
            ("NODE__LISTEN", &listen),
            ("CLUSTER__COORDINATORS", &coordinators),
            ("MODEL__PATH", &model),
            ("DEVICE__THREADS", "1"),
        ];
        settings.extend_from_slice(differs);
        self.add_role(name, role, &settings)
    }

    /// A node whose checkpoint is cut off in the middle of its weights.
    fn add_broken(&mut self) -> Result<()> {
        let broken = self.processes.folder().join("broken-model");
        std::fs::create_dir(&broken)?;
        for file in std::fs::read_dir(&self.model)? {
            let (from, name) = file.map(|file| (file.path(), file.file_name()))?;
            let to = broken.join(name);
            if from.extension().is_some_and(|kind| kind == "safetensors") {
                let whole = std::fs::File::open(&from)?;
                let half = whole.metadata()?.len() / 2;
                let mut part = std::io::Read::take(whole, half.min(64 << 20));
                std::io::copy(&mut part, &mut std::fs::File::create(&to)?)?;
            } else {
                std::os::unix::fs::symlink(&from, &to)?;
            }
        }
        self.add_expert(BROKEN, &broken)
    }

    fn add_role(&mut self, name: &str, role: &str, settings: &[(&str, &str)]) -> Result<()> {
        let path = self.binaries.join(role);
        ensure!(
            path.is_file(),
            "{}: no such program, expected the processes beside `amoe`: \
             `PROTOC=$(cargo xtask protoc) cargo build --workspace --bins --features coordinator/etcd` builds them",
            path.display()
        );
        let admin = self.processes.address().to_string();
        let own = [("ADMIN__ADDRESS", &*admin), ("TELEMETRY__LOG", "info")];
        let environment: BTreeMap<String, String> = own
            .iter()
            .chain(settings)
            .map(|(key, value)| (format!("AMOE_{key}"), (*value).to_owned()))
            .collect();
        let probe = format!("http://{admin}/readyz");
        self.processes.add(name, &path, &[], environment, probe);
        Ok(())
    }
}

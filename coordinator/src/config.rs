//! The coordinator's configuration file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use policy::{
    liveness::Terms,
    placement::{self, Spare},
    routing,
};
use serde::Deserialize;
use thiserror::Error;

use crate::{cluster::Rules, reconcile::Intent};

/// The coordinator's own sections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where nodes reach it.
    pub control: ControlConfig,
    /// Membership.
    pub cluster: ClusterConfig,
    /// How plans are made.
    pub placement: PlacementConfig,
    /// Which replicas are used.
    pub routing: RoutingConfig,
    /// Where the durable state lies.
    pub store: StoreConfig,
}

/// Section `[control]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// Where to listen: `host:port` (port 0: any), or `inproc:NAME` inside one process.
    pub listen: String,
    /// Where nodes and other coordinators reach this one; as `listen` if absent.
    pub advertise: Option<String>,
    /// With several coordinators: another one takes over when the leader was silent for this long.
    pub leader_lease_ms: u64,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7400".to_owned(), advertise: None, leader_lease_ms: 5_000 }
    }
}

/// Section `[cluster]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The first plan is made when this many expert nodes have registered.
    pub expert_nodes_min: usize,
    /// How often nodes beat, and at most how often their loads are passed on.
    pub heartbeat_ms: u64,
    /// A node that was silent for this long is lost.
    pub lease_ms: u64,
    /// Nodes of all roles that may be members at once.
    pub members_max: usize,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { expert_nodes_min: 1, heartbeat_ms: 500, lease_ms: 5_000, members_max: 1024 }
    }
}

/// Section `[placement]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementConfig {
    /// How plans are made.
    pub policy: placement::Policy,
    /// Fill spare slots of expert nodes with further replicas.
    pub fill_spare_slots: bool,
    /// How often the plan is compared with the one that what was observed asks for; 0: never.
    pub review_ms: u64,
    /// The part of the experts' time, in percent, that a plan has to save to be worth moving for.
    pub gain_percent: u8,
    /// Steps of advice whose routing is remembered and planned by.
    pub trace_steps: usize,
    /// Plans that are remembered.
    pub history_max: usize,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self {
            policy: placement::Policy::Gem,
            fill_spare_slots: false,
            review_ms: 2_000,
            gain_percent: 5,
            trace_steps: 64,
            history_max: 32,
        }
    }
}

/// Section `[routing]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// How one of an expert's replicas is chosen.
    pub policy: routing::Policy,
    /// How often nodes report what they see and are advised which replicas to use; 0: not at all.
    pub lease_ms: u64,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self { policy: routing::Policy::default(), lease_ms: 200 }
    }
}

/// What an endpoint with TLS begins with.
const HTTPS: &str = "https://";

/// Section `[store]`, told apart by `kind`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StoreConfig {
    /// Nothing outlives the process.
    #[default]
    Memory,
    /// One file, for one coordinator.
    Embedded {
        /// The file; made if it is not there.
        path: PathBuf,
    },
    /// An etcd cluster, for any number of coordinators. Needs a build with the feature `etcd`.
    Etcd {
        /// `http://host:port` of its members.
        endpoints: Vec<String>,
        /// All keys begin with this, so that clusters can share an etcd.
        #[serde(default = "default_prefix")]
        prefix: String,
        /// A call that is not answered for this long has failed.
        #[serde(default = "default_timeout_ms")]
        timeout_ms: u64,
        /// For endpoints that begin with `https`.
        #[serde(default)]
        tls: Option<EtcdTls>,
    },
}

/// Section `[store.tls]`: who etcd has to be, and who this coordinator is to it. The files are read at start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdTls {
    /// Certificates of the authorities of etcd's certificates, as PEM.
    pub authority: PathBuf,
    /// The certificate that is shown to etcd, as PEM; none is by default.
    pub certificate: Option<PathBuf>,
    /// Its key, as PEM.
    pub key: Option<PathBuf>,
}

fn default_prefix() -> String {
    "amoe/".to_owned()
}

fn default_timeout_ms() -> u64 {
    2_000
}

/// A value that is of the right type and makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("key `{key}` is {found}, expected {expected}")]
pub struct ConfigError {
    key: &'static str,
    found: String,
    expected: String,
}

impl Config {
    pub(crate) fn rules(&self) -> Result<Rules, ConfigError> {
        let ClusterConfig { expert_nodes_min, heartbeat_ms, lease_ms, members_max } = self.cluster;
        self.can_be_found()?;
        self.store.check()?;
        at_least("cluster.expert_nodes_min", expert_nodes_min as u64, 1)?;
        at_least("cluster.heartbeat_ms", heartbeat_ms, 10)?;
        at_least("cluster.members_max", members_max as u64, 1)?;
        at_least("control.leader_lease_ms", self.control.leader_lease_ms, 1_000)?;
        if !(heartbeat_ms * 3..=u64::from(u32::MAX)).contains(&lease_ms) {
            return Err(ConfigError {
                key: "cluster.lease_ms",
                found: lease_ms.to_string(),
                expected: format!("at least 3 heartbeats of {heartbeat_ms} ms"),
            });
        }
        let PlacementConfig { review_ms, gain_percent, trace_steps, history_max, .. } =
            self.placement;
        at_least("placement.trace_steps", trace_steps as u64, 1)?;
        at_least("placement.history_max", history_max as u64, 2)?;
        at_most("placement.gain_percent", gain_percent.into(), 99)?;
        at_most("routing.lease_ms", self.routing.lease_ms, 500)?;
        let every = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        Ok(Rules {
            terms: Terms {
                heartbeat: Duration::from_millis(heartbeat_ms),
                lease: Duration::from_millis(lease_ms),
            },
            members_max,
            intent: Intent {
                policy: self.placement.policy,
                spare: if self.placement.fill_spare_slots { Spare::Fill } else { Spare::Leave },
                hosts_min: expert_nodes_min,
                gain_percent,
                history_max,
            },
            routing: self.routing.policy,
            advice: every(self.routing.lease_ms),
            // Without reports there is nothing to compare by.
            review: every(review_ms).filter(|_| self.routing.lease_ms > 0),
            trace_steps,
        })
    }
}

impl Config {
    /// Coordinators that share a store send nodes to each other's addresses.
    fn can_be_found(&self) -> Result<(), ConfigError> {
        let listen: Option<SocketAddr> = self.control.listen.parse().ok();
        let nowhere = listen.is_some_and(|listen| listen.ip().is_unspecified());
        let shared = matches!(self.store, StoreConfig::Etcd { .. });
        if !shared || !nowhere || self.control.advertise.is_some() {
            return Ok(());
        }
        Err(ConfigError {
            key: "control.advertise",
            found: "missing".to_owned(),
            expected: format!(
                "the address where others reach this coordinator, which {} does not say",
                self.control.listen
            ),
        })
    }
}

impl StoreConfig {
    /// Half of what TLS needs would be none of it, without a word.
    fn check(&self) -> Result<(), ConfigError> {
        let Self::Etcd { endpoints, tls, .. } = self else { return Ok(()) };
        let wrong = |key, found: &str, expected: &str| {
            Err(ConfigError { key, found: found.to_owned(), expected: expected.to_owned() })
        };
        let plain = endpoints.iter().find(|endpoint| !endpoint.starts_with(HTTPS));
        match tls {
            None if endpoints.iter().any(|endpoint| endpoint.starts_with(HTTPS)) => wrong(
                "store.tls",
                "missing",
                "the authority of etcd's certificates, because endpoints begin with https",
            ),
            None => Ok(()),
            Some(EtcdTls { certificate: Some(_), key: None, .. }) => {
                wrong("store.tls.key", "missing", "the key of `store.tls.certificate`")
            }
            Some(EtcdTls { certificate: None, key: Some(_), .. }) => {
                wrong("store.tls.certificate", "missing", "the certificate of `store.tls.key`")
            }
            Some(_) => match plain {
                Some(plain) => wrong(
                    "store.endpoints",
                    plain,
                    "only such that begin with https, because there is `store.tls`",
                ),
                None => Ok(()),
            },
        }
    }
}

impl chassis::role::RoleConfig for Config {
    fn check(&self) -> Result<(), String> {
        self.rules().map(drop).map_err(|error| error.to_string())
    }
}

fn at_least(key: &'static str, found: u64, least: u64) -> Result<(), ConfigError> {
    if found >= least {
        return Ok(());
    }
    Err(ConfigError { key, found: found.to_string(), expected: format!("at least {least}") })
}

fn at_most(key: &'static str, found: u64, most: u64) -> Result<(), ConfigError> {
    if found <= most {
        return Ok(());
    }
    Err(ConfigError { key, found: found.to_string(), expected: format!("at most {most}") })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, StoreConfig};

    #[test]
    fn the_example_says_what_is_the_default() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/coordinator.toml");
        let (_, config) = chassis::role::load::<Config>(Some(&path)).unwrap();
        assert_eq!(config, Config::default());
    }

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let loaded = chassis::role::load::<Config>(Some(&path));
        let (_, config) = loaded.map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn stores_are_told_apart_by_their_kind() {
        let etcd = read("[store]\nkind = \"etcd\"\nendpoints = [\"http://h:1\"]").unwrap().store;
        let expected = StoreConfig::Etcd {
            endpoints: vec!["http://h:1".to_owned()],
            prefix: "amoe/".to_owned(),
            timeout_ms: 2_000,
            tls: None,
        };
        assert_eq!(etcd, expected);
        for wrong in [
            "[store]\nkind = \"file\"",
            "[store]\nkind = \"embedded\"",
            "[store]\nkind = \"embedded\"\npath = \"x\"\npth = \"x\"",
            "[cluster]\nlease = 5",
        ] {
            read(wrong).unwrap_err();
        }
    }

    #[test]
    fn tls_to_etcd_is_whole_or_refused() {
        let store = |scheme: &str, tls: &str| {
            let store = format!("[store]\nkind = \"etcd\"\nendpoints = [\"{scheme}://h:1\"]\n");
            read(&format!("{store}{tls}"))
        };
        let tls = |keys: &str| format!("[store.tls]\nauthority = \"ca.pem\"\n{keys}");
        for keys in ["", "certificate = \"c.pem\"\nkey = \"c.key\""] {
            store("https", &tls(keys)).unwrap();
        }
        for (scheme, tls, expected) in [
            (
                "https",
                String::new(),
                "key `store.tls` is missing, expected the authority of etcd's \
              certificates, because endpoints begin with https",
            ),
            (
                "http",
                tls(""),
                "key `store.endpoints` is http://h:1, expected only such that begin with https, \
              because there is `store.tls`",
            ),
            (
                "https",
                tls("certificate = \"c.pem\""),
                "key `store.tls.key` is missing, expected the key of \
              `store.tls.certificate`",
            ),
            (
                "https",
                tls("key = \"c.key\""),
                "key `store.tls.certificate` is missing, expected the \
              certificate of `store.tls.key`",
            ),
        ] {
            let error = store(scheme, &tls).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
        store("https", "[store.tls]\ncertificate = \"c.pem\"").unwrap_err();
    }

    #[test]
    fn senseless_values_are_refused_with_key_and_expectation() {
        for (text, expected) in [
            (
                "[cluster]\nheartbeat_ms = 500\nlease_ms = 1000",
                "key `cluster.lease_ms` is 1000, expected at least 3 heartbeats of 500 ms",
            ),
            (
                "[cluster]\nexpert_nodes_min = 0",
                "key `cluster.expert_nodes_min` is 0, expected at least 1",
            ),
            (
                "[control]\nleader_lease_ms = 5",
                "key `control.leader_lease_ms` is 5, expected at least 1000",
            ),
            (
                "[control]\nlisten = \"0.0.0.0:7400\"\n[store]\nkind = \"etcd\"\nendpoints = []",
                "key `control.advertise` is missing, expected the address where others reach this \
                 coordinator, which 0.0.0.0:7400 does not say",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}

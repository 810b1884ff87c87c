//! How an operator's command proves who it is: by a certificate, by a key, or not at all.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::v1::admin_client::AdminClient;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use transport::{Hub, KeepAlive};
use trust::{Party, TlsConfig, Trust, TrustConfig};

/// Largest message: a plan, a table of node names.
const PLAN_BYTES_MAX: usize = 64 << 20;

/// Flags of commands that talk to a coordinator.
#[derive(Clone, Debug, Args)]
pub(crate) struct Credentials {
    /// The operator's certificate, where the cluster speaks TLS.
    #[arg(long, global = true, value_name = "FILE", env = "AMOE_TLS_CERTIFICATE")]
    tls_certificate: Option<PathBuf>,
    /// The key of the certificate.
    #[arg(long, global = true, value_name = "FILE", env = "AMOE_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// The certificate of the cluster's authority.
    #[arg(long, global = true, value_name = "FILE", env = "AMOE_TLS_AUTHORITY")]
    tls_authority: Option<PathBuf>,
    /// A key with the scope `admin`.
    #[arg(long, global = true, value_name = "KEY", env = "AMOE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// An operator who has read the files.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    hub: Hub,
    bearer: Bearer,
}

/// A client of a coordinator's admin service.
pub(crate) type Admin = AdminClient<InterceptedService<Channel, Bearer>>;

/// Puts the key on every call, if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert(trust::KEY_HEADER, key.clone());
        }
        Ok(request)
    }
}

// === impl Operator ===

impl Operator {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(flags: &Credentials) -> Result<Self> {
        let files = (&flags.tls_certificate, &flags.tls_key, &flags.tls_authority);
        let tls = match files {
            (Some(certificate), Some(key), Some(authority)) => Some(TlsConfig {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
            }),
            (None, None, None) => None,
            _ => bail!(
                "of --tls-certificate, --tls-key and --tls-authority some are missing, expected all"
            ),
        };
        let trust = TrustConfig { tls, keys: None };
        let trust = Trust::open(None, &trust, &prometheus::Registry::new())?;
        let bearer = flags.api_key.as_ref().map(|key| format!("Bearer {key}").parse());
        let bearer = bearer.transpose().context("flag `--api-key`: expected visible ASCII")?;
        Ok(Self { hub: Hub::trusting(&trust), bearer: Bearer(bearer) })
    }

    /// A client of the coordinator at `address`.
    pub(crate) fn admin(&self, address: &str) -> Result<Admin> {
        let (hub, keep_alive) = (&self.hub, KeepAlive::default());
        let channel = transport::channel(address, Party::Coordinator, hub, keep_alive)
            .context("flag `--coordinator`")?;
        Ok(AdminClient::with_interceptor(channel, self.bearer.clone())
            .max_decoding_message_size(PLAN_BYTES_MAX)
            .max_encoding_message_size(PLAN_BYTES_MAX))
    }
}

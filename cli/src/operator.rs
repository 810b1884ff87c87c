//! How an operator's command reaches the coordinator that leads, and how it proves who it is: by a
//! certificate, by a key, or not at all.

use std::{error::Error, path::PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use coordinator::LEADER_METADATA;
use proto::v1::admin_client::AdminClient;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use transport::{Hub, KeepAlive};
use trust::{Party, TlsConfig, Trust, TrustConfig};

/// Largest message: a plan, a table of node names.
const PLAN_BYTES_MAX: usize = 64 << 20;

/// How often a coordinator that does not lead is asked for the one that does.
const REDIRECTS_MAX: usize = 3;

/// Flags of commands that talk to a coordinator: where it is, and who asks.
#[derive(Clone, Debug, Args)]
pub(crate) struct Access {
    /// Where a coordinator is reached; one that does not lead says who does.
    #[arg(
        long,
        global = true,
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT",
        env = "AMOE_COORDINATOR"
    )]
    pub(crate) coordinator: String,
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
    coordinator: String,
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
    pub(crate) fn new(access: &Access) -> Result<Self> {
        let files = (&access.tls_certificate, &access.tls_key, &access.tls_authority);
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
        let bearer = access.api_key.as_ref().map(|key| format!("Bearer {key}").parse());
        let bearer = bearer.transpose().context("flag `--api-key`: expected visible ASCII")?;
        let coordinator = access.coordinator.clone();
        Ok(Self { coordinator, hub: Hub::trusting(&trust), bearer: Bearer(bearer) })
    }

    /// Asks whoever leads, beginning at the coordinator that the flags name.
    pub(crate) async fn ask<T>(
        &self,
        call: impl AsyncFn(Admin) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let mut address = self.coordinator.clone();
        for _ in 0..=REDIRECTS_MAX {
            let status = match call(self.admin(&address)?).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let leader = status.metadata().get(LEADER_METADATA);
            match leader.and_then(|leader| leader.to_str().ok()) {
                Some(leader) if status.code() == Code::Unavailable => {
                    leader.clone_into(&mut address);
                }
                _ => return Err(anyhow!("the coordinator at {address}: {}", reason(&status))),
            }
        }
        bail!(
            "the coordinators send each other's clients round in circles; the last one was {address}"
        )
    }

    /// A client of the coordinator at `address`.
    fn admin(&self, address: &str) -> Result<Admin> {
        let (hub, keep_alive) = (&self.hub, KeepAlive::default());
        let channel = transport::channel(address, Party::Coordinator, hub, keep_alive)
            .context("flag `--coordinator`")?;
        Ok(AdminClient::with_interceptor(channel, self.bearer.clone())
            .max_decoding_message_size(PLAN_BYTES_MAX)
            .max_encoding_message_size(PLAN_BYTES_MAX))
    }
}

/// What a status says and, where there was no answer, the system's reason for that.
fn reason(status: &Status) -> String {
    let root = std::iter::successors(status.source(), |&cause| cause.source()).last();
    match root.map(ToString::to_string) {
        Some(root) if !status.message().ends_with(&root) => format!("{}: {root}", status.message()),
        _ => status.message().to_owned(),
    }
}

//! How a node's links are bounded, and whether the rows of its GPU go by NCCL.

use anyhow::{Context, Result, bail};
use domain::ModelShape;
use proto::frame::Limits;
use transport::link::{LinkSettings, Nccl};

use crate::{
    Site,
    config::{LinksConfig, NcclUse},
};

/// Settings of the links of a node of `site`, for a model of `shape`.
///
/// # Errors
/// `links.nccl` wants what is not there.
pub fn link_settings(
    shape: &ModelShape,
    site: &Site,
    config: &LinksConfig,
) -> Result<LinkSettings> {
    let limits = Limits {
        row_bytes: site.cpu.compute().row_bytes(shape.hidden as usize),
        layers: shape.layers,
        experts: shape.experts,
        top_k: shape.top_k,
    };
    Ok(LinkSettings {
        credit_bytes: config.credit_bytes,
        frame_bytes_max: config.frame_bytes_max,
        nccl: nccl(site, config.nccl)?,
        ..LinkSettings::new(limits)
    })
}

/// The GPU's way to other GPUs, if it is wanted and there.
fn nccl(site: &Site, wish: NcclUse) -> Result<Option<Nccl>> {
    let Some(gpu) = site.gpu.as_ref().filter(|_| wish != NcclUse::Off) else {
        if wish == NcclUse::On {
            bail!("key `links.nccl` is \"on\", which wants a GPU: `node.device = \"cuda:N\"`");
        }
        return Ok(None);
    };
    if wish == NcclUse::Auto && site.process.trust.certificates.is_some() {
        tracing::info!("rows go by gRPC: NCCL does not encrypt, and [tls] is on");
        return Ok(None);
    }
    match Nccl::open(gpu.ordinal()) {
        Ok(nccl) => Ok(Some(nccl)),
        Err(error) if wish == NcclUse::Auto => {
            tracing::info!("rows go by gRPC: {error}");
            Ok(None)
        }
        Err(error) => Err(error).context("key `links.nccl` is \"on\""),
    }
}

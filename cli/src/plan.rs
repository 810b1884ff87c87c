//! `amoe plan`: what a coordinator says about the placement of experts, and what it is to do about it.

pub(crate) mod table;

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use proto::v1::{
    DiffPlansRequest, ExportPlanRequest, ListPlansRequest, PinPlanRequest, PlanChange, PlanTable,
    RebalanceRequest, ShowPlanRequest,
};

use crate::{
    operator::{Access, Operator},
    stdout,
};

/// Flags of `amoe plan`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    wish: Wish,
}

#[derive(Debug, Subcommand)]
enum Wish {
    /// The plan that serves, the one that is prepared, and the expert nodes.
    Show,
    /// The plans so far, newest first, and why each was made.
    History {
        /// Not more than so many.
        #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
        limit: u32,
    },
    /// What moves between two plans.
    Diff {
        /// A plan's number; the plan that serves by default.
        #[arg(default_value_t = 0, hide_default_value = true)]
        from: u64,
        /// A plan's number; the one that is prepared by default.
        #[arg(default_value_t = 0, hide_default_value = true)]
        to: u64,
    },
    /// Plan anew by the configured policy, from what was observed.
    Rebalance,
    /// Keep the plan as it is for as long as no expert is lost.
    Pin {
        /// Give planning free again.
        #[arg(long)]
        off: bool,
    },
    /// Write a plan as JSON: per layer and expert the names of the nodes that hold it.
    Export {
        /// Where to; `-` for standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// A plan's number; the plan that serves by default.
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        epoch: u64,
    },
    /// Make an exported, perhaps edited plan the next one.
    Import {
        /// Where from; `-` for standard input.
        file: PathBuf,
    },
}

/// Asks the coordinator and prints its answer.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(answer(flags))?;
    stdout::print(answer)
}

async fn answer(flags: &Flags) -> Result<String> {
    let operator = Operator::new(&flags.access)?;
    match &flags.wish {
        Wish::Show => {
            let shown = operator.ask(async |mut admin| admin.show_plan(ShowPlanRequest {}).await);
            Ok(table::show(&shown.await?))
        }
        &Wish::History { limit } => {
            let request = ListPlansRequest { limit };
            let listed = operator.ask(async |mut admin| admin.list_plans(request).await).await?;
            Ok(table::history(&listed.plans))
        }
        &Wish::Diff { from, to } => {
            let request = DiffPlansRequest { from, to };
            let diff = operator.ask(async |mut admin| admin.diff_plans(request).await).await?;
            let shown = operator.ask(async |mut admin| admin.show_plan(ShowPlanRequest {}).await);
            Ok(table::diff(&diff, &shown.await?.nodes))
        }
        Wish::Rebalance => {
            let change = operator.ask(async |mut admin| admin.rebalance(RebalanceRequest {}).await);
            Ok(sentence(&change.await?))
        }
        &Wish::Pin { off } => {
            let request = PinPlanRequest { pinned: !off };
            let answer = operator.ask(async |mut admin| admin.pin_plan(request).await).await?;
            let state = if answer.pinned { "the plan is pinned" } else { "planning is free" };
            Ok(format!("{state}\n"))
        }
        Wish::Export { file, epoch } => {
            let request = ExportPlanRequest { epoch: *epoch };
            let plan = operator.ask(async |mut admin| admin.export_plan(request).await).await?;
            let text = table::json(plan)?;
            if file == Path::new("-") {
                return Ok(text);
            }
            std::fs::write(file, text)
                .with_context(|| format!("cannot write {}", file.display()))?;
            Ok(String::new())
        }
        Wish::Import { file } => {
            let plan = read(file).with_context(|| format!("cannot import {}", file.display()))?;
            let change = operator.ask(async |mut admin| admin.import_plan(plan.clone()).await);
            Ok(sentence(&change.await?))
        }
    }
}

fn read(file: &Path) -> Result<PlanTable> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(file)?;
    }
    table::parse(&text)
}

fn sentence(change: &PlanChange) -> String {
    format!("{}\n", change.outcome)
}

//! `amoe top`: what a coordinator's console shows, in the terminal.

mod map;
mod screen;
mod words;

use std::{convert::Infallible, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use proto::v1::{Overview, WatchOverviewRequest};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use tokio::{sync::watch, time::sleep};
use tonic::Streaming;

use crate::{
    operator::{Access, Operator},
    stdout,
};
use screen::Screen;

/// Between two looks at the keyboard.
const TICK: Duration = Duration::from_millis(100);
/// Before a coordinator that went away is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Flags of `amoe top`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    access: Access,
    /// Print what is to be seen now as plain text, and end.
    #[arg(long)]
    once: bool,
    /// Print JSON instead, an object a line: what the coordinator's `/console/state` has as `overview`.
    #[arg(long)]
    json: bool,
    /// Columns of the plain text.
    #[arg(long, default_value_t = 120, value_name = "N", env = "COLUMNS")]
    width: u16,
}

/// What is known: the last overview, and why there is no newer one.
#[derive(Clone, Debug)]
struct Seen {
    overview: Option<Overview>,
    trouble: Option<String>,
}

/// Shows the cluster until the user has seen enough.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let operator = Operator::new(&flags.access)?;
        if flags.once || flags.json {
            return print(flags, &operator).await;
        }
        let trouble = Some(format!("asking the coordinator at {}", flags.access.coordinator));
        let (seen, shown) = watch::channel(Seen { overview: None, trouble });
        let mut terminal = ratatui::try_init().context("there is no terminal; try --once")?;
        let outcome = tokio::select! {
            outcome = show(&mut terminal, shown) => outcome,
            never = follow(&operator, seen) => match never {},
        };
        ratatui::restore();
        outcome
    })
}

async fn open(operator: &Operator) -> Result<Streaming<Overview>> {
    let request = WatchOverviewRequest {};
    operator.ask(async |mut admin| admin.watch_overview(request).await).await
}

async fn print(flags: &Flags, operator: &Operator) -> Result<()> {
    let mut overviews = open(operator).await?;
    while let Some(overview) = overviews.message().await? {
        let text = match flags.json {
            true => serde_json::to_string(&overview)? + "\n",
            false => Screen::new(&overview, None).text(flags.width),
        };
        stdout::print(text)?;
        if flags.once {
            break;
        }
    }
    Ok(())
}

/// Keeps `seen` up to date, whoever leads and whatever goes away meanwhile.
async fn follow(operator: &Operator, seen: watch::Sender<Seen>) -> Infallible {
    loop {
        let trouble = match open(operator).await {
            Ok(mut overviews) => loop {
                match overviews.message().await {
                    Ok(Some(overview)) => {
                        seen.send_replace(Seen { overview: Some(overview), trouble: None });
                    }
                    Ok(None) => break "the coordinator has ended the stream".to_owned(),
                    Err(status) => break status.message().to_owned(),
                }
            },
            Err(error) => format!("{error:#}"),
        };
        seen.send_modify(|seen| seen.trouble = Some(trouble));
        sleep(PAUSE).await;
    }
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    mut shown: watch::Receiver<Seen>,
) -> Result<()> {
    let mut stale = true;
    loop {
        if stale || shown.has_changed()? {
            let seen = shown.borrow_and_update().clone();
            let overview = seen.overview.unwrap_or_default();
            let trouble = seen.trouble.as_deref();
            terminal.draw(|frame| {
                frame.render_widget(Screen::new(&overview, trouble), frame.area());
            })?;
        }
        stale = false;
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if is_enough(key.code, key.modifiers) => return Ok(()),
                _ => stale = true,
            }
        }
        sleep(TICK).await;
    }
}

fn is_enough(code: KeyCode, modifiers: KeyModifiers) -> bool {
    match code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

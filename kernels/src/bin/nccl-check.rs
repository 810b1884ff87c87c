//! Exchanges rows by NCCL with a second process, checks every byte, and says how long it took.
//!
//! `nccl-check send FILE` and `nccl-check receive FILE`, each with a GPU of its own: the file carries the
//! communicator's name from the first to the second, which takes it away when it has all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use kernels::nccl::{Communicator, End, Lane, NcclError, Port, UNIQUE_ID_BYTES, UniqueId};

const USAGE: &str = "usage: nccl-check send|receive FILE [--device N] [--transfers N]";

/// How long the other process, or a transfer, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest transfer. Sizes go up and down below it.
const BYTES_MAX: usize = 1 << 20;

struct Options {
    end: End,
    file: PathBuf,
    device: usize,
    transfers: usize,
}

#[expect(clippy::print_stderr, reason = "a program talks to the person who ran it")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("nccl-check: {sentence}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program talks to the person who ran it")]
fn run() -> Result<(), String> {
    let Options { end, file, device, transfers } = Options::parse(std::env::args().skip(1))?;
    let port = Port::open(device).map_err(sentence)?;
    let version = port.version().map_err(sentence)?;
    let id = meet(&port, end, &file)?;
    let began = Instant::now();
    let communicator = port.communicator(&id, end).map_err(sentence)?;
    until("the other process did not come", || communicator.check())?;
    println!("NCCL {version}: joined in {:?}", began.elapsed());
    let mut lane = port.lane(BYTES_MAX).map_err(sentence)?;
    let (began, mut bytes) = (Instant::now(), 0);
    for number in 0..transfers {
        bytes += exchange(&communicator, &mut lane, number)?;
    }
    println!("{transfers} transfers of {bytes} bytes in all took {:?}", began.elapsed());
    part(end, &file)
}

/// Sends or receives transfer `number`; its bytes.
fn exchange(by: &Communicator, lane: &mut Lane, number: usize) -> Result<usize, String> {
    let rows = rows(number);
    match by.end() {
        End::Sender => lane.send(by, &rows),
        End::Receiver => lane.receive(by, rows.len()),
    }
    .map_err(sentence)?;
    let mut as_sent = true;
    until("a transfer did not end", || {
        let through = lane.poll(by)?;
        as_sent = through.is_none_or(|through| through == rows);
        Ok(through.is_some())
    })?;
    if !as_sent {
        return Err(format!("transfer {number}: other bytes came than were sent"));
    }
    Ok(rows.len())
}

/// What transfer `number` carries.
fn rows(number: usize) -> Vec<u8> {
    let len = (number * 70_001) % BYTES_MAX + 1;
    (0..len).map(|at| (at * 31 + number) as u8).collect()
}

/// The communicator's name: made by the sender, read by the receiver.
fn meet(port: &Port, end: End, file: &PathBuf) -> Result<UniqueId, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    if end == End::Sender {
        let id = port.unique_id().map_err(sentence)?;
        let half = file.with_extension("half");
        fs::write(&half, id.0).and_then(|()| fs::rename(&half, file)).map_err(failed)?;
        return Ok(id);
    }
    let deadline = Instant::now() + PATIENCE;
    while !file.exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let bytes: [u8; UNIQUE_ID_BYTES] = fs::read(file)
        .map_err(failed)?
        .try_into()
        .map_err(|_| format!("{} holds no name of a communicator", file.display()))?;
    Ok(UniqueId(bytes))
}

/// Ends together: a communicator whose other end is gone is broken, even if all rows have come.
fn part(end: End, file: &Path) -> Result<(), String> {
    match end {
        End::Receiver => {
            fs::remove_file(file).map_err(|error| format!("{}: {error}", file.display()))
        }
        End::Sender => until("the receiver did not end", || {
            thread::sleep(Duration::from_millis(1));
            Ok(!file.exists())
        }),
    }
}

/// Polls until `over` says so.
fn until(otherwise: &str, mut over: impl FnMut() -> Result<bool, NcclError>) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !over().map_err(sentence)? {
        if Instant::now() > deadline {
            return Err(format!("{otherwise} within {PATIENCE:?}"));
        }
        thread::yield_now();
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn sentence(error: NcclError) -> String {
    error.to_string()
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let usage = || USAGE.to_owned();
        let end = match arguments.next().as_deref() {
            Some("send") => End::Sender,
            Some("receive") => End::Receiver,
            _ => return Err(usage()),
        };
        let file = arguments.next().ok_or_else(usage)?.into();
        let mut options = Self { end, file, device: 0, transfers: 100 };
        while let Some(flag) = arguments.next() {
            let number = arguments.next().and_then(|value| value.parse().ok()).ok_or_else(usage)?;
            match flag.as_str() {
                "--device" => options.device = number,
                "--transfers" => options.transfers = number,
                _ => return Err(usage()),
            }
        }
        Ok(options)
    }
}

//! Checks every CUDA kernel against f64 and measures it, on the first GPU of the machine.

mod attention;
mod bank;
mod check;
mod ffn;
mod heads;
mod latent;
mod layer;
mod linear;
mod random;
mod report;
mod rows;
mod sequences;
mod speed;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use check::Checks;
use kernels::cuda::{CudaError, Device};

const USAGE: &str = "usage: gpu-check [--image FATBIN] [--seed N] \
                     [--report FOLDER [--notes TEXT] [--shapes real|tiny]]";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    /// Kernels to load instead of the ones built in.
    image: Option<String>,
    seed: Option<u64>,
    /// Where the measurements go; without it nothing is measured.
    report: Option<PathBuf>,
    /// Lines on the machine, for the report.
    notes: String,
    /// Measure small shapes: a rehearsal.
    tiny: bool,
}

#[expect(clippy::print_stderr, reason = "a program talks to the person who ran it")]
fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(sentence) => {
            eprintln!("gpu-check: {sentence}");
            ExitCode::from(2)
        }
    }
}

/// Whether every check held.
#[expect(clippy::print_stdout, reason = "a program talks to the person who ran it")]
fn run() -> Result<bool, String> {
    let options = Options::parse(std::env::args().skip(1))?;
    let device = open(options.image.as_deref()).map_err(|error| error.to_string())?;
    let device = Arc::new(device);
    let (major, minor) = device.capability();
    let seed = options.seed.unwrap_or_else(clock);
    let count = device.multiprocessors();
    println!("{}, compute capability {major}.{minor}, {count} multiprocessors", device.name());
    println!("inputs of seed {seed}");
    let mut checks = Checks::default();
    bank::check(&device, &mut checks, seed).map_err(|error| error.to_string())?;
    let parts =
        [rows::check, latent::check, attention::check, linear::check, heads::check, ffn::check];
    for check in parts {
        check(&device, &mut checks, seed).map_err(|error| error.to_string())?;
    }
    if let Some(folder) = &options.report {
        let speed = speed::measure(&device, &mut checks, options.tiny);
        let speed = speed.map_err(|error| error.to_string())?;
        report::write(folder, &device, &options.notes, checks.failed(), &speed)?;
    }
    println!("{} of {} checks failed", checks.failed(), checks.count());
    Ok(checks.failed() == 0)
}

fn open(image: Option<&str>) -> Result<Device, CudaError> {
    let Some(path) = image else { return Device::open(0) };
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|error| CudaError::Shape(format!("{path}: {error}")))?;
    Device::open_with(0, &bytes)
}

/// Fresh inputs for every run; the seed is printed, so that a failure can be run again.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs())
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match argument.as_str() {
                "--image" => options.image = Some(value),
                "--seed" => options.seed = Some(value.parse().map_err(|_| USAGE)?),
                "--report" => options.report = Some(value.into()),
                "--notes" => options.notes = value,
                "--shapes" => options.tiny = value == "tiny",
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

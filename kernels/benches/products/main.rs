//! Linear layers and MoE layers of two shapes beside the machine's own limits, taken in the same run.
//!
//! `cargo bench -p kernels --bench products [-- limits|linear|layer|small] [--threads N] [--isa ISA]
//! [--f32]`. Every figure is taken from many short calls: p50 is the machine as it is, p90 (the
//! fast tenth) the machine undisturbed.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod limits;
mod shapes;
mod timing;

use kernels::{Compute, Cpu, CpuOptions, Isa};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = CpuOptions::default();
    let mut parts = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--threads" => options.threads = value()?.parse()?,
            "--isa" => options.isa = Some(value()?.parse::<Isa>()?),
            "--f32" => options.compute = Compute::F32,
            // What `cargo bench` itself adds.
            "--bench" => {}
            part => parts.push(part.to_owned()),
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let cpu = Cpu::new(&options)?;
    println!("{} {} {} threads", cpu.isa(), cpu.compute(), cpu.threads());
    let limits = limits::Limits::measure(&cpu);
    if wanted("linear") {
        shapes::linear_layers(&cpu, &limits)?;
    }
    if wanted("layer") {
        shapes::moe_layer(&cpu, &limits, &shapes::LARGE)?;
    }
    if wanted("small") {
        shapes::moe_layer(&cpu, &limits, &shapes::SMALL)?;
    }
    Ok(())
}

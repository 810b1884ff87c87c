//! Writes what was measured as one JSON and one Markdown file.

use std::fmt::Write;
use std::path::Path;

use kernels::cuda::Device;

use crate::speed::{Line, Mover, Speed};

/// Writes `report.json` and `report.md` into a folder; `notes` are lines on the machine and the run.
pub(crate) fn write(
    folder: &Path,
    device: &Device,
    notes: &str,
    failed: usize,
    speed: &Speed,
) -> Result<(), String> {
    let say = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(say)?;
    std::fs::write(folder.join("report.json"), json(device, notes, failed, speed)).map_err(say)?;
    std::fs::write(folder.join("report.md"), markdown(device, notes, failed, speed)).map_err(say)
}

impl Line {
    fn rate(&self) -> f64 {
        self.bytes / self.milliseconds * 1e3
    }

    fn teraflops(&self) -> f64 {
        self.operations / self.milliseconds / 1e9
    }
}

impl Mover {
    fn rate(&self) -> f64 {
        self.bytes / self.milliseconds * 1e3
    }

    fn teraflops(&self) -> f64 {
        self.operations / self.milliseconds / 1e9
    }
}

fn json(device: &Device, notes: &str, failed: usize, speed: &Speed) -> String {
    let lines: Vec<String> = speed.lines.iter().map(line_json).collect();
    let movers: Vec<String> = speed.movers.iter().map(mover_json).collect();
    format!(
        "{{\"device\": {:?}, \"notes\": {notes:?}, \"failed_checks\": {failed}, \
         \"stream_bytes_per_s\": {:.4e}, \"grouped_ffn\": [\n{}\n], \
         \"movers\": [\n{}\n]}}\n",
        device.name(),
        speed.stream,
        lines.join(",\n"),
        movers.join(",\n")
    )
}

fn line_json(line: &Line) -> String {
    let shape = line.shape;
    format!(
        "{{\"model\": {:?}, \"kernel\": \"{:?}\", \"hidden\": {}, \"inter\": {}, \"experts\": {}, \
         \"tokens_per_expert\": {}, \"ms\": {:.5}, \"bytes_per_s\": {:.4e}, \"tflops\": {:.3}}}",
        shape.model,
        line.kernel,
        shape.hidden,
        shape.inter,
        shape.experts,
        line.tokens,
        line.milliseconds,
        line.rate(),
        line.teraflops()
    )
}

fn mover_json(mover: &Mover) -> String {
    format!(
        "{{\"kernel\": {:?}, \"ms\": {:.5}, \"bytes\": {:.4e}, \"tflops\": {:.3}}}",
        mover.what,
        mover.milliseconds,
        mover.bytes,
        mover.teraflops()
    )
}

fn markdown(device: &Device, notes: &str, failed: usize, speed: &Speed) -> String {
    let mut text = format!(
        "# {}\n\n```\n{notes}\n```\n\nFailed checks: {failed}. A pass that only reads: {:.0} GB/s.\n\n\
         Bytes are weights, rows and outputs, each once; % is of the pass that only reads.\n\n\
         | model | experts | tokens for each | ms | GB/s | % | TFLOP/s |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
        device.name(),
        speed.stream / 1e9
    );
    for line in &speed.lines {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.4} | {:.0} | {:.0} | {:.1} |",
            line.shape.model,
            line.shape.experts,
            line.tokens,
            line.milliseconds,
            line.rate() / 1e9,
            100.0 * line.rate() / speed.stream,
            line.teraflops()
        );
    }
    text += "\n| kernel | ms | GB/s | % | TFLOP/s |\n| --- | --- | --- | --- | --- |\n";
    for mover in &speed.movers {
        let _ = writeln!(
            text,
            "| {} | {:.4} | {:.0} | {:.0} | {:.1} |",
            mover.what,
            mover.milliseconds,
            mover.rate() / 1e9,
            100.0 * mover.rate() / speed.stream,
            mover.teraflops()
        );
    }
    text
}

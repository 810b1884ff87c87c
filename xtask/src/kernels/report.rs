//! Reads what the assembler and the disassembler say of each kernel on each target.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

/// One kernel as compiled for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compiled {
    pub(super) entry: String,
    /// As in `sm_90a`.
    pub(super) target: String,
    pub(super) registers: u32,
    /// Bytes of spill stores and loads and of the stack frame together.
    pub(super) spilled: u32,
    /// The first words of its instructions: `HGMMA` of `HGMMA.64x8x16.F32.BF16`.
    pub(super) instructions: BTreeSet<String>,
}

/// `log` is the output of `nvcc -Xptxas -v`, `code` that of `cuobjdump -sass`. Sorted by entry and target.
pub(super) fn read(log: &str, code: &str) -> Result<Vec<Compiled>> {
    let mut kernels: Vec<Compiled> = Vec::new();
    for line in log.lines() {
        if let Some(named) = line.split("Compiling entry function '").nth(1) {
            let mut words = named.split('\'');
            let entry = words.next().unwrap_or_default().to_owned();
            let target = words.nth(1).unwrap_or_default().to_owned();
            kernels.push(Compiled {
                entry,
                target,
                registers: 0,
                spilled: 0,
                instructions: BTreeSet::new(),
            });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            kernel.spilled = numbers(line).sum();
        } else if let Some(used) = line.split("Used ").nth(1) {
            kernel.registers = numbers(used).next().context("the assembler names no registers")?;
        }
    }
    ensure!(!kernels.is_empty(), "the assembler reported no kernel: {log}");
    add_instructions(&mut kernels, code);
    kernels.sort_by(|a, b| (&a.entry, &a.target).cmp(&(&b.entry, &b.target)));
    Ok(kernels)
}

fn add_instructions(kernels: &mut [Compiled], code: &str) {
    let mut target = "";
    let mut entry = "";
    for line in code.lines().map(str::trim) {
        if let Some(arch) = line.strip_prefix("arch = ") {
            target = arch;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            entry = name;
        } else if let Some(instruction) = mnemonic(line)
            && let Some(kernel) =
                kernels.iter_mut().find(|k| k.entry == entry && k.target == target)
        {
            kernel.instructions.insert(instruction.to_owned());
        }
    }
}

/// `HGMMA` of `/*5390*/  @P0 HGMMA.64x8x16.F32.BF16 R24, ...`.
fn mnemonic(line: &str) -> Option<&str> {
    let text = line.strip_prefix("/*")?.split_once("*/")?.1.trim_start();
    let text = if text.starts_with('@') { text.split_once(' ')?.1.trim_start() } else { text };
    let word = text.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    word.starts_with(|c: char| c.is_ascii_uppercase()).then_some(word)
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, 456 bytes cmem[0]
";
    const CODE: &str = "\
arch = sm_90a
        Function : first
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 HGMMA.64x8x16.F32.BF16 R24, gdesc[UR24], R24 ;
                                                            /* 0x000fe200078e00ff */
";

    #[test]
    fn both_reports_meet_in_one_kernel() {
        let kernels = read(LOG, CODE).unwrap();
        assert_eq!(kernels.len(), 2);
        assert_eq!(
            (kernels[0].target.as_str(), kernels[0].registers, kernels[0].spilled),
            ("sm_80", 40, 0)
        );
        assert_eq!(
            (kernels[1].target.as_str(), kernels[1].registers, kernels[1].spilled),
            ("sm_90a", 168, 36)
        );
        assert!(kernels[0].instructions.is_empty());
        assert_eq!(kernels[1].instructions, BTreeSet::from(["LDC".to_owned(), "HGMMA".to_owned()]));
    }

    #[test]
    fn a_log_without_kernels_is_an_error() {
        assert!(read("nothing", "").is_err());
    }
}

//! What `kernels/cuda/manifest.toml` grants each kernel.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::report::Compiled;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    kernel: Vec<Kernel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kernel {
    entry: String,
    targets: Vec<String>,
    /// The most registers of a thread.
    registers: u32,
    /// What its machine code must contain.
    instruction: Option<String>,
}

impl Manifest {
    pub(super) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("manifest.toml")
    }

    /// Every kernel of the manifest is there on all its targets and keeps to it, and there is no other.
    pub(super) fn check(&self, compiled: &[Compiled]) -> Result<()> {
        for kernel in &self.kernel {
            for target in &kernel.targets {
                let found =
                    compiled.iter().find(|c| c.entry == kernel.entry && c.target == *target);
                let found = found
                    .with_context(|| format!("{} was not compiled for {target}", kernel.entry))?;
                kernel.check(found)?;
            }
        }
        for c in compiled {
            let known =
                self.kernel.iter().any(|k| k.entry == c.entry && k.targets.contains(&c.target));
            ensure!(known, "manifest.toml does not know {} for {}", c.entry, c.target);
        }
        Ok(())
    }
}

impl Kernel {
    fn check(&self, c: &Compiled) -> Result<()> {
        let name = format!("{} for {}", c.entry, c.target);
        ensure!(c.spilled == 0, "{name} spills: {} bytes of stack, stores and loads", c.spilled);
        ensure!(
            c.registers <= self.registers,
            "{name} uses {} registers, granted {}",
            c.registers,
            self.registers
        );
        match &self.instruction {
            Some(i) if !c.instructions.contains(i) => bail!("{name} lost its {i}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const TEXT: &str =
        "[[kernel]]\nentry = \"a\"\ntargets = [\"sm_80\"]\nregisters = 40\ninstruction = \"HMMA\"";

    fn compiled() -> Compiled {
        let instructions = BTreeSet::from(["HMMA".to_owned()]);
        Compiled {
            entry: "a".into(),
            target: "sm_80".into(),
            registers: 40,
            spilled: 0,
            instructions,
        }
    }

    fn verdict(compiled: &[Compiled]) -> String {
        match Manifest::parse(TEXT).unwrap().check(compiled) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_breach_has_its_sentence() {
        assert_eq!(verdict(&[compiled()]), "fine");
        assert_eq!(verdict(&[]), "a was not compiled for sm_80");
        let registers = Compiled { registers: 41, ..compiled() };
        assert_eq!(verdict(&[registers]), "a for sm_80 uses 41 registers, granted 40");
        let spilled = Compiled { spilled: 8, ..compiled() };
        assert_eq!(verdict(&[spilled]), "a for sm_80 spills: 8 bytes of stack, stores and loads");
        let slow = Compiled { instructions: BTreeSet::new(), ..compiled() };
        assert_eq!(verdict(&[slow]), "a for sm_80 lost its HMMA");
        let unknown = Compiled { entry: "b".into(), ..compiled() };
        assert_eq!(verdict(&[compiled(), unknown]), "manifest.toml does not know b for sm_80");
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(Manifest::parse(&TEXT.replace("registers", "register")).is_err());
    }
}

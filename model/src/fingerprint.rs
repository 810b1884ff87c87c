//! A short name for a checkpoint's contents, so that nodes that hold different weights never serve together.

/// Blocks of a file that are hashed; the weights of another training differ nearly everywhere.
const SAMPLES: usize = 16;
const SAMPLE_BYTES: usize = 1024;

/// FNV-1a of 64 bits: stable over builds and machines. It guards against mistakes, not against malice.
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Adds blocks spread evenly over `bytes`, so that few pages of a file are touched.
    pub(crate) fn sample(&mut self, bytes: &[u8]) {
        let len = SAMPLE_BYTES.min(bytes.len());
        let last = bytes.len() - len;
        for sample in 0..SAMPLES {
            // Divided first, so that no length overflows.
            let offset = last / (SAMPLES - 1) * sample;
            self.add(&bytes[offset..offset + len]);
        }
    }

    /// Adds the beginnings of a few of `parts`, spread evenly over them.
    pub(crate) fn sample_each(&mut self, parts: &[&[u8]]) {
        let step = parts.len().div_ceil(SAMPLES).max(1);
        for part in parts.iter().step_by(step) {
            self.add(&part[..SAMPLE_BYTES.min(part.len())]);
        }
    }

    pub(crate) fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

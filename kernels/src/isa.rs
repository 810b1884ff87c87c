//! Which instruction set the kernels use, found at run time.

use std::fmt;
use std::str::FromStr;

/// Instruction sets with kernels of their own, weakest first.
///
/// `Portable`, `Avx2` and `Avx512` give the same bits (each output is one chain of fused
/// multiply-adds in order of the inner index); `Amx` sums in its own, equally fixed, order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// Plain Rust, any architecture: the reference.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F/BW/DQ/VL.
    Avx512,
    /// AVX-512 with BF16 and the AMX bf16 tiles, with the kernel's leave to use them.
    Amx,
}

impl Isa {
    /// Every instruction set, weakest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// The strongest instruction set of this machine.
    #[must_use]
    pub fn detect() -> Self {
        let best = Self::ALL.into_iter().rev().find(|isa| isa.is_available());
        best.unwrap_or(Self::Portable)
    }

    /// Whether this machine can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2_present(),
            Self::Avx512 => avx512_present(),
            Self::Amx => avx512_present() && bf16_present() && amx_permitted(),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        })
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|isa| isa.to_string() == text).ok_or_else(|| {
            format!("unknown instruction set {text:?}: expected portable, avx2, avx512 or amx")
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2_present() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn avx512_present() -> bool {
    avx2_present()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
fn bf16_present() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn avx2_present() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512_present() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_present() -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn amx_permitted() -> bool {
    false
}

/// Asks the processor for AMX bf16 and the operating system for leave to use it (once per process).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_permitted() -> bool {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const TILE_STATE: u32 = 0b11 << 17;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        let features = __cpuid_count(7, 0).edx;
        if features & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE {
            return false;
        }
        let enabled: u32;
        // SAFETY: xgetbv exists because AVX-512 was detected, which implies OSXSAVE.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack));
        }
        if enabled & TILE_STATE != TILE_STATE {
            return false;
        }
        // SAFETY: this call only changes which register state the process may use.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    })
}

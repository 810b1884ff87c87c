//! What a measurement needs: random weights made on the device, and a pass that only reads.

use cudarc::driver::{CudaFunction, DeviceRepr};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require};

const THREADS: u32 = 256;

/// The measuring kernels of a device.
#[derive(Debug)]
pub struct Probe {
    fill: CudaFunction,
    stream: CudaFunction,
    blocks: u32,
    sink: Buffer<u32>,
}

impl Probe {
    /// # Errors
    /// When the device does not know the kernels.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let fill = device.kernel("fill", 0)?;
        let stream = device.kernel("stream", 0)?;
        let blocks = device.resident(&stream, THREADS, 0)?;
        Ok(Self { fill, stream, blocks, sink: device.upload(&[0])? })
    }

    /// Sets value `i` of a buffer, whose length is a multiple of eight, to [`filled`]`(i, seed, scale)`.
    ///
    /// # Errors
    /// When the length is another, or the driver refuses the launch.
    pub fn fill(
        &self,
        device: &Device,
        data: &mut Buffer<bf16>,
        (seed, scale): (u32, f32),
    ) -> Result<(), CudaError> {
        self.launch(device, &self.fill, data, (seed, scale))
    }

    /// Reads a buffer once; the rest of less than eight values is left out.
    ///
    /// # Errors
    /// When the driver refuses the launch.
    pub fn stream(&self, device: &Device, data: &Buffer<bf16>) -> Result<(), CudaError> {
        self.launch(device, &self.stream, data, (0, 0.0))
    }

    fn launch(
        &self,
        device: &Device,
        function: &CudaFunction,
        data: &Buffer<bf16>,
        (seed, scale): (u32, f32),
    ) -> Result<(), CudaError> {
        require(data.len().is_multiple_of(8), || {
            format!("{} values are no multiple of eight", data.len())
        })?;
        let chunks = (data.len() / 8) as u64;
        let params =
            Params { data: data.pointer(), chunks, sink: self.sink.pointer(), seed, scale };
        // SAFETY: the buffer holds `chunks` times eight values and the sink one.
        unsafe { device.launch(function, grid(self.blocks, THREADS, 0), &params) }
    }
}

/// What [`Probe::fill`] writes at an index.
#[must_use]
pub fn filled(index: u64, seed: u32, scale: f32) -> bf16 {
    let high = spread_bits((index >> 32) as u32 ^ seed);
    let hash = spread_bits(index as u32 ^ high);
    bf16::from_f32(((hash >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0) * scale)
}

fn spread_bits(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    let x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Mirrors `ProbeParams` in `probe.cuh`.
#[repr(C)]
#[derive(Debug)]
struct Params {
    data: u64,
    chunks: u64,
    sink: u64,
    seed: u32,
    scale: f32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for Params {}

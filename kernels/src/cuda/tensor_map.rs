//! How the tensor copy engine of a Hopper device reads a matrix of weights.

use std::ffi::c_void;

use cudarc::driver::DeviceRepr;
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use half::bf16;

use super::device::Buffer;
use super::error::CudaError;

/// Boxes of 64 x 128 weights, their rows swizzled: over 128 bytes in bf16, over 64 as codes.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct TensorMap(CUtensorMap);

// SAFETY: the driver's own descriptor, passed by value with the alignment it asks for.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// Of `rows` rows of `width` weights in bf16.
    pub(super) fn of(weights: &Buffer<bf16>, rows: usize, width: usize) -> Result<Self, CudaError> {
        let kind = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        let swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        Self::encode(weights, (kind, swizzle), rows, width)
    }

    /// Of `rows` rows of `width` codes.
    pub(super) fn of_codes(
        codes: &Buffer<u8>,
        rows: usize,
        width: usize,
    ) -> Result<Self, CudaError> {
        let kind = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8;
        let swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B;
        Self::encode(codes, (kind, swizzle), rows, width)
    }

    fn encode<T>(
        weights: &Buffer<T>,
        (kind, swizzle): (CUtensorMapDataType, CUtensorMapSwizzle),
        rows: usize,
        width: usize,
    ) -> Result<Self, CudaError> {
        let mut map = Self(CUtensorMap { opaque: [0; 16] });
        let dims = [width as u64, rows as u64];
        let stride = [(width * size_of::<T>()) as u64];
        let (edge, step) = ([64, 128], [1, 1]);
        // SAFETY: all arrays outlive the call and have the two (for strides one) elements that rank
        // two asks for; the address is only recorded.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                kind,
                2,
                weights.pointer() as *mut c_void,
                dims.as_ptr(),
                stride.as_ptr(),
                edge.as_ptr(),
                step.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        encoded.result().map_err(CudaError::driver("describing weights to the copy engine"))?;
        Ok(map)
    }
}

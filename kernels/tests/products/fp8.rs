//! Matrices of E4M3 codes pack to the same bits as the values they stand for.

use kernels::{Compute, Dtype, Isa, Linear, MatrixError, MatrixView, linear};

use crate::numbers::*;

/// Codes, the scales of their blocks, and the values, worked out from the format's definition.
struct Blocks {
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    values: Vec<u8>,
}

impl Blocks {
    fn random(numbers: &mut Numbers, rows: usize, cols: usize) -> Self {
        let codes: Vec<u8> = (0..rows * cols)
            .map(|_| numbers.bits() as u8)
            .map(|code| if code & 0x7f == 0x7f { 0 } else { code })
            .collect();
        let across = cols.div_ceil(128);
        let scales = numbers.floats(rows.div_ceil(128) * across, 1e-2);
        let value = |(at, &code): (usize, &u8)| {
            let scale = scales[at / cols / 128 * across + at % cols / 128];
            (decoded(code) * scale).to_le_bytes()
        };
        let values = codes.iter().enumerate().flat_map(value).collect();
        Self { rows, cols, codes, scales, values }
    }

    fn view(&self) -> MatrixView<'_> {
        MatrixView::fp8(&self.codes, &self.scales, self.rows, self.cols).expect("whole blocks")
    }

    /// The values as an f32 matrix.
    fn plain(&self) -> MatrixView<'_> {
        MatrixView::new(&self.values, Dtype::F32, self.rows, self.cols).expect("whole rows")
    }
}

fn decoded(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 {
        fraction * 2_f32.powi(-9)
    } else {
        (8.0 + fraction) * 2_f32.powi(exponent - 10)
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// What two rows become.
fn products(part: MatrixView<'_>, compute: Compute, x: &[f32]) -> Vec<f32> {
    let cpu = cpu(Isa::Portable, compute, 2);
    let packed = Linear::pack(&cpu, &[part], None).expect("one part");
    let x = &x[..2 * packed.inputs()];
    let mut y = vec![f32::NAN; 2 * packed.outputs()];
    linear(&cpu, &packed, x, &mut y);
    y
}

#[test]
fn codes_pack_like_their_values() {
    let mut numbers = Numbers(21);
    let x = numbers.floats(2 * 600, 1.0);
    for (rows, cols) in [(128, 128), (130, 200), (300, 129), (1, 1), (257, 40), (3, 520)] {
        let blocks = Blocks::random(&mut numbers, rows, cols);
        for compute in [Compute::Bf16, Compute::F32] {
            let what = format!("{compute} {rows}x{cols}");
            let (got, want) = (blocks.view(), blocks.plain());
            assert_same(&products(got, compute, &x), &products(want, compute, &x), &what);
            let part = |view: MatrixView<'_>| products(view.row_range(rows / 3..rows), compute, &x);
            assert_same(&part(got), &part(want), &format!("{what}, some rows"));
            let turned = |view: MatrixView<'_>| products(view.transposed(), compute, &x);
            assert_same(&turned(got), &turned(want), &format!("{what}, transposed"));
            let odd = |view: MatrixView<'_>| products(view.every_row(rows / 2, 2), compute, &x);
            assert_same(&odd(got), &odd(want), &format!("{what}, every other row"));
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_told() {
    let (codes, scales) = ([0; 130 * 3], [1.0; 2]);
    assert!(MatrixView::fp8(&codes, &scales, 130, 3).is_ok());
    assert!(MatrixView::fp8(&codes, &scales, 3, 130).is_ok());
    let error = MatrixView::fp8(&codes, &scales[1..], 130, 3).unwrap_err();
    assert_eq!(error, MatrixError::Shape { what: "scales of an fp8 matrix", expected: 2, got: 1 });
    let error = MatrixView::fp8(&codes[1..], &scales, 130, 3).unwrap_err();
    assert!(matches!(error, MatrixError::Shape { expected: 390, got: 389, .. }), "{error}");
}

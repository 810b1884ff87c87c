//! Linear layers: right for every shape, and a row's bits independent of its neighbours.

use kernels::{Compute, Dtype, Isa, Linear, MatrixError, MatrixView, linear, linear_add};

use crate::numbers::*;

/// Outputs x inputs, chosen around the panel and step sizes.
const SHAPES: [(usize, usize); 10] = [
    (1, 1),
    (15, 31),
    (16, 32),
    (17, 33),
    (48, 64),
    (96, 48),
    (64, 96),
    (130, 200),
    (260, 256),
    (1000, 7),
];

#[test]
fn every_shape_matches_the_reference() {
    let mut numbers = Numbers(1);
    for (isa, compute) in backends() {
        let cpu = cpu(isa, compute, 2);
        for (outputs, inputs) in SHAPES {
            for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
                let w = Stored::random(&mut numbers, dtype, outputs, inputs);
                let packed = Linear::pack(&cpu, &[w.view()], None).unwrap();
                assert_eq!((packed.outputs(), packed.inputs()), (outputs, inputs));
                for rows in [1, 3, 16, 19, 45] {
                    let x = numbers.floats(rows * inputs, 1.0);
                    let mut y = vec![f32::NAN; rows * outputs];
                    linear(&cpu, &packed, &x, &mut y);
                    let x: Vec<f32> = x.iter().map(|&x| rounded(compute, x)).collect();
                    let expected = chained(&w.packed_values(compute), &x, inputs);
                    let what = format!("{isa} {compute} {dtype:?} {outputs}x{inputs} {rows} rows");
                    if isa == Isa::Amx && compute == Compute::Bf16 {
                        assert_close(&y, &expected, 1e-5, &what);
                    } else {
                        assert_same(&y, &expected, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_with_any_threads() {
    let mut numbers = Numbers(2);
    for (isa, compute) in backends() {
        let (outputs, inputs) = if isa == Isa::Portable { (40, 96) } else { (330, 520) };
        let w = Stored::random(&mut numbers, Dtype::Bf16, outputs, inputs);
        let pool: Vec<Vec<f32>> = (0..700).map(|_| numbers.floats(inputs, 1.0)).collect();
        let alone = cpu(isa, compute, 1);
        let packed = Linear::pack(&alone, &[w.view()], None).unwrap();
        let expected: Vec<Vec<f32>> = pool
            .iter()
            .map(|x| {
                let mut y = vec![0.0; outputs];
                linear(&alone, &packed, x, &mut y);
                y
            })
            .collect();
        for threads in [1, 2, 3] {
            let cpu = cpu(isa, compute, threads);
            let packed = Linear::pack(&cpu, &[w.view()], None).unwrap();
            for rows in
                [2, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 80, 100, 255, 257, 290, 600, 700]
            {
                let picks: Vec<usize> = (0..rows).map(|_| numbers.below(pool.len())).collect();
                let x: Vec<f32> = picks.iter().flat_map(|&i| pool[i].clone()).collect();
                let mut y = vec![0.0; rows * outputs];
                linear(&cpu, &packed, &x, &mut y);
                for (y, &pick) in y.chunks_exact(outputs).zip(&picks) {
                    let what = format!("{isa} {compute} {threads} threads, row among {rows}");
                    assert_same(y, &expected[pick], &what);
                }
            }
        }
    }
}

#[test]
fn stacked_parts_bias_and_residual() {
    let mut numbers = Numbers(3);
    for (isa, compute) in backends() {
        let cpu = cpu(isa, compute, 2);
        let parts = [20, 7, 37].map(|rows| Stored::random(&mut numbers, Dtype::Bf16, rows, 50));
        let bias = numbers.floats(64, 1.0);
        let views = parts.each_ref().map(Stored::view);
        let stacked = Linear::pack(&cpu, &views, Some(&bias)).unwrap();
        let x = numbers.floats(5 * 50, 1.0);
        let before = numbers.floats(5 * 64, 1.0);
        let mut y = before.clone();
        linear_add(&cpu, &stacked, &x, &mut y);
        let mut first = 0;
        for part in &parts {
            let single = Linear::pack(&cpu, &[part.view()], None).unwrap();
            let mut alone = vec![0.0; 5 * part.rows];
            linear(&cpu, &single, &x, &mut alone);
            for row in 0..5 {
                for column in 0..part.rows {
                    let at = row * 64 + first + column;
                    let sum = alone[row * part.rows + column] + bias[first + column];
                    assert_eq!(y[at].to_bits(), (before[at] + sum).to_bits(), "{isa} {compute}");
                }
            }
            first += part.rows;
        }
    }
}

#[test]
fn views_select_and_transpose() {
    let mut numbers = Numbers(4);
    let stored = Stored::random(&mut numbers, Dtype::F32, 12, 10);
    let odd = stored.view().every_row(1, 2).row_range(2..5);
    assert_eq!((odd.rows(), odd.cols()), (3, 10));
    assert_eq!(odd.get(1, 4), stored.values[7 * 10 + 4]);
    let flipped = odd.transposed();
    assert_eq!((flipped.rows(), flipped.cols()), (10, 3));
    assert_eq!(flipped.get(4, 1), odd.get(1, 4));

    // A stored [in, out] matrix packs like its transpose.
    let cpu = cpu(Isa::Portable, Compute::F32, 1);
    let x = numbers.floats(12, 1.0);
    let packed = Linear::pack(&cpu, &[stored.view().transposed()], None).unwrap();
    let mut y = vec![0.0; 10];
    linear(&cpu, &packed, &x, &mut y);
    let turned: Vec<f32> = (0..10)
        .flat_map(|o| (0..12).map(move |i| (i, o)))
        .map(|(i, o)| stored.values[i * 10 + o])
        .collect();
    assert_same(&y, &chained(&turned, &x, 12), "transposed");
}

#[test]
fn a_router_gate_is_exact_in_any_precision() {
    let mut numbers = Numbers(5);
    let w = Stored::random(&mut numbers, Dtype::F32, 33, 70);
    let x = numbers.floats(3 * 70, 1.0);
    let expected = chained(&w.values, &x, 70);
    for (isa, compute) in backends() {
        let cpu = cpu(isa, compute, 2);
        let packed = Linear::pack_f32(&cpu, &[w.view()], None).unwrap();
        let mut y = vec![0.0; 3 * 33];
        linear(&cpu, &packed, &x, &mut y);
        assert_same(&y, &expected, &format!("{isa} {compute}"));
    }
}

#[test]
fn wrong_shapes_are_told() {
    let cpu = cpu(Isa::Portable, Compute::F32, 1);
    let error = MatrixView::new(&[0; 9], Dtype::F16, 2, 3).unwrap_err();
    assert_eq!(error.to_string(), "a 2 x 3 F16 matrix takes 12 bytes, got 9");
    assert!(matches!(
        MatrixView::new(&[], Dtype::F32, usize::MAX, 2),
        Err(MatrixError::TooLarge { .. })
    ));
    let (a, b) = ([0; 8], [0; 12]);
    let a = MatrixView::new(&a, Dtype::F32, 1, 2).unwrap();
    let b = MatrixView::new(&b, Dtype::F32, 1, 3).unwrap();
    assert!(matches!(Linear::pack(&cpu, &[a, b], None), Err(MatrixError::Shape { .. })));
    assert!(matches!(Linear::pack(&cpu, &[a], Some(&[1.0, 2.0])), Err(MatrixError::Shape { .. })));
}

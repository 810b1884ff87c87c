use super::*;
use crate::random::{backends, bits, cpu, numbers};

const EPS: f32 = 1e-5;

/// The definition in f64.
fn reference(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (&got, &want) in got.iter().zip(want) {
        assert!((f64::from(got) - want).abs() <= 5e-7 * want.abs().max(0.1), "{got} for {want}");
    }
}

#[test]
fn rows_agree_with_the_definition() {
    for cpu in backends() {
        for width in [1, 5, 16, 64, 100, 576, 2048] {
            let x = numbers(width as u64, 3 * width);
            let weight = numbers(7, width);
            let mut y = vec![0.0; 3 * width];
            rms_norm(&cpu, Columns::dense(&x, width), &weight, EPS, &mut y);
            for (x, y) in x.chunks(width).zip(y.chunks(width)) {
                assert_close(y, &reference(x, &weight));
            }
        }
    }
}

#[test]
fn heads_are_normed_alone_and_other_columns_stay() {
    for cpu in backends() {
        let (stride, head, heads) = (100, 24, 3);
        let before = numbers(1, 2 * stride);
        let weight = numbers(2, head);
        let mut x = before.clone();
        let columns = ColumnsMut::part(&mut x, stride, 10..10 + head * heads);
        rms_norm_heads(&cpu, columns, &weight, EPS);
        for (before, after) in before.chunks(stride).zip(x.chunks(stride)) {
            assert_eq!(before[..10], after[..10]);
            assert_eq!(before[10 + head * heads..], after[10 + head * heads..]);
            let inner = 10..10 + head * heads;
            let pairs = before[inner.clone()].chunks(head).zip(after[inner].chunks(head));
            for (before, after) in pairs {
                assert_close(after, &reference(before, &weight));
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_the_batch_nor_on_the_machine() {
    let width = 1111;
    let x = numbers(3, 200 * width);
    let weight = numbers(4, width);
    let norm = |cpu: &Cpu, x: &[f32]| {
        let mut y = vec![0.0; x.len()];
        rms_norm(cpu, Columns::dense(x, width), &weight, EPS, &mut y);
        bits(&y)
    };
    let first = norm(&backends()[0], &x);
    for two in backends() {
        assert!(norm(&two, &x) == first, "{}", two.isa());
        let one = cpu(two.isa(), two.compute(), 1);
        let alone: Vec<u32> = x.chunks(width).flat_map(|row| norm(&one, row)).collect();
        assert!(alone == first, "{}", two.isa());
    }
}

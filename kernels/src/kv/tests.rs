use super::*;
use crate::random::{backends, numbers};

const LAYOUT: KvLayout = KvLayout { layers: 2, kv_heads: 3, k_dim: 40, v_dim: 24 };

#[test]
fn a_token_is_found_where_the_layout_says() {
    for cpu in backends() {
        let mut kv = KvCache::new(&cpu, LAYOUT, 4).unwrap();
        let (k, v) = (numbers(1, 5 * 3 * 40), numbers(2, 5 * 3 * 24));
        let span = Span { rows: 1..4, first_position: 30, blocks: &[2, 1] };
        let (keys, values) = (Columns::dense(&k, 120), Columns::dense(&v, 72));
        write_kv(&cpu, &mut kv, 1, std::slice::from_ref(&span), keys, values);
        for row in 1..4 {
            let position = 29 + row;
            let (block, at) = ([2, 1][position / 32], position % 32);
            for head in 0..3 {
                for dim in 0..40 {
                    let want = k[row * 120 + head * 40 + dim];
                    let pair = at / 16 * 32 + dim / 2;
                    let got = |bf16: bool| {
                        let inner =
                            if bf16 { at % 16 * 2 + dim % 2 } else { dim % 2 * 16 + at % 16 };
                        // Keys are stored 64 wide, values 32, after one layer of 4 blocks.
                        ((4 + block) * 3 + head) * 32 * 96 + pair * 32 + inner
                    };
                    assert_stored(&kv, got, want);
                }
                for dim in 0..24 {
                    let want = v[row * 72 + head * 24 + dim];
                    let pair = dim / 16 * 16 + at / 2;
                    let got = |bf16: bool| {
                        let inner =
                            if bf16 { dim % 16 * 2 + at % 2 } else { at % 2 * 16 + dim % 16 };
                        ((4 + block) * 3 + head) * 32 * 96 + 32 * 64 + pair * 32 + inner
                    };
                    assert_stored(&kv, got, want);
                }
            }
        }
    }
}

fn assert_stored(kv: &KvCache, at: impl Fn(bool) -> usize, want: f32) {
    match kv.compute() {
        Compute::Bf16 => assert_eq!(kv.elements::<u16>()[at(true)], round_bf16(want)),
        Compute::F32 => assert_eq!(kv.elements::<f32>()[at(false)], want),
    }
}

#[test]
fn shapes_that_cannot_be_are_errors() {
    let cpu = &backends()[0];
    let new = |layout, blocks| KvCache::new(cpu, layout, blocks).map(|kv| kv.bytes());
    assert!(matches!(new(LAYOUT, 0), Err(KvError::Empty { .. })));
    assert!(matches!(new(KvLayout { v_dim: 0, ..LAYOUT }, 1), Err(KvError::Empty { .. })));
    for (layout, blocks) in
        [(LAYOUT, usize::MAX / 2), (KvLayout { k_dim: usize::MAX, ..LAYOUT }, 1)]
    {
        assert!(matches!(new(layout, blocks), Err(KvError::TooLarge { .. })));
    }
    assert_eq!(new(LAYOUT, 3).unwrap(), 3 * LAYOUT.block_bytes(cpu.compute()));
}

#[test]
#[should_panic(expected = "span without blocks")]
fn a_span_needs_blocks_for_all_its_positions() {
    let cpu = &backends()[0];
    let mut kv = KvCache::new(cpu, LAYOUT, 4).unwrap();
    let span = Span { rows: 0..2, first_position: 31, blocks: &[0] };
    let (k, v) = ([0.0; 240], [0.0; 144]);
    write_kv(cpu, &mut kv, 0, &[span], Columns::dense(&k, 120), Columns::dense(&v, 72));
}

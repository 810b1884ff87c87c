//! The experts that a node holds on a device: slots for weights, and the rows of a launch there and back.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, Device};
use super::error::{CudaError, require};
use super::experts::{Experts, HostExpert, WeightForm};
use super::ffn::{FfnKernel, GroupedFfn, PairList, Pairs};
use super::pinned::Pinned;
use crate::{FfnRow, decode_bf16, encode_bf16};

/// The sizes of a bank, all of whose memory is taken when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankShape {
    /// How weights lie.
    pub form: WeightForm,
    /// Elements of a row.
    pub hidden: usize,
    /// Elements between the products of an expert.
    pub inter: usize,
    /// Experts of one launch.
    pub groups: usize,
    /// Pairs of one launch; a run of more is several launches.
    pub pairs: usize,
}

/// Experts of one size on a device, each in a slot.
#[derive(Debug)]
pub struct ExpertBank {
    device: Arc<Device>,
    shape: BankShape,
    experts: Experts,
    ffn: GroupedFfn,
    list: PairList,
    pairs: Pairs,
    places: Places,
    /// Rows on their way to the device, and there.
    rows: Pinned<bf16>,
    x: Buffer<bf16>,
    /// Outputs on the device, and on their way from there.
    out: Buffer<bf16>,
    outputs: Pinned<bf16>,
    /// Output row of each pair of a launch.
    order: Vec<usize>,
}

/// The rows of the expert in a slot.
#[derive(Clone, Copy, Debug)]
pub struct BankJob<'a> {
    /// A slot that was written.
    pub slot: u32,
    /// Its rows, as bf16 in wire form.
    pub rows: &'a [FfnRow<'a>],
}

/// Where a launch has put its distinct rows, by their addresses: a row that goes to several experts travels once.
type Places = HashMap<usize, u32, BuildHasherDefault<AddressHasher>>;

/// Spreads addresses, which end in zeros.
#[derive(Default)]
struct AddressHasher(u64);

// === impl BankShape ===

impl BankShape {
    /// How many experts `bytes` of device memory hold beside what a launch works in.
    #[must_use]
    pub fn slots_within(&self, bytes: usize) -> usize {
        let Self { form, hidden, inter, groups, pairs } = *self;
        let halves = pairs * (2 * hidden + inter) * size_of::<bf16>();
        let numbers = (2 * pairs + 3 * groups + 2) * size_of::<u32>();
        bytes.saturating_sub(halves + numbers) / form.expert_bytes(hidden, inter).max(1)
    }
}

// === impl ExpertBank ===

impl ExpertBank {
    /// A bank of `slots` slots.
    ///
    /// # Errors
    /// When the kernels do not know such experts, or device or host have no memory for them.
    pub fn new(device: Arc<Device>, shape: BankShape, slots: usize) -> Result<Self, CudaError> {
        let BankShape { form, hidden, inter, groups, pairs } = shape;
        let kernel = FfnKernel::of(&device, form);
        Ok(Self {
            experts: Experts::vacant(&device, form, (slots, hidden, inter))?,
            ffn: GroupedFfn::new(&device, kernel, (pairs, groups, inter))?,
            list: PairList::default(),
            pairs: Pairs::with_room(&device, (pairs, groups))?,
            places: Places::default(),
            rows: Pinned::new(&device, pairs * hidden)?,
            x: device.alloc(pairs * hidden)?,
            out: device.alloc(pairs * hidden)?,
            outputs: Pinned::new(&device, pairs * hidden)?,
            order: Vec::with_capacity(pairs),
            device,
            shape,
        })
    }

    /// How many experts it has room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.experts.slots()
    }

    /// Bytes of one expert's weights.
    #[must_use]
    pub fn bytes_each(&self) -> usize {
        self.experts.bytes_each()
    }

    /// Puts an expert of the bank's form into a slot.
    ///
    /// # Errors
    /// When there is no such slot, the form or a length is another, or the device fails.
    pub fn write(&mut self, slot: u32, expert: HostExpert<'_>) -> Result<(), CudaError> {
        self.experts.write(&self.device, slot as usize, expert)
    }

    /// Runs every job: row `row.output` of `out` becomes `row.weight * down(silu(gate x) * up x)`, in wire form. `out`
    /// gets as many rows as all jobs together have; what it held is gone. A row's bits do not depend on the others.
    ///
    /// # Errors
    /// When a slot does not exist or the device fails.
    ///
    /// # Panics
    /// When an input is not one wire row, or an output index is out of range.
    pub fn run(&mut self, jobs: &[BankJob<'_>], out: &mut Vec<u8>) -> Result<(), CudaError> {
        let (pairs, row_bytes) = (self.shape.pairs, self.shape.hidden * size_of::<bf16>());
        require(jobs.len() <= self.shape.groups, || {
            format!("a run of {} experts, room for {}", jobs.len(), self.shape.groups)
        })?;
        out.clear();
        out.resize(jobs.iter().map(|job| job.rows.len()).sum::<usize>() * row_bytes, 0);
        let (mut launch, mut room) = (Vec::with_capacity(jobs.len()), pairs);
        for &BankJob { slot, mut rows } in jobs {
            while !rows.is_empty() {
                let (now, later) = rows.split_at(room.min(rows.len()));
                launch.push(BankJob { slot, rows: now });
                (rows, room) = (later, room - now.len());
                if room == 0 {
                    self.launch(&launch, out)?;
                    launch.clear();
                    room = pairs;
                }
            }
        }
        self.launch(&launch, out)
    }

    /// Computes what fits one launch, and puts the outputs in their places.
    fn launch(&mut self, jobs: &[BankJob<'_>], out: &mut [u8]) -> Result<(), CudaError> {
        self.stage(jobs)?;
        let (device, hidden) = (&*self.device, self.shape.hidden);
        let (pairs, rows) = (self.list.row.len(), self.places.len());
        if pairs == 0 {
            return Ok(());
        }
        self.pairs.set(device, &self.list, self.experts.slots(), rows)?;
        self.rows.send(device, rows * hidden, &mut self.x)?;
        let input = (&self.x, &self.pairs);
        self.ffn.launch(device, &self.experts, input, &mut self.out)?;
        self.outputs.fetch(device, pairs * hidden, &self.out)?;
        let computed = self.outputs.values()?;
        let row_bytes = hidden * size_of::<bf16>();
        for (&output, row) in self.order.iter().zip(computed.chunks_exact(hidden)) {
            encode_bf16(row, &mut out[output * row_bytes..][..row_bytes]);
        }
        Ok(())
    }

    /// Makes the list of a launch, and lays its distinct rows beside each other.
    fn stage(&mut self, jobs: &[BankJob<'_>]) -> Result<(), CudaError> {
        let Self { list, places, order, shape: BankShape { hidden, .. }, .. } = self;
        list.clear();
        places.clear();
        order.clear();
        // Looked into once: every look asks the device whether a copy is under way.
        let staged = self.rows.values_mut()?;
        list.first.push(0);
        for job in jobs {
            for row in job.rows {
                let next = places.len() as u32;
                let place = *places.entry(row.input.as_ptr() as usize).or_insert(next);
                if place == next {
                    decode_bf16(row.input, &mut staged[next as usize * *hidden..][..*hidden]);
                }
                list.row.push(place);
                list.weight.push(row.weight);
                order.push(row.output);
            }
            list.slot.push(job.slot);
            list.first.push(list.row.len() as u32);
        }
        Ok(())
    }
}

// === impl AddressHasher ===

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(usize::from(byte)));
    }

    fn write_usize(&mut self, address: usize) {
        // Fibonacci hashing; the table looks at the low and at the high bits.
        let spread = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

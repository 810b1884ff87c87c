//! The grouped SwiGLU of all activated experts of a layer in one launch.
//!
//! `out[pair] = weight[pair] * down(silu(gate(x[row])) * up(x[row]))` for every pair (expert, row).

use cudarc::driver::{CudaFunction, DeviceRepr, PushKernelArg};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};
use super::experts::{Experts, WeightForm};
use super::pinned::Pinned;

/// The code path of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FfnKernel {
    /// Warpgroup products and the tensor copy engine; compute capability 9.0 only.
    Hopper,
    /// The same over weights in fp8.
    HopperFp8,
    /// Warp products; 8.0 and newer.
    Portable,
    /// The same over weights in fp8.
    PortableFp8,
}

impl FfnKernel {
    /// The fastest one that the device runs over weights of a form.
    #[must_use]
    pub fn of(device: &Device, form: WeightForm) -> Self {
        match (form, device.capability()) {
            (WeightForm::Bf16, (9, 0)) => Self::Hopper,
            (WeightForm::Fp8, (9, 0)) => Self::HopperFp8,
            (WeightForm::Bf16, _) => Self::Portable,
            (WeightForm::Fp8, _) => Self::PortableFp8,
        }
    }

    /// How the weights lie that it multiplies.
    #[must_use]
    pub fn form(self) -> WeightForm {
        match self {
            Self::Hopper | Self::Portable => WeightForm::Bf16,
            Self::HopperFp8 | Self::PortableFp8 => WeightForm::Fp8,
        }
    }

    /// Name, threads of a block, and its dynamic shared memory: the constants of the `.cuh` files.
    pub(super) fn launch(self) -> (&'static str, u32, u32) {
        match self {
            Self::Hopper => ("ffn_hopper", 384, 1024 + 4 * 49_152 + 2 * 16_384 + 64),
            Self::HopperFp8 => ("ffn_hopper_fp8", 384, 1024 + 4 * 32_768 + 2 * 16_384 + 64),
            Self::Portable => ("ffn_portable", 128, 3 * 24_576),
            Self::PortableFp8 => ("ffn_portable_fp8", 128, 3 * 16_384),
        }
    }
}

/// Which rows go to which experts: the rows of group `g` are `row[first[g]..first[g + 1]]`.
#[derive(Debug, Clone, Default)]
pub struct PairList {
    /// The expert of each group, as a place in [`Experts`].
    pub slot: Vec<u32>,
    /// Where each group's pairs begin, and after the last group the number of pairs.
    pub first: Vec<u32>,
    /// The row of each pair.
    pub row: Vec<u32>,
    /// The gate weight of each pair.
    pub weight: Vec<f32>,
}

impl PairList {
    /// Makes it empty, and keeps its memory.
    pub(super) fn clear(&mut self) {
        let Self { slot, first, row, weight } = self;
        [slot, first, row].into_iter().for_each(Vec::clear);
        weight.clear();
    }

    fn check(&self, slots: usize, rows: usize) -> Result<(), CudaError> {
        let pairs = self.row.len();
        let rising = self.first.is_sorted() && self.first.first() == Some(&0);
        let complete = self.first.len() == self.slot.len() + 1
            && self.first.last().is_some_and(|last| *last as usize == pairs);
        require(rising && complete && self.weight.len() == pairs, || {
            let (groups, bounds) = (self.slot.len(), self.first.len());
            let weights = self.weight.len();
            format!("{groups} groups with {bounds} bounds, {pairs} rows and {weights} weights")
        })?;
        let slot = self.slot.iter().find(|slot| **slot as usize >= slots);
        require(slot.is_none(), || format!("expert {slot:?} of {slots}"))?;
        let row = self.row.iter().find(|row| **row as usize >= rows);
        require(row.is_none(), || format!("row {row:?} of {rows}"))
    }
}

/// A checked [`PairList`] on the device: its four parts one after another, so that they travel in one copy.
#[derive(Debug)]
pub struct Pairs {
    slots: usize,
    rows: usize,
    groups: usize,
    pairs: usize,
    staged: Pinned<u32>,
    parts: Buffer<u32>,
}

impl Pairs {
    /// Room for lists of at most `pairs` pairs in at most `groups` groups; an empty list.
    ///
    /// # Errors
    /// When device or host have no memory for it.
    pub fn with_room(device: &Device, (pairs, groups): (usize, usize)) -> Result<Self, CudaError> {
        let len = 2 * groups + 1 + 2 * pairs;
        let (staged, parts) = (Pinned::new(device, len)?, device.alloc(len)?);
        Ok(Self { slots: 0, rows: 0, groups: 0, pairs: 0, staged, parts })
    }

    /// Checks and uploads a list for `slots` experts and `rows` rows.
    ///
    /// # Errors
    /// As [`Pairs::with_room`] and [`Pairs::set`].
    pub fn upload(
        device: &Device,
        list: &PairList,
        slots: usize,
        rows: usize,
    ) -> Result<Self, CudaError> {
        let mut pairs = Self::with_room(device, (list.row.len(), list.slot.len()))?;
        pairs.set(device, list, slots, rows)?;
        Ok(pairs)
    }

    /// Takes another list, for `slots` experts and `rows` rows, behind the launches before.
    ///
    /// # Errors
    /// When the list's parts do not fit, name an expert or a row that is not there, or are more than there is room for.
    pub fn set(
        &mut self,
        device: &Device,
        list: &PairList,
        slots: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        list.check(slots, rows)?;
        let len = list.slot.len() + list.first.len() + list.row.len() + list.weight.len();
        let room = self.parts.len();
        require(len <= room, || format!("a list of {len} numbers, room for {room}"))?;
        let weights = list.weight.iter().map(|weight| weight.to_bits());
        let parts = list.slot.iter().chain(&list.first).chain(&list.row).copied().chain(weights);
        self.staged.values_mut()?.iter_mut().zip(parts).for_each(|(place, part)| *place = part);
        self.staged.send(device, len, &mut self.parts)?;
        (self.slots, self.rows) = (slots, rows);
        (self.groups, self.pairs) = (list.slot.len(), list.row.len());
        Ok(())
    }

    /// How many rows come out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Whether none come out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// Addresses of slots, bounds, rows and weights.
    fn pointers(&self) -> [u64; 4] {
        let ends = [0, self.groups, 2 * self.groups + 1, 2 * self.groups + 1 + self.pairs];
        ends.map(|end| self.parts.pointer() + (end * size_of::<u32>()) as u64)
    }
}

/// The grouped SwiGLU, ready to launch: the kernel and the memory it works in.
#[derive(Debug)]
pub struct GroupedFfn {
    kernel: FfnKernel,
    function: CudaFunction,
    blocks: u32,
    inter: usize,
    act: Buffer<bf16>,
    ready: Buffer<u32>,
}

impl GroupedFfn {
    /// For launches of at most `pairs` pairs in at most `groups` groups over experts of `inter`.
    ///
    /// # Errors
    /// When the device has no memory for it or does not know the kernel.
    pub fn new(
        device: &Device,
        kernel: FfnKernel,
        (pairs, groups, inter): (usize, usize, usize),
    ) -> Result<Self, CudaError> {
        let (name, threads, shared) = kernel.launch();
        let function = device.kernel(name, shared)?;
        let resident = device.resident(&function, threads, shared)?;
        Ok(Self {
            kernel,
            function,
            blocks: resident,
            inter,
            act: device.alloc(pairs * inter)?,
            ready: device.upload(&vec![0; groups + 1])?,
        })
    }

    /// Launches over `x`, at least `[rows, hidden]`, into `out`, `[pairs, hidden]` in the list's order.
    ///
    /// A row's bits do not depend on the rest of the list.
    ///
    /// # Errors
    /// When the sizes do not fit one another, or the driver refuses the launch.
    pub fn launch(
        &mut self,
        device: &Device,
        experts: &Experts,
        (x, pairs): (&Buffer<bf16>, &Pairs),
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        self.check(experts, (x, pairs), out)?;
        if pairs.is_empty() {
            return Ok(());
        }
        let params = self.params(experts, (x, pairs), out)?;
        self.start(device, experts, &params)
    }

    /// Takes all rows of `x`, `[rows, hidden]`, through one expert into `out`, `[rows, hidden]`;
    /// `weight`, `[rows]`, multiplies each.
    ///
    /// A row's bits do not depend on the other rows.
    ///
    /// # Errors
    /// When the sizes do not fit one another, or the driver refuses the launch.
    pub fn launch_all(
        &mut self,
        device: &Device,
        expert: &Experts,
        (x, weight): (&Buffer<bf16>, Option<&Buffer<f32>>),
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let rows = x.len() / expert.hidden;
        let fits = x.len() == rows * expert.hidden
            && out.len() >= x.len()
            && weight.is_none_or(|weight| weight.len() == rows)
            && self.act.len() >= rows * expert.inter;
        require(fits, || {
            let (x, out, room) = (x.len(), out.len(), self.act.len());
            format!("{x} values in rows of {} into {out}, with room for {room}", expert.hidden)
        })?;
        if rows == 0 {
            return Ok(());
        }
        let params = Params {
            x: x.pointer(),
            weight: weight.map_or(0, Buffer::pointer),
            act: self.act.pointer(),
            out: out.pointer(),
            ready: self.ready.pointer(),
            groups: 1,
            hidden: size(expert.hidden)?,
            inter: size(expert.inter)?,
            dense: size(rows)?,
            ..expert.params()
        };
        self.start(device, expert, &params)
    }

    /// Launches with sizes that have been compared.
    fn start(&self, device: &Device, experts: &Experts, params: &Params) -> Result<(), CudaError> {
        require(self.kernel.form() == experts.form(), || {
            format!("{:?} does not multiply weights in {:?}", self.kernel, experts.form())
        })?;
        let (_, threads, shared) = self.kernel.launch();
        let mut launch = device.stream().launch_builder(&self.function);
        launch.arg(params);
        if matches!(self.kernel, FfnKernel::Hopper | FfnKernel::HopperFp8) {
            let Some([gate, up, down]) = experts.maps() else {
                return Err(CudaError::Shape("the Hopper kernel wants a Hopper device".into()));
            };
            launch.arg(gate).arg(up).arg(down);
        }
        // SAFETY: every pointer is that of a live buffer whose length the caller compared, every slot
        // and row of a list was checked by `Pairs::set`, the counters are zero before and after each
        // launch, and the blocks are no more than are resident at once, as their waits need.
        let launched = unsafe { launch.launch(grid(self.blocks, threads, shared)) };
        launched.map(drop).map_err(CudaError::driver("launching the grouped SwiGLU"))
    }

    fn check(
        &self,
        experts: &Experts,
        (x, pairs): (&Buffer<bf16>, &Pairs),
        out: &Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let hidden = experts.hidden;
        require(pairs.slots == experts.slots(), || {
            "the pairs were checked for other experts".into()
        })?;
        require(x.len() >= pairs.rows * hidden, || "the pairs were checked for more rows".into())?;
        require(out.len() >= pairs.len() * hidden, || "the output is too small".into())?;
        let room = self.act.len() >= pairs.len() * self.inter && self.inter == experts.inter;
        require(room && self.ready.len() > pairs.groups, || {
            "the launch is larger than the memory it was given".into()
        })
    }

    fn params(
        &self,
        experts: &Experts,
        (x, pairs): (&Buffer<bf16>, &Pairs),
        out: &Buffer<bf16>,
    ) -> Result<Params, CudaError> {
        let [slot, first, row, weight] = pairs.pointers();
        Ok(Params {
            x: x.pointer(),
            slot,
            first,
            row,
            weight,
            act: self.act.pointer(),
            out: out.pointer(),
            ready: self.ready.pointer(),
            groups: size(pairs.groups)?,
            hidden: size(experts.hidden)?,
            inter: size(experts.inter)?,
            ..experts.params()
        })
    }
}

/// Mirrors `FfnParams` in `ffn.cuh`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Params {
    pub(super) x: u64,
    pub(super) gate: u64,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) gate_scale: u64,
    pub(super) up_scale: u64,
    pub(super) down_scale: u64,
    pub(super) slot: u64,
    pub(super) first: u64,
    pub(super) row: u64,
    pub(super) weight: u64,
    pub(super) act: u64,
    pub(super) out: u64,
    pub(super) exact: u64,
    pub(super) ready: u64,
    pub(super) groups: u32,
    pub(super) hidden: u32,
    pub(super) inter: u32,
    pub(super) dense: u32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for Params {}

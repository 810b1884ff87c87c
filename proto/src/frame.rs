//! Frames of the data plane: typed, validated once on receipt, with records packed in few bytes.
//!
//! A dispatch carries `pairs`, one record of [`PAIR_BYTES`] per (row, expert), and the rows
//! themselves. An output carries `results`, one record of [`DONE_BYTES`] per finished pair, and one
//! row for each. All numbers are little-endian.

use bytes::{BufMut, Bytes, BytesMut};
use domain::{Epoch, Expert, Layer, NodeId};

use crate::{Invalid, internal as wire};

pub use self::nccl::{NCCL_NAME_BYTES, NcclName, NcclOffer, NcclStep, NcclWord};

pub mod apart;
mod nccl;

/// Bytes of one packed [`Pair`]: ticket u64, row u32, weight f32, expert u16, rank u8, flags u8 (1: traced; receivers
/// ignore flags that they do not know).
pub const PAIR_BYTES: usize = 20;
/// Bytes of one packed [`Done`]: ticket u64, rank u8, three zeros.
pub const DONE_BYTES: usize = 12;

/// Names one row on its attention node until all its outputs are merged. Never used twice in the
/// life of a link, so that a late or repeated output finds no taker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One row for one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Names the row to its sender.
    pub ticket: Ticket,
    /// Index of the row in the frame.
    pub row: u32,
    /// Gate weight: the expert scales its output by it.
    pub weight: f32,
    /// The expert.
    pub expert: Expert,
    /// Position of this expert among the row's chosen ones, ascending by expert id.
    pub rank: u8,
    /// Whether the sender wants to be told its [`Timing`].
    pub traced: bool,
}

/// One finished pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The row it belongs to.
    pub ticket: Ticket,
    /// The pair's rank within the row.
    pub rank: u8,
}

/// The time of one traced pair on its expert node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Index among the output's results.
    pub result: u32,
    /// In its μ-queue.
    pub queued_ns: u64,
    /// In the run that computed it.
    pub ran_ns: u64,
}

/// Rows to run through experts of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// The plan by which the receiver was chosen.
    pub epoch: Epoch,
    /// Lockstep mode's step; 0 in asynchronous mode.
    pub step: u64,
    /// The layer.
    pub layer: Layer,
    /// Which row goes through which expert.
    pub pairs: Vec<Pair>,
    /// The rows, one after the other, in the cluster's row type.
    pub rows: Bytes,
    /// Asynchronous mode: rows of the sender that come to the experts of each decoder layer next, so
    /// that the receiver can wait for them. Empty where nothing is told.
    pub behind: Vec<u32>,
}

/// Results of one layer, scaled by their gate weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Lockstep mode's step; 0 in asynchronous mode.
    pub step: u64,
    /// The layer.
    pub layer: Layer,
    /// What each row is.
    pub results: Vec<Done>,
    /// One row per result, in the same order.
    pub rows: Bytes,
    /// Of the pairs that were traced; usually none.
    pub timings: Vec<Timing>,
}

/// Lockstep mode: tokens per expert that one batch chose in one layer, of one attention node on the
/// way to an expert node, of all of them on the way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The step.
    pub step: u64,
    /// The layer.
    pub layer: Layer,
    /// Tokens of each expert.
    pub tokens: Vec<u32>,
}

/// First frame in both directions of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender.
    pub node: NodeId,
    /// Weights and numerics of the sender; both ends must agree.
    pub model_fingerprint: String,
    /// Bytes of rows that may be in flight towards the sender of this frame.
    pub credit_bytes: u64,
    /// What the sender can do by NCCL.
    pub nccl: Option<NcclOffer>,
}

/// Everything that travels on a data link.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Introduces the sender.
    Hello(Hello),
    /// Attention → expert.
    Dispatch(Dispatch),
    /// Expert → attention.
    Output(Output),
    /// Attention → expert: drop what is queued for these rows.
    Cancel(Vec<Ticket>),
    /// Expert → attention: what was sent for these rows was not run, its expert is not resident.
    Reject(Vec<Ticket>),
    /// Bytes of rows the receiver has let go of.
    Credit(u64),
    /// Expert → attention, lockstep mode: others have begun this step.
    Barrier {
        /// The step.
        step: u64,
    },
    /// Both ways, lockstep mode.
    Tally(Tally),
    /// Both ways: the making of a faster path beside the link.
    Nccl(NcclWord),
}

/// Bounds a frame is held against on receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one row.
    pub row_bytes: usize,
    /// Decoder layers of the model.
    pub layers: u16,
    /// Experts per layer.
    pub experts: u16,
    /// Experts per token.
    pub top_k: u8,
}

// === impl Frame ===

impl Frame {
    /// Bytes of rows the frame holds: what credits are counted in.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Dispatch(dispatch) => dispatch.rows.len(),
            Self::Output(output) => output.rows.len(),
            Self::Hello(_)
            | Self::Cancel(_)
            | Self::Reject(_)
            | Self::Credit(_)
            | Self::Barrier { .. }
            | Self::Tally(_)
            | Self::Nccl(_) => 0,
        }
    }

    /// The wire form.
    #[must_use]
    pub fn encode(self) -> wire::Frame {
        use wire::frame::Kind;
        let kind = match self {
            Self::Hello(hello) => Kind::Hello(wire::Hello {
                node_id: hello.node.0,
                model_fingerprint: hello.model_fingerprint,
                credit_bytes: hello.credit_bytes,
                nccl: hello.nccl.map(NcclOffer::encode),
            }),
            Self::Dispatch(dispatch) => Kind::Dispatch(wire::Dispatch {
                epoch: dispatch.epoch.0,
                step: dispatch.step,
                layer: u32::from(dispatch.layer.0),
                pairs: pack_pairs(&dispatch.pairs),
                rows: dispatch.rows,
                behind: dispatch.behind,
                row_bytes_apart: 0,
            }),
            Self::Output(output) => Kind::Output(wire::Output {
                step: output.step,
                layer: u32::from(output.layer.0),
                results: pack_results(&output.results),
                rows: output.rows,
                timings: output.timings.into_iter().map(Timing::encode).collect(),
                row_bytes_apart: 0,
            }),
            Self::Cancel(tickets) => Kind::Cancel(wire::Cancel {
                tickets: tickets.into_iter().map(|ticket| ticket.0).collect(),
            }),
            Self::Reject(tickets) => Kind::Reject(wire::Reject {
                tickets: tickets.into_iter().map(|ticket| ticket.0).collect(),
            }),
            Self::Credit(bytes) => Kind::Credit(wire::Credit { bytes }),
            Self::Barrier { step } => Kind::Barrier(wire::Barrier { step }),
            Self::Tally(Tally { step, layer, tokens }) => {
                Kind::Tally(wire::Tally { step, layer: u32::from(layer.0), tokens })
            }
            Self::Nccl(word) => Kind::Nccl(word.encode()),
        };
        wire::Frame { kind: Some(kind) }
    }

    /// Reads and validates a wire frame.
    ///
    /// # Errors
    /// Names the field that is missing, has a wrong length or points outside its bounds.
    pub fn decode(frame: wire::Frame, limits: &Limits) -> Result<Self, Invalid> {
        use wire::frame::Kind;
        match frame.kind.ok_or_else(|| Invalid::missing("frame.kind"))? {
            Kind::Hello(hello) => Ok(Self::Hello(Hello {
                node: NodeId(hello.node_id),
                model_fingerprint: hello.model_fingerprint,
                credit_bytes: hello.credit_bytes,
                nccl: hello.nccl.map(NcclOffer::decode),
            })),
            Kind::Dispatch(dispatch) => decode_dispatch(dispatch, limits).map(Self::Dispatch),
            Kind::Output(output) => decode_output(output, limits).map(Self::Output),
            Kind::Cancel(cancel) => {
                Ok(Self::Cancel(cancel.tickets.into_iter().map(Ticket).collect()))
            }
            Kind::Reject(reject) => {
                Ok(Self::Reject(reject.tickets.into_iter().map(Ticket).collect()))
            }
            Kind::Credit(credit) => Ok(Self::Credit(credit.bytes)),
            Kind::Barrier(barrier) => Ok(Self::Barrier { step: barrier.step }),
            Kind::Tally(tally) => decode_tally(tally, limits).map(Self::Tally),
            Kind::Nccl(word) => NcclWord::decode(word).map(Self::Nccl),
        }
    }
}

// === impl Timing ===

impl Timing {
    fn encode(self) -> wire::Timing {
        let Self { result, queued_ns, ran_ns } = self;
        wire::Timing { result, queued_ns, ran_ns }
    }

    fn decode(timing: wire::Timing) -> Self {
        let wire::Timing { result, queued_ns, ran_ns } = timing;
        Self { result, queued_ns, ran_ns }
    }
}

// === impl Limits ===

impl Limits {
    fn layer(&self, field: &'static str, layer: u32) -> Result<Layer, Invalid> {
        match u16::try_from(layer) {
            Ok(layer) if layer < self.layers => Ok(Layer(layer)),
            _ => Err(Invalid::new(
                field,
                format!("is {layer}, the model has {} layers", self.layers),
            )),
        }
    }

    fn rows(&self, field: &'static str, rows: &Bytes) -> Result<usize, Invalid> {
        if rows.len().is_multiple_of(self.row_bytes) {
            return Ok(rows.len() / self.row_bytes);
        }
        Err(Invalid::new(
            field,
            format!("has {} bytes, expected a multiple of {}", rows.len(), self.row_bytes),
        ))
    }

    fn rank(&self, field: &'static str, rank: u8) -> Result<u8, Invalid> {
        if rank < self.top_k {
            return Ok(rank);
        }
        Err(Invalid::new(field, format!("has rank {rank}, top-k is {}", self.top_k)))
    }
}

fn decode_dispatch(dispatch: wire::Dispatch, limits: &Limits) -> Result<Dispatch, Invalid> {
    all_here("dispatch.row_bytes_apart", dispatch.row_bytes_apart)?;
    let layer = limits.layer("dispatch.layer", dispatch.layer)?;
    let rows = limits.rows("dispatch.rows", &dispatch.rows)?;
    let pairs = records::<PAIR_BYTES>("dispatch.pairs", &dispatch.pairs)?
        .map(|record| unpack_pair(record, rows, limits))
        .collect::<Result<_, _>>()?;
    let (told, layers) = (dispatch.behind.len(), limits.layers);
    if told > usize::from(layers) {
        let what = format!("has {told} counts, the model has {layers} layers");
        return Err(Invalid::new("dispatch.behind", what));
    }
    Ok(Dispatch {
        epoch: Epoch(dispatch.epoch),
        step: dispatch.step,
        layer,
        pairs,
        rows: dispatch.rows,
        behind: dispatch.behind,
    })
}

fn decode_output(output: wire::Output, limits: &Limits) -> Result<Output, Invalid> {
    all_here("output.row_bytes_apart", output.row_bytes_apart)?;
    let layer = limits.layer("output.layer", output.layer)?;
    let rows = limits.rows("output.rows", &output.rows)?;
    let results: Vec<Done> = records::<DONE_BYTES>("output.results", &output.results)?
        .map(|record| unpack_done(record, limits))
        .collect::<Result<_, _>>()?;
    if results.len() != rows {
        return Err(Invalid::new(
            "output.rows",
            format!("has {rows} rows for {} results, expected one each", results.len()),
        ));
    }
    let timing = |timing: wire::Timing| match timing.result as usize {
        result if result < rows => Ok(Timing::decode(timing)),
        result => Err(Invalid::new("output.timings", format!("name result {result} of {rows}"))),
    };
    let timings = output.timings.into_iter().map(timing).collect::<Result<_, _>>()?;
    Ok(Output { step: output.step, layer, results, rows: output.rows, timings })
}

/// Rows that come apart have to be [attached](apart::attach) before a frame is read.
fn all_here(field: &'static str, apart: u64) -> Result<(), Invalid> {
    if apart == 0 {
        return Ok(());
    }
    Err(Invalid::new(field, format!("is {apart}, but no rows were awaited beside the link")))
}

fn decode_tally(tally: wire::Tally, limits: &Limits) -> Result<Tally, Invalid> {
    let layer = limits.layer("tally.layer", tally.layer)?;
    let (found, experts) = (tally.tokens.len(), limits.experts);
    if found != usize::from(experts) {
        return Err(Invalid::new(
            "tally.tokens",
            format!("has {found} counts, expected {experts}"),
        ));
    }
    Ok(Tally { step: tally.step, layer, tokens: tally.tokens })
}

// === packed records ===

fn pack_pairs(pairs: &[Pair]) -> Bytes {
    let mut packed = BytesMut::with_capacity(pairs.len() * PAIR_BYTES);
    for pair in pairs {
        packed.put_u64_le(pair.ticket.0);
        packed.put_u32_le(pair.row);
        packed.put_f32_le(pair.weight);
        packed.put_u16_le(pair.expert.0);
        packed.put_u8(pair.rank);
        packed.put_u8(u8::from(pair.traced));
    }
    packed.freeze()
}

fn pack_results(results: &[Done]) -> Bytes {
    let mut packed = BytesMut::with_capacity(results.len() * DONE_BYTES);
    for done in results {
        packed.put_u64_le(done.ticket.0);
        packed.put_u8(done.rank);
        packed.put_bytes(0, 3);
    }
    packed.freeze()
}

fn records<'a, const SIZE: usize>(
    field: &'static str,
    packed: &'a Bytes,
) -> Result<impl Iterator<Item = &'a [u8; SIZE]>, Invalid> {
    let (records, rest) = packed.as_chunks::<SIZE>();
    if rest.is_empty() {
        return Ok(records.iter());
    }
    Err(Invalid::new(field, format!("has {} bytes, expected a multiple of {SIZE}", packed.len())))
}

fn unpack_pair(record: &[u8; PAIR_BYTES], rows: usize, limits: &Limits) -> Result<Pair, Invalid> {
    let row = u32::from_le_bytes(field(record, 8));
    if row as usize >= rows {
        return Err(Invalid::new("dispatch.pairs", format!("name row {row} of {rows}")));
    }
    let weight = f32::from_le_bytes(field(record, 12));
    if !weight.is_finite() {
        return Err(Invalid::new("dispatch.pairs", format!("have the gate weight {weight}")));
    }
    let expert = u16::from_le_bytes(field(record, 16));
    if expert >= limits.experts {
        let experts = limits.experts;
        return Err(Invalid::new("dispatch.pairs", format!("name expert {expert} of {experts}")));
    }
    Ok(Pair {
        ticket: Ticket(u64::from_le_bytes(field(record, 0))),
        row,
        weight,
        expert: Expert(expert),
        rank: limits.rank("dispatch.pairs", record[18])?,
        traced: record[19] & 1 == 1,
    })
}

fn unpack_done(record: &[u8; DONE_BYTES], limits: &Limits) -> Result<Done, Invalid> {
    Ok(Done {
        ticket: Ticket(u64::from_le_bytes(field(record, 0))),
        rank: limits.rank("output.results", record[8])?,
    })
}

/// `N` bytes of a fixed-size record; the offsets above are constants that fit.
fn field<const N: usize, const SIZE: usize>(record: &[u8; SIZE], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&record[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { row_bytes: 8, layers: 4, experts: 16, top_k: 2 };

    fn dispatch() -> Dispatch {
        let pair = |row, expert, rank| Pair {
            ticket: Ticket(7 << 32 | u64::from(row)),
            row,
            weight: 0.25,
            expert: Expert(expert),
            rank,
            traced: row == 1,
        };
        Dispatch {
            epoch: Epoch(3),
            step: 0,
            layer: Layer(2),
            pairs: vec![pair(0, 1, 0), pair(0, 15, 1), pair(1, 4, 1)],
            rows: Bytes::from_static(b"0123456789abcdef"),
            behind: vec![0, 2, 7],
        }
    }

    #[test]
    fn frames_survive_the_wire() {
        let output = Output {
            step: 9,
            layer: Layer(0),
            results: vec![Done { ticket: Ticket(u64::MAX), rank: 1 }],
            rows: Bytes::from_static(b"01234567"),
            timings: vec![Timing { result: 0, queued_ns: 7, ran_ns: u64::MAX }],
        };
        let nccl = Some(NcclOffer { major: 2, row_bytes_max: 1 << 22 });
        let hello =
            Hello { node: NodeId(4), model_fingerprint: "abc".into(), credit_bytes: 1 << 40, nccl };
        for frame in [
            Frame::Dispatch(dispatch()),
            Frame::Output(output),
            Frame::Hello(hello),
            Frame::Cancel(vec![Ticket(1), Ticket(2)]),
            Frame::Reject(vec![Ticket(3)]),
            Frame::Credit(5),
            Frame::Barrier { step: 8 },
            Frame::Tally(Tally { step: 8, layer: Layer(3), tokens: (0..16).collect() }),
        ] {
            assert_eq!(Frame::decode(frame.clone().encode(), &LIMITS), Ok(frame));
        }
    }

    #[test]
    fn a_bad_frame_is_one_sentence() {
        let check = |change: &dyn Fn(&mut Dispatch), expected: &str| {
            let mut dispatch = dispatch();
            change(&mut dispatch);
            let error = Frame::decode(Frame::Dispatch(dispatch).encode(), &LIMITS).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(&|d| d.layer = Layer(4), "dispatch.layer: is 4, the model has 4 layers");
        check(&|d| d.pairs[2].row = 2, "dispatch.pairs: name row 2 of 2");
        check(&|d| d.pairs[0].expert = Expert(16), "dispatch.pairs: name expert 16 of 16");
        check(&|d| d.pairs[0].rank = 2, "dispatch.pairs: has rank 2, top-k is 2");
        check(&|d| d.pairs[0].weight = f32::NAN, "dispatch.pairs: have the gate weight NaN");
        let timings = vec![Timing { result: 1, queued_ns: 0, ran_ns: 0 }];
        let (results, rows) =
            (vec![Done { ticket: Ticket(1), rank: 0 }], Bytes::from_static(&[0; 8]));
        let output = Output { step: 0, layer: Layer(0), results, rows, timings };
        let error = Frame::decode(Frame::Output(output).encode(), &LIMITS).unwrap_err();
        assert_eq!(error.to_string(), "output.timings: name result 1 of 1");
        let short = Tally { step: 1, layer: Layer(0), tokens: vec![1] };
        let error = Frame::decode(Frame::Tally(short).encode(), &LIMITS).unwrap_err();
        assert_eq!(error.to_string(), "tally.tokens: has 1 counts, expected 16");
        check(
            &|d| d.rows = d.rows.slice(1..),
            "dispatch.rows: has 15 bytes, expected a multiple of 8",
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(pairs: Vec<u8>, results: Vec<u8>, rows: Vec<u8>, layer: u32) {
            let dispatch = wire::Dispatch {
                epoch: 0, step: 0, layer, pairs: pairs.into(), rows: rows.clone().into(),
                behind: Vec::new(), row_bytes_apart: 0,
            };
            let output = wire::Output {
                layer, results: results.into(), rows: rows.into(), step: 0, timings: Vec::new(),
                row_bytes_apart: 0,
            };
            for kind in [wire::frame::Kind::Dispatch(dispatch), wire::frame::Kind::Output(output)] {
                let _ = Frame::decode(wire::Frame { kind: Some(kind) }, &LIMITS);
            }
        }
    }
}

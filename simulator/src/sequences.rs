//! The sequences in the cluster, waiting and running, from arrival to their last token.

/// One sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence {
    /// Its number in order of arrival; what it routes by.
    pub(crate) serial: u64,
    /// The attention node that owns it.
    pub(crate) home: u16,
    /// Lockstep: the stream of that node.
    pub(crate) stream: u8,
    /// Tokens of its prompt.
    pub(crate) prompt: u32,
    /// Tokens that it is to get.
    pub(crate) output: u32,
    /// Tokens that it has got.
    pub(crate) generated: u32,
    /// The position that goes through the layers next.
    pub(crate) next: u32,
    /// Whether it runs; it waits until then.
    pub(crate) running: bool,
    /// When it came.
    pub(crate) arrived_ns: u64,
    /// When it got its first token.
    pub(crate) first_ns: u64,
    /// When it got its latest one.
    pub(crate) latest_ns: u64,
    /// Its KV blocks.
    pub(crate) blocks: Vec<u32>,
}

/// All sequences, by number; a number is used again when its sequence has ended.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    sequences: Vec<Option<Sequence>>,
    free: Vec<u32>,
    /// Sequences that came so far.
    pub(crate) arrived: u64,
}

// === impl Sequences ===

impl Sequences {
    /// Adds a sequence, which is given its serial, and numbers it.
    pub(crate) fn insert(&mut self, mut sequence: Sequence) -> u32 {
        sequence.serial = self.arrived;
        self.arrived += 1;
        if let Some(at) = self.free.pop() {
            self.sequences[at as usize] = Some(sequence);
            return at;
        }
        self.sequences.push(Some(sequence));
        u32::try_from(self.sequences.len() - 1).expect("sequences are bounded per node")
    }

    /// Takes a sequence away.
    pub(crate) fn remove(&mut self, at: u32) -> Sequence {
        self.free.push(at);
        self.sequences[at as usize].take().expect("a sequence ends once")
    }

    /// A sequence in the cluster.
    pub(crate) fn get(&self, at: u32) -> &Sequence {
        self.sequences[at as usize].as_ref().expect("only sequences in the cluster are named")
    }

    /// A sequence in the cluster.
    pub(crate) fn get_mut(&mut self, at: u32) -> &mut Sequence {
        self.sequences[at as usize].as_mut().expect("only sequences in the cluster are named")
    }

    /// Every sequence with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Sequence)> {
        (0..).zip(&self.sequences).filter_map(|(at, sequence)| Some((at, sequence.as_ref()?)))
    }

    /// Sequences in the cluster.
    pub(crate) fn len(&self) -> usize {
        self.sequences.len() - self.free.len()
    }
}

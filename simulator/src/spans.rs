//! What moves through the cluster: spans (a token being decoded, or a chunk of a prompt) and their pairs.

/// One span: the tokens of a sequence that go through the layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its sequence.
    pub(crate) sequence: u32,
    /// Position of its first token.
    pub(crate) start: u32,
    /// Its tokens.
    pub(crate) rows: u32,
    /// Outputs of experts that are owed: tokens × top-k at first.
    pub(crate) missing: u32,
    /// The layer it is in.
    pub(crate) layer: u16,
    /// The attention node that owns it.
    pub(crate) home: u16,
}

/// Tokens of one span that go to one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// When they came to where they are.
    pub(crate) since_ns: u64,
    /// The span.
    pub(crate) span: u32,
    /// The expert.
    pub(crate) expert: u16,
    /// How many tokens; a token that is decoded is one.
    pub(crate) tokens: u16,
}

/// All spans under way, by number; a number is used again when its span is gone.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    spans: Vec<Option<Span>>,
    free: Vec<u32>,
}

/// An output that no span waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unasked;

// === impl Spans ===

impl Spans {
    /// Adds a span and numbers it.
    pub(crate) fn insert(&mut self, span: Span) -> u32 {
        if let Some(at) = self.free.pop() {
            self.spans[at as usize] = Some(span);
            return at;
        }
        self.spans.push(Some(span));
        u32::try_from(self.spans.len() - 1).expect("sequences are bounded far below 2^32")
    }

    /// Takes a span away.
    pub(crate) fn remove(&mut self, at: u32) -> Span {
        self.free.push(at);
        self.spans[at as usize].take().expect("a span ends once")
    }

    /// A span under way.
    pub(crate) fn get(&self, at: u32) -> &Span {
        self.spans[at as usize].as_ref().expect("only spans under way are named")
    }

    /// A span under way.
    pub(crate) fn get_mut(&mut self, at: u32) -> &mut Span {
        self.spans[at as usize].as_mut().expect("only spans under way are named")
    }

    /// Merges outputs of experts into a span; whether they were the last ones owed.
    pub(crate) fn merge(&mut self, at: u32, tokens: u32) -> Result<bool, Unasked> {
        let span = self.spans.get_mut(at as usize).and_then(Option::as_mut).ok_or(Unasked)?;
        span.missing = span.missing.checked_sub(tokens).ok_or(Unasked)?;
        Ok(span.missing == 0)
    }

    /// Every span under way with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Span)> {
        (0..).zip(&self.spans).filter_map(|(at, span)| Some((at, span.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_merged_once() {
        let mut spans = Spans::default();
        let span = Span { sequence: 0, start: 3, rows: 1, missing: 2, layer: 0, home: 0 };
        let at = spans.insert(span);
        assert_eq!(spans.merge(at, 1), Ok(false));
        assert_eq!(spans.merge(at, 1), Ok(true));
        assert_eq!(spans.merge(at, 1), Err(Unasked), "it came twice");
        assert_eq!(spans.remove(at).start, 3);
        assert_eq!(spans.merge(at, 1), Err(Unasked), "nobody waits for it any more");
        assert_eq!(spans.insert(span), at, "numbers are used again");
        assert_eq!(spans.iter().count(), 1);
    }
}

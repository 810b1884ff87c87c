//! Finds stop strings in text that comes in pieces, and holds back what may become one.

/// Looks for stop strings across pieces of one choice's text.
#[derive(Debug)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far that is the beginning of some stop string.
    held: String,
}

/// What a piece of text brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Text that can no longer become part of a stop string.
    pub(crate) text: String,
    /// The stop string that ended the choice.
    pub(crate) hit: Option<String>,
}

impl StopStrings {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece. After a hit the choice is over: what follows the stop string is gone.
    pub(crate) fn push(&mut self, piece: String) -> Scan {
        let mut text = std::mem::take(&mut self.held);
        if text.is_empty() {
            text = piece;
        } else {
            text.push_str(&piece);
        }
        let first = self
            .stops
            .iter()
            .filter_map(|stop| text.find(stop).map(|at| (at, stop)))
            .min_by_key(|&(at, _)| at);
        if let Some((at, stop)) = first {
            text.truncate(at);
            let hit = Some(stop.clone());
            return Scan { text, hit };
        }
        self.held = text.split_off(text.len() - self.open(&text));
        Scan { text, hit: None }
    }

    /// Bytes at the end of `text` that some stop string begins with, at most.
    fn open(&self, text: &str) -> usize {
        let open = |stop: &String| {
            (1..stop.len().min(text.len() + 1))
                .rev()
                .find(|&len| text.as_bytes().ends_with(&stop.as_bytes()[..len]))
                .unwrap_or(0)
        };
        self.stops.iter().map(open).max().unwrap_or(0)
    }

    /// What was held back, when the choice ended for another reason.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text let through piece by piece, joined by `|`, and the hit.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops = stops.iter().map(ToString::to_string).collect();
        let mut stops = StopStrings::new(stops);
        let mut out = Vec::new();
        for piece in pieces {
            let scan = stops.push(piece.to_string());
            out.push(scan.text);
            if scan.hit.is_some() {
                return (out.join("|"), scan.hit);
            }
        }
        out.push(stops.finish());
        (out.join("|"), None)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found_and_never_shown() {
        assert_eq!(
            run(&["END"], &["a E", "N", "D b"]),
            ("a ||".to_string(), Some("END".to_string()))
        );
    }

    #[test]
    fn text_that_only_began_like_a_stop_string_is_let_go() {
        assert_eq!(run(&["END"], &["a EN", "X"]), ("a |ENX|".to_string(), None));
        assert_eq!(run(&["END"], &["a EN"]), ("a |EN".to_string(), None));
    }

    #[test]
    fn the_earliest_of_several_wins() {
        assert_eq!(run(&["c", "b"], &["abc"]), ("a".to_string(), Some("b".to_string())));
    }

    #[test]
    fn overlapping_beginnings_keep_the_longest() {
        // "aabaab" is no stop string, but its end "aab" begins one.
        assert_eq!(
            run(&["aabaac"], &["aab", "aa", "baac"]),
            ("||aab".to_string(), Some("aabaac".to_string()))
        );
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        // "é" and "è" share their first byte.
        assert_eq!(run(&["xé"], &["x", "è"]), ("|xè|".to_string(), None));
    }

    #[test]
    fn where_the_pieces_are_cut_does_not_matter() {
        for text in ["aabaabaac END", "one ENDENX two", "c Ec Ec", "ENé ENX"] {
            let whole = run(&["aabaac", "ENX", "c Ec"], &[text]);
            let whole = (whole.0.replace('|', ""), whole.1);
            let cuts = || (0..=text.len()).filter(|&at| text.is_char_boundary(at));
            for (from, to) in cuts().flat_map(|from| cuts().map(move |to| (from, to))) {
                if from <= to {
                    let pieces = [&text[..from], &text[from..to], &text[to..]];
                    let (shown, hit) = run(&["aabaac", "ENX", "c Ec"], &pieces);
                    assert_eq!((shown.replace('|', ""), hit), whole, "{pieces:?}");
                }
            }
        }
    }
}

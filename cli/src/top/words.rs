//! Figures in few letters.

/// A number in at most five letters.
pub(super) fn number(figure: f64) -> String {
    let scaled = [(1e9, "G"), (1e6, "M"), (1e3, "k")].into_iter().find(|(unit, _)| figure >= *unit);
    match scaled {
        Some((unit, letter)) if figure >= 100.0 * unit => format!("{:.0}{letter}", figure / unit),
        Some((unit, letter)) => format!("{:.1}{letter}", figure / unit),
        None if figure >= 100.0 || figure.fract() == 0.0 => format!("{figure:.0}"),
        None => format!("{figure:.1}"),
    }
}

/// A time in milliseconds; 0 is none.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        0.0 => "–".to_owned(),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1e3 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

/// A span of time.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// How many nodes.
pub(super) fn nodes(count: usize) -> String {
    format!("{count} node{}", if count == 1 { "" } else { "s" })
}

/// A part of the whole.
pub(super) fn percent(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let numbers = [0.0, 0.05, 9.96, 99.96, 312.4, 1_000.0, 45_678.0, 123_456.0, 7.2e9];
        assert_eq!(
            numbers.map(number),
            ["0", "0.1", "10.0", "100.0", "312", "1.0k", "45.7k", "123k", "7.2G"]
        );
        assert_eq!(
            [0.0, 3.21, 123.4, 4_560.0].map(milliseconds),
            ["–", "3.2 ms", "123 ms", "4.6 s"]
        );
        assert_eq!([5, 65, 7_260, 90_000].map(span), ["5 s", "1 min", "2 h 1 min", "1 d 1 h"]);
        assert_eq!(percent(0.125), "12 %");
    }
}

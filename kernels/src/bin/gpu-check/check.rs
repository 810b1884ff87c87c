//! Counts checks and prints one line for each.

/// The checks of a run so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    count: usize,
    failed: usize,
}

impl Checks {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    #[expect(clippy::print_stdout, reason = "a program talks to the person who ran it")]
    pub(crate) fn expect(&mut self, holds: bool, what: &str) {
        println!("{}  {what}", if holds { "ok  " } else { "FAIL" });
        self.count += 1;
        self.failed += usize::from(!holds);
    }

    /// The relative error is at most `limit`; NaN is not.
    pub(crate) fn close<T: Copy + Into<f64>>(
        &mut self,
        got: &[T],
        want: &[f64],
        limit: f64,
        what: &str,
    ) {
        let error = relative_error(got, want);
        let holds = got.len() == want.len() && error <= limit;
        self.expect(holds, &format!("{what}: error {error:.1e}, limit {limit:.0e}"));
    }
}

/// The norm of the difference over the norm of what is wanted.
fn relative_error<T: Copy + Into<f64>>(got: &[T], want: &[f64]) -> f64 {
    let pairs = || got.iter().map(|x| (*x).into()).zip(want);
    let difference: f64 = pairs().map(|(got, want): (f64, &f64)| (got - want).powi(2)).sum();
    let norm: f64 = want.iter().map(|want| want.powi(2)).sum();
    (difference / norm).sqrt()
}

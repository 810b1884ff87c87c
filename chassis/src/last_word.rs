//! The last word of a process that fails: its error and what caused it in one sentence, on standard error.

use std::{error::Error, io::Write, iter};

/// An error and its causes, each told once: many tell their cause themselves.
#[must_use]
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut told = error.to_string();
    for cause in iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !told.ends_with(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Writes `name: sentence`. Where nobody reads standard error any more, there is nobody to tell.
pub fn say(name: &str, sentence: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{name}: {sentence}");
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::sentence;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("keys.toml: cannot be read: {source}")]
        TellsItsCause { source: io::Error },
        #[error("cannot listen")]
        DoesNot(#[source] io::Error),
        #[error("section `keys`: {0}")]
        Wraps(#[from] Box<Self>),
    }

    #[test]
    fn every_cause_is_told_once() {
        let cause = || io::Error::other("in use");
        let told = Failure::TellsItsCause { source: cause() };
        assert_eq!(sentence(&told), "keys.toml: cannot be read: in use");
        assert_eq!(sentence(&Failure::DoesNot(cause())), "cannot listen: in use");
        let wrapped = Failure::Wraps(Box::new(Failure::DoesNot(cause())));
        assert_eq!(sentence(&wrapped), "section `keys`: cannot listen: in use");
    }
}

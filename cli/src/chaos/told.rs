//! Faults that somebody else makes, as standard input tells them: a line when one strikes, an empty one when it is over.

use std::{io::BufRead, thread, time::Duration};

use tokio::sync::mpsc;

use super::{
    effect::{Cause, Mark},
    record::Record,
};

/// Lines that may wait to be taken; whoever writes more waits.
const LINES_MAX: usize = 16;

/// A fault that has struck and is not over.
#[derive(Debug)]
struct Open {
    cause: Cause,
    whom: String,
    struck: Duration,
}

/// The lines of standard input, from a thread that ends with them.
pub(super) fn lines() -> mpsc::Receiver<String> {
    let (told, lines) = mpsc::channel(LINES_MAX);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if told.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Takes lines for as long as it is polled, and adds a mark to `marks` for every fault that is over.
pub(super) async fn take(
    mut lines: mpsc::Receiver<String>,
    record: &Record,
    marks: &mut Vec<Mark>,
) {
    let mut open: Option<Open> = None;
    while let Some(line) = lines.recv().await {
        let now = record.now();
        if let Some(Open { cause, whom, struck }) = open.take() {
            marks.push(Mark { cause, whom, struck, healed: now, whole: now });
        }
        let (what, whom) = line.split_once(": ").unwrap_or((&line, ""));
        if !what.trim().is_empty() {
            let (cause, whom) = (Cause::Told(what.trim().to_owned()), whom.trim().to_owned());
            open = Some(Open { cause, whom, struck: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::{Record, take};

    #[tokio::test]
    async fn a_fault_lasts_from_its_line_to_the_next() {
        let (told, lines) = mpsc::channel(8);
        for line in ["", "cut off: expert-0", "", "loss", "cut off: a b", "", "never over"] {
            told.try_send(line.to_owned()).unwrap();
        }
        drop(told);
        let mut marks = Vec::new();
        take(lines, &Record::new(), &mut marks).await;
        let found: Vec<_> = marks.iter().map(|mark| (mark.cause.sentence(), &*mark.whom)).collect();
        assert_eq!(found, [("cut off", "expert-0"), ("loss", ""), ("cut off", "a b")]);
        assert!(marks.iter().all(|mark| mark.struck <= mark.healed));
    }
}

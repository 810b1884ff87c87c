//! Frames whose rows travel beside them: taken out before the frame goes, put back before it is read.

use bytes::Bytes;

use crate::internal::{self as wire, frame::Kind};

/// Takes the rows out of a frame, which from now on only says how many bytes they are.
#[must_use]
pub fn detach(frame: &mut wire::Frame) -> Bytes {
    let Some((rows, apart)) = rows_of(frame) else { return Bytes::new() };
    *apart = rows.len() as u64;
    std::mem::take(rows)
}

/// Bytes of rows that come apart from a frame; 0: it has all that belongs to it.
#[must_use]
pub fn bytes(frame: &wire::Frame) -> u64 {
    match &frame.kind {
        Some(Kind::Dispatch(dispatch)) => dispatch.row_bytes_apart,
        Some(Kind::Output(output)) => output.row_bytes_apart,
        _ => 0,
    }
}

/// Puts rows that came apart into their frame, which can then be [decoded](super::Frame::decode).
pub fn attach(frame: &mut wire::Frame, arrived: Bytes) {
    if let Some((rows, apart)) = rows_of(frame) {
        *rows = arrived;
        *apart = 0;
    }
}

fn rows_of(frame: &mut wire::Frame) -> Option<(&mut Bytes, &mut u64)> {
    match &mut frame.kind {
        Some(Kind::Dispatch(dispatch)) => Some((&mut dispatch.rows, &mut dispatch.row_bytes_apart)),
        Some(Kind::Output(output)) => Some((&mut output.rows, &mut output.row_bytes_apart)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use domain::Layer;

    use super::super::{Done, Frame, Limits, Output, Ticket};
    use super::*;

    #[test]
    fn a_frame_is_whole_again_only_with_its_rows() {
        let limits = Limits { row_bytes: 4, layers: 1, experts: 1, top_k: 1 };
        let results = vec![Done { ticket: Ticket(3), rank: 0 }];
        let (rows, timings) = (Bytes::from_static(b"rows"), Vec::new());
        let frame = Frame::Output(Output { step: 0, layer: Layer(0), results, rows, timings });
        let mut wire = frame.clone().encode();
        assert_eq!(bytes(&wire), 0);
        let rows = detach(&mut wire);
        assert_eq!((bytes(&wire), &rows[..]), (4, &b"rows"[..]));
        let error = Frame::decode(wire.clone(), &limits).unwrap_err();
        let sentence = "output.row_bytes_apart: is 4, but no rows were awaited beside the link";
        assert_eq!(error.to_string(), sentence);
        attach(&mut wire, rows);
        assert_eq!(Frame::decode(wire, &limits), Ok(frame));
    }
}

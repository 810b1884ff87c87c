//! Reads the request traces that Mooncake and Azure publish, strictly.

use serde::Deserialize;

use super::Request;

/// A line of a Mooncake trace; the hashes of prompt blocks are of no use here.
#[derive(Deserialize)]
struct Line {
    /// Milliseconds.
    timestamp: u64,
    input_length: u32,
    output_length: u32,
}

const AZURE_HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// Lines `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": […]}`.
pub(super) fn mooncake(text: &str) -> Result<Vec<Request>, String> {
    let requests = text.lines().enumerate().map(|(at, line)| {
        let Line { timestamp, input_length, output_length } =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1))?;
        let at_ns = timestamp
            .checked_mul(1_000_000)
            .ok_or_else(|| format!("line {}: timestamp {timestamp} ms is too far off", at + 1))?;
        Ok((at_ns, input_length, output_length))
    });
    ordered(requests, 1)
}

/// A header and rows `2023-11-16 18:15:46.6805900,context tokens,generated tokens`.
pub(super) fn azure(text: &str) -> Result<Vec<Request>, String> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default().trim_start_matches('\u{feff}').trim_end();
    if header != AZURE_HEADER {
        return Err(format!("line 1 is \"{header}\", expected \"{AZURE_HEADER}\""));
    }
    let requests = lines.enumerate().map(|(at, line)| {
        row(line.trim_end()).ok_or_else(|| {
            format!(
                "line {} is \"{line}\", expected \"YYYY-MM-DD hh:mm:ss.fffffff,tokens,tokens\"",
                at + 2
            )
        })
    });
    ordered(requests, 2)
}

/// The requests, with times counted from the first one's.
fn ordered(
    requests: impl Iterator<Item = Result<(u64, u32, u32), String>>,
    first_line: usize,
) -> Result<Vec<Request>, String> {
    let mut start_ns = None;
    let mut out: Vec<Request> = Vec::new();
    for (line, request) in (first_line..).zip(requests) {
        let (at_ns, prompt, output) = request?;
        if prompt == 0 || output == 0 {
            return Err(format!(
                "line {line}: a prompt of {prompt} and an output of {output} tokens, expected at least 1 each"
            ));
        }
        let start = *start_ns.get_or_insert(at_ns);
        let before = out.last().map_or(0, |request| request.at_ns);
        let at_ns = at_ns.checked_sub(start).filter(|&at_ns| at_ns >= before);
        let at_ns =
            at_ns.ok_or_else(|| format!("line {line} is earlier than the one before it"))?;
        out.push(Request { at_ns, prompt, output });
    }
    if out.is_empty() { Err("it has no requests".to_owned()) } else { Ok(out) }
}

fn row(line: &str) -> Option<(u64, u32, u32)> {
    let mut cells = line.split(',');
    let (time, prompt, output) = (cells.next()?, cells.next()?, cells.next()?);
    if cells.next().is_some() {
        return None;
    }
    Some((time_ns(time)?, prompt.parse().ok()?, output.parse().ok()?))
}

/// Nanoseconds since 1970 of `YYYY-MM-DD hh:mm:ss`, with up to nine digits of a fraction.
fn time_ns(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (date, clock) = whole.split_once(' ')?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let in_range = (1970..=2500).contains(&year) && (1..=12).contains(&month) && hour < 24;
    if !in_range || !(1..=31).contains(&day) || minute >= 60 || second >= 60 {
        return None;
    }
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()) && fraction.len() <= 9;
    let nanos: u64 = if digits { format!("{fraction:0<9}").parse().ok()? } else { return None };
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1_000_000_000 + nanos)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, years counted from March.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

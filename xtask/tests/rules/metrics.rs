//! The operators' list of metrics, docs/metrics.md, names exactly the metrics in the source.

use std::{collections::BTreeSet, fs};

use crate::{assert_none, workspace};

/// Names between two `quote`s in `text`.
fn names(text: &str, quote: char) -> BTreeSet<String> {
    let letters = |part: &str| {
        part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    let ours = |part: &&str| part.starts_with("amoe_") || part.starts_with("vllm:");
    text.split(quote)
        .filter(ours)
        .filter(|part| letters(part) && part.len() > "amoe_".len())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_list_of_metrics_is_that_of_the_source() {
    let document = fs::read_to_string(xtask::root().join("docs/metrics.md")).unwrap();
    let listed = names(&document, '`');
    let rooms = workspace::rooms().rooms;
    let registered: BTreeSet<_> = rooms
        .keys()
        .flat_map(workspace::rust_files)
        .filter(|(file, _)| file.ends_with("/metrics.rs") && file.contains("/src/"))
        .flat_map(|(_, text)| names(workspace::without_tests(&text), '"'))
        .collect();
    let complaints: Vec<_> = listed
        .symmetric_difference(&registered)
        .map(|name| format!("{name} is in only one of docs/metrics.md and the source"))
        .collect();
    assert_none(&complaints);
}

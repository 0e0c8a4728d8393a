//! Every file of the fuzzers' corpora with the properties that the fuzz targets check: with the stable compiler, in
//! every `cargo test`.
//!
//! An input that a fuzzer found failing becomes a file with a descriptive name; the others keep the fuzzer's name.

use std::fs;
use std::path::PathBuf;

use support::properties::{heads, merges, request_state, rewriter, settings, splitter};

/// The outcome of every file of a corpus.
fn outcomes<T>(target: &str, check: impl Fn(&[u8]) -> T) -> Vec<T> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = fs::read_dir(folder.join(target)).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let outcome = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        // A failure shows the name of its file.
        eprintln!("{}", file.display());
        check(&bytes)
    };
    files.iter().map(outcome).collect()
}

/// How many of the outcomes pass.
fn count<T>(outcomes: &[T], passes: impl Fn(&T) -> bool) -> usize {
    outcomes.iter().filter(|outcome| passes(outcome)).count()
}

#[test]
fn the_rewriter_keeps_its_properties_on_every_kept_body() {
    let outcomes = outcomes("rewriter", rewriter::check);
    let refused = count(&outcomes, |o| matches!(o, rewriter::Outcome::Refused));
    let cut = |o: &rewriter::Outcome| matches!(o, rewriter::Outcome::Rewritten { cut: true, .. });
    assert!(refused > 0 && count(&outcomes, cut) > 0 && outcomes.len() > refused);
}

#[test]
fn the_splitter_keeps_its_properties_on_every_kept_stream() {
    let outcomes = outcomes("splitter", splitter::check);
    assert!(count(&outcomes, |o| o.too_long) > 0);
    assert!(count(&outcomes, |o| !o.too_long && o.events > 2) > 0);
}

#[test]
fn the_merges_keep_their_properties_on_all_kept_answers() {
    use merges::Outcome::{Compared, DecodeRefused, Merged, PrefillRefused};
    let outcomes = outcomes("merges", merges::check);
    for wanted in [Compared, DecodeRefused, Merged, PrefillRefused] {
        assert!(count(&outcomes, |o| *o == wanted) > 0, "{wanted:?}");
    }
}

#[test]
fn the_request_filter_keeps_its_properties_on_every_kept_connection() {
    let outcomes = outcomes("heads", heads::check);
    assert!(count(&outcomes, |o| o.refused) > 0);
    assert!(count(&outcomes, |o| o.admitted > 1) > 0);
}

#[test]
fn the_configuration_keeps_its_properties_on_all_kept_sources() {
    use settings::Outcome::{NoServe, Problems, Usable};
    let outcomes = outcomes("settings", settings::check);
    for wanted in [NoServe, Problems, Usable] {
        assert!(count(&outcomes, |o| *o == wanted) > 0, "{wanted:?}");
    }
}

#[test]
fn the_request_state_keeps_its_properties_on_every_kept_sequence() {
    let outcomes = outcomes("request_state", request_state::check);
    assert!(count(&outcomes, |o| o.attempts > 2) > 0);
    assert!(count(&outcomes, |o| o.ended == request_state::Ended::Answered) > 0);
}

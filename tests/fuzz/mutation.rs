//! Cases: how many, and input that is made from seeds by damaging them.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// How many times as many cases as usual are tried.
const CASES: &str = "COFFER_TEST_CASES";

/// Tries `check` on `cases` values, or many times as many where that is asked for.
pub(crate) fn try_cases<S: Strategy>(cases: u32, values: &S, check: impl Fn(S::Value)) {
    let factor = std::env::var(CASES).ok();
    let factor = factor.map(|factor| {
        factor
            .parse::<u32>()
            .expect("COFFER_TEST_CASES is a number")
    });
    let cases = cases * factor.unwrap_or(1);
    let config = Config {
        cases,
        rng_seed: factor.map_or(RngSeed::Fixed(0xC0FFE2), |_| RngSeed::Random),
        failure_persistence: None,
        max_shrink_iters: 500,
        ..Config::default()
    };
    let tried = TestRunner::new(config).run(values, |value| {
        check(value);
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    println!("  {cases} cases");
}

/// One way to damage a seed.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Cut(Index),
    Splice(Index, Index),
}

/// Seeds of `corpus/<folder>` with some damage, among it words that matter to whoever reads the input.
pub(crate) fn damaged(folder: &str, words: &[&str]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds = seeds(folder);
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let others = seeds.clone();
    let edit = prop_oneof![
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..4)).prop_map(|(at, new)| Edit::Insert(at, new)),
        3 => (any::<Index>(), select(words)).prop_map(|(at, new)| Edit::Insert(at, new)),
        1 => (any::<Index>(), 1..24_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        1 => (any::<Index>(), 1..32_usize, 1..40_usize)
            .prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        1 => any::<Index>().prop_map(Edit::Cut),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(at, other)| Edit::Splice(at, other)),
    ];
    prop_oneof![
        19 => (select(seeds), vec(edit, 0..6)).prop_map(move |(mut bytes, edits)| {
            for edit in edits {
                damage(&mut bytes, edit, &others);
            }
            bytes
        }),
        1 => vec(any::<u8>(), 0..64),
    ]
}

/// The same as text, with what is no UTF-8 replaced.
pub(crate) fn damaged_text(folder: &str, words: &[&str]) -> impl Strategy<Value = String> + use<> {
    damaged(folder, words).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(corpus.join(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has no seeds");
    paths.iter().map(|path| seed(path)).collect()
}

fn seed(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    // Editors end a file with a line break, which no path has.
    if path.extension().is_some_and(|extension| extension == "txt") && bytes.ends_with(b"\n") {
        bytes.pop();
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, edit: Edit, others: &[Vec<u8>]) {
    let at = |at: Index| at.index(bytes.len() + 1);
    match edit {
        Edit::Set(index, byte) => {
            let at = at(index);
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        Edit::Insert(index, new) => {
            let at = at(index);
            bytes.splice(at..at, new);
        }
        Edit::Remove(index, length) => {
            let at = at(index);
            bytes.drain(at..bytes.len().min(at + length));
        }
        Edit::Repeat(index, length, times) => {
            let at = at(index);
            let part = bytes[at..bytes.len().min(at + length)].repeat(times);
            bytes.splice(at..at, part);
        }
        Edit::Cut(index) => bytes.truncate(at(index)),
        Edit::Splice(index, other) => {
            let (at, other) = (at(index), other.get(others));
            bytes.truncate(at);
            bytes.extend(&other[other.len().min(at)..]);
        }
    }
}

/// Whether a text shows all that it has: nothing in it can forge a line of a log, or hide one.
pub(crate) fn shows_all(text: &str) -> bool {
    coffer_provider::clean_text(text, usize::MAX) == text
}

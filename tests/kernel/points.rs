//! The points of a sweep: all of them in `cargo xtask sweep`, a sample of them in everyday tests.

/// Set to `all` by `cargo xtask sweep`.
const POINTS: &str = "COFFER_TEST_POINTS";

/// Of so many points an everyday test looks at one. No divisor of what calls come in, so that over the
/// scenarios every kind of call is among them.
const SAMPLE: usize = 5;

/// Whether the point with this number is to be looked at.
pub(crate) fn is_looked_at(number: usize) -> bool {
    static ALL: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os(POINTS).is_some_and(|points| points == "all"));
    *ALL || number.is_multiple_of(SAMPLE)
}

/// How a point came about; `cargo xtask sweep` adds up what is told of each.
#[derive(Clone, Copy)]
pub(crate) enum How {
    Killed,
    Refused,
}

/// Tells how many points of an operation were looked at.
pub(crate) fn tell(how: How, operation: &str, looked_at: usize) {
    let how = match how {
        How::Killed => "killed",
        How::Refused => "refused",
    };
    assert!(looked_at > 0, "{how} {operation}: no point at all");
    println!("  sweep: {how} in {operation}: {looked_at} points");
}

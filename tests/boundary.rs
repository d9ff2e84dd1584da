//! What must not compile anywhere, even where the whole block layer is in reach: a case for each mistake, with its
//! error.
//!
//! What only the crates of engines and devices cannot name is in `as-driver` and `as-device`, which lack those crates.

#[test]
fn what_must_not_compile() {
    trybuild::TestCases::new().compile_fail("ui/fail/*.rs");
}

//! What must not compile in the crate of a driver's engine: a case for each mistake, with the error its author sees.

#[test]
fn what_must_not_compile() {
    trybuild::TestCases::new().compile_fail("ui/fail/*.rs");
}

//! What must not compile in the crate of a device model, of an export's data path or of a job's `run`: a case for each
//! mistake, with the error its author sees.

#[test]
fn what_must_not_compile() {
    trybuild::TestCases::new().compile_fail("ui/fail/*.rs");
}

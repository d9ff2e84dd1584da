//! Any text as options of a node, in every dialect, and as a size: nothing panics, and what is read can be written and read again.
#![no_main]

use block_common::{FileName, Options, parse_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = parse_size(text);
    let _ = FileName::parse(text);
    let _ = Options::parse_blockdev(text);
    if let Ok(options) = Options::parse_json(text) {
        let again = Options::parse_json(&options.to_string()).expect("what was printed can be read");
        assert_eq!(again.dict(), options.dict());
    }
    if let Ok((options, _)) = Options::parse_image_opts(text) {
        let again = Options::unflatten(options.dialect(), options.flatten()).expect("what was flattened fits together");
        assert_eq!(again.dict(), options.dict());
    }
});

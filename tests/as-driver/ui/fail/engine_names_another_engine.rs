// An engine asks another driver's engine whether a header is its own, or builds one on top of the other. Engines see no
// other engine: whatever both need is pure code below, and graphs are composed above.
// (Review: probing walked over all drivers from one driver's request.)

use block_raw::Raw;

struct Guard {
    _raw: Raw,
}

fn main() {}

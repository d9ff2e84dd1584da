// raw must not let a guest write an image header into sector 0 of a disk whose format was guessed. The guard looks the
// drivers up in the registry and asks each: from the write path. The registry is global state.
// (Review: the write path of raw called the prober, which asserted the main thread. What may be called:
// `probe_format`.)

use block_gs::DriverType;

struct Raw;

impl Raw {
    fn looks_like_an_image(&self, drivers: &[&dyn DriverType], sector: &[u8]) -> bool {
        drivers.iter().any(|driver| driver.probe(sector) > 0)
    }
}

fn main() {}

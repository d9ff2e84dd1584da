//! Tables for `measure`.

use crate::support::check_all;

#[test]
fn sizes_are_measured_alike() {
    check_all(
        "sizes_are_measured_alike",
        &[
            "measure -O raw --size 1M",
            "measure --size 1000",
            "measure --size 1001 --output=json",
            "measure --size 0",
            "measure --size 7E",
            "measure --size 9223372036854775807",
            "measure odd.raw",
            "measure -f raw odd.raw",
            "measure -U odd.raw",
            "measure --output=json fs.raw",
            "measure empty.raw",
            "measure huge.raw",
            "measure null-co://",
            "measure --image-opts driver=raw,file.filename=odd.raw",
            "measure -o size=2M --size 1M",
            "measure -o size=2M odd.raw",
            "measure -o preallocation=full --size 1M",
        ],
    );
}

#[test]
fn measuring_is_refused_alike() {
    check_all(
        "measuring_is_refused_alike",
        &[
            "measure",
            "measure -O bogus --size 1M",
            "measure --size x",
            "measure --size -1",
            "measure --size 8E",
            "measure --size 1M odd.raw",
            "measure -f raw --size 1M",
            "measure --image-opts --size 1M",
            "measure -l x --size 1M",
            "measure -l x odd.raw",
            "measure -l snapshot.id=1 odd.raw",
            "measure -o foo=1 --size 1M",
            "measure -o size=2M",
            "measure -o help odd.raw",
            "measure -o '' --size 1M",
            "measure nofile",
            "measure a b",
            "measure -O file --size 1M",
            "measure -O null-co --size 1M",
            "measure --output foo --size 1M",
            "measure --image-opts -f raw odd.raw",
            "measure -q --size 1",
            "measure -x",
        ],
    );
}

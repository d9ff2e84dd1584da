//! Tables for `map`.

use crate::support::check_all;

#[test]
fn maps_are_alike() {
    check_all(
        "maps_are_alike",
        &[
            "map a.raw",
            "map odd.raw",
            "map --output json odd.raw",
            "map fs.raw",
            "map --output=json fs.raw",
            "map gaps.raw",
            "map --output=json gaps.raw",
            "map -f raw one.raw",
            "map --output=json one.raw",
            "map empty.raw",
            "map --output=json empty.raw",
            "map hole.raw",
            "map --output=json hole.raw",
            "map zeroes.raw",
            "map --output=json huge.raw",
            "map huge.raw",
            "map -s 1M --output=json fs.raw",
            "map --start-offset 1000 --output=json fs.raw",
            "map --start-offset 5000001 fs.raw",
            "map --max-length 100 --output json fs.raw",
            "map -l 6000000 --output json fs.raw",
            "map -s 520000 -l 100000 fs.raw",
            "map --start-offset 20M fs.raw",
            "map --start-offset 20M --output=json fs.raw",
            "map --max-length=0 --output=json fs.raw",
            "map --start-offset 1000000 --output=json odd.raw",
            "map --start-offset 1000100 --output=json odd.raw",
            "map --start-offset=7E fs.raw",
            "map --start-offset=7E --max-length=7E fs.raw",
            "map null-co://",
            "map --output=json null-co://",
            "map --output=json --image-opts driver=raw,file.driver=null-co,file.read-zeroes=on,file.size=1000",
            "map --image-opts driver=null-co,read-zeroes=on",
            "map --output=json --image-opts driver=raw,offset=512,file.filename=fs.raw",
            "map --image-opts driver=raw,offset=512,file.filename=fs.raw",
            "map --output=json --image-opts driver=raw,offset=512,size=1M,file.filename=fs.raw",
            "map --output=json --image-opts driver=raw,offset=512,file.filename=odd.raw",
            "map -U fs.raw",
            "map -f file --output=json fs.raw",
            "map -f file fs.raw",
            "map json:{\"driver\":\"raw\",\"size\":512,\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
        ],
    );
}

#[test]
fn mapping_is_refused_alike() {
    check_all(
        "mapping_is_refused_alike",
        &[
            "map",
            "map a b",
            "map nofile",
            "map --start-offset=-1 fs.raw",
            "map --start-offset=x fs.raw",
            "map --max-length=x fs.raw",
            "map --max-length=8E fs.raw",
            "map --output=foo fs.raw",
            "map --image-opts -f raw fs.raw",
            "map -x",
        ],
    );
}

//! Tables for `info`.

use crate::support::check_all;

#[test]
fn images_are_described_alike() {
    check_all(
        "images_are_described_alike",
        &[
            "info a.raw",
            "info odd.raw",
            "info --output=json odd.raw",
            "info -f raw fs.raw",
            "info empty.raw",
            "info --output json empty.raw",
            "info one.raw",
            "info hole.raw",
            "info huge.raw",
            "info --output=human huge.raw",
            "info -U odd.raw",
            "info ./odd.raw",
            "info file:odd.raw",
            "info dir/../odd.raw",
            "info --backing-chain odd.raw",
            "info -b --output json odd.raw",
            "info -f file odd.raw",
            "info --output=json -f file odd.raw",
            "info null-co://",
            "info -f raw null-co://",
            "info -f null-co null-co://",
            "info --output json null-co://",
            "info --image-opts driver=raw,file.driver=file,file.filename=odd.raw",
            "info --image-opts driver=raw,file.filename=odd.raw",
            "info --image-opts file.filename=odd.raw",
            "info --image-opts driver=file,filename=odd.raw",
            "info --image-opts driver=raw,file.driver=file,file.filename=odd.raw,offset=512,size=1024",
            "info --output=json --image-opts driver=raw,file.driver=file,file.filename=odd.raw,offset=512",
            "info --image-opts driver=null-co,size=1000,read-zeroes=on",
            "info --output json --image-opts driver=raw,file.driver=null-co,file.size=1000",
            "info --image-opts driver=raw,file.driver=raw,file.file.driver=file,file.file.filename=odd.raw",
            "info --output=json --image-opts driver=raw,file.driver=raw,file.file.driver=file,file.file.filename=odd.raw",
            "info json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
            "info json:{\"driver\":\"raw\",\"size\":512,\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
            "info --output=json json:{\"driver\":\"raw\",\"size\":512,\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
        ],
    );
}

#[test]
fn describing_is_refused_alike() {
    check_all(
        "describing_is_refused_alike",
        &[
            "info",
            "info a.raw odd.raw",
            "info nofile",
            "info dir",
            "info ''",
            "info a:b",
            "info -f bogus odd.raw",
            "info --output=foo odd.raw",
            "info --image-opts -f raw odd.raw",
            "info --image-opts odd.raw",
            "info --image-opts file=odd.raw",
            "info -x",
            "info --output",
            "info -f",
            "info json:{}",
        ],
    );
}

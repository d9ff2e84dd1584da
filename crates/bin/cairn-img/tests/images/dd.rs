//! Tables for `dd`.

use crate::support::check_all;

#[test]
fn blocks_are_copied_alike() {
    check_all(
        "blocks_are_copied_alike",
        &[
            "dd if=odd.raw of=n.raw",
            "dd if=odd.raw of=n.raw bs=1000",
            "dd if=odd.raw of=n.raw bs=1000 count=3",
            "dd if=odd.raw of=n.raw bs=1000 count=3 skip=2",
            "dd if=odd.raw of=n.raw bs=1000 count=3 skip=3",
            "dd if=odd.raw of=n.raw bs=1000 count=3 skip=4",
            "dd if=odd.raw of=n.raw bs=1M skip=1",
            "dd if=odd.raw of=n.raw bs=512 skip=1954",
            "dd if=odd.raw of=n.raw bs=512 skip=1953",
            "dd if=odd.raw of=n.raw bs=512 skip=1955",
            "dd if=odd.raw of=n.raw bs=1M skip=2",
            "dd if=odd.raw of=n.raw count=0",
            "dd if=odd.raw of=n.raw count=0 skip=1",
            "dd if=odd.raw of=n.raw count=100000",
            "dd if=odd.raw of=n.raw bs=999999",
            "dd -f raw -O raw if=odd.raw of=n.raw bs=64k",
            "dd -O file if=odd.raw of=n.raw bs=64k",
            "dd --image-opts if=driver=raw,file.filename=odd.raw,offset=1024 of=n.raw bs=64k",
            "dd -U if=odd.raw of=n.raw bs=64k",
            "dd if=fs.raw of=n.raw bs=1M",
            "dd if=fs.raw of=n.raw bs=10M count=1",
            "dd if=empty.raw of=n.raw",
            "dd if=empty.raw of=n.raw skip=1",
            "dd if=one.raw of=n.raw",
            "dd if=hole.raw of=n.raw bs=4k",
            "dd if=odd.raw if=one.raw of=n.raw",
            "dd if=odd.raw of=fs.raw bs=1k count=2",
        ],
    );
}

#[test]
fn copying_blocks_is_refused_alike() {
    check_all(
        "copying_blocks_is_refused_alike",
        &[
            "dd",
            "dd if=odd.raw",
            "dd of=n.raw",
            "dd bs=512",
            "dd if=odd.raw of=n.raw bs=0",
            "dd if=odd.raw of=n.raw bs=x",
            "dd if=odd.raw of=n.raw bs=",
            "dd if=odd.raw of=n.raw bs=-1",
            "dd if=odd.raw of=n.raw bs=2G",
            "dd if=odd.raw of=n.raw bs=1.5",
            "dd if=odd.raw of=n.raw count=x",
            "dd if=odd.raw of=n.raw count=1k",
            "dd if=odd.raw of=n.raw count=-1",
            "dd if=odd.raw of=n.raw count=99999999999999999999",
            "dd if=odd.raw of=n.raw skip=x",
            "dd if=odd.raw of=n.raw seek=1",
            "dd if=odd.raw of=n.raw foo",
            "dd if=odd.raw of=n.raw bs=1k =x",
            "dd -O bogus if=odd.raw of=n.raw",
            "dd -O null-co if=odd.raw of=n.raw",
            "dd -O bogus if=nofile of=n.raw",
            "dd -f bogus if=odd.raw of=n.raw",
            "dd if=nofile of=n.raw",
            "dd if=odd.raw of=nodir/n.raw",
            "dd if=odd.raw of=null-co://",
            "dd if=odd.raw of=",
            "dd if= of=n.raw",
            "dd --image-opts -f raw if=x of=n.raw",
            "dd -q if=odd.raw of=n.raw",
            "dd -x",
        ],
    );
}

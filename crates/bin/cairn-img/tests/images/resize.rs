//! Tables for `resize`.

use crate::support::check_all;

#[test]
fn images_are_resized_alike() {
    check_all(
        "images_are_resized_alike",
        &[
            "resize a.raw 2M",
            "resize -f raw a.raw 2M",
            "resize -f raw a.raw +1M",
            "resize -f raw --shrink a.raw -512k",
            "resize --shrink -f raw -- a.raw -512k",
            "resize -f raw --shrink a.raw 512k",
            "resize -f raw a.raw 1M",
            "resize -q -f raw a.raw 2M",
            "resize -f raw --shrink a.raw 1000001",
            "resize -f raw a.raw 1048577",
            "resize -f raw a.raw 8T",
            "resize -f raw a.raw +1.5k",
            "resize a.raw +0",
            "resize -f raw odd.raw 1000448",
            "resize -f raw odd.raw +1",
            "resize -f raw one.raw 1024",
            "resize -f raw empty.raw 1M",
            "resize -f raw empty.raw 1000",
            "resize -f raw --preallocation=full a.raw 2M",
            "resize -f raw --preallocation=falloc a.raw +1M",
            "resize -f raw --preallocation=off a.raw +1M",
            "resize --image-opts driver=raw,file.filename=a.raw 2M",
            "resize -f file a.raw 3M",
        ],
    );
}

#[test]
fn resizing_is_refused_alike() {
    check_all(
        "resizing_is_refused_alike",
        &[
            "resize",
            "resize a.raw",
            "resize 2M",
            "resize -f raw a.raw",
            "resize -f raw a.raw 2M 3M",
            "resize -f raw a.raw -512k",
            "resize -f raw a.raw 512k",
            "resize -f raw a.raw 1000000",
            "resize -f raw a.raw 0",
            "resize -f raw --shrink a.raw 0",
            "resize -f raw --shrink a.raw -2M",
            "resize -f raw --shrink a.raw -1M",
            "resize -f raw a.raw x",
            "resize -f raw a.raw +x",
            "resize -f raw a.raw +-1",
            "resize -f raw a.raw ''",
            "resize -f raw a.raw +",
            "resize -f raw a.raw -",
            "resize -f raw a.raw -x",
            "resize -f raw a.raw 1.5",
            "resize -f raw a.raw 8E",
            "resize -f raw a.raw +8E",
            "resize -f raw a.raw 7E",
            "resize -f raw nofile 1M",
            "resize -f raw dir 2M",
            "resize -f bogus a.raw 2M",
            "resize -f raw --preallocation=metadata a.raw 2M",
            "resize -f raw --preallocation=bogus a.raw 2M",
            "resize -f raw --preallocation=full a.raw 512k",
            "resize -f raw --preallocation=full --shrink a.raw 512k",
            "resize -f raw --preallocation=falloc a.raw 1M",
            "resize --image-opts driver=raw,file.filename=a.raw,size=512 2M",
            "resize --image-opts -f raw a.raw 2M",
            "resize -f raw null-co:// 2G",
            "resize -f raw null-co:// 512k",
            "resize -x",
        ],
    );
}

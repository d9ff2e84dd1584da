//! Tables for `resize`.

use crate::beds::{Beds, is_missing};
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

/// Scenario: qcow2 images of each kind become longer, and what is new gets its place at once.
#[test]
fn qcow2_images_grow_with_places() {
    if is_missing("qcow2_images_grow_with_places") {
        return;
    }
    let beds = Beds::new(&["qemu-img create -q -f qcow2 base 4M", "qemu-io -f qcow2 -c 'write -P 1 0 4M' base"]);
    for (at, options) in
        ["", "-o extended_l2=on", "-o compat=0.10", "-o cluster_size=512", "-b base -F qcow2", "-o data_file=data"]
            .into_iter()
            .enumerate()
    {
        for mode in ["off", "metadata", "falloc", "full"] {
            let image = format!("i{at}{mode}");
            beds.theirs(&format!("qemu-img create -q -f qcow2 {options} {image} 1000k"));
            beds.theirs(&format!("qemu-io -f qcow2 -c 'write -P 5 900k 100k' {image}"));
            for size in ["1100k", "3M", "5M"] {
                beds.both(&format!("resize --preallocation={mode} {image} {size}"));
                beds.compare(&image);
                // With subclusters, qemu-img allocates clusters and leaves out their subclusters; and which clusters of 512 bytes lie in holes of the host's
                // file depends on where the tables are.
                let differs: &[&str] = match at {
                    1 => &["falloc", "full"],
                    3 => &["metadata"],
                    // What hides the backing file's longer end may be written or told.
                    4 => &["off", "metadata", "falloc", "full"],
                    _ => &[],
                };
                if !differs.contains(&mode) {
                    beds.map(&image);
                }
            }
            beds.both(&format!("resize {image} 5000001"));
            beds.both(&format!("resize --preallocation=metadata --shrink {image} 2M"));
            beds.both(&format!("resize --shrink {image} 1234567"));
            beds.theirs(&format!("rm -f {image} data"));
        }
    }
}

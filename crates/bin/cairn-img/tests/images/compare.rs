//! Tables for `compare`.

use crate::support::check_all;

#[test]
fn images_are_compared_alike() {
    check_all(
        "images_are_compared_alike",
        &[
            "compare a.raw a.raw",
            "compare odd.raw odd.raw",
            "compare -s odd.raw odd.raw",
            "compare odd.raw a.raw",
            "compare a.raw odd.raw",
            "compare -s a.raw odd.raw",
            "compare -q a.raw odd.raw",
            "compare -q -s a.raw odd.raw",
            "compare fs.raw fs2.raw",
            "compare fs2.raw fs.raw",
            "compare -q fs.raw fs2.raw",
            "compare -s fs.raw fs2.raw",
            "compare fs.raw target.raw",
            "compare hole.raw zeroes.raw",
            "compare -s hole.raw zeroes.raw",
            "compare hole.raw huge.raw",
            "compare huge.raw hole.raw",
            "compare huge.raw huge.raw",
            "compare -s huge.raw huge.raw",
            "compare empty.raw empty.raw",
            "compare empty.raw one.raw",
            "compare one.raw empty.raw",
            "compare -s empty.raw one.raw",
            "compare empty.raw hole.raw",
            "compare one.raw hole.raw",
            "compare null-co:// null-co://",
            "compare -U a.raw a.raw",
            "compare -T none a.raw a.raw",
            "compare -T unsafe a.raw a.raw",
            "compare -f raw -F raw a.raw a.raw",
            "compare -f raw -F file a.raw a.raw",
            "compare --image-opts driver=raw,file.filename=odd.raw driver=raw,file.filename=odd.raw",
            "compare --image-opts driver=raw,file.filename=a.raw,size=512k driver=raw,file.filename=odd.raw,size=512k",
            "compare --image-opts driver=raw,file.filename=fs.raw,offset=4k driver=raw,file.filename=fs.raw,offset=512",
        ],
    );
}

#[test]
fn comparing_is_refused_alike() {
    check_all(
        "comparing_is_refused_alike",
        &[
            "compare",
            "compare odd.raw",
            "compare a b c",
            "compare header.qcow2 a.raw",
            "compare nofile odd.raw",
            "compare odd.raw nofile",
            "compare -q nofile odd.raw",
            "compare -f raw -F bogus odd.raw odd.raw",
            "compare -f bogus odd.raw odd.raw",
            "compare -T bogus odd.raw odd.raw",
            "compare --image-opts -f raw a b",
            "compare -x",
            "compare -f",
            "compare odd.raw dir",
        ],
    );
}

/// Only images whose progress has the same steps whatever the pieces are.
#[test]
fn progress_is_shown_alike() {
    check_all(
        "progress_is_shown_alike",
        &[
            "compare -p hole.raw hole.raw",
            "compare -p -q hole.raw hole.raw",
            "compare -p one.raw empty.raw",
            "compare -p empty.raw empty.raw",
            "compare -p hole.raw huge.raw",
            "compare -p one.raw one.raw",
        ],
    );
}

//! Tables for `convert`.

use crate::support::check_all;

#[test]
fn images_are_converted_alike() {
    check_all(
        "images_are_converted_alike",
        &[
            "convert a.raw n.raw",
            "convert odd.raw n.raw",
            "convert -f raw -O raw odd.raw n.raw",
            "convert -O file odd.raw n.raw",
            "convert fs.raw n.raw",
            "convert gaps.raw n.raw",
            "convert zeroes.raw n.raw",
            "convert hole.raw n.raw",
            "convert huge.raw n.raw",
            "convert empty.raw n.raw",
            "convert one.raw n.raw",
            "convert target.raw n.raw",
            "convert fs.raw a.raw",
            "convert odd.raw fs.raw n.raw",
            "convert one.raw odd.raw gaps.raw n.raw",
            "convert one.raw empty.raw hole.raw gaps.raw fs.raw n.raw",
            "convert -S 0 fs.raw n.raw",
            "convert -S 0 gaps.raw n.raw",
            "convert -S 512 gaps.raw n.raw",
            "convert -S 4k gaps.raw n.raw",
            "convert -S 8k gaps.raw n.raw",
            "convert -S 8k fs.raw n.raw",
            "convert -S 1M gaps.raw n.raw",
            "convert -S 1M fs.raw n.raw",
            "convert -S 64k zeroes.raw n.raw",
            "convert -m 1 fs.raw n.raw",
            "convert -m 16 -W fs.raw n.raw",
            "convert -W gaps.raw n.raw",
            "convert -q fs.raw n.raw",
            "convert -r 100M fs.raw n.raw",
            "convert -r 0 fs.raw n.raw",
            "convert --salvage fs.raw n.raw",
            "convert -t none a.raw n.raw",
            "convert -t writeback a.raw n.raw",
            "convert -t writethrough fs.raw n.raw",
            "convert -t directsync a.raw n.raw",
            "convert -T none a.raw n.raw",
            "convert -T none odd.raw n.raw",
            "convert -C a.raw n.raw",
            "convert -C odd.raw n.raw",
            "convert -C fs.raw n.raw",
            "convert -C -W -m 4 fs.raw n.raw",
            "convert -C -T none fs.raw n.raw",
            "convert -T none -t none fs.raw n.raw",
            "convert -U fs.raw n.raw",
            "convert -o preallocation=off fs.raw n.raw",
            "convert -o preallocation=full odd.raw n.raw",
            "convert -o preallocation=full fs.raw n.raw",
            "convert -o size=20M fs.raw n.raw",
            "convert -o size=5M fs.raw n.raw",
            "convert --image-opts driver=raw,file.filename=odd.raw n.raw",
            "convert --image-opts driver=raw,file.filename=fs.raw,offset=512,size=1M n.raw",
            "convert --image-opts driver=raw,file.filename=gaps.raw,offset=1536 n.raw",
        ],
    );
}

#[test]
fn images_are_converted_in_place_alike() {
    check_all(
        "images_are_converted_in_place_alike",
        &[
            "convert -n fs.raw target.raw",
            "convert -n -O raw fs.raw target.raw",
            "convert -n gaps.raw target.raw",
            "convert -n odd.raw target.raw",
            "convert -n one.raw target.raw",
            "convert -n empty.raw target.raw",
            "convert -n -S 0 fs.raw target.raw",
            "convert -n -S 8k gaps.raw target.raw",
            "convert -n -W -m 4 fs.raw target.raw",
            "convert -n --target-is-zero fs.raw target.raw",
            "convert -n --target-is-zero -S 0 fs.raw target.raw",
            "convert -n -t none a.raw target.raw",
            "convert -n hole.raw odd.raw",
            "convert -n one.raw odd.raw",
            "convert -n odd.raw null-co://",
            "convert -n --target-image-opts odd.raw driver=raw,file.driver=file,file.filename=target.raw",
            "convert -n --target-image-opts fs.raw driver=raw,file.filename=target.raw,offset=512",
            "convert -n a.raw header.qcow2",
        ],
    );
}

#[test]
fn converting_is_refused_alike() {
    check_all(
        "converting_is_refused_alike",
        &[
            "convert",
            "convert odd.raw",
            "convert -x",
            "convert -O bogus odd.raw n.raw",
            "convert -f bogus odd.raw n.raw",
            "convert nofile n.raw",
            "convert odd.raw nofile n.raw",
            "convert dir n.raw",
            "convert odd.raw dir",
            "convert odd.raw nodir/n.raw",
            "convert odd.raw bogus:x",
            "convert -n odd.raw bogus:x",
            "convert bogus:x n.raw",
            "convert odd.raw null-co://",
            "convert -O null-co odd.raw n.raw",
            "convert -O vvfat odd.raw n.raw",
            "convert -c odd.raw n.raw",
            "convert -n -c odd.raw target.raw",
            "convert -B odd.raw odd.raw n.raw",
            "convert -B odd.raw -F raw odd.raw n.raw",
            "convert -F raw odd.raw n.raw",
            "convert -l x odd.raw n.raw",
            "convert -l x odd.raw odd.raw n.raw",
            "convert -l snapshot.id=1 odd.raw n.raw",
            "convert -S x fs.raw n.raw",
            "convert -S 1000 fs.raw n.raw",
            "convert -S 2G fs.raw n.raw",
            "convert -S -1 fs.raw n.raw",
            "convert -m 0 odd.raw n.raw",
            "convert -m 17 odd.raw n.raw",
            "convert -m x odd.raw n.raw",
            "convert -r x odd.raw n.raw",
            "convert -T bogus odd.raw n.raw",
            "convert -t bogus nofile n.raw",
            "convert -n odd.raw n.raw",
            "convert -n fs.raw odd.raw",
            "convert -n -o size=3 fs.raw n.raw",
            "convert --target-is-zero fs.raw n.raw",
            "convert --target-image-opts odd.raw driver=raw,file.filename=n.raw",
            "convert --target-image-opts -O raw odd.raw x",
            "convert -n --target-image-opts odd.raw driver=raw,file.filename=n.raw",
            "convert --image-opts -f raw driver=raw,file.filename=odd.raw n.raw",
            "convert -C -S 4k odd.raw n.raw",
            "convert -C -c odd.raw n.raw",
            "convert -C -S 0 fs.raw n.raw",
            "convert --salvage -C odd.raw n.raw",
            "convert -o preallocation=bogus fs.raw n.raw",
            "convert -o foo=1 fs.raw n.raw",
            "convert -c -o foo=1 fs.raw n.raw",
            "convert -c -O bogus fs.raw n.raw",
            "convert -o '' fs.raw n.raw",
            "convert --bitmaps fs.raw n.raw",
            "convert --skip-broken-bitmaps fs.raw n.raw",
            "convert --salvage --bitmaps fs.raw n.raw",
            "convert -f raw json:{} n.raw",
            "convert odd.raw odd.raw",
            "convert -n odd.raw odd.raw",
            "convert -n a.raw odd.raw file:a.raw",
            "convert odd.raw ./odd.raw",
            "convert a.raw dir/../a.raw",
        ],
    );
}

#[test]
fn options_of_targets_are_listed_alike() {
    check_all(
        "options_of_targets_are_listed_alike",
        &["convert -o help odd.raw n.raw", "convert -o help -O raw", "convert -o help -O bogus"],
    );
}

/// Only images whose progress has the same steps whatever the pieces are.
#[test]
fn progress_is_shown_alike() {
    check_all(
        "progress_is_shown_alike",
        &[
            "convert -p -q odd.raw n.raw",
            "convert -p empty.raw n.raw",
            "convert -p hole.raw n.raw",
            "convert -p one.raw n.raw",
            "convert -pq one.raw n.raw",
            "convert -qp one.raw n.raw",
            "convert -pf raw one.raw n.raw",
            "convert -p nofile n.raw",
            "convert -p odd.raw nodir/n.raw",
            "convert -p -c odd.raw n.raw",
        ],
    );
}

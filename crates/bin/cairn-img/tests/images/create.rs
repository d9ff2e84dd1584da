//! Tables for `create`.

use crate::support::check_all;

#[test]
fn images_are_created_alike() {
    check_all(
        "images_are_created_alike",
        &[
            "create n.raw 1M",
            "create -f raw n.raw 1000",
            "create -q n.raw 1001",
            "create --quiet n.raw 0",
            "create n.raw 512",
            "create n.raw 4095",
            "create n.raw 4096",
            "create n.raw 1T",
            "create -f raw -o size=1M n.raw",
            "create -o preallocation=off -o size=3M n.raw",
            "create -o size=3M,size=2M n.raw",
            "create -f raw -o preallocation=off n.raw 1M",
            "create -f raw -o preallocation=falloc n.raw 1M",
            "create -f raw -o preallocation=full n.raw 1M",
            "create -f raw -o preallocation=full n.raw 1000",
            "create -o preallocation=off,preallocation=falloc n.raw 1M",
            "create -o extent_size_hint=0,nocow=off,preallocation=off n.raw 1M",
            "create -f file n.raw 1M",
            "create file:n.raw 1M",
            "create -u n.raw 1M",
            "create -- n.raw 1M",
            "create a.raw 4k",
            "create n.raw 1.5k",
            "create n.raw 0x10",
        ],
    );
}

#[test]
fn creating_is_refused_alike() {
    check_all(
        "creating_is_refused_alike",
        &[
            "create",
            "create -f raw",
            "create n.raw",
            "create n.raw 1M 2M",
            "create n.raw 1M x y",
            "create n.raw foo",
            "create n.raw 1x",
            "create n.raw 8E",
            "create n.raw 16E",
            "create n.raw ''",
            "create n.raw 7E",
            "create -f bogus n.raw 1M",
            "create -o size=1M n.raw 2M",
            "create -o preallocation=bogus n.raw 1M",
            "create -o foo=1 n.raw 1M",
            "create -o foo n.raw 1M",
            "create -o nocow n.raw 1M",
            "create -o nocow=x n.raw 1M",
            "create -o extent_size_hint=x n.raw 1M",
            "create -o size=x n.raw",
            "create -b b.raw n.raw 1M",
            "create -b b.raw -F raw n.raw 1M",
            "create -F raw n.raw 1M",
            "create -u n.raw",
            "create -b a.raw -F bogus -u n.raw 1M",
            "create -o backing_file=x n.raw 1M",
            "create nodir/n.raw 1M",
            "create dir 1M",
            "create dir: 1M",
            "create bogus:x 1M",
            "create null-co:// 1M",
            "create -f null-co n.raw 1M",
            "create -f vvfat n.raw 1M",
            "create json:{} 1M",
            "create -o '' n.raw 1M",
            "create -o , n.raw 1M",
            "create -o size=3M, n.raw",
            "create -o size=3M,, n.raw",
            "create -o ,size=3M n.raw",
            "create -x",
            "create -f",
            "create '' 1M",
        ],
    );
}

#[test]
fn options_are_listed_alike() {
    check_all(
        "options_are_listed_alike",
        &[
            "create -o help",
            "create -f raw -o help",
            "create -o ?",
            "create -o help n.raw",
            "create -o size=1,help n.raw 1M",
            "create -f file -o help",
            "create -f bogus -o help",
            "create -f null-co -o help",
            "create -o help bogus:x",
            "create -o help null-co://",
        ],
    );
}

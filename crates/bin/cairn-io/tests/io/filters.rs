//! Filters, driven by the same scripts here and by qemu-io.

use crate::differential::check_table;

#[test]
fn scripts_through_filters_do_the_same() {
    check_table(include_str!("filters.txt"), 50);
}

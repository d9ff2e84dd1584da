#!/bin/sh
# Builds a fuzz target with coverage instrumentation on the stable tool chain, and runs it: fuzz/run.sh TARGET [libFuzzer options].
# What it finds is in fuzz/artifacts, what it has learnt in fuzz/corpus; a target that knows inputs to begin with writes them there first.
set -eu
cd "$(dirname "$0")"
target=$1
shift
flags="-Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks --cfg fuzzing"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$flag"
done
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, build scripts and procedural macros are built without the flags.
RUSTFLAGS="$flags" cargo build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
exec env CAIRN_SEEDS="corpus/$target" "target/$host/release/$target" -artifact_prefix="artifacts/$target/" "$@" "corpus/$target"

//! Guessing an image's format from its first bytes. Pure: no I/O, no table of drivers, callable from anywhere.
//!
//! Formats are named whether or not this build can open them. What looks like none of them is raw, and a guess of raw is
//! dangerous: whoever guesses for an image that a guest writes must guard its first sector (rule trust-1).

/// How many bytes from the start of an image are looked at.
pub const PROBE_BYTES: usize = 2048;

/// Magic bytes: offset, bytes, format.
const MAGIC: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb\0\0\0\x02", "qcow2"),
    (0, b"QFI\xfb\0\0\0\x03", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
];

/// The format that `head`, the first bytes of an image, looks like; `raw` when it looks like none.
///
/// More bytes than [`PROBE_BYTES`] are not looked at; fewer are fine.
#[doc(alias = "bdrv_probe_all")]
#[doc(alias = "bdrv_probe")]
pub fn probe_format(head: &[u8]) -> &'static str {
    let head = &head[..head.len().min(PROBE_BYTES)];
    let found = MAGIC.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    found.map_or("raw", |(_, _, format)| format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_1_anything_can_be_probed() {
        assert_eq!(probe_format(b""), "raw");
        assert_eq!(probe_format(&[0; 4096]), "raw");
        assert_eq!(probe_format(b"QFI\xfb\0\0\0\x03 and more"), "qcow2");
        assert_eq!(probe_format(b"QFI\xfb\0\0\0\x09"), "raw");
        let mut vdi = [0; 0x44];
        vdi[0x40..].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert_eq!(probe_format(&vdi), "vdi");
        assert_eq!(probe_format(&vdi[..0x43]), "raw");
    }
}

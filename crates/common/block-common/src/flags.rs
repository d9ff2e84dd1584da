//! Flags that travel with a request.

bitflags::bitflags! {
    /// How a request is to be carried out. Names follow the field's `BDRV_REQ_*`.
    #[doc(alias = "bdrv_make_request_serialising")]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RequestFlags: u16 {
        /// The data is on stable storage when the request completes.
        const FUA = 1 << 0;
        /// A zero write may deallocate.
        const MAY_UNMAP = 1 << 1;
        /// A zero write fails rather than write zeroes out by hand.
        const NO_FALLBACK = 1 << 2;
        /// The data written equals what a read would return (copy-on-read).
        const WRITE_UNCHANGED = 1 << 3;
        /// The request serialises against every overlapping one.
        const SERIALISING = 1 << 4;
        /// Write the data compressed, in whole clusters.
        const WRITE_COMPRESSED = 1 << 5;
        /// The data is not needed again soon: it may go to the disk at once, and out of the host's cache. A hint: the data is no
        /// safer for it.
        const DONT_CACHE = 1 << 6;
    }
}

//! Modes that users choose: preallocation, discard, zero detection, cache, error policy, asynchronous I/O.
//!
//! What a mode does is in the drivers and backends that have it. `FromStr` reads what command lines take, serde what QMP
//! takes; both come from [`qapi_enum!`](crate::qapi_enum).

use crate::qapi_enum;

qapi_enum! {
    /// What to allocate of an image before it is written. QAPI `PreallocMode`.
    #[derive(Default)]
    pub enum Preallocation: "preallocation mode" {
        /// Nothing.
        #[default]
        Off = "off",
        /// The format's tables, so that no write has to allocate in them.
        Metadata = "metadata",
        /// All space, by asking the host for it.
        Falloc = "falloc",
        /// All space, by writing it.
        Full = "full",
    }
}

qapi_enum! {
    /// A feature that may be left to be used where it works. QAPI `OnOffAuto`.
    #[derive(Default)]
    pub enum OnOffAuto: "choice" {
        /// Where it works.
        #[default]
        Auto = "auto",
        /// Yes, or fail.
        On = "on",
        /// No.
        Off = "off",
    }
}

qapi_enum! {
    /// What happens to discard requests. QAPI `BlockdevDiscardOptions`; command lines also say `off` and `on`.
    #[doc(alias = "bdrv_parse_discard_flags")]
    #[derive(Default)]
    pub enum DiscardMode: "discard mode" {
        /// They do nothing.
        #[default]
        Ignore = "ignore" | "off",
        /// They are passed on, and may deallocate.
        Unmap = "unmap" | "on",
    }
}

qapi_enum! {
    /// Whether writes are searched for zeroes. QAPI `BlockdevDetectZeroesOptions`.
    #[derive(Default)]
    pub enum DetectZeroes: "zero detection mode" {
        /// No.
        #[default]
        Off = "off",
        /// Writes of zeroes become zero writes.
        On = "on",
        /// They become zero writes that may deallocate. Needs [`DiscardMode::Unmap`].
        Unmap = "unmap",
    }
}

impl DetectZeroes {
    /// Whether the mode may be used together with `discard`: unmapping zeroes needs discards that are passed on.
    pub fn is_allowed_with(self, discard: DiscardMode) -> bool {
        self != Self::Unmap || discard == DiscardMode::Unmap
    }
}

qapi_enum! {
    /// What a failed request of a guest or job leads to. QAPI `BlockdevOnError`.
    pub enum OnError: "error policy" {
        /// The guest or job gets the error.
        Report = "report",
        /// It is ignored but for an event.
        Ignore = "ignore",
        /// No space left: as [`OnError::Stop`]; anything else: as [`OnError::Report`].
        Enospc = "enospc",
        /// The machine stops, or the job pauses, until told to go on.
        Stop = "stop",
        /// What the backend has been told.
        Auto = "auto",
    }
}

qapi_enum! {
    /// How a file is read and written asynchronously. QAPI `BlockdevAioOptions`.
    #[derive(Default)]
    pub enum AioMode: "aio mode" {
        /// Blocking calls on a pool of threads.
        #[default]
        Threads = "threads",
        /// The kernel's old asynchronous interface; needs O_DIRECT.
        Native = "native",
        /// io_uring.
        IoUring = "io_uring",
    }
}

qapi_enum! {
    /// When a mirror copies what the guest writes. QAPI `MirrorCopyMode`.
    #[derive(Default)]
    pub enum MirrorCopyMode: "copy mode" {
        /// Later, in the background.
        #[default]
        Background = "background",
        /// The write completes when both sides have it.
        WriteBlocking = "write-blocking",
    }
}

qapi_enum! {
    /// What a mirror or backup copies at first. QAPI `MirrorSyncMode`.
    pub enum SyncMode: "sync mode" {
        /// What the topmost image holds.
        Top = "top",
        /// Everything.
        Full = "full",
        /// Nothing but what is written from now on.
        None = "none",
        /// What a dirty bitmap marks, which is then cleared if all went well.
        Incremental = "incremental",
        /// What a dirty bitmap marks; its own mode says what becomes of it.
        Bitmap = "bitmap",
    }
}

qapi_enum! {
    /// A cache mode of a command line: a name for [`CacheFlags`]. QMP has the flags alone.
    #[doc(alias = "bdrv_parse_cache_mode")]
    #[derive(Default)]
    pub enum CacheMode: "cache mode" {
        /// The host's page cache is used; a flush makes data durable.
        #[default]
        Writeback = "writeback",
        /// The host's page cache is bypassed.
        None = "none" | "off",
        /// Bypassed, and each write is durable when it completes.
        Directsync = "directsync",
        /// Used, and each write is durable when it completes.
        Writethrough = "writethrough",
        /// Used, and flushes do nothing: a crash of the host loses data.
        Unsafe = "unsafe",
    }
}

/// What caching means for a node and its user. The first two are options of nodes, `cache.direct` and `cache.no-flush`; the
/// third is a backend's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CacheFlags {
    /// Bypass the host's page cache (O_DIRECT).
    pub direct: bool,
    /// Do nothing on a flush.
    pub no_flush: bool,
    /// Make each write durable before it completes.
    pub writethrough: bool,
}

impl CacheMode {
    /// The flags that the mode is a name for.
    pub const fn flags(self) -> CacheFlags {
        let (direct, no_flush, writethrough) = match self {
            Self::Writeback => (false, false, false),
            Self::None => (true, false, false),
            Self::Directsync => (true, false, true),
            Self::Writethrough => (false, false, true),
            Self::Unsafe => (false, true, false),
        };
        CacheFlags { direct, no_flush, writethrough }
    }
}

impl From<CacheMode> for CacheFlags {
    fn from(mode: CacheMode) -> Self {
        mode.flags()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QapiEnum;
    use std::fmt::Debug;
    use std::str::FromStr;

    /// Command lines take `names` and the values' aliases; QMP takes `names` alone.
    fn check<T>(names: &str, aliases: &[(&str, T)])
    where
        T: QapiEnum + FromStr + Debug + serde::Serialize + serde::de::DeserializeOwned,
        T::Err: Debug,
    {
        assert_eq!(T::ALL.iter().map(|v| v.name()).collect::<Vec<_>>().join(" "), names);
        for value in T::ALL {
            let name = value.name();
            assert_eq!(T::from_str(name).expect(name), *value);
            assert_eq!(serde_json::to_string(value).expect(name), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<T>(&format!("\"{name}\"")).expect(name), *value);
        }
        for (alias, value) in aliases {
            assert_eq!(T::from_str(alias).expect(alias), *value);
            assert!(serde_json::from_str::<T>(&format!("\"{alias}\"")).is_err(), "{alias}");
        }
        for wrong in ["bogus", "", "Off", "UNMAP", " off"] {
            assert!(T::from_str(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_qapis() {
        check::<Preallocation>("off metadata falloc full", &[]);
        check("ignore unmap", &[("off", DiscardMode::Ignore), ("on", DiscardMode::Unmap)]);
        check::<DetectZeroes>("off on unmap", &[]);
        check::<OnError>("report ignore enospc stop auto", &[]);
        check::<AioMode>("threads native io_uring", &[]);
        check::<MirrorCopyMode>("background write-blocking", &[]);
        check::<SyncMode>("top full none incremental bitmap", &[]);
        check("writeback none directsync writethrough unsafe", &[("off", CacheMode::None)]);
    }

    #[test]
    fn an_unknown_name_is_told_with_what_would_do() {
        let error = Preallocation::from_str("bogus").expect_err("no such mode");
        assert_eq!(
            error.to_string(),
            "invalid preallocation mode 'bogus', expected one of: off, metadata, falloc, full"
        );
    }

    #[test]
    fn unmapping_zeroes_needs_discards() {
        assert!(!DetectZeroes::Unmap.is_allowed_with(DiscardMode::Ignore));
        assert!(DetectZeroes::Unmap.is_allowed_with(DiscardMode::Unmap));
        assert!(DetectZeroes::On.is_allowed_with(DiscardMode::Ignore));
    }
}

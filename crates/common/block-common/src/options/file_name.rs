//! File names as users write them: paths, protocol prefixes, `json:`.
//!
//! Which protocols exist, and what follows their prefix, is for drivers to know. Nothing is looked for in the file system:
//! `nbd:x` is a protocol even where a file of that name exists.

use super::{Options, OptionsError};

/// What a user means by the name of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum FileName {
    /// A path in the host's file system. Never empty of meaning: it is opened as it stands.
    Path(String),
    /// A name with a prefix that selects a protocol, as in `nbd://host/export`.
    Protocol {
        /// What stands before the first colon. May be one that nobody knows.
        protocol: String,
        /// The whole name, prefix included: a driver's own syntax.
        name: String,
    },
    /// `json:` and options.
    Json(Options),
}

impl FileName {
    /// A name from a command line or a monitor. `json:` at its start makes it options; a colon before any slash makes what
    /// stands before it a protocol; `file:` is dropped.
    ///
    /// # Errors
    /// `json:` with something other than an object of options.
    #[doc(alias = "bdrv_parse_filename")]
    pub fn parse(name: &str) -> Result<Self, OptionsError> {
        if let Some(json) = name.strip_prefix("json:") {
            return Options::parse_json_file_name(json).map(Self::Json);
        }
        Ok(match protocol_of(name) {
            None => Self::Path(name.to_owned()),
            Some("file") => Self::Path(strip_protocol(name, "file")),
            Some(protocol) => Self::Protocol { protocol: protocol.to_owned(), name: name.to_owned() },
        })
    }

    /// A name that stands in an image, such as its backing file's: a path, whatever it looks like (rule trust-2).
    pub fn stored_in_image(name: &str) -> Self {
        Self::Path(name.to_owned())
    }
}

/// What stands before the first colon, unless a slash stands before that.
fn protocol_of(name: &str) -> Option<&str> {
    match name.find([':', '/']) {
        Some(at) if name[at..].starts_with(':') => Some(&name[..at]),
        _ => None,
    }
}

/// `name` as a path: without `protocol` and its colon, if that is how it starts. A path that would look like a protocol
/// itself gets `./` in front, so that it stays a path wherever it is read again.
#[doc(alias = "bdrv_parse_filename_strip_prefix")]
pub fn strip_protocol(name: &str, protocol: &str) -> String {
    match name.strip_prefix(protocol).and_then(|rest| rest.strip_prefix(':')) {
        Some(path) if protocol_of(path).is_some() => format!("./{path}"),
        Some(path) => path.to_owned(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_path(name: &str, path: &str) {
        assert_eq!(FileName::parse(name), Ok(FileName::Path(path.to_owned())), "{name}");
    }

    fn check_protocol(name: &str, protocol: &str) {
        let expected = FileName::Protocol { protocol: protocol.to_owned(), name: name.to_owned() };
        assert_eq!(FileName::parse(name), Ok(expected), "{name}");
    }

    #[test]
    fn a_colon_before_any_slash_selects_a_protocol() {
        // Each was asked of `qemu-io -f raw`, 10.0.2, which says "Unknown protocol 'x'" or what it could not open.
        for path in ["a.raw", "./x:y.raw", "d/x:y.raw", "", "/a:b", "./json:{}", "a/nbd:x", "\\\\.\\x"] {
            check_path(path, path);
        }
        for (name, protocol) in [
            ("x:y.raw", "x"),
            (":", ""),
            (":a", ""),
            ("nbd://127.0.0.1:1/x", "nbd"),
            ("nbd:localhost:1", "nbd"),
            ("host_device:/dev/null", "host_device"),
            ("null-co://", "null-co"),
            ("FILE:a.raw", "FILE"),
            ("JSON:{}", "JSON"),
            ("c:a.raw", "c"),
            ("c:\\foo", "c"),
            ("http:/x/y", "http"),
        ] {
            check_protocol(name, protocol);
        }
    }

    #[test]
    fn the_file_prefix_goes_and_leaves_a_path() {
        check_path("file:a.raw", "a.raw");
        check_path("file:", "");
        check_path("file:///tmp/a.raw", "///tmp/a.raw");
        check_path("file:file:a.raw", "./file:a.raw");
        check_path("file:x:y.raw", "./x:y.raw");
        check_path("file:./a:b", "./a:b");
        check_path("file:/a:b", "/a:b");
        check_path("file:json:{}", "./json:{}");
        assert_eq!(strip_protocol("host_device:x:y", "host_device"), "./x:y");
        assert_eq!(strip_protocol("host_device:/dev/sda", "host_device"), "/dev/sda");
        assert_eq!(strip_protocol("/dev/sda", "host_device"), "/dev/sda");
    }

    #[test]
    fn trust_2_a_name_stored_in_an_image_is_a_path() {
        for name in ["json:{\"driver\":\"nbd\"}", "nbd://host/x", "file:a", "fat:/etc", "host_device:/dev/sda", ""] {
            assert_eq!(FileName::stored_in_image(name), FileName::Path(name.to_owned()));
        }
    }

    #[test]
    fn json_names_are_options_of_the_legacy_dialect() {
        let FileName::Json(options) = FileName::parse("json:{'driver':'raw','file.driver':'null-co'}").expect("parses")
        else {
            panic!("not options");
        };
        assert_eq!(options.to_json_file_name(), r#"json:{"driver": "raw", "file": {"driver": "null-co"}}"#);
        assert_eq!(options.dialect(), crate::Dialect::Legacy);
    }
}

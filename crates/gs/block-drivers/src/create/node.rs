//! Images that are created as a job of the monitor's: a file by its name, or a format in a node that is there.
//!
//! The options are those of the monitor; what they mean is what they mean on a command line, so they become those.

use super::{CreateError, NewImage, Target, luks, qcow2};
use block_common::options::Value;
use block_common::{OptionReader, OptionsError, ParentKind, Perm, PermPair, Preallocation};
use block_file_posix::HostKind;
use block_gs::{GlobalState, GraphError, NodeRef};

/// Where an image is created.
#[derive(Clone, Debug)]
enum Place {
    /// In a file, by its name.
    File,
    /// In the node of this name.
    Node(String),
}

/// An image that is to be created as options of the monitor's say.
#[derive(Clone, Debug)]
pub struct CreateJobOptions {
    image: NewImage,
    place: Place,
    size: u64,
}

/// An option, the name that it has on a command line, and whether it is on or off.
type Renamed = (&'static str, &'static str, bool);

const QCOW2: [Renamed; 8] = [
    ("data-file-raw", "data_file_raw", true),
    ("extended-l2", "extended_l2", true),
    ("version", "compat", false),
    ("backing-file", "backing_file", false),
    ("backing-fmt", "backing_fmt", false),
    ("preallocation", "preallocation", false),
    ("lazy-refcounts", "lazy_refcounts", true),
    ("compression-type", "compression_type", false),
];
const QCOW2_SIZES: [Renamed; 2] = [("cluster-size", "cluster_size", false), ("refcount-bits", "refcount_bits", false)];
const ENCRYPT: [&str; 6] = ["key-secret", "cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg"];
/// The values of options that are checked as the options are read.
const CHOICES: [(&str, &[&str]); 3] = [
    ("version", &["v2", "v3"]),
    ("preallocation", &["off", "metadata", "falloc", "full"]),
    ("compression-type", &["zlib", "zstd"]),
];

impl CreateJobOptions {
    /// Take the options of an image whose driver is `driver`; those that are left are refused by the caller.
    ///
    /// # Errors
    /// Options that are missing or of the wrong type; [`CreateError::NotBuilt`] for what this build does not create.
    pub fn take(driver: &str, options: &mut OptionReader) -> Result<Self, CreateError> {
        let refused = |what: &str| CreateError::NotBuilt(format!("Option '{what}' of driver '{driver}'"));
        match driver {
            "file" => {
                let path = options.require_str("filename")?;
                let size = take_size(options)?;
                let mut image = NewImage::new("file", HostKind::File, path.clone(), "")?;
                image.name = path;
                take_text(options, &mut image, ("preallocation", "preallocation"))?;
                if options.take_bool("nocow")?.unwrap_or(false) {
                    return Err(refused("nocow"));
                }
                if options.take_size("extent-size-hint")?.unwrap_or(0) != 0 {
                    return Err(refused("extent-size-hint"));
                }
                Ok(Self { image, place: Place::File, size })
            }
            qcow2::NAME => {
                let place = take_node(options, driver)?;
                if options.contains("data-file") {
                    return Err(refused("data-file"));
                }
                let size = take_size(options)?;
                let mut image = NewImage::new(driver, HostKind::File, String::new(), "")?;
                for (key, name, is_switch) in QCOW2 {
                    if !is_switch {
                        take_text(options, &mut image, (key, name))?;
                    } else if let Some(on) = options.take_bool(key)? {
                        image.options.insert(name, Value::Str(if on { "on" } else { "off" }.into()));
                    }
                }
                for (key, name, _) in QCOW2_SIZES {
                    if let Some(number) = options.take_u64(key)? {
                        image.options.insert(name, Value::Str(number.to_string()));
                    }
                }
                options.take_dict("encrypt", |encrypt| take_encryption(encrypt, &mut image))?;
                Ok(Self { image, place, size })
            }
            luks::NAME => {
                let place = take_node(options, driver)?;
                if options.contains("header") {
                    return Err(refused("header"));
                }
                let size = take_size(options)?;
                let mut image = NewImage::new(driver, HostKind::File, String::new(), "")?;
                for key in ENCRYPT {
                    take_text(options, &mut image, (key, key))?;
                }
                take_iter_time(options, &mut image, "iter-time")?;
                take_text(options, &mut image, ("preallocation", "preallocation"))?;
                Ok(Self { image, place, size })
            }
            other => Err(CreateError::NotBuilt(format!("Image format '{other}'"))),
        }
    }

    /// Create the image. Not within a mutation.
    ///
    /// # Errors
    /// [`CreateError`]; what of it stands in the node already stays there.
    pub async fn create(mut self, gs: &GlobalState) -> Result<(), CreateError> {
        let node = match &self.place {
            Place::File => {
                self.image.set_size(self.size);
                return self.image.create(gs).await;
            }
            Place::Node(name) => gs.find_node(name)?,
        };
        if !self.size.is_multiple_of(super::SECTOR) && self.image.format == qcow2::NAME {
            return Err(CreateError::Unaligned);
        }
        match self.image.format.as_str() {
            qcow2::NAME => self.image.create_qcow2_in(gs, &node, self.size).await,
            _ => self.image.create_luks_in(gs, &node, self.size).await,
        }
    }
}

/// The size of a disk. One below zero is a large one, as in C: who looks at it refuses it.
fn take_size(options: &mut OptionReader) -> Result<u64, OptionsError> {
    match options.take_i64("size") {
        Ok(Some(size)) => Ok(size as u64),
        Ok(None) => Err(options.missing("size")),
        Err(error) => Err(error),
    }
}

fn take_node(options: &mut OptionReader, driver: &str) -> Result<Place, CreateError> {
    let key = options.missing("file");
    match options.take("file").map(|file| file.into_value()) {
        None => Err(key.into()),
        Some(Value::Str(name)) => Ok(Place::Node(name)),
        Some(Value::Dict(_)) => {
            Err(CreateError::NotBuilt(format!("A node that is described in option 'file' of driver '{driver}'")))
        }
        Some(_) => Err(OptionsError::WrongType { key: "options.file".into(), expected: "BlockdevRef" }.into()),
    }
}

fn take_text(
    options: &mut OptionReader,
    image: &mut NewImage,
    (key, name): (&'static str, &'static str),
) -> Result<(), OptionsError> {
    let Some(value) = options.take_str(key)? else { return Ok(()) };
    let choice = CHOICES.iter().find(|(of, _)| *of == key);
    if choice.is_some_and(|(_, values)| !values.contains(&value.as_str())) {
        return Err(OptionsError::BadValue { key: key.into(), value });
    }
    image.options.insert(name, Value::Str(value));
    Ok(())
}

fn take_iter_time(options: &mut OptionReader, image: &mut NewImage, name: &'static str) -> Result<(), OptionsError> {
    if let Some(number) = options.take_i64("iter-time")? {
        image.options.insert(name, Value::Str(number.to_string()));
    }
    Ok(())
}

fn take_encryption(options: &mut OptionReader, image: &mut NewImage) -> Result<(), CreateError> {
    const NAMES: [&str; 6] = [
        "encrypt.key-secret",
        "encrypt.cipher-alg",
        "encrypt.cipher-mode",
        "encrypt.ivgen-alg",
        "encrypt.ivgen-hash-alg",
        "encrypt.hash-alg",
    ];
    let format = options.require_str("format")?;
    if !["luks", "qcow"].contains(&format.as_str()) {
        return Err(OptionsError::BadValue { key: "format".into(), value: format }.into());
    }
    let is_old = format == "qcow";
    image.options.insert("encrypt.format", Value::Str(if is_old { "aes".into() } else { format }));
    for (key, name) in ENCRYPT.into_iter().zip(NAMES).take(if is_old { 1 } else { ENCRYPT.len() }) {
        take_text(options, image, (key, name))?;
    }
    if is_old { Ok(()) } else { Ok(take_iter_time(options, image, "encrypt.iter-time")?) }
}

impl Target {
    /// A node that is there, to be written as a whole: nobody else reads or writes it.
    pub(super) async fn on(gs: &GlobalState, node: &NodeRef) -> Result<Self, GraphError> {
        let perm = PermPair::new(Perm::WRITE | Perm::RESIZE, Perm::all());
        let root = gs.new_root("", ParentKind::Backend, perm, &gs.main_io());
        match gs.attach_root(&root, Some(node)).await {
            Ok(()) => Ok(Self { node: node.clone(), root }),
            Err(error) => {
                gs.close_root(root).await;
                Err(error)
            }
        }
    }

    /// Nothing of what was there may show through where the image has nothing yet.
    pub(super) async fn empty(&self) -> Result<(), CreateError> {
        let emptied = self.root.io().truncate(0, Preallocation::Off).await;
        emptied.map_err(|error| CreateError::Device { doing: "resize", error })
    }

    /// It stays open for who has it.
    pub(super) async fn leave(self, gs: &GlobalState) {
        gs.close_root(self.root).await;
    }
}

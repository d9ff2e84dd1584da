//! Images that are created as a job of the monitor's: a file by its name, or a format in a node that is there.
//!
//! The options are those of the monitor; what they mean is what they mean on a command line, so they become those.

use super::{CreateError, NewImage, Target, luks, qcow2};
use crate::file_name;
use block_common::options::Value;
use block_common::{ChildSpec, OptionReader, OptionsError, ParentKind, Perm, PermPair, Preallocation};
use block_file_posix::HostKind;
use block_gs::{GlobalState, GraphError, NodeRef};

/// Where an image is created.
#[derive(Clone, Debug)]
enum Place {
    /// In a file, by its name.
    File,
    /// In a node, with a second one where the format has a use for it: a data file, or a header of its own.
    Nodes(Box<[Option<ChildSpec>; 2]>),
}

/// A node that an image is created in.
struct Found {
    node: NodeRef,
    /// It was opened for that, and is closed when it is done.
    is_own: bool,
}

impl Found {
    async fn find(gs: &GlobalState, spec: ChildSpec) -> Result<Self, CreateError> {
        Ok(match spec {
            ChildSpec::Reference(name) => Self { node: gs.find_node(&name)?, is_own: false },
            ChildSpec::Inline(options) => Self { node: gs.open(options).await?, is_own: true },
        })
    }

    /// What was written is to be on the disk when it is closed.
    async fn leave(self, gs: &GlobalState) -> Result<(), CreateError> {
        if self.is_own { Ok(gs.close(self.node).await?) } else { Ok(()) }
    }
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
                let file = take_node(options, "file")?.ok_or_else(|| options.missing("file"))?;
                let place = Place::Nodes(Box::new([Some(file), take_node(options, "data-file")?]));
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
                let place = Place::Nodes(Box::new([take_node(options, "file")?, take_node(options, "header")?]));
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
        let specs = match std::mem::replace(&mut self.place, Place::File) {
            Place::File => {
                self.image.set_size(self.size);
                return self.image.create(gs).await;
            }
            Place::Nodes(specs) => *specs,
        };
        let (mut found, mut done) = (Vec::new(), Ok(()));
        let mut places = [None, None];
        for (spec, place) in specs.into_iter().zip(&mut places) {
            match spec.map(|spec| Found::find(gs, spec)) {
                Some(finding) if done.is_ok() => match finding.await {
                    Ok(one) => {
                        *place = Some(one.node.clone());
                        found.push(one);
                    }
                    Err(error) => done = Err(error),
                },
                _ => {}
            }
        }
        if done.is_ok() {
            let [file, more] = &places;
            done = self.create_in(gs, file.as_ref(), more.as_ref()).await;
        }
        drop(places);
        for one in found {
            let left = one.leave(gs).await;
            done = done.and(left);
        }
        done
    }

    async fn create_in(
        mut self,
        gs: &GlobalState,
        file: Option<&NodeRef>,
        more: Option<&NodeRef>,
    ) -> Result<(), CreateError> {
        if self.image.format != qcow2::NAME {
            return self.image.create_luks_in(gs, file, more, self.size).await;
        }
        if !self.size.is_multiple_of(super::SECTOR) {
            return Err(CreateError::Unaligned);
        }
        if let Some(data) = more {
            // Whoever opens the image looks for a file of that name.
            self.image.options.insert("data_file", Value::Str(file_name(gs, data)?));
        }
        let file = file.ok_or(CreateError::Missing("file"))?;
        self.image.create_qcow2_in(gs, file, more, self.size).await
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

/// A node that is there, or the options of one, which say at least what driver it has.
fn take_node(options: &mut OptionReader, key: &'static str) -> Result<Option<ChildSpec>, CreateError> {
    let path = match options.missing(key) {
        OptionsError::Missing { key } => key,
        _ => key.to_owned(),
    };
    let spec = match options.take(key).map(|item| item.into_child()) {
        None => return Ok(None),
        Some(Err(_)) => return Err(OptionsError::WrongType { key: key.into(), expected: "BlockdevRef" }.into()),
        Some(Ok(spec)) => spec,
    };
    if let ChildSpec::Inline(options) = &spec {
        let driver = format!("{path}.driver");
        match options.dict().lookup("driver") {
            None => return Err(OptionsError::Missing { key: driver }.into()),
            Some(Value::Str(_)) => {}
            Some(_) => return Err(OptionsError::WrongType { key: driver, expected: "string" }.into()),
        }
    }
    Ok(Some(spec))
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
    /// A node that is there, to be written as a whole.
    pub(super) async fn on(gs: &GlobalState, node: &NodeRef) -> Result<Self, GraphError> {
        Self::shared(gs, node, Perm::all()).await
    }

    /// One of two nodes of an image: the other one must not be the same, nor lead to the same.
    pub(super) async fn of_two(gs: &GlobalState, node: &NodeRef) -> Result<Self, GraphError> {
        Self::shared(gs, node, Perm::all().difference(Perm::WRITE | Perm::RESIZE)).await
    }

    async fn shared(gs: &GlobalState, node: &NodeRef, shared: Perm) -> Result<Self, GraphError> {
        let perm = PermPair::new(Perm::WRITE | Perm::RESIZE, shared);
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

//! Why images cannot be created, in the field's words. What is wrong with the layout of a format is in the format's crate.

use super::HOST_DEVICE;
use block_common::{OptionsError, Preallocation};
use block_file_posix::FileError;
use block_gs::GraphError;
use block_qcow2_format::LayoutError;
use std::path::PathBuf;

/// Why an image cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Nobody knows the format.
    #[error("Unknown file format '{0}'")]
    UnknownFormat(String),
    /// Nobody knows the protocol.
    #[error("Unknown protocol '{0}'")]
    UnknownProtocol(String),
    /// The format is read only, or is none.
    #[error("Format driver '{0}' does not support image creation")]
    FormatCreatesNothing(String),
    /// Nothing can be created through the protocol.
    #[error("Protocol driver '{0}' does not support image creation")]
    ProtocolCreatesNothing(String),
    /// Nothing can be created through the protocol of a data file.
    #[error("Driver '{0}' does not support image creation")]
    DataFileCreatesNothing(String),
    /// This build does not have it.
    #[error("{0} is not supported")]
    NotBuilt(String),
    /// Nothing about images of the format can be changed.
    #[error("Format driver '{0}' does not support option amendment")]
    NoAmending(String),
    /// An option that only new images have.
    #[error("Invalid parameter '{0}'\nThis option is only supported for image creation")]
    NotAmendable(String),
    /// That is what rebasing is for.
    #[error("Cannot amend the backing file")]
    AmendBacking,
    /// No image of this build is encrypted.
    #[error("Can't amend encryption options - encryption not present")]
    AmendEncryption,
    /// A version that nobody knows.
    #[error("Unknown compatibility level {0}")]
    AmendLevel(String),
    /// A length or a width that cannot be.
    #[error("{0}")]
    AmendSize(&'static str),
    /// No option has this name.
    #[error("Invalid parameter '{0}'")]
    UnknownOption(String),
    /// An option that wants a size has something else.
    #[error(
        "Parameter '{0}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, \
         mega-, giga-, tera-, peta-\nand exabytes, respectively."
    )]
    BadSize(String),
    /// An option that wants a size has a number that is none.
    #[error("Value '{value}' is out of range for parameter '{name}'")]
    SizeRange {
        /// The option.
        name: &'static str,
        /// What it was given.
        value: String,
    },
    /// An option that wants a number has something else.
    #[error("Parameter '{0}' expects a number")]
    BadNumber(&'static str),
    /// A number that is too large for what it is for.
    #[error("Parameter '{0}' expects integer")]
    BadInteger(&'static str),
    /// An option that wants a number has one of more than 64 bits.
    #[error("Value '{value}' is too large for parameter '{name}'")]
    NumberRange {
        /// The option.
        name: &'static str,
        /// What it was given.
        value: String,
    },
    /// An option has a value that is none of those that there are.
    #[error("Parameter '{name}' does not accept value '{value}'")]
    BadChoice {
        /// What the option is called where its value is looked at.
        name: &'static str,
        /// What it was given.
        value: String,
    },
    /// A compatibility level that nobody has.
    #[error("Invalid compatibility level: '{0}'")]
    BadLevel(String),
    /// Reference counts of a version that has only one width of them.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
    )]
    MeasureWidth,
    /// There is no such image of this format.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The format has no backing files.
    #[error("Backing file not supported for file format '{0}'")]
    NoBackingFiles(String),
    /// The format has no backing files, and so no formats of them.
    #[error("Backing file format not supported for file format '{0}'")]
    NoBackingFormats(String),
    /// A name without a letter.
    #[error("Expected backing file name, got empty string")]
    BackingEmpty,
    /// It would be its own backing file.
    #[error("Error: Trying to create an image with the same filename as the backing file")]
    BackingSelf,
    /// The backing file cannot be looked at.
    #[error("{0}\nCould not open backing image.")]
    BackingOpen(String),
    /// The backing file's format was left open; this is what it looks like, if somebody looked.
    #[error(
        "Backing file specified without backing format{}",
        .0.as_ref().map(|found| format!("\nDetected format of {found}.")).unwrap_or_default()
    )]
    BackingNoFormat(Option<String>),
    /// An option that is on or off has another value.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    BadSwitch(&'static str),
    /// A mode that nobody has.
    #[error("invalid parameter value: {0}")]
    BadMode(String),
    /// A mode that makes no sense for devices.
    #[error("Unsupported preallocation mode '{0}'")]
    NoMode(Preallocation),
    /// A device has to be there, and this one cannot be had.
    #[error(
        "Protocol driver '{HOST_DEVICE}' does not support creating new images, so an existing image must be selected as \
         the target; however, opening the given target as an existing image failed: {0}"
    )]
    NoDevice(String),
    /// A device cannot be asked for its length, or its first sector not be written.
    #[error("Could not {doing}: {error}")]
    Device {
        /// What was being done.
        doing: &'static str,
        /// What it answered.
        error: block_common::IoError,
    },
    /// The disk would not end with a sector.
    #[error("Image size must be a multiple of 512 bytes")]
    Unaligned,
    /// No size was given.
    #[error("Image creation needs a size parameter")]
    NoSize,
    /// The host's file system has no such large files.
    #[error("Could not resize file: {0}")]
    Resize(block_common::Errno),
    /// The host's file system has no files as long as the image with its header.
    #[error("The requested file size is too large")]
    FileLength,
    /// The file is open as a node of this block layer: creating it would empty what is being used.
    #[error("Failed to get \"write\" lock\nIs another process using the image [{}]?", .0.display())]
    InUse(PathBuf),
    /// A secret that there is not, or a node that cannot be opened or closed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Nobody says which secret opens the image.
    #[error("Parameter '{0}' is required for cipher")]
    NoKeySecret(String),
    /// No such encryption.
    #[error(transparent)]
    Encryption(#[from] block_luks_format::LuksError),
    /// So much time that the iterations of a second cannot be multiplied by it.
    #[error("PBKDF iterations {0} too large to scale: Numerical result out of range")]
    IterationsScale(u64),
    /// So much time that no number of iterations takes it.
    #[error("PBKDF iterations {0} larger than {1}: Numerical result out of range")]
    Iterations(u64, u32),
    /// The host has no random numbers.
    #[error("Unable to generate random bytes: {0}")]
    Random(String),
    /// An option that means nothing with the others.
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(&'static str),
    /// Two options for the same.
    #[error("'encrypt.format' and its alias 'encryption' can't be used at the same time")]
    TwoEncryptions,
    /// The old method has a password and nothing to be changed.
    #[error("Only LUKS encryption options can be amended")]
    AmendOld,
    /// An option that has to be given.
    #[error("Parameter '{0}' is missing")]
    Missing(&'static str),
    /// The options are malformed.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The host refused.
    #[error("{}", file_words(.0))]
    File(FileError),
}

impl CreateError {
    /// Whether the host's file system, or the format, cannot hold so large an image.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Resize(block_common::Errno::EFBIG) | Self::Layout(LayoutError::SizeTooBig))
    }
}

impl From<FileError> for CreateError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Resize { errno, .. } => Self::Resize(errno),
            other => Self::File(other),
        }
    }
}

/// Whoever creates an image names it in front: no need to do so again.
fn file_words(error: &FileError) -> String {
    match error {
        FileError::Preallocate { doing, errno, .. } => format!("Could not {doing}: {errno}"),
        other => other.to_string(),
    }
}

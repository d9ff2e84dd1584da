//! The backing file of a new image: it is looked at before the image is created, for its length and for whether it is one at all.
//!
//! Its name is written into the image as it was given; relative ones are relative to the image.

use super::{CreateError, NOT_BUILT, NewImage, text};
use crate::image::{ImageOptions, open_image};
use block_common::options::Value;
use block_gs::GlobalState;

/// The option for its name.
pub(super) const FILE: &str = "backing_file";
/// The option for its format.
pub(super) const FORMAT: &str = "backing_fmt";

const SECTOR: u64 = 512;

impl NewImage {
    /// The image shall have this backing file, of this format, whatever its options say.
    ///
    /// # Errors
    /// [`CreateError::NoBackingFiles`] and [`CreateError::NoBackingFormats`], where the image's format has none.
    pub fn set_backing(&mut self, file: Option<&str>, format: Option<&str>) -> Result<(), CreateError> {
        if !self.has_clusters() {
            return match (file, format) {
                (Some(_), _) => Err(CreateError::NoBackingFiles(self.format.clone())),
                (None, Some(_)) => Err(CreateError::NoBackingFormats(self.format.clone())),
                (None, None) => Ok(()),
            };
        }
        if let Some(file) = file {
            self.options.insert(FILE, Value::Str(file.into()));
        }
        if let Some(format) = format {
            self.options.insert(FORMAT, Value::Str(format.into()));
        }
        Ok(())
    }

    /// The backing file's name from here, if the image is called `name`.
    pub fn backing_beside(&self, name: &str) -> Option<String> {
        self.options.get(FILE).map(|file| beside(name, &text(file)))
    }

    /// See that the backing file can be one, and take its length if no other is given. Without `look` it is not opened, and need
    /// not be there.
    ///
    /// # Errors
    /// [`CreateError::BackingOpen`] and others with "backing" in their names.
    pub async fn check_backing(&mut self, gs: &GlobalState, look: bool) -> Result<(), CreateError> {
        let Some(file) = self.options.get(FILE).map(text) else { return Ok(()) };
        let format = self.options.get(FORMAT).map(text);
        if file.is_empty() {
            return Err(CreateError::BackingEmpty);
        }
        if file == self.name {
            return Err(CreateError::BackingSelf);
        }
        if !look {
            return match format {
                Some(_) => Ok(()),
                None => Err(CreateError::BackingNoFormat(None)),
            };
        }
        let (driver, length) = look_at(gs, &beside(&self.name, &file), format.clone()).await?;
        if format.is_none() {
            return Err(CreateError::BackingNoFormat(driver));
        }
        if self.size.is_none() {
            self.size = Some(length.checked_next_multiple_of(SECTOR).ok_or(CreateError::NoSize)?);
        }
        Ok(())
    }
}

/// The driver and the length of the image called `name`.
async fn look_at(gs: &GlobalState, name: &str, format: Option<String>) -> Result<(Option<String>, u64), CreateError> {
    if let Some(format) = &format
        && NOT_BUILT.contains(&format.as_str())
        && gs.driver(format).is_err()
    {
        return Err(CreateError::BackingOpen(format!("Image format '{format}' is not supported")));
    }
    let how = ImageOptions { format, read_only: true, no_io: true, ..ImageOptions::default() };
    let node = open_image(gs, name, &how).await.map_err(|error| CreateError::BackingOpen(error.report()))?;
    let found = (node.io().driver().map(str::to_owned), node.io().length());
    gs.close(node).await?;
    Ok(found)
}

/// The name `backing`, as it stands in the image called `image`, from here. One that begins with a protocol or at the root is the same anywhere.
fn beside(image: &str, backing: &str) -> String {
    let first = backing.split('/').next().unwrap_or_default();
    match image.rsplit_once('/') {
        Some((folder, _)) if !first.is_empty() && !first.contains(':') => format!("{folder}/{backing}"),
        _ => backing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image() {
        let check = |image, backing, expected| assert_eq!(beside(image, backing), expected);
        check("a.qcow2", "b.raw", "b.raw");
        check("x/a.qcow2", "b.raw", "x/b.raw");
        check("/x/a.qcow2", "../b.raw", "/x/../b.raw");
        check("/a.qcow2", "b.raw", "/b.raw");
        check("x/a.qcow2", "/b.raw", "/b.raw");
        check("x/a.qcow2", "file:b.raw", "file:b.raw");
        check("x/a.qcow2", "y/b:c.raw", "x/y/b:c.raw");
        check("x/a.qcow2", "json:{\"driver\": \"raw\"}", "json:{\"driver\": \"raw\"}");
    }
}

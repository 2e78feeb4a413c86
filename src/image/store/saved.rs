//! Images that an engine has and saves: taken in like any archive of `docker save`, once, and known again by the engine's own id.

use std::fs::File;
use std::io::Seek;
use std::path::Path;

use super::{Named, Store, hex_name};
use crate::image::layer::CAPS;
use crate::image::layout::Layout;
use crate::image::{Image, ImageError, Progress};

/// What an engine may save of one image.
pub const MOST_SAVED_BYTES: u64 = CAPS.bytes;

impl Store {
    /// The image of an engine's id, if it was taken in before.
    pub fn saved(&self, id: &str) -> Result<Option<Image>, ImageError> {
        let lease = self.lease()?;
        let Some(known) = self.load::<Named>(&self.saved_file(id))? else {
            return Ok(None);
        };
        match self.record(&known.digest)?.filter(|record| self.has_layers(record)) {
            Some(record) => Ok(Some(self.image(record, lease)?)),
            None => Ok(None),
        }
    }

    /// A file without a name for what an engine saves.
    pub fn room_to_save(&self) -> Result<File, ImageError> {
        tempfile::tempfile_in(self.scratch()?).map_err(|error| self.failed("making a file", error))
    }

    /// Takes in what an engine saved under an id, and that it is the very image of this id.
    pub fn take_in_saved(&self, id: &str, mut file: File, progress: &dyn Progress) -> Result<Image, ImageError> {
        let path = Path::new(id);
        let read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        file.rewind().map_err(read)?;
        let lease = self.lease()?;
        let layout = Layout::archive(path, self.plain_archive(path, file)?)?;
        let contents = layout.contents()?;
        if !contents.ids.iter().any(|known| known == id) {
            return Err(ImageError::Digest {
                what: "the engine's image",
                expected: id.to_owned(),
                found: contents.ids.join(", "),
            });
        }
        let (record, _) = self.take_in_contents(&layout, progress)?;
        let known = Named {
            name: id.to_owned(),
            digest: record.digest.clone(),
        };
        self.save(&self.saved_file(id), &known)?;
        self.image(record, lease)
    }

    fn saved_file(&self, id: &str) -> std::path::PathBuf {
        self.folder.join("archives").join(hex_name(&format!("engine {id}")))
    }
}

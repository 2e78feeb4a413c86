//! The image and the runtime that a spec names.

use std::path::Path;

use super::Admission;
use crate::document::Sited;
use crate::sys::path::Kind;
use crate::task::{Access, ImageRef, Runtime, is_image_name};

impl Admission {
    pub(super) fn image(&mut self, image: &Sited<String>) -> Option<ImageRef> {
        let text = image.value.as_str();
        if text == "host" {
            return Some(ImageRef::Host);
        }
        if !(text.starts_with('/') || text.starts_with('~')) {
            return match is_image_name(text) {
                true => Some(ImageRef::Named(text.to_owned())),
                false => {
                    let what = format!(
                        "\"{text}\" is neither a name nor a reference of an image (a path begins with ./ or /)"
                    );
                    self.fault(&image.origin, "image", what)
                }
            };
        }
        let path = self.existing("image", image, &[Kind::Folder, Kind::File])?;
        let at = path.as_path();
        if at.join("oci-layout").is_file() || at.is_file() && is_tar(at) {
            return Some(ImageRef::OciLayout(path));
        }
        if at.is_dir()
            && ["bin", "usr/bin"]
                .iter()
                .any(|bin| at.join(bin).symlink_metadata().is_ok())
        {
            self.check_exposure("image", &image.origin, at, Access::Read);
            return Some(ImageRef::Rootfs(path));
        }
        let what = match at.is_dir() {
            true => format!(
                "\"{path}\" is not an image: it has neither an \"oci-layout\" file nor a \"bin\" or \"usr/bin\""
            ),
            false => format!("\"{path}\" is not an image: it is not a tar archive"),
        };
        self.fault(&image.origin, "image", what)
    }

    pub(super) fn runtime(&mut self, runtime: &Sited<String>) -> Option<Runtime> {
        let text = runtime.value.as_str();
        if text == "builtin" {
            return Some(Runtime::Builtin);
        }
        if text.starts_with('/') {
            // A runtime is the admin's program, and distributions link such programs freely: here symlinks are fine.
            return match std::fs::metadata(text) {
                Ok(found) if found.is_file() => Some(Runtime::Outside(text.to_owned())),
                Ok(_) => self.fault(&runtime.origin, "runtime", format!("\"{text}\" is not a program")),
                Err(error) => self.fault(
                    &runtime.origin,
                    "runtime",
                    format!("\"{text}\" cannot be used: {error}"),
                ),
            };
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain) {
            true => Some(Runtime::Outside(text.to_owned())),
            false => {
                let what = format!("\"{text}\" is not the name of a runtime (a path begins with ./ or /)");
                self.fault(&runtime.origin, "runtime", what)
            }
        }
    }
}

/// By content: gzip, zstd, or the magic of a plain tar.
fn is_tar(path: &Path) -> bool {
    use std::io::Read;
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(512).read_to_end(&mut head));
    let plain = head.get(257..262) == Some(b"ustar");
    read.is_ok() && (head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || plain)
}

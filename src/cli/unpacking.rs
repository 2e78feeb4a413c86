//! The line on a terminal that says how far the unpacking of an image is.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::image::Progress;

/// Drawn on stderr; gone when it is dropped.
pub struct UnpackingLine(ProgressBar);

impl UnpackingLine {
    /// Hidden by itself where stderr is no terminal.
    pub fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let style = ProgressStyle::with_template("unpacking layer {msg} {bar:30} {bytes}/{total_bytes}");
        let bar = ProgressBar::with_draw_target(None, target);
        Self(bar.with_style(style.expect("the template is a constant")))
    }
}

impl Progress for UnpackingLine {
    fn unpacking(&self, layer: usize, layers: usize, done: u64, total: u64) {
        self.0.set_message(format!("{layer}/{layers}"));
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for UnpackingLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

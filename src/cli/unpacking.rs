//! The lines on a terminal that say how far an image is: one for each layer that is being fetched or unpacked.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::image::Progress;

/// Drawn on stderr; gone when it is dropped.
pub struct UnpackingLine {
    lines: MultiProgress,
    /// By the number of the layer.
    bars: Mutex<BTreeMap<usize, ProgressBar>>,
}

impl UnpackingLine {
    /// Hidden by itself where stderr is no terminal.
    pub fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        Self {
            lines: MultiProgress::with_draw_target(target),
            bars: Mutex::default(),
        }
    }

    fn tell(&self, doing: &str, layer: usize, layers: usize, done: u64, total: u64) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(layer).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:9} layer {msg} {bar:30} {bytes}/{total_bytes}");
            let bar = ProgressBar::no_length().with_style(style.expect("the template is a constant"));
            self.lines.add(bar)
        });
        if bar.prefix() != doing {
            bar.set_prefix(doing.to_owned());
            bar.set_message(format!("{layer}/{layers}"));
            bar.set_length(total);
        }
        bar.set_position(done);
    }
}

impl Progress for UnpackingLine {
    fn fetching(&self, layer: usize, layers: usize, done: u64, total: u64) {
        self.tell("fetching", layer, layers, done, total);
    }

    fn unpacking(&self, layer: usize, layers: usize, done: u64, total: u64) {
        self.tell("unpacking", layer, layers, done, total);
        if done == total
            && let Some(bar) = self.bars.lock().unwrap_or_else(PoisonError::into_inner).get(&layer)
        {
            bar.finish_and_clear();
        }
    }
}

impl Drop for UnpackingLine {
    fn drop(&mut self) {
        for bar in self.bars.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bar.finish_and_clear();
        }
    }
}

//! Pictures for the notebook: the loss curves, and plots that show what NF4, LoRA and the chat
//! template do.
//!
//! All are SVG text drawn by plotters, on a white card of their own: the dark theme of a notebook
//! is not known to an image, so the picture brings the background its colours were chosen for.
//! Only presentation attributes are used, no `style`, which code-hosting pages strip.

mod canvas;
mod lossplot;
mod scale;
mod teaching;
mod verdict;

use std::path::Path;

pub use lossplot::{LossPlot, plot_losses};
pub use teaching::{plot_block_errors, plot_rank_losses, plot_token_lengths, plot_weight_histogram};
pub use verdict::{Fit, Verdict};

// What is drawn, which comes from the trainer's log.
pub use crate::train::{LossCurves, LossPoint, LossRow};

use crate::error::Result;

/// A picture and what it says in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    svg: String,
    text: String,
}

impl Figure {
    /// The picture: a whole SVG document.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// The text twin.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes the picture to `path`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be written.
    pub fn save_svg(&self, path: impl AsRef<Path>) -> Result<()> {
        crate::files::write_bytes_atomic(path.as_ref(), self.svg.as_bytes())
    }

    /// Shows it in a notebook cell; the Rust kernel calls this.
    pub fn evcxr_display(&self) {
        crate::display::show_svg(&self.svg, &self.text);
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::display::plain(self.text.trim_end()))
    }
}

//! Figures as publication-quality files: SVG on white, and PNG at twice the size.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow};
use rayon::prelude::*;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use super::chart::Theme;
use super::figures::Figure;
use selfrepair_core::files::write_atomically;

/// Pixels of a PNG a pixel of the SVG.
const PNG_SCALE: f32 = 2.0;

/// The files of a figure.
pub fn names(figure: &Figure) -> [String; 2] {
    ["svg", "png"].map(|ending| format!("{}.{ending}", figure.name))
}

/// Writes `<folder>/<name>.svg` and `.png` of every figure.
pub fn write(figures: &[Figure], folder: &Path) -> Result<()> {
    figures.par_iter().try_for_each(|figure| {
        let svg = figure.chart.svg(Theme::File);
        let png = png(&svg).with_context(|| format!("drawing the figure {}", figure.name))?;
        let [svg_name, png_name] = names(figure);
        put(&folder.join(svg_name), svg.as_bytes())?;
        put(&folder.join(png_name), &png)
    })
}

/// How often a file is written again whose folder was removed meanwhile.
const TRIES: usize = 5;

/// Writes a file and the folders that it lies in. A run beside this report may clear its own report first, and with it
/// the folder: then the file is written again.
pub fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let put = || {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        write_atomically(path, bytes)
    };
    let vanished = |error: &anyhow::Error| {
        error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound))
    };
    let mut result = put();
    for _ in 1..TRIES {
        match result {
            Err(error) if vanished(&error) => result = put(),
            done => return done,
        }
    }
    result
}

/// Draws an SVG with the font that is part of this program, so that a PNG is the same on every machine.
fn png(svg: &str) -> Result<Vec<u8>> {
    let options = Options { font_family: "DejaVu Sans".into(), fontdb: fonts(), ..Options::default() };
    let tree = Tree::from_str(svg, &options)?;
    let size = tree.size().to_int_size().scale_by(PNG_SCALE).context("the figure is too large")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("the figure has no size")?;
    resvg::render(&tree, Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| anyhow!("cannot write the PNG: {e}"))
}

fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    FONTS
        .get_or_init(|| {
            let mut fonts = fontdb::Database::new();
            for bytes in [dejavu::sans::regular(), dejavu::sans::bold()] {
                fonts.load_font_data(bytes.to_vec());
            }
            Arc::new(fonts)
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_png_has_twice_the_size_and_shows_text() {
        let drawing = |words: &str| {
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"60\" height=\"20\"><rect width=\"60\" height=\"20\" \
                 fill=\"#ffffff\"/><text x=\"2\" y=\"15\" font-family=\"DejaVu Sans, sans-serif\">{words}</text></svg>"
            )
        };
        let written = Pixmap::decode_png(&png(&drawing("Δx")).unwrap()).unwrap();
        assert_eq!((written.width(), written.height()), (120, 40));
        let dark = |p: &Pixmap| p.pixels().iter().filter(|p| p.red() < 100).count();
        assert!(dark(&written) > 50, "the font is missing");
        assert_eq!(dark(&Pixmap::decode_png(&png(&drawing("")).unwrap()).unwrap()), 0);
    }
}

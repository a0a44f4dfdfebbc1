//! Charts as SVG: panels with axes, marks in data coordinates, and a legend that covers no marks.
//!
//! The same chart is drawn twice: as a file on white, and for the page, whose colours follow the reader's preference
//! for light or dark.

mod axis;
mod colour;
mod draw;
mod text;

pub use axis::{Axis, common, extent, plain, roomy, with_zero};
pub use colour::{BLUE, Colour, GREEN, ORANGE, PURPLE, RED, Theme, variables};

/// Width of every figure, in pixels.
pub const WIDTH: f64 = 860.0;

pub struct Chart {
    pub title: String,
    /// Model, ablation, tokens and corpus, under the title.
    pub settings: String,
    pub legend: Vec<Key>,
    pub panels: Vec<Panel>,
    /// Panels beside each other.
    pub columns: usize,
    /// Height of a panel's plot, in pixels.
    pub height: f64,
}

/// An entry of the legend.
pub enum Key {
    Dot(Colour, String),
    Line(Colour, String),
    Dashed(Colour, String),
    Box(Colour, f64, String),
    /// A bar of the colour scale `scale` with the values at its ends.
    Scale {
        label: String,
        ends: [String; 2],
        scale: fn(f64) -> Colour,
    },
}

pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub marks: Vec<Mark>,
    pub margins: Option<Margins>,
}

/// Distributions along the axes of a panel: bars over x above the plot, and over y on its right.
pub struct Margins {
    /// Corners are (x, share).
    pub x: Mark,
    /// Corners are (y, share).
    pub y: Mark,
    /// The largest share of each, which fills the margin.
    pub most: (f64, f64),
}

pub type Point = (f64, f64);

/// What is drawn in a panel, in the order given.
pub enum Mark {
    /// Named points: the name shows when the pointer is on one.
    Points {
        points: Vec<NamedPoint>,
        radius: f64,
    },
    /// Many points of one colour, without names.
    Cloud {
        at: Vec<Point>,
        colour: Colour,
        radius: f64,
        opacity: f64,
    },
    Line {
        at: Vec<Point>,
        colour: Colour,
        width: f64,
        dashed: bool,
    },
    /// Unconnected lines, such as error bars.
    Segments {
        from_to: Vec<(Point, Point)>,
        colour: Colour,
        width: f64,
    },
    Area {
        outline: Vec<Point>,
        colour: Colour,
        opacity: f64,
    },
    /// Bars and cells, by two opposite corners.
    Boxes {
        boxes: Vec<Cell>,
        opacity: f64,
    },
}

pub struct NamedPoint {
    pub at: Point,
    pub colour: Colour,
    pub name: String,
}

pub struct Cell {
    pub corners: (Point, Point),
    pub colour: Colour,
    pub name: String,
}

impl Panel {
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, marks: Vec::new(), margins: None }
    }

    pub fn with_margins(mut self, margins: Margins) -> Self {
        self.margins = Some(margins);
        self
    }

    pub fn with(mut self, mark: Mark) -> Self {
        self.marks.push(mark);
        self
    }

    /// The line y = 0 across the panel.
    pub fn zero(self) -> Self {
        let (low, high) = self.x.range;
        self.with(Mark::thin((low, 0.0), (high, 0.0), Colour::Soft))
    }

    /// The line y = slope · x across the panel.
    pub fn through_origin(self, slope: f64, colour: Colour) -> Self {
        let (low, high) = self.x.range;
        let at = vec![(low, slope * low), (high, slope * high)];
        self.with(Mark::Line { at, colour, width: 1.5, dashed: true })
    }
}

impl Mark {
    pub fn thin(from: Point, to: Point, colour: Colour) -> Self {
        Mark::Segments { from_to: vec![(from, to)], colour, width: 1.0 }
    }

    /// A solid line of the usual width.
    pub fn line(at: Vec<Point>, colour: Colour) -> Self {
        Mark::Line { at, colour, width: 2.5, dashed: false }
    }

    /// Bars from 0 over bins of equal width, each starting at `starts`.
    pub fn histogram(starts: &[f64], width: f64, shares: &[f64], colour: Colour, opacity: f64) -> Self {
        let bar =
            |(&x, &share): (&f64, &f64)| Cell { corners: ((x, 0.0), (x + width, share)), colour, name: String::new() };
        Mark::Boxes { boxes: starts.iter().zip(shares).map(bar).collect(), opacity }
    }
}

/// The cells of a heat map whose (column, row) are whole numbers, coloured by value relative to `most`.
pub fn heat(cells: impl IntoIterator<Item = (f64, f64, f64, String)>, most: f64) -> Mark {
    let most = if most > 0.0 { most } else { 1.0 };
    let boxes = cells
        .into_iter()
        .filter(|c| c.2.is_finite())
        .map(|(x, y, value, name)| Cell {
            corners: ((x - 0.5, y - 0.5), (x + 0.5, y + 0.5)),
            colour: Colour::Diverging(value / most),
            name,
        })
        .collect();
    Mark::Boxes { boxes, opacity: 1.0 }
}

/// The colour scale of [`heat`] in the legend.
pub fn heat_key(label: impl Into<String>, most: f64) -> Key {
    Key::Scale { label: label.into(), ends: [plain(-most), plain(most)], scale: |t| Colour::Diverging(2.0 * t - 1.0) }
}

/// The colours of layers `first` to `last`, in the legend.
pub fn layer_key(first: f64, last: f64) -> Key {
    Key::Scale { label: "layer".into(), ends: [plain(first), plain(last)], scale: Colour::Shade }
}

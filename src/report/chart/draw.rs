//! Draws a chart as SVG text.

use std::fmt::Write;

use super::axis::Ticks;
use super::colour::{Colour, Theme};
use super::text::{fit, width, wrap};
use super::{Axis, Chart, Key, Margins, Mark, Panel, Point, WIDTH};
use crate::escape::escape;

const TITLE: f64 = 18.0;
const LABEL: f64 = 13.0;
const SMALL: f64 = 12.0;
/// Height of a line of text, in units of its size.
const LINE: f64 = 1.35;
const MARGIN: f64 = 14.0;
const GAP: f64 = 24.0;
/// Room for the bars along an axis, and between them and the plot.
const STRIP: f64 = 56.0;
const STRIP_GAP: f64 = 6.0;

/// What the label of a tick may take of a panel's width.
const LONGEST_TICK: f64 = 0.45;

const FONT: &str = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif";

impl Chart {
    /// The chart as SVG.
    pub fn svg(&self, theme: Theme) -> String {
        let mut pen = Pen { svg: String::new(), theme };
        let mut y = MARGIN;
        y = pen.lines(&wrap(&self.title, TITLE, WIDTH - 2.0 * MARGIN), y, TITLE, Colour::Ink, "600");
        y = pen.lines(&wrap(&self.settings, SMALL, WIDTH - 2.0 * MARGIN), y, SMALL, Colour::Soft, "400");
        y = pen.legend(&self.legend, y + 4.0);
        let columns = self.columns.clamp(1, self.panels.len().max(1));
        let room = (WIDTH - 2.0 * MARGIN - (columns - 1) as f64 * GAP) / columns as f64;
        for row in self.panels.chunks(columns) {
            // Plots of a row begin at the same height and have the same size.
            let frames: Vec<Frame> = row.iter().map(|panel| Frame::of(panel, room, self.height)).collect();
            let above = frames.iter().map(|f| f.above).fold(0.0, f64::max);
            let below = frames.iter().map(|f| f.below).fold(0.0, f64::max);
            for (i, (panel, frame)) in row.iter().zip(&frames).enumerate() {
                let left = MARGIN + i as f64 * (room + GAP);
                pen.panel(panel, frame, (left, y + above), room, self.height);
            }
            y += above + self.height + below + 6.0;
        }
        self.wrap_up(&pen, y + 4.0)
    }

    fn wrap_up(&self, pen: &Pen, height: f64) -> String {
        let background = match pen.theme {
            Theme::File => "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            Theme::Page => "",
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\" font-family=\"{FONT}\">\n{background}{}</svg>\n",
            escape(&self.title),
            pen.svg
        )
    }
}

/// The room around a panel's plot.
struct Frame {
    above: f64,
    below: f64,
    left: f64,
    right: f64,
    x_ticks: Vec<(f64, String)>,
    y_ticks: Vec<(f64, String)>,
    x_label: Vec<String>,
    y_label: Vec<String>,
    title: Vec<String>,
}

impl Frame {
    fn of(panel: &Panel, room: f64, height: f64) -> Self {
        let mut y_ticks = panel.y.ticks((height / 45.0) as usize);
        y_ticks.iter_mut().for_each(|(_, label)| *label = fit(label, SMALL, LONGEST_TICK * room));
        let widest = y_ticks.iter().map(|t| width(&t.1, SMALL)).fold(0.0, f64::max);
        let y_label = wrap(&panel.y.label, LABEL, height.max(120.0));
        let left = widest + 10.0 + y_label.len() as f64 * LABEL * LINE;
        let strip = if panel.margins.is_some() { STRIP } else { 0.0 };
        let x_ticks = fitting_ticks(&panel.x, room - left - strip - 8.0);
        // The last label is centred on its tick, and half of it may stand out.
        let right = x_ticks.last().map_or(8.0, |t| width(&t.1, SMALL) / 2.0).max(8.0).max(strip);
        let x_label = wrap(&panel.x.label, LABEL, room - left - right);
        let title = wrap(&panel.title, LABEL, room - left - right);
        let above = 10.0 + strip + title.len() as f64 * LABEL * LINE;
        let below = SMALL * LINE + 8.0 + x_label.len() as f64 * LABEL * LINE;
        Self { above, below, left, right, x_ticks, y_ticks, x_label, y_label, title }
    }
}

/// As many ticks as fit beside each other.
fn fitting_ticks(axis: &Axis, room: f64) -> Vec<(f64, String)> {
    let mut count = (room / 45.0).max(2.0) as usize;
    loop {
        let mut ticks = axis.ticks(count);
        ticks.iter_mut().for_each(|(_, label)| *label = fit(label, SMALL, LONGEST_TICK * room));
        let taken: f64 = ticks.iter().map(|t| width(&t.1, SMALL) + 12.0).sum();
        if taken <= room || count <= 1 {
            // Names cannot be thinned by a larger step: every n-th is shown.
            let keep = (taken / room.max(1.0)).ceil().max(1.0) as usize;
            let mut i = 0;
            ticks.retain(|_| {
                i += 1;
                (i - 1) % keep == 0
            });
            return ticks;
        }
        count = (count * 2 / 3).min(count - 1);
    }
}

struct Pen {
    svg: String,
    theme: Theme,
}

impl Pen {
    fn put(&mut self, parts: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.svg.write_fmt(parts);
    }

    fn text(&mut self, at: Point, anchor: &str, size: f64, colour: Colour, weight: &str, text: &str) {
        let (paint, words) = (colour.paint(self.theme), escape(text));
        let weight = if weight == "400" { String::new() } else { format!(" font-weight=\"{weight}\"") };
        self.put(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\"{weight} fill=\"{paint}\">{words}</text>\n",
            at.0, at.1
        ));
    }

    /// Left-aligned lines below `y`; returns where they end.
    fn lines(&mut self, lines: &[String], y: f64, size: f64, colour: Colour, weight: &str) -> f64 {
        for (i, line) in lines.iter().enumerate() {
            self.text((MARGIN, y + size * (0.9 + i as f64 * LINE)), "start", size, colour, weight, line);
        }
        y + lines.len() as f64 * size * LINE
    }

    /// Entries in rows below `y`; returns where they end.
    fn legend(&mut self, keys: &[Key], y: f64) -> f64 {
        if keys.is_empty() {
            return y;
        }
        let (mut x, mut middle) = (MARGIN, y + 10.0);
        for key in keys {
            let wide = key.width();
            if x > MARGIN && x + wide > WIDTH - MARGIN {
                (x, middle) = (MARGIN, middle + 20.0);
            }
            self.key(key, x, middle);
            x += wide + 18.0;
        }
        middle + 12.0
    }

    fn key(&mut self, key: &Key, x: f64, middle: f64) {
        let paint = |c: &Colour| c.paint(self.theme);
        let mark = match key {
            Key::Dot(c, _) => {
                format!("<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"4\" fill=\"{}\"/>", x + 12.0, paint(c))
            }
            Key::Line(c, _) | Key::Dashed(c, _) => {
                let dash = if matches!(key, Key::Dashed(..)) { " stroke-dasharray=\"5 4\"" } else { "" };
                format!("<path d=\"M{x:.1} {middle:.1}h20\" stroke=\"{}\" stroke-width=\"2.5\"{dash}/>", paint(c))
            }
            Key::Box(c, opacity, _) => format!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"14\" height=\"12\" fill=\"{}\" fill-opacity=\"{opacity}\"/>",
                x + 4.0,
                middle - 6.0,
                paint(c)
            ),
            Key::Scale { label, ends, scale } => return self.scale(label, ends, *scale, x, middle),
        };
        self.put(format_args!("{mark}\n"));
        self.text((x + 26.0, middle + 4.5), "start", LABEL, Colour::Ink, "400", &key.fitting_label());
    }

    fn scale(&mut self, label: &str, ends: &[String; 2], scale: fn(f64) -> Colour, x: f64, middle: f64) {
        self.text((x, middle + 4.5), "start", LABEL, Colour::Ink, "400", label);
        let mut x = x + width(label, LABEL) + 8.0;
        self.text((x, middle + 4.5), "start", SMALL, Colour::Soft, "400", &ends[0]);
        x += width(&ends[0], SMALL) + 5.0;
        for i in 0..SCALE_STEPS {
            let paint = scale(i as f64 / (SCALE_STEPS - 1) as f64).paint(self.theme);
            let (left, top) = (x + SCALE_STEP * i as f64, middle - 6.0);
            // A little wider than a step, so that no gap shows between two.
            let wide = SCALE_STEP + 0.4;
            self.put(format_args!(
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"12\" fill=\"{paint}\"/>"
            ));
        }
        x += SCALE_STEP * SCALE_STEPS as f64 + 5.0;
        self.text((x, middle + 4.5), "start", SMALL, Colour::Soft, "400", &ends[1]);
    }

    fn panel(&mut self, panel: &Panel, frame: &Frame, at: Point, room: f64, height: f64) {
        let (left, top) = (at.0 + frame.left, at.1);
        let wide = (room - frame.left - frame.right).max(1.0);
        let x = |v: f64| left + panel.x.place(v) * wide;
        let y = |v: f64| top + (1.0 - panel.y.place(v)) * height;
        let strip = if panel.margins.is_some() { STRIP } else { 0.0 };
        for (i, line) in frame.title.iter().enumerate() {
            let above = top - strip - 8.0 - (frame.title.len() - 1 - i) as f64 * LABEL * LINE;
            self.text((left, above), "start", LABEL, Colour::Ink, "600", line);
        }
        let (rule, soft) = (Colour::Rule.paint(self.theme), Colour::Soft.paint(self.theme));
        let mut grid = String::new();
        // Between names there is nothing to read off: an empty cell of such a map stays empty.
        if !matches!((&panel.x.ticks, &panel.y.ticks), (Ticks::Names(_), Ticks::Names(_))) {
            for tick in frame.x_ticks.iter().map(|t| x(t.0)) {
                let _ = write!(grid, "M{tick:.1} {top:.1}v{height:.1}");
            }
            for tick in frame.y_ticks.iter().map(|t| y(t.0)) {
                let _ = write!(grid, "M{left:.1} {tick:.1}h{wide:.1}");
            }
        }
        self.put(format_args!("<path d=\"{grid}\" stroke=\"{rule}\" fill=\"none\"/>\n"));
        let inside = |(px, py): Point| (x(px) - left, y(py) - top);
        self.clipped((left, top), (wide, height), &panel.marks, &inside);
        if let Some(Margins { x: along_x, y: along_y, most }) = &panel.margins {
            let (thick, share) = (STRIP - STRIP_GAP, |share: f64, most: f64| share / most.max(f64::MIN_POSITIVE));
            let above = |(px, s): Point| (x(px) - left, thick * (1.0 - share(s, most.0)));
            self.clipped((left, top - STRIP), (wide, thick), std::slice::from_ref(along_x), &above);
            let beside = |(py, s): Point| (thick * share(s, most.1), y(py) - top);
            self.clipped((left + wide + STRIP_GAP, top), (thick, height), std::slice::from_ref(along_y), &beside);
        }
        self.put(format_args!(
            "<path d=\"M{left:.1} {top:.1}v{height:.1}h{wide:.1}\" stroke=\"{soft}\" fill=\"none\"/>\n"
        ));
        for (value, label) in &frame.x_ticks {
            self.text((x(*value), top + height + SMALL + 4.0), "middle", SMALL, Colour::Soft, "400", label);
        }
        for (value, label) in &frame.y_ticks {
            self.text((left - 6.0, y(*value) + SMALL * 0.36), "end", SMALL, Colour::Soft, "400", label);
        }
        for (i, line) in frame.x_label.iter().enumerate() {
            let below = top + height + SMALL * LINE + 6.0 + LABEL * (0.9 + i as f64 * LINE);
            self.text((left + wide / 2.0, below), "middle", LABEL, Colour::Ink, "400", line);
        }
        for (i, line) in frame.y_label.iter().enumerate() {
            let (ink, across) = (Colour::Ink.paint(self.theme), at.0 + LABEL * (0.9 + i as f64 * LINE));
            self.put(format_args!(
                "<text transform=\"translate({across:.1} {:.1}) rotate(-90)\" text-anchor=\"middle\" font-size=\"{LABEL}\" fill=\"{ink}\">{}</text>\n",
                top + height / 2.0,
                escape(line)
            ));
        }
    }

    /// Marks in a nested drawing, which clips what lies outside it.
    fn clipped(&mut self, at: Point, (wide, high): Point, marks: &[Mark], inside: &dyn Fn(Point) -> Point) {
        let (left, top) = at;
        self.put(format_args!(
            "<svg x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" overflow=\"hidden\">\n"
        ));
        marks.iter().for_each(|mark| self.mark(mark, inside));
        self.put(format_args!("</svg>\n"));
    }

    fn mark(&mut self, mark: &Mark, inside: &dyn Fn(Point) -> Point) {
        let theme = self.theme;
        match mark {
            Mark::Points { points, radius } => {
                for point in points.iter().filter(|p| finite(p.at)) {
                    let ((x, y), paint) = (inside(point.at), point.colour.paint(theme));
                    self.put(format_args!(
                        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{paint}\" fill-opacity=\"0.85\">"
                    ));
                    self.put(format_args!("<title>{}</title></circle>\n", escape(&point.name)));
                }
            }
            Mark::Cloud { at, colour, radius, opacity } => {
                let paint = colour.paint(theme);
                self.put(format_args!("<g fill=\"{paint}\" fill-opacity=\"{opacity}\">"));
                for (x, y) in at.iter().copied().filter(|&p| finite(p)).map(inside) {
                    self.put(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"));
                }
                self.put(format_args!("</g>\n"));
            }
            Mark::Line { at, colour, width, dashed } => {
                let (paint, dash) = (colour.paint(theme), if *dashed { " stroke-dasharray=\"6 4\"" } else { "" });
                let path = path(at, inside);
                self.put(format_args!("<path d=\"{path}\" stroke=\"{paint}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" fill=\"none\"{dash}/>\n"));
            }
            Mark::Segments { from_to, colour, width } => {
                let paint = colour.paint(theme);
                let path: String = from_to.iter().map(|&(a, b)| path(&[a, b], inside)).collect();
                self.put(format_args!(
                    "<path d=\"{path}\" stroke=\"{paint}\" stroke-width=\"{width}\" fill=\"none\"/>\n"
                ));
            }
            Mark::Area { outline, colour, opacity } => {
                let (paint, path) = (colour.paint(theme), path(outline, inside));
                self.put(format_args!("<path d=\"{path}z\" fill=\"{paint}\" fill-opacity=\"{opacity}\"/>\n"));
            }
            Mark::Boxes { boxes, opacity } => {
                // Edges on whole pixels and, in neighbours, of the same digits: no seams between cells.
                self.put(format_args!("<g shape-rendering=\"crispEdges\" fill-opacity=\"{opacity}\">\n"));
                for cell in boxes.iter().filter(|c| finite(c.corners.0) && finite(c.corners.1)) {
                    let (a, b) = (inside(cell.corners.0), inside(cell.corners.1));
                    let paint = cell.colour.paint(theme);
                    self.put(format_args!(
                        "<path d=\"M{:.2} {:.2}H{:.2}V{:.2}H{:.2}z\" fill=\"{paint}\"",
                        a.0, a.1, b.0, b.1, a.0
                    ));
                    match cell.name.is_empty() {
                        true => self.put(format_args!("/>\n")),
                        false => self.put(format_args!("><title>{}</title></path>\n", escape(&cell.name))),
                    }
                }
                self.put(format_args!("</g>\n"));
            }
        }
    }
}

const SCALE_STEPS: usize = 24;
const SCALE_STEP: f64 = 5.0;

impl Key {
    fn label(&self) -> &str {
        match self {
            Key::Dot(_, label) | Key::Line(_, label) | Key::Dashed(_, label) | Key::Box(_, _, label) => label,
            Key::Scale { label, .. } => label,
        }
    }

    fn width(&self) -> f64 {
        match self {
            Key::Scale { label, ends, .. } => {
                width(label, LABEL)
                    + ends.iter().map(|e| width(e, SMALL)).sum::<f64>()
                    + SCALE_STEP * SCALE_STEPS as f64
                    + 18.0
            }
            _ => 26.0 + width(&self.fitting_label(), LABEL),
        }
    }

    /// The label, if it fits in a line.
    fn fitting_label(&self) -> String {
        fit(self.label(), LABEL, WIDTH - 2.0 * MARGIN - 26.0)
    }
}

fn finite(p: Point) -> bool {
    p.0.is_finite() && p.1.is_finite()
}

/// A path through the points; a NaN interrupts it.
fn path(at: &[Point], inside: &dyn Fn(Point) -> Point) -> String {
    let mut out = String::new();
    let mut drawing = false;
    for &point in at {
        if !finite(point) {
            drawing = false;
            continue;
        }
        let (x, y) = inside(point);
        let _ = write!(out, "{}{x:.1} {y:.1}", if drawing { 'L' } else { 'M' });
        drawing = true;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::NamedPoint;
    use super::*;

    fn chart(marks: Vec<Mark>) -> Chart {
        let mut panel = Panel::new("panel", Axis::numbers("x [logits]", (0.0, 10.0)), Axis::numbers("y", (0.0, 1.0)));
        panel.marks = marks;
        let legend = vec![Key::Dot(Colour::Hue(0), "a <head>".into())];
        Chart {
            title: "A title".into(),
            settings: "pythia-70m".into(),
            legend,
            panels: vec![panel],
            columns: 1,
            height: 100.0,
        }
    }

    #[test]
    fn a_chart_has_title_settings_legend_and_axes() {
        let svg = chart(vec![]).svg(Theme::File);
        for words in [">A title<", ">pythia-70m<", ">a &lt;head&gt;<", ">x [logits]<", ">panel<", ">10<", "#ffffff"] {
            assert!(svg.contains(words), "{words} is not in {svg}");
        }
        let page = chart(vec![]).svg(Theme::Page);
        assert!(page.contains("var(--ink)") && !page.contains("#ffffff"), "{page}");
    }

    /// The plot is placed so that (0, 0) is its lower left and (10, 1) its upper right corner.
    #[test]
    fn marks_lie_where_the_axes_say() {
        let corner = |at| NamedPoint { at, colour: Colour::Ink, name: "L1H2".into() };
        let points =
            Mark::Points { points: vec![corner((0.0, 0.0)), corner((5.0, 1.0)), corner((f64::NAN, 0.0))], radius: 3.0 };
        let svg = chart(vec![points]).svg(Theme::File);
        let attribute = |text: &str, name: &str| -> f64 {
            let from = text.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
            text[from..].split('"').next().unwrap().parse().unwrap()
        };
        let plot = svg.split("<svg ").nth(2).unwrap();
        let circles: Vec<&str> = plot.split("<circle").skip(1).collect();
        assert_eq!(circles.len(), 2, "a NaN is left out");
        assert_eq!((attribute(circles[0], "cx"), attribute(circles[0], "cy")), (0.0, 100.0));
        let wide = attribute(&format!(" {plot}"), "width");
        assert!((attribute(circles[1], "cx") - wide / 2.0).abs() < 0.11 && attribute(circles[1], "cy") == 0.0);
        assert!(circles[0].contains("<title>L1H2</title>"));
    }

    /// One bar over the left half of x that fills its margin, and one over the upper half of y that fills half of its own.
    #[test]
    fn margins_lie_along_their_axes() {
        let bar = |from: f64, width, share| Mark::histogram(&[from], width, &[share], Colour::Ink, 1.0);
        let margins = Margins { x: bar(0.0, 5.0, 40.0), y: bar(0.5, 0.5, 20.0), most: (40.0, 40.0) };
        let mut chart = chart(vec![]);
        chart.panels = vec![chart.panels.remove(0).with_margins(margins)];
        let svg = chart.svg(Theme::File);
        let drawings: Vec<&str> = svg.split("<svg ").skip(2).collect();
        let [plot, above, beside] = drawings[..] else { panic!("{} drawings", drawings.len()) };
        let of = |text: &str, name: &str| -> f64 {
            let from = text.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
            text[from..].split('"').next().unwrap().parse().unwrap()
        };
        // x, y, width and height of the one box.
        let bar = |text: &str| {
            let from = text.find("d=\"M").unwrap() + 4;
            let corners = text[from..].split('z').next().unwrap().split(['H', 'V', ' ']);
            let [x0, y0, x1, y1, _] = corners.map(|n| n.parse().unwrap()).collect::<Vec<f64>>()[..] else { panic!() };
            [x0.min(x1), y0.min(y1), (x1 - x0).abs(), (y1 - y0).abs()]
        };
        let (wide, thick) = (of(plot, "width"), STRIP - STRIP_GAP);
        assert!((bar(above)[2] - wide / 2.0).abs() < 0.11 && bar(above)[0] == 0.0);
        assert_eq!((bar(above)[1], bar(above)[3]), (0.0, thick));
        assert_eq!(bar(beside), [0.0, 0.0, thick / 2.0, 50.0]);
        assert_eq!((of(above, "y"), of(beside, "x")), (of(plot, "y") - STRIP, of(plot, "x") + wide + STRIP_GAP));
    }

    #[test]
    fn a_line_is_interrupted_where_there_is_no_number() {
        let identity = |p: Point| p;
        assert_eq!(path(&[(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 4.0)], &identity), "M0.0 1.0L1.0 2.0M3.0 4.0");
    }

    #[test]
    fn tick_labels_do_not_overlap() {
        let names = Axis::names("", (0..60).map(|i| format!("a long name {i}")));
        let shown = fitting_ticks(&names, 400.0);
        assert!(shown.iter().map(|t| width(&t.1, SMALL)).sum::<f64>() <= 400.0 && !shown.is_empty());
    }
}

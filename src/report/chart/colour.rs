//! Colours that colour-blind readers can distinguish, on white and on a dark page.
//!
//! A figure names a role, not a colour. In a file the role has its light value; in the page it is a CSS variable that
//! follows the reader's preference.

use std::fmt::Write;

/// Okabe and Ito's colours, ordered so that the first few differ most; beside each, the one for dark pages.
const HUES: [(Rgb, Rgb); 7] = [
    (Rgb(0, 114, 178), Rgb(61, 155, 220)),
    (Rgb(230, 159, 0), Rgb(240, 175, 40)),
    (Rgb(0, 158, 115), Rgb(30, 190, 145)),
    (Rgb(204, 121, 167), Rgb(220, 145, 188)),
    (Rgb(213, 94, 0), Rgb(235, 120, 50)),
    (Rgb(86, 180, 233), Rgb(155, 215, 250)),
    (Rgb(150, 140, 20), Rgb(240, 228, 66)),
];

pub const BLUE: Colour = Colour::Hue(0);
pub const ORANGE: Colour = Colour::Hue(1);
pub const GREEN: Colour = Colour::Hue(2);
pub const PURPLE: Colour = Colour::Hue(3);
pub const RED: Colour = Colour::Hue(4);

/// Steps of the two scales: finer ones would not be told apart, and each is a CSS variable.
const SHADES: usize = 16;
const SIDES: i32 = 8;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Colour {
    /// Text and axes.
    Ink,
    /// Secondary text and lines.
    Soft,
    /// Grid lines.
    Rule,
    /// One of several series.
    Hue(usize),
    /// From 0 to 1, for instance from the first layer to the last.
    Shade(f64),
    /// From −1 to 1, neutral at 0.
    Diverging(f64),
}

/// Where a figure is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Theme {
    /// A file of its own, on white.
    File,
    /// Inside the page, on its background.
    Page,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rgb(pub u8, pub u8, pub u8);

impl Rgb {
    fn mix(self, other: Self, t: f64) -> Self {
        let mix = |a: u8, b: u8| (f64::from(a) * (1.0 - t) + f64::from(b) * t).round() as u8;
        Self(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }

    pub fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

impl Colour {
    /// The value of a `fill` or `stroke` attribute.
    pub fn paint(self, theme: Theme) -> String {
        match theme {
            Theme::File => self.rgb(false).hex(),
            Theme::Page => format!("var(--{})", self.variable()),
        }
    }

    fn variable(self) -> String {
        match self {
            Colour::Ink => "ink".into(),
            Colour::Soft => "soft".into(),
            Colour::Rule => "rule".into(),
            Colour::Hue(i) => format!("c{}", i % HUES.len()),
            Colour::Shade(t) => format!("s{}", shade_step(t)),
            Colour::Diverging(t) => format!("d{}", side_step(t) + SIDES),
        }
    }

    fn rgb(self, dark: bool) -> Rgb {
        let pick = |pair: (Rgb, Rgb)| if dark { pair.1 } else { pair.0 };
        match self {
            Colour::Ink => pick((Rgb(29, 29, 31), Rgb(232, 232, 234))),
            Colour::Soft => pick((Rgb(95, 95, 102), Rgb(168, 168, 176))),
            Colour::Rule => pick((Rgb(226, 226, 230), Rgb(58, 59, 64))),
            Colour::Hue(i) => pick(HUES[i % HUES.len()]),
            Colour::Shade(t) => {
                let t = shade_step(t) as f64 / (SHADES - 1) as f64;
                // The ends of the scale that would vanish in the background are left out.
                viridis(if dark { 0.3 + 0.7 * t } else { 0.86 * t })
            }
            Colour::Diverging(t) => {
                let t = f64::from(side_step(t)) / f64::from(SIDES);
                let neutral = pick((Rgb(244, 244, 245), Rgb(40, 42, 46)));
                let end = if t < 0.0 {
                    pick((Rgb(0, 94, 160), Rgb(86, 180, 240)))
                } else {
                    pick((Rgb(200, 76, 0), Rgb(245, 145, 60)))
                };
                neutral.mix(end, t.abs())
            }
        }
    }
}

fn shade_step(t: f64) -> usize {
    (t.clamp(0.0, 1.0) * (SHADES - 1) as f64).round() as usize
}

fn side_step(t: f64) -> i32 {
    (t.clamp(-1.0, 1.0) * f64::from(SIDES)).round() as i32
}

/// Matplotlib's viridis at nine points, mixed between them.
fn viridis(t: f64) -> Rgb {
    const POINTS: [Rgb; 9] = [
        Rgb(68, 1, 84),
        Rgb(71, 44, 122),
        Rgb(59, 81, 139),
        Rgb(44, 113, 142),
        Rgb(33, 144, 141),
        Rgb(39, 173, 129),
        Rgb(92, 200, 99),
        Rgb(170, 220, 50),
        Rgb(253, 231, 37),
    ];
    let at = t.clamp(0.0, 1.0) * (POINTS.len() - 1) as f64;
    let below = (at.floor() as usize).min(POINTS.len() - 2);
    POINTS[below].mix(POINTS[below + 1], at - below as f64)
}

/// The declarations of every colour variable, for a light or a dark page.
pub fn variables(dark: bool) -> String {
    let hues = (0..HUES.len()).map(Colour::Hue);
    let shades = (0..SHADES).map(|i| Colour::Shade(i as f64 / (SHADES - 1) as f64));
    let sides = (-SIDES..=SIDES).map(|i| Colour::Diverging(f64::from(i) / f64::from(SIDES)));
    let mut css = String::new();
    for colour in [Colour::Ink, Colour::Soft, Colour::Rule].into_iter().chain(hues).chain(shades).chain(sides) {
        let _ = write!(css, "--{}:{};", colour.variable(), colour.rgb(dark).hex());
    }
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_values_and_the_page_variables_that_it_declares() {
        for colour in [Colour::Ink, BLUE, Colour::Shade(0.5), Colour::Diverging(-1.0), Colour::Diverging(0.3)] {
            assert!(colour.paint(Theme::File).starts_with('#'));
            let name = colour.variable();
            assert_eq!(colour.paint(Theme::Page), format!("var(--{name})"));
            for dark in [false, true] {
                assert!(variables(dark).contains(&format!("--{name}:#")), "{name}");
            }
        }
        assert_eq!(BLUE.paint(Theme::File), "#0072b2");
    }

    #[test]
    fn scales_end_where_they_say() {
        assert_eq!(Colour::Shade(-3.0).variable(), "s0");
        assert_eq!(Colour::Shade(2.0).variable(), "s15");
        assert_eq!(Colour::Diverging(0.0).rgb(false), Rgb(244, 244, 245));
        assert_eq!(Colour::Diverging(7.0).rgb(false), Rgb(200, 76, 0));
    }
}

//! Estimates the width of text, so that nothing is cut off or overlaps. The estimate uses DejaVu Sans, which is wider
//! than the fonts that browsers and papers substitute.

/// Width of a text in pixels at a font size.
pub fn width(text: &str, size: f64) -> f64 {
    text.chars().map(advance).sum::<f64>() * size
}

/// Advance of a letter, in units of the font size.
fn advance(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | '\'' => 0.28,
        ' ' | '.' | ',' | ':' | ';' | '|' | '!' | 'I' | '·' => 0.34,
        'f' | 't' | 'r' | '(' | ')' | '-' | '/' | '[' | ']' => 0.41,
        's' | 'c' | 'z' | 'J' => 0.55,
        'm' | 'M' | 'w' | 'W' | '%' | '…' => 0.97,
        'A'..='Z' | '+' | '=' | '<' | '>' | '−' | '±' | '≥' | '≤' | '~' => 0.78,
        _ => 0.636,
    }
}

/// Lines of a title or a label; what would need more is cut.
const MOST_LINES: usize = 8;

/// Letters that a line must have room for before a word is broken.
const SHORTEST_PIECE: f64 = 4.0;

/// Breaks a text into lines that are at most so wide, between words. A word that is wider is broken where there is room
/// for a few letters.
pub fn wrap(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace().flat_map(|word| pieces(word, size, most)) {
        let full = lines.len() == MOST_LINES;
        match lines.last_mut() {
            Some(line) if width(line, size) + width(word, size) + 0.34 * size <= most => {
                line.push(' ');
                line.push_str(word);
            }
            Some(line) if full => {
                line.push('…');
                break;
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// A word, in parts that are at most so wide.
fn pieces(word: &str, size: f64, most: f64) -> Vec<&str> {
    if most < SHORTEST_PIECE * size || width(word, size) <= most {
        return vec![word];
    }
    let (mut out, mut from, mut wide) = (Vec::new(), 0, 0.0);
    for (at, c) in word.char_indices() {
        let advance = advance(c) * size;
        if wide + advance > most {
            out.extend(word.get(from..at));
            (from, wide) = (at, 0.0);
        }
        wide += advance;
    }
    out.extend(word.get(from..));
    out
}

/// As much of a text as fits, with `…` where something is left out.
pub fn fit(text: &str, size: f64, most: f64) -> String {
    if width(text, size) <= most {
        return text.to_string();
    }
    let mut room = most - advance('…') * size;
    let fits = |c: &char| {
        room -= advance(*c) * size;
        room >= 0.0
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut() {
        assert_eq!(fit("layer 3", 10.0, 90.0), "layer 3");
        let cut = fit(&"é".repeat(300), 10.0, 90.0);
        assert!(cut.ends_with("é…") && width(&cut, 10.0) <= 90.0, "{cut}");
        assert_eq!(fit("abc", 10.0, 0.0), "…");
    }

    #[test]
    fn lines_are_broken_between_words_and_hold_all_of_them() {
        let text = "mean of the top tokens, in logits";
        let lines = wrap(text, 10.0, 90.0);
        assert!(lines.len() > 1 && lines.iter().all(|l| width(l, 10.0) <= 90.0), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrap("unbreakable", 10.0, 5.0), ["unbreakable"]);
        let long = "a".repeat(300);
        let lines = wrap(&format!("b {long}"), 10.0, 600.0);
        assert!(lines.iter().all(|l| width(l, 10.0) <= 600.0), "{lines:?}");
        assert_eq!(lines.concat(), format!("b{long}"));
        assert_eq!(wrap(&"a".repeat(100_000), 10.0, 600.0).len(), MOST_LINES);
    }
}

//! How wide text is, so that nothing is cut or overlaps: estimated by DejaVu Sans, which is wider than what browsers
//! and papers put in its place.

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

/// Breaks a text into lines that are at most so wide, between words; a single word may be wider.
pub fn wrap(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line, size) + width(word, size) + 0.34 * size <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// For text and attributes of HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write most control characters.
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_hold_all_of_them() {
        let text = "mean of the top tokens, in logits";
        let lines = wrap(text, 10.0, 90.0);
        assert!(lines.len() > 1 && lines.iter().all(|l| width(l, 10.0) <= 90.0), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrap("unbreakable", 10.0, 5.0), ["unbreakable"]);
    }

    #[test]
    fn what_xml_cannot_hold_is_escaped() {
        assert_eq!(escape("a<b & \"c\"\u{1}"), "a&lt;b &amp; &quot;c&quot;\u{fffd}");
    }
}

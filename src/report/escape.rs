//! Escapes text from tables, configurations and folders for HTML, SVG and file names.

use std::collections::HashSet;

use selfrepair_core::files::sha256_of;

/// For text and attributes (in double quotes) of HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if is_hidden(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// What XML has no way to write (most control characters, two that are no characters), and what changes the direction in
/// which the text after it is shown.
fn is_hidden(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The longest name, without what makes it unique and without an ending: systems allow 255 bytes of all.
const LONGEST: usize = 120;

/// A name for a file and for an element of a page: of ASCII letters, digits, `_` and `-`, not too long, and not beginning
/// with `-`. A text that is such a name is its own; of any other, a checksum tells it apart from those that look alike.
pub fn file_name(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let plain: String = text.chars().map(|c| if is_plain(c) { c } else { '_' }).take(LONGEST).collect();
    if plain == text && !text.is_empty() && !text.starts_with('-') {
        return plain;
    }
    match plain.trim_start_matches('-') {
        "" => with_checksum("figure", text),
        plain => with_checksum(plain, text),
    }
}

fn with_checksum(plain: &str, text: &str) -> String {
    let sum: String = sha256_of(text.as_bytes()).chars().take(8).collect();
    format!("{plain}-{sum}")
}

/// A file's name for each text, no two the same; nor where capital letters count as small ones.
pub fn file_names<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut free = |name: &str| taken.insert(name.to_ascii_lowercase());
    let unique = |text: &str| {
        let name = file_name(text);
        if free(&name) {
            return name;
        }
        let name = with_checksum(&name, text);
        if free(&name) {
            return name;
        }
        // The same text again.
        (2..).map(|n| format!("{name}-{n}")).find(|name| free(name)).unwrap_or_default()
    };
    texts.into_iter().map(unique).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_cannot_hold_is_escaped() {
        assert_eq!(escape("a<b & \"c\"\u{1}"), "a&lt;b &amp; &quot;c&quot;\u{fffd}");
        assert_eq!(escape("\u{1b}[2J\u{85}\u{7f}\u{ffff}\n"), "\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\n");
    }

    #[test]
    fn what_turns_text_around_is_shown_and_letters_of_any_script_stay() {
        assert_eq!(escape("a\u{202e}b\u{2066}c"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(escape("日本 שלום é"), "日本 שלום é");
    }

    #[test]
    fn a_plain_name_is_its_own_and_no_other_leaves_its_folder() {
        assert_eq!(file_name("repairers_of_L0H0_zero"), "repairers_of_L0H0_zero");
        let hostile = [
            "heads_x/../../../y",
            "heads_\"><img src=x onerror=alert(1)>",
            "</script>",
            "javascript:alert(1)",
            "..",
            ".",
            "",
            "-rf",
            "a\0b",
            "a\u{202e}gnp.exe",
            "C:\\x",
            &"n".repeat(300),
            "Ünï",
        ];
        for text in hostile {
            let name = file_name(text);
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{text:?}: {name}");
            assert!(!name.starts_with('-') && name.len() <= 140 && name != text, "{text:?}: {name}");
        }
    }

    #[test]
    fn no_two_texts_share_a_file() {
        let texts = ["heads_a/b", "heads_a_b", "heads_a b", "heads_A_b", "heads_a_b", "heads_a_b"];
        let names = file_names(texts);
        let unique: HashSet<String> = names.iter().map(|n| n.to_ascii_lowercase()).collect();
        assert_eq!(unique.len(), texts.len(), "{names:?}");
        assert_eq!(names[1], "heads_a_b");
        assert_eq!(file_names(texts), names, "the same names in the next report");
        let long = ["x".repeat(300) + "1", "x".repeat(300) + "2"];
        let names = file_names(long.iter().map(String::as_str));
        assert_ne!(names[0], names[1]);
    }
}

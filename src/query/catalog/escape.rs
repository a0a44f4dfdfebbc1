//! Escapes untrusted names and texts for Markdown.

use std::fmt::Write;

/// A text in a line or in a cell of a table: no markup, no HTML, no link, no second line.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let inside_a_word = before.is_alphanumeric() && rest.peek().is_some_and(|c| c.is_alphanumeric());
        match c {
            '_' if inside_a_word => out.push(c),
            // A colon or an at sign makes a link of what is around it, as does `www.`.
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '&' | '|' | '~' | '#' | '!' | '$' | '^' | '=' | '@'
            | ':' => {
                out.push('\\');
                out.push(c);
            }
            '.' if out.to_lowercase().ends_with("www") => out.push_str("\\."),
            '\n' | '\r' | '\t' => out.push(' '),
            c if is_unseen(c) => push_shown(&mut out, "\\\\", c),
            c => out.push(c),
        }
        before = c;
    }
    out
}

/// A name between backticks, also in a cell of a table.
pub fn code(name: &str) -> String {
    let mut inside = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            // In a cell a bar must be escaped even here.
            '|' => inside.push_str("\\|"),
            '\n' | '\r' | '\t' => inside.push(' '),
            c if is_unseen(c) => push_shown(&mut inside, "\\", c),
            c => inside.push(c),
        }
    }
    if inside.trim().is_empty() {
        return "(no name)".to_string();
    }
    let fence = "`".repeat(longest_run(&inside) + 1);
    let room = if inside.starts_with(['`', ' ']) || inside.ends_with(['`', ' ']) { " " } else { "" };
    format!("{fence}{room}{inside}{room}{fence}")
}

/// A block of code of a language.
pub fn block(language: &str, code: &str) -> String {
    let code: String = code.chars().map(|c| if is_unseen(c) && c != '\n' { '\u{fffd}' } else { c }).collect();
    let fence = "`".repeat((longest_run(&code) + 1).max(3));
    format!("{fence}{language}\n{code}\n{fence}")
}

/// A scalar of YAML, which has the strings of JSON; what is not seen is escaped.
pub fn yaml(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if is_unseen(c) && u32::from(c) > 0xffff => {
                write!(out, "\\U{:08x}", u32::from(c)).ok();
            }
            c if is_unseen(c) => {
                write!(out, "\\u{:04x}", u32::from(c)).ok();
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Letters, digits, `_`, `-` and `.`: what means nothing anywhere.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['.', '-'])
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// Characters that show nothing themselves, or change how others are shown.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn push_shown(out: &mut String, backslash: &str, c: char) {
    write!(out, "{backslash}u{{{:x}}}", u32::from(c)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_as_they_are_and_markup_is_text() {
        for plain in
            ["an ablation, a component and a position", "head_summary", "SmolLM2-135M-Instruct.Q4_1", "Llama 3 (8B)"]
        {
            assert_eq!(text(plain), plain);
        }
        assert_eq!(text("<script>"), "\\<script\\>");
        assert_eq!(text("[x](javascript:y)"), "\\[x\\](javascript\\:y)");
        assert_eq!(text("a|b\n# c"), "a\\|b \\# c");
        assert_eq!(text("https://x www.x @x"), "https\\://x www\\.x \\@x");
        assert_eq!(text("_x_ `y` ![z]"), "\\_x\\_ \\`y\\` \\!\\[z\\]");
        assert_eq!(text("\u{1b}[31m\u{202e}"), "\\\\u{1b}\\[31m\\\\u{202e}");
    }

    #[test]
    fn a_name_does_not_leave_its_backticks() {
        assert_eq!(code("ablations"), "`ablations`");
        assert_eq!(code("a`b"), "``a`b``");
        assert_eq!(code("``a"), "``` ``a ```");
        assert_eq!(code("a|b\nc"), "`a\\|b c`");
        assert_eq!(code(" "), "(no name)");
        assert_eq!(block("sql", "select 1\n```\nselect 2"), "````sql\nselect 1\n```\nselect 2\n````");
    }

    #[test]
    fn a_scalar_of_yaml_is_one_line_of_what_can_be_seen() {
        assert_eq!(yaml("Self-repair of \"x\"\n---\\"), "\"Self-repair of \\\"x\\\"\\u000a---\\\\\"");
        assert_eq!(yaml("\u{7f}\u{2028}é"), "\"\\u007f\\u2028é\"");
    }
}

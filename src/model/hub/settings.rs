//! Environment variables of the hub, with the names and meanings of Hugging Face's own tools.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use url::Url;

use selfrepair_core::untrusted::open_file;

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty())
}

/// A variable that names a file or a folder; `~/` is the user's home, and `$NAME` another variable.
fn path(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|v| !v.is_empty())?;
    let path = match value.to_str() {
        Some(text) => PathBuf::from(expanded(text, |name| std::env::var(name).ok())),
        None => PathBuf::from(value),
    };
    let below_home = path.strip_prefix("~").ok().and_then(|rest| Some(dirs::home_dir()?.join(rest)));
    Some(below_home.unwrap_or(path))
}

/// A text with the values of the variables that it names as `$NAME` or `${NAME}`; unknown ones stay (Python:
/// `os.path.expandvars`).
fn expanded(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut parts = text.split('$');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let plain = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let braced = part.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| part.split_at(plain));
        match value(name) {
            Some(found) => out.extend([found.as_str(), rest]),
            None => out.extend(["$", part]),
        }
    }
    out
}

/// `HF_HOME`: the cache and the token lie there.
fn home() -> Result<PathBuf> {
    let default =
        || Some(path("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")))?.join("huggingface"));
    path("HF_HOME").or_else(default).context("there is no home folder for the hub's cache; set HF_HOME to a folder")
}

/// `HF_HUB_CACHE`: the folder of all cached repositories.
pub fn cache() -> Result<PathBuf> {
    path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).map_or_else(|| Ok(home()?.join("hub")), Ok)
}

/// The hub's address, without a user, a query or a fragment.
pub fn endpoint() -> Result<Url> {
    let text = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
    let url = Url::parse(&text).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    // What is before an @ may be a password.
    let shown = if text.contains('@') { "" } else { &text };
    let url = url.with_context(|| {
        format!("HF_ENDPOINT = \"{shown}\" is not the address of a hub; expected https://host or http://host:port")
    })?;
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "HF_ENDPOINT holds a user name or a password; leave them out and set HF_TOKEN"
    );
    ensure!(
        url.query().is_none() && url.fragment().is_none(),
        "HF_ENDPOINT = \"{shown}\" has a ? or a #; expected https://host or http://host:port"
    );
    Ok(url)
}

/// The user's token: `HF_TOKEN`, or what Hugging Face's own login wrote.
pub fn token() -> Option<String> {
    let set = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let file = || path("HF_TOKEN_PATH").or_else(|| Some(home().ok()?.join("token")));
    set.or_else(|| short_text(&file()?))
}

/// As [`token`], checked to be one that can be sent.
///
/// # Errors
/// If it has characters that no token has.
pub fn checked_token() -> Result<Option<String>> {
    let token = token();
    let is_sent_as_it_is = |t: &String| t.bytes().all(|b| b.is_ascii_graphic());
    ensure!(
        token.as_ref().is_none_or(is_sent_as_it_is),
        "the hub's token (HF_TOKEN, or the file of `hf auth login`) has a space, a line break or a character that no \
         token has; set it again"
    );
    Ok(token)
}

/// What a small regular file holds, if it holds anything.
pub fn short_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    open_file(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text.trim().to_string()).filter(|t| !t.is_empty())
}

pub fn offline() -> bool {
    let set = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE"));
    set.is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str()))
}

/// How long a server may be silent: `HF_HUB_DOWNLOAD_TIMEOUT` seconds, or ten.
pub fn patience() -> Result<Duration> {
    let Some(text) = variable("HF_HUB_DOWNLOAD_TIMEOUT") else { return Ok(Duration::from_secs(10)) };
    let seconds = text.parse().ok().filter(|s| (1..=600).contains(s));
    let seconds = seconds.with_context(|| {
        format!("HF_HUB_DOWNLOAD_TIMEOUT = \"{text}\" is not a whole number of seconds from 1 to 600")
    })?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_in_a_path_are_replaced_by_their_values() {
        let value = |name: &str| [("HOME", "/home/me"), ("A_1", "x")].into_iter().find(|(n, _)| *n == name);
        let of = |text: &str| expanded(text, |name| value(name).map(|(_, v)| v.to_string()));
        // As Python's os.path.expandvars.
        for (text, expected) in [
            ("/cache", "/cache"),
            ("$HOME/hub", "/home/me/hub"),
            ("${HOME}/hub$A_1", "/home/me/hubx"),
            ("/a/$NONE/b", "/a/$NONE/b"),
            ("/a/${NONE}/b", "/a/${NONE}/b"),
            ("/a$", "/a$"),
            ("${A_1", "${A_1"),
        ] {
            assert_eq!(of(text), expected);
        }
    }
}

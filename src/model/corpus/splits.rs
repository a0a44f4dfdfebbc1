//! Which files of a data set of the hub are its training split: those that its README names, else by the names of
//! folders and files. These are the rules of Hugging Face's `datasets`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use glob::Pattern;
use serde_json::{Map, Value};

use selfrepair_core::untrusted::without_panic;

/// Names of splits, each with what files and folders of it may be called.
const KEYWORDS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

const TRAIN: &str = "train";

/// What is read of a data set, in this order: if it has files of several formats, those of the first.
const FORMATS: [&[&str]; 3] = [&[".parquet"], &[".jsonl", ".jsonl.gz", ".jsonl.zst"], &[".txt"]];

/// Advice where the data set does not say which files are meant.
const CHOOSE: &str = "download the file you mean and name it in corpus.source";

/// Patterns of a README times files of the data set: each is tried with each.
const MOST_TRIED: usize = 10_000_000;

/// The files to read, in order. `readme` is the data set's README.md.
///
/// # Errors
/// If the data set has no files of a known format, or does not say which of them are meant.
pub fn training_files(files: &[String], readme: Option<&str>) -> Result<Vec<String>> {
    let configs = readme.map(configs).transpose().context("README.md")?.unwrap_or_default();
    let config = default_config(configs)?;
    let splits = match &config {
        Some(Config { data_files: Some(named), data_dir, .. }) => named_splits(files, named, data_dir)?,
        other => {
            let folder = other.as_ref().map_or("", |config| config.data_dir.as_str());
            splits_by_name(files, folder)
        }
    };
    let train = splits.iter().find(|(split, _)| split == TRAIN);
    let chosen = match (train, splits.as_slice()) {
        (Some((_, files)), _) | (None, [(_, files)]) => files,
        (None, []) => bail!("the data set has no .parquet, .jsonl or .txt files"),
        (None, several) => bail!(
            "the data set has the splits {} and no split train; {CHOOSE}",
            several.iter().map(|(split, _)| split.as_str()).collect::<Vec<_>>().join(", ")
        ),
    };
    first_format(chosen).context("the data set has no .parquet, .jsonl or .txt files in its split train")
}

fn first_format(files: &[String]) -> Option<Vec<String>> {
    let of = |endings: &[&str]| files.iter().filter(|f| is_of(f, endings)).cloned().collect::<Vec<_>>();
    FORMATS.iter().map(|endings| of(endings)).find(|found| !found.is_empty())
}

fn is_of(file: &str, endings: &[&str]) -> bool {
    let name = file.to_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Names of splits with their files.
type Splits = Vec<(String, Vec<String>)>;

/// The splits of the files in a folder (of the whole data set, if it is empty).
fn splits_by_name(files: &[String], folder: &str) -> Splits {
    let mut files: Vec<&String> = files.iter().filter(|f| below(folder, f).is_some_and(|f| !is_hidden(f))).collect();
    files.retain(|f| FORMATS.iter().any(|endings| is_of(f, endings)));
    files.sort();
    let inside = |f: &&String| below(folder, f).unwrap_or_default().to_string();
    let mut sharded = Splits::new();
    for file in &files {
        if let Some(split) = shard_of(&inside(file)) {
            match sharded.iter_mut().find(|(name, _)| *name == split) {
                Some((_, of)) => of.push((*file).clone()),
                None => sharded.push((split, vec![(*file).clone()])),
            }
        }
    }
    let by_folder = |f: &str, keyword: &str, place: Place| {
        let folders = f.rsplit_once('/').map_or("", |(folders, _)| folders);
        folders.split('/').any(|folder| has_word(folder, keyword, place))
    };
    let by_file = |f: &str, keyword: &str, place: Place| {
        place.goes_on() && has_word(f.rsplit('/').next().unwrap_or_default(), keyword, place)
    };
    let of = |is_in: &dyn Fn(&str, &str, Place) -> bool| -> Splits {
        let split = |(split, keywords): &(&str, &[&str])| {
            let mut found: Vec<String> = Vec::new();
            for (keyword, place) in keywords.iter().flat_map(|keyword| PLACES.map(|place| (keyword, place))) {
                let more = files.iter().filter(|f| is_in(&inside(f), keyword, place) && !found.contains(f));
                found.extend(more.map(|f| (*f).clone()).collect::<Vec<_>>());
            }
            (split.to_string(), found)
        };
        KEYWORDS.iter().map(split).filter(|(_, files)| !files.is_empty()).collect()
    };
    let all = || match files.is_empty() {
        true => vec![],
        false => vec![(TRAIN.to_string(), files.iter().map(|f| (*f).clone()).collect())],
    };
    [sharded, of(&by_folder), of(&by_file)].into_iter().find(|splits| !splits.is_empty()).unwrap_or_else(all)
}

/// The split of `data/SPLIT-00000-of-00001….parquet`.
fn shard_of(file: &str) -> Option<String> {
    let name = file.strip_prefix("data/").filter(|name| !name.contains('/'))?;
    let (before, after) = name.rsplit_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    let is_number = |text: Option<&str>| text.is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()));
    let is_shard = number.len() == 5 && is_number(Some(number)) && is_number(after.get(..5)) && after.contains('.');
    (is_shard && !split.is_empty()).then(|| split.to_string())
}

/// Where a keyword stands in a name.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Whole,
    Beginning,
    End,
    Middle,
}

/// In the order in which files are read.
const PLACES: [Place; 4] = [Place::Whole, Place::Beginning, Place::End, Place::Middle];

impl Place {
    /// Whether something follows, as at least its ending does in a file's name.
    fn goes_on(self) -> bool {
        matches!(self, Place::Beginning | Place::Middle)
    }
}

/// Whether a keyword stands alone at a place of a name: beside it are `-`, `.`, `_`, spaces or digits.
fn has_word(name: &str, keyword: &str, place: Place) -> bool {
    let separates = |c: char| c.is_ascii_digit() || "-._ ".contains(c);
    name.match_indices(keyword).any(|(at, _)| {
        let before = name.get(..at).and_then(|text| text.chars().next_back());
        let after = name.get(at + keyword.len()..).and_then(|text| text.chars().next());
        let found = match (before, after) {
            (None, None) => Place::Whole,
            (None, Some(_)) => Place::Beginning,
            (Some(_), None) => Place::End,
            (Some(_), Some(_)) => Place::Middle,
        };
        found == place && before.is_none_or(separates) && after.is_none_or(separates)
    })
}

/// The path of a file in a folder, seen from it.
fn below<'a>(folder: &str, file: &'a str) -> Option<&'a str> {
    match folder {
        "" => Some(file),
        folder => file.strip_prefix(folder)?.strip_prefix('/'),
    }
}

fn is_hidden(file: &str) -> bool {
    file.split('/').any(|part| part.starts_with('.') || part.starts_with("__"))
}

/// A configuration of the README.
#[derive(Debug, Default, PartialEq)]
struct Config {
    name: String,
    is_default: bool,
    data_dir: String,
    /// Patterns of file names by split.
    data_files: Option<Vec<(String, Vec<String>)>>,
}

fn default_config(configs: Vec<Config>) -> Result<Option<Config>> {
    let names: Vec<String> = configs.iter().map(|c| c.name.clone()).collect();
    let alone = configs.len() == 1;
    let default = configs.into_iter().find(|c| alone || c.is_default || c.name == "default");
    ensure!(
        default.is_some() || names.is_empty(),
        "the data set has several configurations ({}) and none is the default; {CHOOSE}",
        names.join(", ")
    );
    Ok(default)
}

fn named_splits(files: &[String], named: &[(String, Vec<String>)], folder: &str) -> Result<Splits> {
    let count: usize = named.iter().map(|(_, patterns)| patterns.len()).sum();
    ensure!(
        count.saturating_mul(files.len()) <= MOST_TRIED,
        "README.md has {count} patterns for {} files; {CHOOSE}",
        files.len()
    );
    let mut splits = Splits::new();
    for (split, patterns) in named {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        for pattern in patterns {
            let of_pattern = matching(files, pattern, folder)?;
            // Of the other splits, nothing is read.
            let is_needed = split == TRAIN || named.len() == 1;
            ensure!(
                !of_pattern.is_empty() || !is_needed,
                "README.md says that the split {split} is `{pattern}`, which is no file of the data set"
            );
            found.extend(of_pattern.into_iter().filter(|file| seen.insert(file.clone())));
        }
        splits.push((split.clone(), found));
    }
    Ok(splits)
}

fn matching(files: &[String], pattern: &str, folder: &str) -> Result<Vec<String>> {
    ensure!(
        !pattern.contains("://"),
        "README.md says that the data set is in `{pattern}`, outside its repository; {CHOOSE}"
    );
    let asks_for_hidden = is_hidden(pattern.trim_start_matches("./"));
    let parsed = PathPattern::new(pattern.trim_start_matches("./"));
    let parsed = parsed.with_context(|| format!("README.md has the pattern `{pattern}` of files; {CHOOSE}"))?;
    let matches = |f: &&String| {
        let inside = below(folder, f).filter(|f| asks_for_hidden || !is_hidden(f));
        inside.is_some_and(|f| parsed.matches(f))
    };
    let mut found: Vec<String> = files.iter().filter(matches).cloned().collect();
    found.sort();
    Ok(found)
}

/// A pattern of paths, by component; `None` is `**`. As a whole, the library would try every way to share a path between
/// several `*`, which takes time without end for some.
struct PathPattern(Vec<Option<Pattern>>);

impl PathPattern {
    fn new(pattern: &str) -> Result<Self> {
        let part = |part| if part == "**" { Ok(None) } else { Ok(Some(Pattern::new(part)?)) };
        pattern.split('/').map(part).collect::<Result<_>>().map(Self)
    }

    fn matches(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        // How many names the parts so far can stand for.
        let mut ends = BTreeSet::from([0]);
        for (i, part) in self.0.iter().enumerate() {
            // At its end, `**` stands for at least one.
            let least = usize::from(i + 1 == self.0.len());
            ends = match (part, ends.first()) {
                (_, None) => return false,
                (None, Some(first)) => (first + least..=names.len()).collect(),
                (Some(part), _) => {
                    let fits = |&&at: &&usize| names.get(at).is_some_and(|name| part.matches(name));
                    ends.iter().filter(fits).map(|at| at + 1).collect()
                }
            };
        }
        ends.contains(&names.len())
    }
}

/// The `configs` of a README's YAML header.
fn configs(readme: &str) -> Result<Vec<Config>> {
    let Some(header) = header(readme) else { return Ok(vec![]) };
    let header = without_panic(|| yaml(header)).context("its YAML header")?;
    let list = match header.get("configs") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Array(list)) => list,
        _ => bail!("`configs` is not a list"),
    };
    list.iter().map(config).collect()
}

fn config(value: &Value) -> Result<Config> {
    let name = value["config_name"].as_str().context("one of its `configs` has no `config_name`")?;
    let wrong = || {
        format!(
            "`data_files` of the configuration {name}: expected file names, or a list of objects `split` and `path`"
        )
    };
    let texts = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_string)).collect(),
            _ => None,
        }
    };
    let data_files = match &value["data_files"] {
        Value::Null => None,
        Value::Array(list) if list.iter().any(Value::is_object) => {
            let split = |entry: &Value| Some((entry["split"].as_str()?.to_string(), texts(&entry["path"])?));
            Some(list.iter().map(split).collect::<Option<Vec<_>>>().with_context(wrong)?)
        }
        other => Some(vec![(TRAIN.to_string(), texts(other).with_context(wrong)?)]),
    };
    let data_dir = value["data_dir"].as_str().unwrap_or_default().trim_start_matches("./").trim_end_matches('/');
    let is_default = value["default"].as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"));
    Ok(Config { name: name.into(), is_default, data_dir: data_dir.into(), data_files })
}

/// What stands between two lines of `---` at the beginning.
fn header(readme: &str) -> Option<&str> {
    let rest = readme.trim_start_matches('\u{feff}').trim_start().strip_prefix("---")?;
    let rest = rest.strip_prefix('\r').unwrap_or(rest).strip_prefix('\n')?;
    let is_end = |at: &usize| {
        let after = rest.get(at + "\n---".len()..).unwrap_or_default();
        after.is_empty() || after.starts_with('\n') || after.starts_with("\r\n")
    };
    let end = rest.match_indices("\n---").map(|(at, _)| at).find(is_end)?;
    rest.get(..end)
}

/// Levels of lists and objects. A data set's card has about six.
const MOST_NESTED: usize = 100;

/// Values that are being read.
enum Open {
    List(Vec<Value>),
    Object(Map<String, Value>, Option<String>),
}

/// YAML whose scalars are all texts. Aliases are refused: a few bytes of them can stand for any number of values.
fn yaml(text: &str) -> Result<Value> {
    use saphyr_parser::{Event, Parser};
    let (mut open, mut root) = (Vec::<Open>::new(), Value::Null);
    for event in Parser::new_from_str(text) {
        ensure!(open.len() <= MOST_NESTED, "it nests deeper than {MOST_NESTED} levels");
        let value = match event?.0 {
            Event::Scalar(text, ..) => Value::String(text.into_owned()),
            Event::SequenceStart(..) => {
                open.push(Open::List(vec![]));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Object(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Object(object, _)) => Value::Object(object),
                None => bail!("it ends what it did not begin"),
            },
            Event::Alias(_) => bail!("it has an alias (`*name`), which is not supported"),
            _ => continue,
        };
        match open.last_mut() {
            None => root = value,
            Some(Open::List(list)) => list.push(value),
            Some(Open::Object(object, key)) => match (key.take(), value) {
                (Some(key), value) => drop(object.insert(key, value)),
                (None, Value::String(text)) => *key = Some(text),
                (None, _) => bail!("a key is not a text"),
            },
        }
    }
    Ok(root)
}

#[cfg(test)]
mod tests;

//! The documents as text: tables that follow from the code, and fenced blocks.
//!
//! A table stands behind a comment `<!-- table: NAME -->`. What the code says about it is decided by the tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

/// With this variable set, tables are rewritten instead of compared.
const UPDATE: &str = "MINI_LB_UPDATE_DOCS";

/// A row as its cells.
pub type Cells = Vec<String>;

/// Tests run at once, and rewrite tables of the same file.
static WRITING: Mutex<()> = Mutex::new(());

/// README.md and every page under docs/.
pub fn documents() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The document with this table, the text before it, its lines, and the text behind it.
fn table(name: &str) -> (PathBuf, String, Vec<String>, String) {
    let marker = format!("<!-- table: {name} -->\n");
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        if let Some((before, rest)) = text.split_once(&marker) {
            let lines = rest.lines().take_while(|line| line.starts_with('|'));
            let lines: Vec<_> = lines.map(str::to_owned).collect();
            let length: usize = lines.iter().map(|line| line.len() + 1).sum();
            return (
                path,
                format!("{before}{marker}"),
                lines,
                rest[length..].to_owned(),
            );
        }
    }
    panic!("no document has {marker}");
}

/// The rows of a table without its two lines of heading.
pub fn rows(name: &str) -> Vec<Cells> {
    let cells = |row: &String| {
        let hidden = row.trim_matches('|').replace("\\|", "\0");
        let cells = hidden
            .split('|')
            .map(|cell| cell.trim().replace('\0', "\\|"));
        cells.collect()
    };
    table(name).2.iter().skip(2).map(cells).collect()
}

fn line(cells: &[String]) -> String {
    let padded = cells.iter().map(|cell| match cell.is_empty() {
        true => " |".to_owned(),
        false => format!(" {cell} |"),
    });
    format!("|{}", padded.collect::<String>())
}

/// Compares a table with these rows, or rewrites it when that is asked for.
pub fn hold(name: &str, heading: &[&str], expected: &[Cells]) {
    let heading: Cells = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let rule = format!("|{}", "---|".repeat(heading.len()));
    let mut lines = vec![line(&heading), rule];
    lines.extend(expected.iter().map(|cells| line(cells)));
    let _guard = WRITING.lock();
    let (path, before, found, behind) = table(name);
    if found != lines && std::env::var_os(UPDATE).is_some() {
        let text = format!("{before}{}\n{behind}", lines.join("\n"));
        fs::write(&path, text).unwrap();
        return;
    }
    let at = (0..found.len().max(lines.len())).find(|at| found.get(*at) != lines.get(*at));
    if let Some(at) = at {
        let [is, should] =
            [&found, &lines].map(|lines| lines.get(at).map_or("nothing", String::as_str));
        panic!(
            "table `{name}` in {}, line {at}:\n{is}\nbut the code says:\n{should}\n\
             {UPDATE}=1 cargo test --test {} rewrites it",
            path.display(),
            this_test()
        );
    }
}

/// The name of the running test target, as `--test` takes it: its file has a hash behind it.
fn this_test() -> String {
    let program = std::env::current_exe().unwrap();
    let name = program.file_stem().unwrap().to_string_lossy();
    name.rsplit_once('-')
        .map_or(&*name, |(target, _)| target)
        .to_owned()
}

/// The rows with the keys that the code has: a key in backticks that it lacks is left out, a new one gets a row
/// whose last cell has to be written.
pub fn reconciled(name: &str, keys: &[String]) -> Vec<Cells> {
    let told = rows(name);
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for mut row in told {
        let known: Vec<_> = quoted(&row[0])
            .into_iter()
            .filter(|key| keys.contains(key))
            .collect();
        for key in &known {
            assert!(seen.insert(key.clone()), "table `{name}` has {key} twice");
        }
        if !known.is_empty() {
            row[0] = backticked(&known);
            kept.push(row);
        }
    }
    let columns = table(name).2[0].matches(" | ").count() + 1;
    for key in keys.iter().filter(|key| !seen.contains(*key)) {
        let mut row = vec![String::new(); columns];
        row[0] = format!("`{key}`");
        kept.push(row);
    }
    kept
}

/// Fails where somebody has to write what a key means.
pub fn is_described(name: &str) {
    for row in rows(name) {
        assert!(
            !row.last().unwrap().is_empty(),
            "table `{name}`: describe {}",
            row[0]
        );
    }
}

/// What stands in backticks.
pub fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

pub fn backticked(keys: &[String]) -> String {
    let quoted: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
    quoted.join(" ")
}

/// A sentence of `--help` as Markdown: paths, flags, keys and URLs are code.
pub fn marked(help: &str) -> String {
    let is_code = |word: &str| {
        let rest = word.trim_start_matches(['/', '-']);
        let is_path =
            rest.len() < word.len() && rest.starts_with(|first: char| first.is_ascii_alphabetic());
        let is_place = word.contains(':')
            && word
                .chars()
                .all(|letter| letter == ':' || letter.is_ascii_uppercase());
        let is_file = word.contains('/') && word.contains('.');
        is_path || is_place || is_file || word.contains('_') || word.contains("://")
    };
    let mark = |word: &str| {
        let core = word.trim_matches(['.', ',', ';', '(', ')', '[', ']', ':']);
        match is_code(core) && !word.contains('`') {
            true => word.replacen(core, &format!("`{core}`"), 1),
            false => word.to_owned(),
        }
    };
    let words: Vec<_> = help.split_whitespace().map(mark).collect();
    words.join(" ").replace('|', "\\|").replace('<', "&lt;")
}

/// What stands behind `before` in brackets of a flag's help.
pub fn note(help: &str, before: &str) -> Option<String> {
    let (_, rest) = help.split_once(&format!("[{before}: "))?;
    Some(rest.split_once(']')?.0.to_owned())
}

pub fn code_or_nothing(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("`{text}`")
    }
}

/// The fenced blocks of a document in one language.
pub fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in text.split(&format!("```{language}\n")).skip(1) {
        found.push(part.split("\n```").next().unwrap().to_owned());
    }
    found
}

/// The text of a document outside of its fenced blocks.
pub fn without_blocks(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

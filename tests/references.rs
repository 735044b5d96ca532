//! Guards of what is cited: every file, page and section that a page, a comment or a script names is in the repository.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Not ours, or written by programs.
const SKIPPED: &[&str] = &[
    ".git",
    ".sqlx",
    ".venv",
    "__pycache__",
    "artifacts",
    "node_modules",
    "target",
];
/// Endings of files that are read, and how their comments begin. A page is read as a whole.
const READ: &[(&str, &str)] = &[
    ("md", ""),
    ("rs", "//"),
    ("sol", "//"),
    ("mjs", "//"),
    ("sql", "--"),
    ("py", "#"),
    ("toml", "#"),
    ("yml", "#"),
    // Scripts have none.
    ("", "#"),
];
/// What begins with one of these and a slash is a path of the repository.
const FOLDERS: &[&str] = &[
    "benches",
    "contracts",
    "docs",
    "examples",
    "migrations",
    "openapi",
    "scripts",
    "src",
    "tests",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file with the mark of its comments.
struct File {
    path: PathBuf,
    text: String,
    mark: &'static str,
}

fn files() -> io::Result<Vec<File>> {
    fn walk(folder: &Path, found: &mut Vec<File>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if SKIPPED.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if path.is_dir() {
                walk(&path, found)?;
                continue;
            }
            let ending = path.extension().unwrap_or_default().to_string_lossy();
            let read = READ.iter().find(|(known, _)| *known == ending);
            if let Some((_, mark)) = read {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                found.push(File { path, text, mark });
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root(), &mut found)?;
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// What is said in a line for people.
fn comment<'a>(line: &'a str, mark: &str) -> &'a str {
    let inside = || line.split_once(&format!(" {mark}"));
    line.trim_start()
        .strip_prefix(mark)
        .or_else(|| inside().map(|(_, comment)| comment))
        .unwrap_or_default()
}

/// What could be a path, with the section behind it.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let part = |letter: char| letter.is_ascii_alphanumeric() || "_-./#".contains(letter);
    text.split(move |letter| !part(letter))
        .map(|path| path.trim_end_matches(['.', '/', '-', '#']))
}

fn is_page(path: &str) -> bool {
    path.split('#').next().is_some_and(|file| {
        Path::new(file)
            .extension()
            .is_some_and(|ending| ending == "md")
    })
}

fn is_in_a_folder(path: &str) -> bool {
    path.split_once('/')
        .is_some_and(|(folder, _)| FOLDERS.contains(&folder))
}

/// The name of the section that a heading begins, as in links to it.
fn section(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || "-_ ".contains(*letter);
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

fn sections(page: &str) -> Vec<String> {
    // Every second piece between fences is code.
    let prose = page.split("```").step_by(2).flat_map(str::lines);
    prose
        .filter(|line| line.starts_with('#'))
        .map(section)
        .collect()
}

/// What is wrong with a path that `file` cites; relative to the repository, or to the folder of the file.
fn problem(file: &Path, cited: &str, from_root: bool) -> Option<String> {
    let (path, wanted) = cited.split_once('#').unwrap_or((cited, ""));
    let candidates = [
        from_root.then(|| root().join(path)),
        Some(file.with_file_name(path)),
    ];
    let found = if path.is_empty() {
        Some(file.to_owned())
    } else {
        candidates.into_iter().flatten().find(|path| path.exists())
    };
    let said = |what: &str| Some(format!("{}: {cited}: {what}", file.display()));
    let Some(found) = found else {
        return said("there is no such file");
    };
    let has_section = || {
        let page = fs::read_to_string(&found).unwrap_or_default();
        sections(&page).iter().any(|section| section == wanted)
    };
    if !wanted.is_empty() && !has_section() {
        return said("there is no such section");
    }
    None
}

/// Where the links of a page lead.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let prose = page.split("```").step_by(2);
    let links = prose.flat_map(|text| text.split("](").skip(1));
    links
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains("://") && !link.contains("::"))
}

#[test]
fn what_could_be_a_path_is_found_in_a_sentence() {
    let said =
        "See `docs/glossary.md#glossary`, src/lib.rs. At https://host/docs/x.md too; and/or.";
    let cited = paths(said).filter(|path| is_page(path) || is_in_a_folder(path));
    let cited: Vec<_> = cited.filter(|path| !path.starts_with('/')).collect();
    assert_eq!(cited, ["docs/glossary.md#glossary", "src/lib.rs"]);
    assert_eq!(section("## What `/settle` answers"), "what-settle-answers");
    assert_eq!(comment("let x = 1; // see y", "//"), " see y");
}

#[test]
fn what_comments_and_pages_cite_is_in_the_repository() -> io::Result<()> {
    let mut wrong = Vec::new();
    for File { path, text, mark } in files()? {
        for line in text.lines() {
            let comment = comment(line, mark);
            let in_comment = paths(comment).filter(|path| is_in_a_folder(path) && !is_page(path));
            // Messages cite pages too.
            let pages = paths(line).filter(|path| is_page(path) && !path.starts_with('/'));
            let cited = in_comment.chain(pages);
            wrong.extend(cited.filter_map(|cited| problem(&path, cited, true)));
        }
        if mark.is_empty() {
            wrong.extend(links(&text).filter_map(|link| problem(&path, link, false)));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    Ok(())
}

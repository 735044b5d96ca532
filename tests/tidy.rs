//! Rules of the source tree: imports between modules, access to SQL and the environment, file lengths, names in the schema.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Each top-level module and the modules it may import; `src/lib.rs` shows the picture. `*` is everything.
const MODULES: &[(&str, &str)] = &[
    ("protocol", ""),
    ("clock", ""),
    ("telemetry", ""),
    ("coalesce", ""),
    ("timing", ""),
    ("embedded", ""),
    ("payment", "protocol"),
    ("chain", "protocol payment coalesce clock telemetry"),
    ("ledger", "protocol payment coalesce clock timing telemetry"),
    (
        "settlement",
        "protocol payment chain ledger telemetry timing",
    ),
    (
        "facilitator",
        "protocol payment chain ledger settlement clock telemetry",
    ),
    (
        "http",
        "protocol payment chain ledger settlement clock facilitator telemetry",
    ),
    ("webhooks", "clock ledger http buyer telemetry"),
    ("config", "protocol payment chain"),
    (
        "server",
        "protocol payment chain ledger settlement clock facilitator http webhooks config telemetry",
    ),
    ("buyer", "protocol clock"),
    ("seller", "protocol clock"),
    ("command", "*"),
];
/// Restricted dependencies: the root of a path, the prefix of its next name, and the files below `src` that may use it.
const RESTRICTED: &[(&str, &str, &[&str])] = &[
    (
        "sqlx::",
        "",
        &[
            "ledger/",
            "embedded/database.rs",
            "embedded/error.rs",
            "embedded/scratch.rs",
        ],
    ),
    ("alloy::", "rpc", &["chain/", "embedded/"]),
    ("alloy::", "transports", &["chain/", "embedded/"]),
    ("alloy::", "providers", &["chain/", "embedded/"]),
    (
        "env::",
        "var",
        &[
            "config/",
            "settlement/failpoint.rs",
            // The server on which tests create their databases.
            "ledger/testing/database.rs",
            // Where programs are looked up, and the variables that the local chain must not inherit.
            "embedded/anvil_binary.rs",
            "embedded/cluster.rs",
        ],
    ),
];
/// Folders below `src` in which no file may use another one that uses it in turn, directly or through others.
const WITHOUT_CIRCLES: &[&str] = &["chain", "chain/rpc"];
/// Feature gates stand at the modules of `lib.rs`. The exceptions: file, number of lines, reason.
const OTHER_FEATURE_GATES: &[(&str, usize, &str)] = &[
    ("chain/mod.rs", 1, "the SDK of AWS is large"),
    (
        "config/network/signers.rs",
        2,
        "without AWS KMS the configuration says what to do",
    ),
    (
        "protocol/response.rs",
        8,
        "the API specification shows the answers, and only a server has one",
    ),
    (
        "protocol/status.rs",
        2,
        "the API specification shows the answer, and only a server has one",
    ),
    (
        "protocol/session/wire.rs",
        27,
        "the API specification shows the sessions, and only a server has one",
    ),
    (
        "settlement/failpoint.rs",
        1,
        "a release must not contain failpoints",
    ),
];
const LINES_MAX: usize = 500;
const VAGUE_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];
/// Keywords of a SQL constraint, named or not.
const CONSTRAINT_WORDS: &[&str] = &[
    "primary key",
    "foreign key",
    "references ",
    "unique",
    "check (",
    "exclude ",
];

/// Every file below `folder` of the repository, in order, with its path relative to it.
fn files(folder: &str) -> io::Result<Vec<(String, String)>> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // Installed packages beside the interop programs are not ours.
            let foreign = ["node_modules", ".venv", "__pycache__"]
                .iter()
                .any(|name| path.ends_with(name));
            if path.is_dir() && !foreign {
                walk(&path, found)?;
            } else if !foreign {
                found.push(path);
            }
        }
        Ok(())
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    walk(&root, &mut paths)?;
    paths.sort();
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap_or(&path);
        Ok((name.display().to_string(), fs::read_to_string(&path)?))
    };
    paths.into_iter().map(named).collect()
}

/// A source file without its comment lines.
fn code(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.fold(String::new(), |code, line| code + line + "\n")
}

/// The same without the test module at its end.
fn without_tests(mut code: String) -> String {
    code.truncate(code.find("#[cfg(test)]\nmod ").unwrap_or(code.len()));
    code
}

/// The first names of every path that begins with `root`, also in groups: `crate::{a::B, c::{D, E}}` names `a` and `c`.
fn named_after(root: &str, code: &str) -> Vec<String> {
    let leading = |path: &str| -> String {
        let letters = path.trim_start().chars();
        letters
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect()
    };
    let mut names = Vec::new();
    for path in code.split(root).skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            names.push(leading(path));
            continue;
        };
        let (mut depth, mut members) = (1_u32, String::new());
        for letter in group.chars() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ if depth == 1 => members.push(letter),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        names.extend(
            members
                .split(',')
                .map(leading)
                .filter(|name| !name.is_empty()),
        );
    }
    names
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn paths_and_groups_name_their_modules() {
    let code = "use crate::{chain::{Rpc, facts}, ledger,\n    http::Problem,\n};\ncrate::clock::now(); crate::*";
    assert_eq!(
        named_after("crate::", code),
        ["chain", "ledger", "http", "clock", ""]
    );
    assert_eq!(
        named_after("super::", "super::super::server::Service"),
        ["", "server"]
    );
}

#[test]
fn modules_import_only_modules_to_their_left() -> io::Result<()> {
    let is_module = |name: &str| MODULES.iter().any(|(module, _)| *module == name);
    let mut wrong = Vec::new();
    for (path, text) in files("src")? {
        let module = path.split(['/', '.']).next().unwrap_or_default();
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some((_, imports)) = MODULES.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!(
                "src/{path}: {module} is not in MODULES of tests/tidy.rs"
            ));
            continue;
        };
        let code = match module {
            "embedded" => without_tests(code(&text)),
            _ => code(&text),
        };
        let from_super = named_after("super::", &code);
        let named = named_after("crate::", &code)
            .into_iter()
            .chain(from_super.into_iter().filter(|name| is_module(name)));
        let foreign = named.filter(|name| {
            name != module && *imports != "*" && !imports.split(' ').any(|imports| imports == name)
        });
        wrong.extend(
            foreign.map(|name| {
                format!("src/{path}: {module} must not import {name:?}, only: {imports}")
            }),
        );
    }
    assert_none(&wrong);
    Ok(())
}

/// The files and folders of a folder, each with those that it uses. A name that `mod.rs` exports stands for its file.
fn uses(folder: &str) -> io::Result<Vec<(String, BTreeSet<String>)>> {
    let root = format!("crate::{}::", folder.replace('/', "::"));
    let files = files(&format!("src/{folder}"))?;
    let module = |path: &str| -> String {
        let name = path.split(['/', '.']).next().unwrap_or_default();
        name.to_owned()
    };
    let exports = files.iter().find(|(path, _)| path == "mod.rs");
    let exports: Vec<(String, Vec<String>)> = exports
        .map_or_else(String::new, |(_, text)| code(text))
        .split("use ")
        .skip(1)
        .filter_map(|path| path.split_once("::"))
        .map(|(module, names)| {
            let names = names.split(';').next().unwrap_or_default();
            (module.to_owned(), named_after("::", &format!("::{names}")))
        })
        .collect();
    let mut uses = Vec::new();
    for (path, text) in &files {
        if path.ends_with("mod.rs") || path.ends_with("tests.rs") {
            continue;
        }
        let named = named_after(&root, &without_tests(code(text)));
        let used = named.into_iter().map(|name| {
            let exported = exports.iter().find(|(_, names)| names.contains(&name));
            exported.map_or(name, |(module, _)| module.clone())
        });
        let used: BTreeSet<String> = used.filter(|used| *used != module(path)).collect();
        uses.push((module(path), used));
    }
    Ok(uses)
}

#[test]
fn files_of_some_folders_use_each_other_in_no_circle() -> io::Result<()> {
    for folder in WITHOUT_CIRCLES {
        let mut uses = uses(folder)?;
        assert!(uses.iter().any(|(_, used)| !used.is_empty()), "{folder}");
        // Files that use none of those left are taken away, until only circles are left, and what uses them.
        loop {
            let left: Vec<String> = uses.iter().map(|(module, _)| module.clone()).collect();
            let before = uses.len();
            for (_, used) in &mut uses {
                used.retain(|used| left.contains(used));
            }
            uses.retain(|(_, used)| !used.is_empty());
            if uses.len() == before {
                break;
            }
        }
        let circle = uses
            .iter()
            .map(|(module, used)| format!("src/{folder}/{module} uses {used:?}"));
        assert_none(&circle.collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn sql_rpc_and_environment_are_used_in_few_files() -> io::Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in files("src")? {
        let code = without_tests(code(&text));
        for (root, what, allowed) in RESTRICTED {
            let is_allowed = allowed.iter().any(|file| path.starts_with(file));
            let uses = named_after(root, &code)
                .iter()
                .any(|name| name.starts_with(what));
            if uses && !is_allowed {
                wrong.push(format!("src/{path}: {root}{what} belongs in {allowed:?}"));
            }
        }
    }
    assert_none(&wrong);
    Ok(())
}

#[test]
fn features_are_gated_at_module_declarations() -> io::Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in files("src")? {
        let code = code(&text);
        let mut lines = code.lines().map(str::trim).peekable();
        let mut elsewhere = 0;
        while let Some(line) = lines.next() {
            if !line.contains("feature = \"") {
                continue;
            }
            while lines.next_if(|next| next.starts_with("#[")).is_some() {}
            let declares = |next: &&str| next.contains("mod ") && next.ends_with(';');
            if path != "lib.rs" || lines.next_if(declares).is_none() {
                elsewhere += 1;
            }
        }
        let exception = OTHER_FEATURE_GATES.iter().find(|(file, ..)| *file == path);
        let expected = exception.map_or(0, |(_, count, _)| *count);
        if elsewhere != expected {
            wrong.push(format!(
                "src/{path}: {elsewhere} feature gates, expected {expected}"
            ));
        }
    }
    assert_none(&wrong);
    Ok(())
}

#[test]
fn files_are_short_and_not_vaguely_named() -> io::Result<()> {
    let mut wrong = Vec::new();
    for folder in ["src", "tests"] {
        for (path, text) in files(folder)? {
            let lines = text.lines().count();
            if Path::new(&path)
                .extension()
                .is_some_and(|ending| ending == "rs")
                && lines > LINES_MAX
            {
                wrong.push(format!(
                    "{folder}/{path} has {lines} lines, more than {LINES_MAX}"
                ));
            }
            let modules = named_after("mod ", &code(&text));
            let names = path
                .split(['/', '.'])
                .chain(modules.iter().map(String::as_str));
            for name in names.filter(|name| VAGUE_NAMES.contains(name)) {
                wrong.push(format!("{folder}/{path}: the name {name:?} is vague"));
            }
        }
    }
    assert_none(&wrong);
    Ok(())
}

#[test]
fn migrations_are_numbered_without_gaps() -> io::Result<()> {
    let mut wrong = Vec::new();
    for (number, (path, _)) in (1..).zip(files("migrations")?) {
        let words = path
            .strip_prefix(&format!("{number:04}_"))
            .and_then(|rest| rest.strip_suffix(".sql"));
        let plain = |words: &str| {
            !words.is_empty()
                && words
                    .bytes()
                    .all(|letter| letter.is_ascii_lowercase() || letter == b'_')
        };
        if !words.is_some_and(plain) {
            wrong.push(format!("migrations/{path}: expected {number:04}_words.sql"));
        }
    }
    assert_none(&wrong);
    Ok(())
}

#[test]
fn sql_is_written_in_lower_case() -> io::Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in files("migrations")? {
        let statements: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .map(|line| line.to_owned() + "\n")
            .collect();
        // Every second piece between quotes is a string literal, in which upper case is allowed.
        for code in statements.split('\'').step_by(2) {
            let upper_case = code
                .lines()
                .filter(|line| line.chars().any(char::is_uppercase));
            wrong.extend(upper_case.map(|line| format!("migrations/{path}: {}", line.trim())));
        }
    }
    assert_none(&wrong);
    Ok(())
}

#[test]
fn every_constraint_has_a_name_and_every_table_a_comment() -> io::Result<()> {
    let migrations = files("migrations")?;
    let schema: String = migrations
        .iter()
        .map(|(_, text)| text.to_lowercase())
        .collect();
    let mut wrong = Vec::new();
    for line in schema.lines().map(str::trim_start) {
        let is_text = ["--", "comment on ", "create unique index "]
            .iter()
            .any(|start| line.starts_with(start));
        let constraining = CONSTRAINT_WORDS
            .iter()
            .filter_map(|word| line.find(word))
            .min();
        let name = constraining
            .and_then(|at| line.get(..at)?.split_once("constraint "))
            .is_some_and(|(_, name)| !name.trim().is_empty());
        if constraining.is_some() && !is_text && !name {
            wrong.push(format!("a constraint without a name: {line}"));
        }
        let table = line
            .strip_prefix("create table ")
            .and_then(|rest| rest.split([' ', '(']).next());
        if let Some(table) =
            table.filter(|table| !schema.contains(&format!("comment on table {table} is ")))
        {
            wrong.push(format!("the table {table} has no comment"));
        }
    }
    assert_none(&wrong);
    Ok(())
}

/// `docs/architecture.md#failure-scenarios` numbers 43 scenarios; each has a test that carries its number.
#[test]
fn every_numbered_scenario_has_a_test() -> io::Result<()> {
    let tests: String = files("tests/it")?
        .into_iter()
        .chain(files("src")?)
        .map(|(_, text)| text)
        .collect();
    let wrong = (1..=43)
        .map(|number| format!("fn scenario_{number:02}_"))
        .filter(|name| !tests.contains(name));
    assert_none(&wrong.collect::<Vec<_>>());
    Ok(())
}

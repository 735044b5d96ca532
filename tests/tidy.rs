//! Guards of the house: who may know whom, who may touch SQL and the environment, how long a file is, how the schema names things.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Each room and what it may import besides itself; the picture of it stands in `src/lib.rs`. `*` is everything.
const ROOMS: &[(&str, &str)] = &[
    ("protocol", ""),
    ("clock", ""),
    ("telemetry", ""),
    ("coalesce", ""),
    ("embedded", ""),
    ("payment", "protocol"),
    ("chain", "protocol payment coalesce clock"),
    ("ledger", "protocol payment coalesce clock"),
    ("settlement", "protocol payment chain ledger telemetry"),
    (
        "facilitator",
        "protocol payment chain ledger settlement clock telemetry",
    ),
    (
        "http",
        "protocol payment chain ledger settlement clock facilitator telemetry",
    ),
    ("config", "protocol payment chain"),
    (
        "server",
        "protocol payment chain ledger settlement clock facilitator http config telemetry",
    ),
    ("buyer", "protocol clock"),
    ("seller", "protocol clock"),
    ("market_tests", "protocol clock buyer seller"),
    ("command", "*"),
];
/// What only some files may touch: the root of a path, how its next name begins, and where below `src` that may stand.
const DOORS: &[(&str, &str, &[&str])] = &[
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
            // Where programs are looked for, and what the local chain must not inherit.
            "embedded/anvil_binary.rs",
            "embedded/cluster.rs",
        ],
    ),
];
/// Features are chosen at the modules of `lib.rs`. The exceptions: file, how many lines, why.
const FEATURES_ELSEWHERE: &[(&str, usize, &str)] = &[
    (
        "protocol/response.rs",
        8,
        "the contract shows the answers, and only a server has a contract",
    ),
    (
        "protocol/session/wire.rs",
        27,
        "the contract shows the sessions, and only a server has a contract",
    ),
    (
        "settlement/failpoint.rs",
        2,
        "a release must not hold the ways to die on purpose",
    ),
];
const LINES_MAX: usize = 500;
const VAGUE_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];
/// What makes a constraint in SQL, named or not.
const CONSTRAINING: &[&str] = &[
    "primary key",
    "foreign key",
    "references ",
    "unique",
    "check (",
    "exclude ",
];

/// Every file below `folder` of the repository, in order, with its path from there.
fn files(folder: &str) -> io::Result<Vec<(String, String)>> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // What package managers put beside the interop programs is not ours.
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

/// The same without the tests that stand at its end.
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

fn nothing(found: &[String]) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn a_path_names_its_room_alone_and_in_groups() {
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
fn each_room_knows_only_the_rooms_to_its_left() -> io::Result<()> {
    let is_room = |name: &str| ROOMS.iter().any(|(room, _)| *room == name);
    let mut wrong = Vec::new();
    for (path, text) in files("src")? {
        let room = path.split(['/', '.']).next().unwrap_or_default();
        if ["lib", "main"].contains(&room) {
            continue;
        }
        let Some((_, known)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!("src/{path}: {room} is no room in tests/tidy.rs"));
            continue;
        };
        let code = match room {
            "embedded" => without_tests(code(&text)),
            _ => code(&text),
        };
        let from_super = named_after("super::", &code);
        let named = named_after("crate::", &code)
            .into_iter()
            .chain(from_super.into_iter().filter(|name| is_room(name)));
        let foreign = named.filter(|name| {
            name != room && *known != "*" && !known.split(' ').any(|known| known == name)
        });
        wrong.extend(
            foreign.map(|name| format!("src/{path}: {room} must not know {name:?}, only: {known}")),
        );
    }
    nothing(&wrong);
    Ok(())
}

#[test]
fn sql_rpc_and_the_environment_have_one_door_each() -> io::Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in files("src")? {
        let code = without_tests(code(&text));
        for (root, what, doors) in DOORS {
            let is_door = doors.iter().any(|door| path.starts_with(door));
            let passes = named_after(root, &code)
                .iter()
                .any(|name| name.starts_with(what));
            if passes && !is_door {
                wrong.push(format!("src/{path}: {root}{what} belongs into {doors:?}"));
            }
        }
    }
    nothing(&wrong);
    Ok(())
}

#[test]
fn features_are_chosen_where_modules_are_declared() -> io::Result<()> {
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
        let exception = FEATURES_ELSEWHERE.iter().find(|(file, ..)| *file == path);
        let expected = exception.map_or(0, |(_, count, _)| *count);
        if elsewhere != expected {
            wrong.push(format!(
                "src/{path}: {elsewhere} lines choose by feature, expected {expected}"
            ));
        }
    }
    nothing(&wrong);
    Ok(())
}

#[test]
fn files_are_short_and_their_names_say_something() -> io::Result<()> {
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
                wrong.push(format!("{folder}/{path}: {name:?} says nothing"));
            }
        }
    }
    nothing(&wrong);
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
    nothing(&wrong);
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
        // Every second piece between quotes is a text, in which letters may be what they like.
        for code in statements.split('\'').step_by(2) {
            let shouted = code
                .lines()
                .filter(|line| line.chars().any(char::is_uppercase));
            wrong.extend(shouted.map(|line| format!("migrations/{path}: {}", line.trim())));
        }
    }
    nothing(&wrong);
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
        let constraining = CONSTRAINING.iter().filter_map(|word| line.find(word)).min();
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
    nothing(&wrong);
    Ok(())
}

/// `docs/architecture.md#failure-scenarios` has 43 scenarios; each is a test that names its number.
#[test]
fn every_scenario_of_the_failure_catalogue_has_a_test() -> io::Result<()> {
    let tests: String = files("tests/it")?
        .into_iter()
        .chain(files("src")?)
        .map(|(_, text)| text)
        .collect();
    let wrong = (1..=43)
        .map(|number| format!("fn scenario_{number:02}_"))
        .filter(|name| !tests.contains(name));
    nothing(&wrong.collect::<Vec<_>>());
    Ok(())
}

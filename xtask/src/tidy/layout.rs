//! The layout rules: what lies at the top, a front line on every file, no orphans, nothing too long.

use std::collections::BTreeSet;

use super::sources::{Source, Sources};

/// A file is read as a whole; beyond this nobody does.
const LONGEST_FILE: usize = 500;
/// A function fits on a screen.
const LONGEST_FUNCTION: usize = 70;
/// What may lie at the top beside dotfiles.
const TOP_LEVEL: [&str; 13] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "agent",
    "clippy.toml",
    "control",
    "dataplane",
    "deny.toml",
    "ebpf",
    "tests",
    "xtask",
];

/// All faults of layout.
pub fn check(sources: &Sources) -> Vec<String> {
    let mut faults = top_level(sources);
    faults.extend(orphans(sources));
    for file in sources.rust() {
        if !file.text.starts_with("//!") {
            faults.push(format!("{}: does not begin with `//!`", file.path));
        }
        let lines = file.text.lines().count();
        if lines > LONGEST_FILE {
            faults.push(format!("{}: {lines} lines, over {LONGEST_FILE}", file.path));
        }
        faults.extend(long_functions(file));
    }
    faults
}

fn top_level(sources: &Sources) -> Vec<String> {
    let entries: BTreeSet<&str> = sources
        .files
        .iter()
        .filter_map(|file| file.path.split('/').next())
        .collect();
    entries
        .into_iter()
        .filter(|entry| !entry.starts_with('.') && !TOP_LEVEL.contains(entry))
        .map(|entry| format!("{entry}: has no place at the top level"))
        .collect()
}

/// Files that no `mod` of their parent names: cargo would not even compile them.
fn orphans(sources: &Sources) -> Vec<String> {
    let mut faults = Vec::new();
    for file in sources.rust() {
        let Some(parents) = parents(&file.path) else {
            continue;
        };
        let name = module_name(&file.path);
        let declaration = format!("mod {name};");
        let is_declared = sources.rust().any(|parent| {
            parents
                .iter()
                .any(|pattern| is_match(pattern, &parent.path))
                && parent.text.lines().any(|line| {
                    let line = line.trim();
                    line == declaration
                        || line
                            .strip_prefix("pub ")
                            .is_some_and(|rest| rest == declaration)
                        || (line.starts_with("pub(") && line.ends_with(&format!(") {declaration}")))
                })
        });
        if !is_declared {
            faults.push(format!("{}: no parent says `{declaration}`", file.path));
        }
    }
    faults
}

/// The files of which one has to name the module; `None` for a crate's own root.
fn parents(path: &str) -> Option<Vec<String>> {
    let (folder, file) = path.rsplit_once('/')?;
    let is_root = match file {
        "main.rs" | "lib.rs" | "build.rs" => true,
        _ => is_folder_of_roots(folder),
    };
    if is_root {
        return None;
    }
    let folder = if file == "mod.rs" {
        folder.rsplit_once('/')?.0
    } else {
        folder
    };
    Some(vec![
        // A folder of crate roots: each of them may have the module.
        format!("{folder}/*.rs"),
        format!("{folder}/mod.rs"),
        format!("{folder}/main.rs"),
        format!("{folder}/lib.rs"),
        format!("{folder}.rs"),
    ])
}

/// Whether a path is what a pattern names; "/*.rs" stands for the files of a folder of crate roots.
fn is_match(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix("/*.rs") {
        Some(folder) => {
            is_folder_of_roots(folder)
                && path
                    .rsplit_once('/')
                    .is_some_and(|(parent, _)| parent == folder)
        }
        None => pattern == path,
    }
}

/// Files of src/bin, tests, benches and examples are crates of their own.
fn is_folder_of_roots(folder: &str) -> bool {
    ["/src/bin", "/tests", "/benches", "/examples"]
        .iter()
        .any(|roots| folder.ends_with(roots))
}

fn module_name(path: &str) -> &str {
    let path = path.strip_suffix("/mod.rs").unwrap_or(path);
    let file = path.rsplit_once('/').map_or(path, |(_, file)| file);
    file.strip_suffix(".rs").unwrap_or(file)
}

/// Functions over the limit. The code is formatted, so a body ends at a brace as far in as its `fn`.
fn long_functions(file: &Source) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut faults = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", &line[..indent]);
        let declared_only = lines[first..]
            .iter()
            .take_while(|line| !line.ends_with('{'))
            .any(|line| line.ends_with(';'));
        if declared_only || line.ends_with('}') {
            continue;
        }
        let length = lines[first..].iter().position(|line| *line == end);
        if let Some(length) = length.filter(|length| length + 1 > LONGEST_FUNCTION) {
            faults.push(format!(
                "{}:{}: `{name}` has {} lines, over {LONGEST_FUNCTION}",
                file.path,
                first + 1,
                length + 1
            ));
        }
    }
    faults
}

/// The name of the function that a line begins.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            return name.split(['(', '<']).next();
        }
        let (word, after) = rest.split_once(' ')?;
        let is_qualifier = matches!(
            word,
            "pub" | "async" | "const" | "unsafe" | "extern" | "\"C\""
        ) || word.starts_with("pub(");
        if !is_qualifier {
            return None;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        Sources {
            files: files
                .iter()
                .map(|(path, text)| Source {
                    path: (*path).to_owned(),
                    text: (*text).to_owned(),
                })
                .collect(),
        }
    }

    #[test]
    fn a_tidy_tree_has_no_faults() {
        let tree = sources(&[
            ("agent/src/main.rs", "//! A.\nmod pod;\npub mod image;\n"),
            ("agent/src/pod/mod.rs", "//! B.\npub(crate) mod status;\n"),
            ("agent/src/pod/status.rs", "//! C.\n"),
            ("agent/src/image.rs", "//! D.\nmod layer;\n"),
            ("agent/src/image/layer.rs", "//! E.\n"),
            ("agent/tests/alone.rs", "//! F.\nmod world;\n"),
            ("agent/tests/world/mod.rs", "//! G.\n"),
        ]);
        assert_eq!(check(&tree), Vec::<String>::new());
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let body = "    step();\n".repeat(70);
        let long = format!(
            "//! A.\nimpl X {{\n    pub async fn run(\n        x: u8,\n    ) {{\n{body}    }}\n}}\n"
        );
        for (path, text, expected) in [
            ("scripts/run", "", "scripts: has no place"),
            (
                "agent/src/lost.rs",
                "//! A.\n",
                "no parent says `mod lost;`",
            ),
            ("agent/src/main.rs", "fn main() {}\n", "does not begin with"),
            (
                "agent/src/main.rs",
                &format!("//! A.\n{}", "\n".repeat(500)),
                "501 lines",
            ),
            ("agent/src/main.rs", &long, "`run` has 74 lines"),
        ] {
            let faults = check(&sources(&[(path, text)]));
            assert!(
                faults.iter().any(|fault| fault.contains(expected)),
                "{path}: {faults:?}"
            );
        }
    }

    #[test]
    fn a_declaration_has_no_body() {
        let declared = format!(
            "//! A.\ntrait X {{\n    fn a(&self);\n{}}}\n",
            "    const Y: u8 = 1;\n".repeat(80)
        );
        assert_eq!(
            check(&sources(&[("agent/src/main.rs", &declared)])),
            Vec::<String>::new()
        );
    }
}

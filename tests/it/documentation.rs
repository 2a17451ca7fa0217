//! Checks that the tables of features and runtimes in the documentation agree with the manifests and the sources, that the guide lists
//! all its pages, and that call sites in documents are the positions of calls.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::{env, fs};
use syn::{Item, Type};

/// The packages that implement spawners. Each entry has the name, the library file, and the folder of the spawners.
const PACKAGES: [(&str, &str, &str); 2] =
    [("background-tasks", "src/lib.rs", "src/adapters"), ("background-tasks-runtimes", "runtimes/src/lib.rs", "runtimes/src")];

/// These spawners wrap other spawners, so the table of runtimes does not list them.
const WRAPPERS: [&str; 7] = ["DynSpawner", "DynLocalSpawner", "DynBlockingSpawner", "DynTimer", "InSpan", "TaskSpan", "WithTimer"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the metadata of one package, as `cargo metadata` prints it.
fn package(name: &str) -> Value {
    let metadata = ["metadata", "--no-deps", "--format-version", "1", "--manifest-path"];
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = Command::new(env!("CARGO")).args(metadata).arg(manifest).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().find(|package| package["name"] == name).expect(name).clone()
}

fn features(package: &Value) -> BTreeMap<String, Vec<String>> {
    serde_json::from_value(package["features"].clone()).unwrap()
}

/// Returns the rows of the table that follows a heading, without the header row.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split_once(heading).expect(heading).1.lines().skip(1);
    let lines = section.map(|line| line.trim_start_matches("//!").trim()).take_while(|line| !line.starts_with('#'));
    let rows = lines.filter(|line| line.starts_with('|')).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Returns the strings between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Finds the types that implement a spawner trait in the files of a folder. Returns the spawner traits of each type.
fn implemented_traits(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut traits_of = BTreeMap::<String, BTreeSet<String>>::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        for item in syn::parse_file(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap().items {
            let Item::Impl(item) = item else { continue };
            let Some((trait_path, _)) = &item.trait_ else { continue };
            let trait_name = trait_path.segments.last().unwrap().ident.to_string();
            let self_type = match &*item.self_ty {
                Type::Reference(reference) => &*reference.elem,
                other => other,
            };
            let Type::Path(self_type) = self_type else { continue };
            if trait_name.ends_with("Spawner") || trait_name == "Timer" {
                let type_name = self_type.path.segments.last().unwrap().ident.to_string();
                traits_of.entry(type_name).or_default().insert(trait_name);
            }
        }
    }
    traits_of
}

#[test]
fn feature_table_of_each_crate_lists_every_feature() {
    let others = [("background-tasks-durable", "durable/src/lib.rs"), ("background-tasks-host", "host/src/lib.rs")];
    for (name, lib) in PACKAGES.map(|(name, lib, _)| (name, lib)).into_iter().chain(others) {
        let mut expected = features(&package(name));
        expected.remove("default");
        let rows = rows(&read(lib), "//! # Features");
        let documented: BTreeSet<_> = rows.iter().flat_map(|row| quoted(&row[0])).map(str::to_owned).collect();
        assert_eq!(documented, expected.into_keys().collect(), "{lib}");
    }
}

/// A row of this table has the cells | runtime | feature | version | spawner | tasks | local tasks | blocking work | timer | … |. If the
/// cell `feature` is empty, the feature of the row above applies.
#[test]
fn runtime_table_matches_manifests_and_sources() {
    let packages = PACKAGES.map(|(name, .., folder)| (package(name), implemented_traits(folder)));
    let all_traits = packages.iter().flat_map(|(_, traits_of)| traits_of);
    let implementations =
        all_traits.flat_map(|(spawner, traits)| traits.iter().map(|trait_name| (spawner.clone(), trait_name.clone())));
    let mut undocumented: BTreeSet<_> = implementations.filter(|(spawner, _)| !WRAPPERS.contains(&&**spawner)).collect();
    let mut feature = String::new();
    for row in rows(&read("docs/guide/runtimes.md"), "# Runtimes") {
        let [_, feature_cell, version, spawner_cell, trait_cells @ ..] = &row[..] else { panic!("{row:?}") };
        if let [name] = quoted(feature_cell)[..] {
            feature = name.to_owned();
            let (package, _) = packages.iter().find(|(package, _)| features(package).contains_key(name)).expect(name);
            let enables = &features(package)[name];
            let dependency_of = |enabled: &str| {
                enabled.strip_prefix("dep:").or(enabled.split_once('/').map(|(dependency, _)| dependency)).map(str::to_owned)
            };
            let runtime = enables.iter().find_map(|enabled| dependency_of(enabled)).unwrap();
            let dependencies = package["dependencies"].as_array().unwrap();
            let is_runtime = |dependency: &&Value| dependency["name"] == runtime && dependency["kind"].is_null();
            let requirement = dependencies.iter().find(is_runtime).unwrap()["req"].as_str().unwrap();
            assert_eq!(version, requirement.trim_start_matches('^'), "the version of `{runtime}`");
        }
        let identifiers = |text: &str| text.split(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect::<Vec<_>>();
        for spawner in quoted(spawner_cell).into_iter().flat_map(identifiers) {
            let Some(traits) = packages.iter().find_map(|(_, traits_of)| traits_of.get(&spawner)) else { continue };
            for (trait_name, cell) in ["Spawner", "LocalSpawner", "BlockingSpawner", "Timer"].iter().zip(trait_cells) {
                if !cell.is_empty() {
                    assert!(traits.contains(*trait_name), "{spawner} (feature `{feature}`) does not implement {trait_name}");
                    undocumented.remove(&(spawner.clone(), (*trait_name).to_owned()));
                }
            }
        }
    }
    assert_eq!(undocumented, BTreeSet::new(), "docs/guide/runtimes.md does not list these implementations");
}

#[test]
fn runtime_table_of_the_companion_is_part_of_the_main_table() {
    let main = rows(&read("docs/guide/runtimes.md"), "# Runtimes");
    let companion = rows(&read("runtimes/README.md"), "## Runtimes");
    assert!(!companion.is_empty() && main.windows(companion.len()).any(|part| part == companion));
}

/// rustdoc resolves the links between pages as links to modules. For readers of the repository, each page needs a definition of each of
/// its links.
#[test]
fn guide_lists_its_pages_and_defines_their_links() {
    let guide = read("src/guide.rs");
    let listed: BTreeSet<_> = rows(&guide, "//! Explains").iter().map(|row| quoted(&row[0])[0].to_owned()).collect();
    let declared = guide.split_once("pages! {").unwrap().1.trim_end().trim_end_matches('}');
    let declared: BTreeSet<_> = declared.split_whitespace().map(str::to_owned).collect();
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide")).unwrap();
    let mut pages: BTreeSet<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap().trim_end_matches(".md").to_owned()).collect();
    assert!(pages.remove("README"), "docs/guide has no index for readers of the repository");
    assert_eq!((&listed, &declared), (&pages, &pages), "src/guide.rs");
    // The index of the repository repeats the index of the documentation, with links to files.
    let in_repository = rows(&read("docs/guide/README.md"), "# Guide").into_iter();
    let in_documentation = rows(&guide, "//! Explains").into_iter().map(|mut row| {
        let page = quoted(&row[0])[0].to_owned();
        row[0] = format!("[{page}]({page}.md)");
        row
    });
    assert!(in_repository.eq(in_documentation), "docs/guide/README.md differs from the table of src/guide.rs");
    for page in &pages {
        let text = read(&format!("docs/guide/{page}.md"));
        let is_link = |line: &&str| line.starts_with('[') && line.contains("]: ");
        let defined: BTreeSet<_> = text.lines().filter(is_link).map(str::to_owned).collect();
        let used = text.split("][").skip(1).map(|rest| rest.split_once(']').unwrap().0);
        let expected: BTreeSet<_> = used.map(|used| format!("[{used}]: {used}.md")).collect();
        assert_eq!(defined, expected, "docs/guide/{page}.md");
        assert!(expected.iter().all(|link| pages.contains(link.split_once(": ").unwrap().1.trim_end_matches(".md"))), "{page}");
    }
}

/// The READMEs of the examples show output with call sites of their sources.
#[test]
fn call_sites_in_documents_are_calls() {
    for document in ["docs/comparison.md", "examples/notes/README.md", "examples/subsystems/README.md"] {
        let text = read(document);
        let words = text.split(|c: char| c.is_whitespace() || ",;()`\"".contains(c));
        let mut sites = words.filter(|word| word.contains(".rs:")).peekable();
        assert!(sites.peek().is_some(), "{document} shows no call site");
        for site in sites {
            let [path, line, column] = site.split(':').collect::<Vec<_>>()[..] else { panic!("{document}: {site}") };
            let (line, column): (usize, usize) = (line.parse().unwrap(), column.parse().unwrap());
            let source = read(path);
            let (before, call) = source.lines().nth(line - 1).unwrap().split_at(column - 1);
            let is_part_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let is_call = call.trim_start_matches(is_part_of_name).starts_with('(') && !call.starts_with('(');
            assert!(is_call && !before.ends_with(is_part_of_name), "{document}: {site} is not the position of a call: {call}");
        }
    }
}

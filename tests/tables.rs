//! The tables of features and runtimes say what the manifests and the sources do.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::{env, fs};
use syn::{Item, Type};

/// The packages that have spawners, and where.
const PACKAGES: [(&str, &str, &str); 2] =
    [("background-tasks", "src/lib.rs", "src/spawner"), ("background-tasks-runtimes", "runtimes/src/lib.rs", "runtimes/src")];

/// These spawn with others.
const NOT_OF_A_RUNTIME: [&str; 4] = ["DynSpawner", "DynLocalSpawner", "DynBlockingSpawner", "InSpan"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What cargo knows of a package.
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

/// The rows of the table under a heading, without its head.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split_once(heading).expect(heading).1.lines().skip(1);
    let lines = section.map(|line| line.trim_start_matches("//!").trim()).take_while(|line| !line.starts_with('#'));
    let rows = lines.filter(|line| line.starts_with('|')).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Which traits the types of a folder's files have.
fn capabilities(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        for item in syn::parse_file(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap().items {
            let Item::Impl(item) = item else { continue };
            let Some((of, _)) = &item.trait_ else { continue };
            let of = of.segments.last().unwrap().ident.to_string();
            let named = match &*item.self_ty {
                Type::Reference(reference) => &*reference.elem,
                named => named,
            };
            let Type::Path(named) = named else { continue };
            if of.ends_with("Spawner") {
                all.entry(named.path.segments.last().unwrap().ident.to_string()).or_default().insert(of);
            }
        }
    }
    all
}

#[test]
fn every_feature_is_in_the_table_of_its_crate() {
    let others = [("background-tasks-durable", "durable/src/lib.rs"), ("background-tasks-host", "host/src/lib.rs")];
    for (name, lib) in PACKAGES.map(|(name, lib, _)| (name, lib)).into_iter().chain(others) {
        let mut expected = features(&package(name));
        expected.remove("default");
        let rows = rows(&read(lib), "//! # Features");
        let documented: BTreeSet<_> = rows.iter().flat_map(|row| quoted(&row[0])).map(str::to_owned).collect();
        assert_eq!(documented, expected.into_keys().collect(), "{lib}");
    }
}

/// A row is | runtime | feature | version | spawner | tasks | local tasks | blocking work | … |, and an empty feature is that of the row before.
#[test]
fn the_readme_s_table_of_runtimes_is_true() {
    let packages = PACKAGES.map(|(name, .., folder)| (package(name), capabilities(folder)));
    let each =
        packages.iter().flat_map(|(_, all)| all).flat_map(|(spawner, has)| has.iter().map(|has| (spawner.clone(), has.clone())));
    let mut missing: BTreeSet<_> = each.filter(|(spawner, _)| !NOT_OF_A_RUNTIME.contains(&&**spawner)).collect();
    let mut feature = String::new();
    for row in rows(&read("README.md"), "## Runtimes") {
        let [_, of, version, spawner, served @ ..] = &row[..] else { panic!("{row:?}") };
        if let [of] = quoted(of)[..] {
            feature = of.to_owned();
            let (package, _) = packages.iter().find(|(package, _)| features(package).contains_key(of)).expect(of);
            let enables = &features(package)[of];
            let enables =
                enables.iter().find_map(|enabled| enabled.strip_prefix("dep:").or(enabled.split_once('/').map(|is| is.0)));
            let dependencies = package["dependencies"].as_array().unwrap();
            let is_it = |dependency: &&Value| dependency["name"] == enables.unwrap() && dependency["kind"].is_null();
            let requirement = dependencies.iter().find(is_it).unwrap()["req"].as_str().unwrap();
            assert_eq!(version, requirement.trim_start_matches('^'), "of {of}");
        }
        let identifiers = |text: &str| text.split(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect::<Vec<_>>();
        for name in quoted(spawner).into_iter().flat_map(identifiers) {
            let Some(has) = packages.iter().find_map(|(_, all)| all.get(&name)) else { continue };
            for (capability, cell) in ["Spawner", "LocalSpawner", "BlockingSpawner"].iter().zip(served) {
                if !cell.is_empty() {
                    assert!(has.contains(*capability), "{name} (of {feature}) is no {capability}");
                    missing.remove(&(name.clone(), (*capability).to_owned()));
                }
            }
        }
    }
    assert_eq!(missing, BTreeSet::new(), "these are not in the README");
}

#[test]
fn the_companion_s_table_is_a_part_of_it() {
    let all = rows(&read("README.md"), "## Runtimes");
    let companion = rows(&read("runtimes/README.md"), "## Runtimes");
    assert!(!companion.is_empty() && all.windows(companion.len()).any(|part| part == companion));
}

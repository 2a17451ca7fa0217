//! Checks the module structure of `src`. Imports must not form a cycle or use a higher layer. Only certain modules may use `cfg` and
//! memory orderings.
//!
//! The checks read tokens, not syntax trees, so they also cover the bodies of macros. They ignore test modules.

mod sources;

use sources::{Mention, Sources};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::LazyLock;

/// The layers, from top to bottom. A file may import from its own layer and from lower layers.
const LAYERS: [&[&str]; 10] = [
    &["lib", "guide"],
    &["adapters", "conformance"],
    &["registry", "builder", "blocking", "child"],
    &["task_builder"],
    &["service"],
    &["shutdown", "signal", "task", "join"],
    &["state"],
    &["sync"],
    &["observer", "spawner", "report"],
    &["platform"],
];

const PUBLIC_API_ONLY: [&str; 2] = ["adapters", "conformance"];
const MAY_TEST_FOR_STD: [&str; 4] = ["lib", "platform", "adapters", "conformance"];
const MAY_NAME_ORDERINGS: [&str; 4] = ["state", "sync", "platform", "conformance"];

/// The maximum number of `#[cfg(…)]` attributes in all modules that are not in `MAY_TEST_FOR_STD`.
const MAX_CFG_ATTRIBUTES: usize = 12;

/// The core must have fewer lines of code than this number. Blank lines and comments do not count.
const MAX_LINES_OF_CODE: usize = 4880;
/// The modules whose lines do not count: the modules outside the core, and the platform that only models compile.
const NOT_COUNTED: [&str; 4] = ["adapters", "conformance", "guide", "platform/model.rs"];

static SRC: LazyLock<Sources> = LazyLock::new(|| Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));

#[test]
fn files_form_no_circle() {
    assert_none(&circles(&SRC));
}

#[test]
fn imports_point_down() {
    assert_none(&wrong_imports(&SRC));
}

#[test]
fn std_is_tested_for_in_few_modules() {
    assert_none(&stray_std_conditions(&SRC));
}

#[test]
fn cfg_attributes_are_few() {
    let found = cfg_attributes(&SRC);
    let (count, list) = (found.len(), found.join("\n"));
    assert!(count <= MAX_CFG_ATTRIBUTES, "src has {count} stray `#[cfg(…)]` attributes, maximum {MAX_CFG_ATTRIBUTES}:\n{list}");
}

#[test]
fn orderings_are_named_in_few_modules() {
    assert_none(&stray_orderings(&SRC));
}

#[test]
fn core_stays_small() {
    let count = lines_of_code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(count < MAX_LINES_OF_CODE, "the core has {count} lines of code, which must stay below {MAX_LINES_OF_CODE}");
}

/// Returns the number of lines of code in a folder, without test modules.
fn lines_of_code(folder: &Path) -> usize {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let counted = paths.filter(|path| {
        !path.ends_with("tests.rs")
            && !NOT_COUNTED.iter().any(|name| path.with_extension("").ends_with(name) || path.ends_with(name))
    });
    counted
        .map(|path| {
            if path.is_dir() {
                return lines_of_code(&path);
            }
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
        })
        .sum()
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "the layout of src is broken ({}):\n{}", found.len(), found.join("\n"));
}

/// Returns the shortest import cycle between files, if there is a cycle.
fn circles(sources: &Sources) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeMap<&str, &Mention>> = BTreeMap::new();
    for (source, mention, path, definitions) in sources.uses() {
        let is_glob = path.last().is_some_and(|name| name == "*");
        // If a platform file defines an item, a mention of this item does not use the files of the other platforms.
        let is_own = !is_glob && definitions.iter().any(|definition| definition.file == source.file);
        // If a module re-exports its own child modules, this does not count as a use of the children.
        let exports_child = !mention.visibility.is_empty() && path.starts_with(&source.module);
        for definition in definitions.iter().filter(|definition| !is_own && !exports_child && definition.file != source.file) {
            edges.entry(&source.file).or_default().entry(&definition.file).or_insert(mention);
        }
    }
    let shortest = edges.keys().filter_map(|start| circle_through(start, &edges)).min_by_key(Vec::len);
    let message = shortest.map(|circle| {
        let files: Vec<_> = circle.iter().map(|file| format!("src/{file}")).collect();
        let steps = circle.windows(2).map(|step| {
            let mention = edges[step[0]][step[1]];
            format!("\n  src/{}:{} uses `{}`", step[0], mention.line, mention.path.join("::"))
        });
        let steps: String = steps.collect();
        format!("circle of files: {}; move what both files need to a file below them{steps}", files.join(" → "))
    });
    message.into_iter().collect()
}

/// Returns the shortest import cycle that contains the file `start`. Uses a breadth-first search.
fn circle_through<'a>(start: &'a str, edges: &BTreeMap<&'a str, BTreeMap<&'a str, &Mention>>) -> Option<Vec<&'a str>> {
    let (mut ways, mut seen) = (VecDeque::from([vec![start]]), BTreeSet::new());
    while let Some(way) = ways.pop_front() {
        for next in edges.get(way.last()?).into_iter().flat_map(BTreeMap::keys) {
            let longer = [way.as_slice(), &[*next]].concat();
            if *next == start {
                return Some(longer);
            }
            if seen.insert(*next) {
                ways.push_back(longer);
            }
        }
    }
    None
}

/// Returns the imports that use a higher layer, use the crate root, or bypass the public API.
fn wrong_imports(sources: &Sources) -> Vec<String> {
    let layer = |top: &str| LAYERS.iter().position(|layer| layer.contains(&top));
    let without_layer = sources.0.values().filter(|source| layer(source.top()).is_none()).map(|source| {
        let (place, top) = (source.at(1), source.top());
        format!("{place}: `{top}` has no layer; add it to LAYERS in tests/it/layout.rs")
    });
    let wrong = sources.uses().filter_map(|(source, mention, path, definitions)| {
        let (top, named) = (source.top(), path.first().map_or("lib", String::as_str));
        let names_module = !path.is_empty() && sources.0.contains_key(&path[..1]);
        let goes_up = |other: &&str| layer(other).is_some_and(|other| Some(other) < layer(top));
        let fault = if top == "lib" {
            (mention.visibility != "pub").then(|| "is not exported; lib.rs may only have `pub use`".into())
        } else if PUBLIC_API_ONLY.contains(&top) {
            let is_internal = names_module && named != top;
            is_internal.then(|| format!("is internal; {top} may only use `crate::Name`, a name that lib.rs exports"))
        } else if !names_module {
            Some(format!("goes through the crate root; name the module: `crate::{}::…`", definitions[0].top()))
        } else {
            let higher = definitions.iter().map(|definition| definition.top()).chain([named]).find(goes_up);
            higher.map(|higher| format!("goes up a layer, from {top} to {higher}; move the item to a layer below, or pass it in"))
        };
        fault.map(|fault| format!("{}: `{}` {fault}", source.at(mention.line), mention.path.join("::")))
    });
    without_layer.chain(wrong).collect()
}

fn conditions_outside_platform(sources: &Sources) -> impl Iterator<Item = (String, &str)> {
    let sources = sources.0.values().filter(|source| !MAY_TEST_FOR_STD.contains(&source.top()));
    sources.flat_map(|source| source.conditions.iter().map(|(line, text)| (source.at(*line), text.as_str())))
}

fn stray_std_conditions(sources: &Sources) -> Vec<String> {
    let conditions = conditions_outside_platform(sources).filter(|(_, text)| text.contains("feature=\"std\""));
    conditions.map(|(place, text)| format!("{place}: `{text}` depends on std; move the difference to src/platform")).collect()
}

fn cfg_attributes(sources: &Sources) -> Vec<String> {
    let conditions = conditions_outside_platform(sources).filter(|(_, text)| text.starts_with("[cfg("));
    conditions.map(|(place, text)| format!("{place}: `#{text}`; move platform differences to src/platform")).collect()
}

fn stray_orderings(sources: &Sources) -> Vec<String> {
    let is_ordering = |pair: &[String]| {
        pair[0] == "Ordering" && matches!(pair[1].as_str(), "Relaxed" | "Acquire" | "Release" | "AcqRel" | "SeqCst" | "*")
    };
    let stray = sources
        .mentions()
        .filter(|(source, mention)| !MAY_NAME_ORDERINGS.contains(&source.top()) && mention.path.windows(2).any(is_ordering));
    let message = |place, path: String| format!("{place}: `{path}`; move the atomic operation to src/sync or src/state");
    stray.map(|(source, mention)| message(source.at(mention.line), mention.path.join("::"))).collect()
}

/// A small source tree that passes all checks. Each test below adds an error to this tree.
const SOUND: [(&str, &str); 18] = [
    ("lib.rs", "mod adapters; pub use adapters::*; pub use registry::Registry; pub use report::*;"),
    ("adapters.rs", "#[cfg(feature = \"tokio\")] mod tokio; pub use self::tokio::TokioSpawner;"),
    ("adapters/tokio.rs", "use crate::{Registry, Summary}; use tokio::Handle; pub struct TokioSpawner;"),
    ("conformance.rs", "mod local; pub use local::run; use crate::Registry; fn check() {}"),
    ("conformance/local.rs", "use super::check; pub fn run() {}"),
    ("conformance/tests.rs", "use crate::platform::catch; use crate::conformance;"),
    ("registry.rs", "use crate::{platform, state::{Drain, Token}}; pub struct Registry;"),
    ("state.rs", "mod drain; mod token; pub(crate) use drain::Drain; pub(crate) use token::Token;"),
    ("state/drain.rs", "use super::Token; pub(crate) struct Drain; mod inline { use super::Drain; }"),
    (
        "state/token.rs",
        "use crate::platform::{Ordering, catch}; pub(crate) struct Token; fn leave() { release(Ordering::Release) }
         #[cfg(all(test, feature = \"std\"))] mod tests { use crate::Registry; use super::super::Drain; }",
    ),
    ("sync.rs", "pub(crate) mod gate; pub(crate) mod pool;"),
    ("sync/gate.rs", "use crate::platform::catch; pub(crate) struct Gate;"),
    ("sync/pool.rs", "macro_rules! pool { () => { $crate::sync::gate::Gate } } pub(crate) use pool; pub(crate) struct Pool;"),
    ("report.rs", "pub use summary::Summary; mod summary { pub struct Summary; impl super::Summary {} }"),
    ("platform.rs", "#[cfg(feature = \"std\")] pub(crate) use {bare::*, threads::*, clock::*}; pub(crate) fn catch() {}"),
    ("platform/bare.rs", "pub(crate) use core::sync::atomic::Ordering; pub(crate) fn now() { super::now() }"),
    ("platform/threads.rs", "use super::{catch, instant}; pub(crate) use core::sync::atomic::Ordering; pub(crate) fn now() {}"),
    ("platform/clock.rs", "pub(crate) fn instant() {}"),
];

type Check = fn(&Sources) -> Vec<String>;

/// Adds a line to a file of the tree `SOUND`. Asserts that the check reports this line and no other line.
#[track_caller]
fn assert_fails(check: Check, file: &str, line: &str, expected: &str) {
    let add = |(name, text): (&str, &str)| (name.into(), if name == file { format!("{text}\n{line}") } else { text.into() });
    let found = check(&Sources::new(&SOUND.map(add)));
    assert!(found.len() == 1 && found[0].contains(expected), "expected one message with {expected:?}, got {found:#?}");
}

#[test]
fn sound_tree_passes_all_checks() {
    let sound = Sources::new(&SOUND.map(|(name, text)| (name.into(), text.into())));
    let checks: [Check; 5] = [circles, wrong_imports, stray_std_conditions, cfg_attributes, stray_orderings];
    for check in checks {
        assert_none(&check(&sound));
    }
}

#[test]
fn circle_fails() {
    let siblings = "src/sync/gate.rs → src/sync/pool.rs → src/sync/gate.rs;";
    assert_fails(circles, "sync/gate.rs", "use crate::{sync::{pool::{self}}};", siblings);
    assert_fails(circles, "sync/gate.rs", "fn new() { super::pool::Pool::new() }", siblings);
    assert_fails(circles, "sync/gate.rs", "some_macro!(crate::sync::pool::Pool);", siblings);
    let re_exported = "src/state/drain.rs → src/state/token.rs → src/state/drain.rs;";
    assert_fails(circles, "state/token.rs", "use super::Drain;", re_exported);
    assert_fails(circles, "state/token.rs", "use super::*;", re_exported);
    assert_fails(circles, "state/token.rs", "use crate::state; fn new() { state::Drain::new() }", re_exported);
    let glob = "src/platform/clock.rs → src/platform/threads.rs → src/platform/clock.rs;";
    assert_fails(circles, "platform/clock.rs", "use super::threads::now;", glob);
    let parent = "src/conformance.rs → src/conformance/local.rs → src/conformance.rs;";
    assert_fails(circles, "conformance.rs", "fn run_all() { local::run() }", parent);
}

#[test]
fn upward_import_fails() {
    let expected = "src/sync/gate.rs:2: `crate::state::Token` goes up a layer, from sync to state";
    assert_fails(wrong_imports, "sync/gate.rs", "use crate::state::Token;", expected);
    assert_fails(wrong_imports, "sync/gate.rs", "pub(crate) use crate::state::Token;", expected);
}

#[test]
fn import_through_the_crate_root_fails() {
    let expected = "goes through the crate root; name the module: `crate::report::…`";
    assert_fails(wrong_imports, "sync/gate.rs", "use crate::Summary;", expected);
    assert_fails(wrong_imports, "sync/gate.rs", "use super::super::Summary;", expected);
    assert_fails(wrong_imports, "sync/gate.rs", "fn summary() -> crate::report::Summary { crate::Summary::new() }", expected);
}

#[test]
fn internal_import_of_an_adapter_or_conformance_fails() {
    assert_fails(wrong_imports, "conformance/local.rs", "use crate::platform::catch;", "`crate::platform::catch` is internal;");
    assert_fails(wrong_imports, "adapters/tokio.rs", "fn new() { crate::state::Token::new() }", "is internal;");
    assert_fails(wrong_imports, "lib.rs", "pub(crate) use platform::catch;", "is not exported;");
}

#[test]
fn stray_std_condition_fails() {
    for line in [
        "#[cfg(feature = \"std\")] fn new() {}",
        "#[cfg(any(loom, not(all(unix, feature = \"std\"))))] fn new() {}",
        "#[cfg_attr(feature = \"std\", repr(C))] struct Padded;",
        "const HAS_STD: bool = cfg!(feature = \"std\");",
        "macro_rules! new { () => { #[cfg(feature = \"std\")] fn new() {} } }",
    ] {
        assert_fails(stray_std_conditions, "sync/gate.rs", line, "src/sync/gate.rs:2: ");
    }
    assert_fails(cfg_attributes, "sync/gate.rs", "#[cfg(not(test))] fn new() {}", "src/sync/gate.rs:2: `#[cfg(not(test))]`");
}

#[test]
fn stray_ordering_fails() {
    for line in ["fn load() { word.load(Ordering::Relaxed) }", "use core::sync::atomic::Ordering::{Relaxed};"] {
        assert_fails(stray_orderings, "registry.rs", line, "src/registry.rs:2: ");
    }
}

#[test]
fn module_without_a_layer_fails() {
    let sources = Sources::new(&[("lib.rs".into(), "mod extra;".into()), ("extra.rs".into(), String::new())]);
    assert_eq!(wrong_imports(&sources), ["src/extra.rs:1: `extra` has no layer; add it to LAYERS in tests/it/layout.rs"]);
}

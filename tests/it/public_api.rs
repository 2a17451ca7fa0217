//! Checks that the public API of each crate agrees with the snapshot in its file `tests/public_api.txt`. In a review, each change of the
//! API is therefore visible.
//!
//! The test reads the API from the source files. `UPDATE=1 cargo test --test it public_api::` writes the snapshots.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};
use syn::{Attribute, File, ImplItem, ImplItemFn, Item, TraitItem, Type, UseTree, Visibility, parse_quote};

#[test]
fn public_api_matches_its_snapshot() {
    for folder in [".", "consumer", "durable", "host", "runtimes"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let api = public_api(&root.join("src"));
        let snapshot_path = root.join("tests/public_api.txt");
        if env::var_os("UPDATE").is_some() {
            fs::write(&snapshot_path, &api).unwrap();
        }
        let snapshot = fs::read_to_string(&snapshot_path).unwrap_or_default();
        let first_difference = api.lines().zip(snapshot.lines()).position(|(actual, expected)| actual != expected);
        let line = first_difference.unwrap_or(api.lines().count().min(snapshot.lines().count())) + 1;
        assert!(
            api == snapshot,
            "{folder}: the public API differs from tests/public_api.txt at line {line}; to accept it, run this test with UPDATE=1"
        );
    }
}

/// Returns the public items of all source files as one formatted and sorted file. It contains no bodies and no private fields.
fn public_api(src: &Path) -> String {
    let files: Vec<File> =
        source_files(src).iter().map(|path| syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap()).collect();
    let items: Vec<Item> = files.into_iter().flat_map(|file| file.items).flat_map(expand_pin_project).collect();
    let public_names = items.iter().filter_map(exported_names).flatten().collect();
    let mut public_items: Vec<(String, Item)> = items.into_iter().filter_map(|item| public_part(item, &public_names)).collect();
    public_items.sort_by(|a, b| a.0.cmp(&b.0));
    let mut api: File = parse_quote!();
    api.items = public_items.into_iter().map(|(_, item)| item).collect();
    prettyplease::unparse(&api)
}

/// Returns the source files of a folder and its subfolders, in a fixed order. Excludes the files of unit tests.
fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .retain(|path| path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs"));
    paths.into_iter().flat_map(|path| if path.is_dir() { source_files(&path) } else { vec![path] }).collect()
}

/// Replaces an invocation of `pin_project!` with the items inside the invocation.
fn expand_pin_project(item: Item) -> Vec<Item> {
    match item {
        Item::Macro(call) if call.mac.path.is_ident("pin_project") => call.mac.parse_body::<File>().unwrap().items,
        item => vec![item],
    }
}

/// Returns the names that an item exports. All modules are private, so an item is public only if a `pub use` exports its name.
fn exported_names(item: &Item) -> Option<Vec<String>> {
    fn names(tree: &UseTree) -> Vec<String> {
        match tree {
            UseTree::Path(path) => names(&path.tree),
            UseTree::Group(group) => group.items.iter().flat_map(names).collect(),
            UseTree::Name(name) => vec![name.ident.to_string()],
            _ => Vec::new(),
        }
    }
    match item {
        Item::Use(item) if matches!(item.vis, Visibility::Public(_)) => Some(names(&item.tree)),
        // The spawner traits are exported by a glob, which does not contain their names.
        Item::Trait(item) if item.ident.to_string().ends_with("Spawner") => Some(vec![item.ident.to_string()]),
        _ => None,
    }
}

/// Returns the public part of an item, and the key by which the items are sorted. Returns `None` for private items.
fn public_part(mut item: Item, public_names: &BTreeSet<String>) -> Option<(String, Item)> {
    let key = match &mut item {
        Item::Struct(item) => {
            keep_public_attributes(&mut item.attrs);
            item.fields.iter_mut().for_each(|field| field.attrs.clear());
            if !item.fields.is_empty() && !item.fields.iter().any(|field| matches!(field.vis, Visibility::Public(_))) {
                // All fields of this struct are private. `(_)` replaces them, even if the fields have names.
                item.fields = syn::Fields::Unnamed(parse_quote!((_)));
                item.semi_token = Some(parse_quote!(;));
            }
            item.ident.to_string()
        }
        Item::Enum(item) => {
            keep_public_attributes(&mut item.attrs);
            item.variants.iter_mut().for_each(|variant| keep_public_attributes(&mut variant.attrs));
            item.ident.to_string()
        }
        Item::Type(item) => {
            keep_public_attributes(&mut item.attrs);
            item.ident.to_string()
        }
        Item::Fn(item) if matches!(item.vis, Visibility::Public(_)) => {
            keep_public_attributes(&mut item.attrs);
            item.block = parse_quote!({});
            item.sig.ident.to_string()
        }
        Item::Trait(item) => {
            keep_public_attributes(&mut item.attrs);
            for item in &mut item.items {
                if let TraitItem::Fn(item) = item {
                    keep_public_attributes(&mut item.attrs);
                }
            }
            item.ident.to_string()
        }
        Item::Impl(item) if item.attrs.iter().any(is_cfg_loom) => return None,
        Item::Impl(item) => {
            keep_public_attributes(&mut item.attrs);
            let is_trait_impl = item.trait_.is_some();
            let methods = std::mem::take(&mut item.items).into_iter().filter_map(public_method);
            item.items = if is_trait_impl { Vec::new() } else { methods.collect() };
            if !is_trait_impl && item.items.is_empty() {
                return None;
            }
            let trait_name = item.trait_.as_ref().map(|(path, _)| path.segments.last().unwrap().ident.to_string());
            match (&*item.self_ty, trait_name) {
                (_, Some(trait_name)) if trait_name == "PinnedDrop" => return None,
                (Type::Path(path), trait_name) if public_names.contains(&path.path.segments.last().unwrap().ident.to_string()) => {
                    format!("{} impl {}", path.path.segments.last().unwrap().ident, trait_name.unwrap_or_default())
                }
                (_, Some(trait_name)) if public_names.contains(&trait_name) => format!("{trait_name} impl"),
                _ => return None,
            }
        }
        Item::Macro(call) if call.mac.path.is_ident("forward") => "Spawner impl forwarded".into(),
        _ => return None,
    };
    let is_public = key.split(' ').next().is_some_and(|name| public_names.contains(name));
    is_public.then_some((key, item))
}

/// Returns a public method without its body. Returns `None` for private methods and other items.
fn public_method(item: ImplItem) -> Option<ImplItem> {
    let mut method: ImplItemFn = match item {
        ImplItem::Fn(method) => method,
        ImplItem::Macro(call) => call.mac.parse_body().unwrap(),
        _ => return None,
    };
    keep_public_attributes(&mut method.attrs);
    method.block = parse_quote!({});
    matches!(method.vis, Visibility::Public(_)).then_some(ImplItem::Fn(method))
}

fn is_cfg_loom(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|cfg| cfg == "loom")
}

/// Removes all attributes that are not important to users.
fn keep_public_attributes(attributes: &mut Vec<Attribute>) {
    let kept_names = ["cfg", "derive", "must_use", "non_exhaustive", "track_caller"];
    attributes.retain(|attribute| kept_names.iter().any(|name| attribute.path().is_ident(name)));
}

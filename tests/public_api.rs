//! The public API of each crate, read out of the source, must be what its `tests/public_api.txt` says, so that a change to it is seen in review.
//!
//! `UPDATE=1 cargo test --test public_api` writes the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};
use syn::{Attribute, File, ImplItem, ImplItemFn, Item, TraitItem, Type, UseTree, Visibility, parse_quote};

#[test]
fn is_what_its_snapshot_says() {
    for folder in [".", "durable", "host", "runtimes"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let api = read(&root.join("src"));
        let snapshot = root.join("tests/public_api.txt");
        if env::var_os("UPDATE").is_some() {
            fs::write(&snapshot, &api).unwrap();
        }
        let before = fs::read_to_string(&snapshot).unwrap_or_default();
        let changed = api.lines().zip(before.lines()).position(|(now, before)| now != before);
        let line = changed.unwrap_or(api.lines().count().min(before.lines().count())) + 1;
        assert!(api == before, "{folder}: the public API has changed at line {line} of tests/public_api.txt; UPDATE=1 accepts it");
    }
}

fn read(src: &Path) -> String {
    let files: Vec<File> = sources(src).iter().map(|path| syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap()).collect();
    let items: Vec<Item> = files.into_iter().flat_map(|file| file.items).flat_map(open_macro).collect();
    let public = items.iter().filter_map(exported).flatten().collect();
    let mut shown: Vec<(String, Item)> = items.into_iter().filter_map(|item| show(item, &public)).collect();
    shown.sort_by(|a, b| a.0.cmp(&b.0));
    let items = shown.into_iter().map(|(_, item)| item).collect();
    let mut api: File = parse_quote!();
    api.items = items;
    prettyplease::unparse(&api)
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .retain(|path| path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs"));
    paths.into_iter().flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// `pin_project!` holds the items that it declares.
fn open_macro(item: Item) -> Vec<Item> {
    match item {
        Item::Macro(call) if call.mac.path.is_ident("pin_project") => call.mac.parse_body::<File>().unwrap().items,
        item => vec![item],
    }
}

/// Modules are private, so a name is public if it is exported again.
fn exported(item: &Item) -> Option<Vec<String>> {
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
        // Exported by a glob.
        Item::Trait(item) if item.ident.to_string().ends_with("Spawner") => Some(vec![item.ident.to_string()]),
        _ => None,
    }
}

/// What a user sees of an item, under the name by which it is sorted.
fn show(mut item: Item, public: &BTreeSet<String>) -> Option<(String, Item)> {
    let name = match &mut item {
        Item::Struct(item) => {
            attributes(&mut item.attrs);
            item.fields.iter_mut().for_each(|field| field.attrs.clear());
            if !item.fields.is_empty() && !item.fields.iter().any(|field| matches!(field.vis, Visibility::Public(_))) {
                // Nothing to see; a tuple of it says so too.
                item.fields = syn::Fields::Unnamed(parse_quote!((_)));
                item.semi_token = Some(parse_quote!(;));
            }
            item.ident.to_string()
        }
        Item::Enum(item) => {
            attributes(&mut item.attrs);
            item.variants.iter_mut().for_each(|variant| attributes(&mut variant.attrs));
            item.ident.to_string()
        }
        Item::Type(item) => {
            attributes(&mut item.attrs);
            item.ident.to_string()
        }
        Item::Fn(item) if matches!(item.vis, Visibility::Public(_)) => {
            attributes(&mut item.attrs);
            item.block = parse_quote!({});
            item.sig.ident.to_string()
        }
        Item::Trait(item) => {
            attributes(&mut item.attrs);
            for item in &mut item.items {
                if let TraitItem::Fn(item) = item {
                    attributes(&mut item.attrs);
                }
            }
            item.ident.to_string()
        }
        Item::Impl(item) if item.attrs.iter().any(for_loom) => return None,
        Item::Impl(item) => {
            attributes(&mut item.attrs);
            let of_trait = item.trait_.is_some();
            let methods = std::mem::take(&mut item.items).into_iter().filter_map(method);
            item.items = if of_trait { Vec::new() } else { methods.collect() };
            if !of_trait && item.items.is_empty() {
                return None;
            }
            let of = item.trait_.as_ref().map(|of| of.0.segments.last().unwrap().ident.to_string());
            match (&*item.self_ty, of) {
                (_, Some(of)) if of == "PinnedDrop" => return None,
                (Type::Path(path), of) if public.contains(&path.path.segments.last().unwrap().ident.to_string()) => {
                    format!("{} impl {}", path.path.segments.last().unwrap().ident, of.unwrap_or_default())
                }
                (_, Some(of)) if public.contains(&of) => format!("{of} impl"),
                _ => return None,
            }
        }
        Item::Macro(call) if call.mac.path.is_ident("forward") => "Spawner impl forwarded".into(),
        _ => return None,
    };
    let shown = name.split(' ').next().is_some_and(|name| public.contains(name));
    shown.then_some((name, item))
}

/// A public method without its body.
fn method(item: ImplItem) -> Option<ImplItem> {
    let mut method: ImplItemFn = match item {
        ImplItem::Fn(method) => method,
        ImplItem::Macro(call) => call.mac.parse_body().unwrap(),
        _ => return None,
    };
    attributes(&mut method.attrs);
    method.block = parse_quote!({});
    matches!(method.vis, Visibility::Public(_)).then_some(ImplItem::Fn(method))
}

fn for_loom(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|cfg| cfg == "loom")
}

fn attributes(attributes: &mut Vec<Attribute>) {
    let kept = ["cfg", "derive", "must_use", "non_exhaustive", "track_caller"];
    attributes.retain(|attribute| kept.iter().any(|kept| attribute.path().is_ident(kept)));
}

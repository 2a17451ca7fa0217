//! Reads the paths in source files, such as `crate::state::Gate`. Finds the file that defines the item of each path.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::slice;
use syn::{ItemUse, UseTree};

/// All source files. The keys are their module paths.
pub(crate) struct Sources(pub(crate) BTreeMap<Vec<String>, Source>);

#[derive(Default)]
pub(crate) struct Source {
    pub(crate) file: String,
    pub(crate) module: Vec<String>,
    mentions: Vec<Mention>,
    /// The names that the file itself defines. This does not include the contents of inline modules.
    items: BTreeSet<String>,
    /// Each `[cfg(…)]`, `[cfg_attr(…)]` and `cfg!(…)` with its line number.
    pub(crate) conditions: Vec<(usize, String)>,
}

/// A path in an import or in other code. The last name of a glob import is `*`.
pub(crate) struct Mention {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
    /// The module in which the path is written: the module of the file or an inline module.
    module: Vec<String>,
    /// The name that a `use` brings into scope.
    imported_as: Option<String>,
    /// The visibility of an import: `pub`, `pub(…)` or an empty string.
    pub(crate) visibility: &'static str,
}

struct Word {
    line: usize,
    text: String,
    /// True if the word is outside inline modules and bodies. The braces of a macro call such as `pin_project!` do not count as a body.
    is_at_top: bool,
}

impl Sources {
    /// Reads all Rust files of a folder.
    pub(crate) fn read(folder: &Path) -> Self {
        fn read(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_str().unwrap()));
                if path.is_dir() {
                    read(&path, &format!("{name}/"), files);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    files.push((name, fs::read_to_string(path).unwrap()));
                }
            }
        }
        let mut files = Vec::new();
        read(folder, "", &mut files);
        Self::new(&files)
    }

    /// Parses files. The parameter contains file names relative to `src`, and the contents of these files. Ignores test modules.
    pub(crate) fn new(files: &[(String, String)]) -> Self {
        let files = files.iter().filter(|(name, _)| !name.split('/').any(|part| part == "tests" || part == "tests.rs"));
        let sources = files.map(|(name, text)| Source::new(name, text));
        Self(sources.map(|source| (source.module.clone(), source)).collect())
    }

    /// Returns the path from the crate root. Returns `None` if the path starts with another crate or with a local name.
    fn absolute(&self, mention: &Mention) -> Option<Vec<String>> {
        let (first, rest) = mention.path.split_first()?;
        let module = &mention.module;
        let child = [module.as_slice(), slice::from_ref(first)].concat();
        let mut path = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.clone(),
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            _ if self.0.contains_key(&child) => child,
            _ if mention.imported_as.is_some() => return None,
            // Outside imports, the first name of a path can also be a module that the file imports.
            name => {
                let mut imported = self.module_of(module).imports(name).filter_map(|import| self.absolute(import));
                imported.find(|path| self.0.contains_key(path))?
            }
        };
        for name in rest {
            if name == "super" { drop(path.pop()) } else { path.push(name.clone()) }
        }
        Some(path)
    }

    /// Returns the file of the innermost module in an absolute path.
    fn module_of(&self, path: &[String]) -> &Source {
        (0..=path.len()).rev().find_map(|length| self.0.get(&path[..length])).expect("sources contain a lib.rs")
    }

    /// Follows all re-exports, and returns the files that define an absolute path. There is more than one file if each platform defines
    /// the name. There is no file if a macro composes the name. Child modules can also use private imports, but a glob import cannot.
    fn definitions(&self, path: &[String], sees_private: bool) -> Vec<&Source> {
        let module = self.module_of(path);
        let (parent, rest) = path.split_at(module.module.len());
        let Some((name, rest)) = rest.split_first() else { return vec![module] };
        let follow = |import: &Mention, rest: &[String]| match self.absolute(import) {
            Some(target) if target != [parent, slice::from_ref(name)].concat() => self.definitions(&[&target, rest].concat(), true),
            _ => vec![module],
        };
        let exports = module.mentions.iter().filter(|import| !import.visibility.is_empty());
        if name == "*" {
            return exports.flat_map(|export| follow(export, &[])).chain([module]).collect();
        }
        let imports = module.imports(name).filter(|import| sees_private || !import.visibility.is_empty());
        let named: Vec<_> = imports.flat_map(|import| follow(import, rest)).collect();
        if !named.is_empty() {
            return named;
        }
        if module.items.contains(name) {
            return vec![module];
        }
        let globs = exports.filter_map(|export| self.absolute(export)).filter(|path| path.ends_with(&["*".into()]));
        globs.flat_map(|glob| self.definitions(&[&glob[..glob.len() - 1], slice::from_ref(name), rest].concat(), false)).collect()
    }

    pub(crate) fn mentions(&self) -> impl Iterator<Item = (&Source, &Mention)> {
        self.0.values().flat_map(|source| source.mentions.iter().map(move |mention| (source, mention)))
    }

    /// Returns each path in the sources that names an item of this crate. The result contains the file of the path, the absolute path,
    /// and the files that define the item.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (&Source, &Mention, Vec<String>, Vec<&Source>)> {
        self.mentions().filter_map(|(source, mention)| {
            let path = self.absolute(mention)?;
            let mut definitions = self.definitions(&path, true);
            if definitions.is_empty() {
                definitions.push(self.module_of(&path));
            }
            Some((source, mention, path, definitions))
        })
    }
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let mut words = Vec::new();
        flatten(text.parse().unwrap_or_else(|error| panic!("src/{file} is not valid Rust: {error}")), true, &mut words);
        remove_tests(&mut words);
        let module = file.trim_end_matches(".rs").split('/').filter(|name| !matches!(*name, "lib" | "mod"));
        let mut source = Self { file: file.into(), module: module.map(String::from).collect(), ..Self::default() };
        source.read(&words);
        source
    }

    fn read(&mut self, words: &[Word]) {
        let text: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        let (mut module, mut inline_ends, mut at) = (self.module.clone(), Vec::new(), 0);
        while at < text.len() {
            let Word { line, is_at_top, .. } = words[at];
            match &text[at..] {
                ["[", "cfg" | "cfg_attr", "(", ..] => self.conditions.push((line, text[at..=closing(&text, at)].concat())),
                ["cfg", "!", "(", ..] => self.conditions.push((line, text[at..=closing(&text, at + 2)].concat())),
                ["pub", "(", "in", ..] => at = closing(&text, at + 1),
                // The tokens `use<'a>` in a type and `use $path;` in a macro are not imports.
                ["use", next, ..] if !matches!(*next, "<" | "$") => {
                    let visibility = match &text[..at] {
                        [.., "pub"] => "pub",
                        [.., ")"] => "pub(…)",
                        _ => "",
                    };
                    let end = at + text[at..].iter().position(|word| *word == ";").expect("an import ends with a semicolon");
                    let import: ItemUse = syn::parse_str(&text[at..=end].join(" ")).expect("an import");
                    self.mentions.extend(imports(&import.tree, &[]).into_iter().map(|(path, name)| Mention {
                        line,
                        path,
                        module: module.clone(),
                        imported_as: Some(name),
                        visibility,
                    }));
                    at = end;
                }
                [first, "::", ..] => {
                    let mut path = vec![(*first).to_string()];
                    while let ["::", name, ..] = &text[at + 1..] {
                        path.push((*name).to_string());
                        at += 2;
                    }
                    self.mentions.push(Mention { line, path, module: module.clone(), imported_as: None, visibility: "" });
                }
                ["mod", name, "{", ..] => {
                    module.push((*name).to_string());
                    inline_ends.push(closing(&text, at + 2));
                }
                ["}", ..] if inline_ends.last() == Some(&at) => {
                    inline_ends.pop();
                    module.pop();
                }
                _ => {}
            }
            if let ["macro_rules", "!", name, ..]
            | ["struct" | "enum" | "union" | "trait" | "type" | "fn" | "const" | "static" | "mod", name, ..] = &text[at..]
            {
                self.items.extend(is_at_top.then(|| (*name).to_string()));
            }
            at += 1;
        }
    }

    /// Returns the imports that bring a name into the scope of this file.
    fn imports(&self, name: &str) -> impl Iterator<Item = &Mention> {
        let imports = self.mentions.iter().filter(|mention| mention.module == self.module);
        imports.filter(move |mention| mention.imported_as.as_deref() == Some(name))
    }

    /// Returns the name of the top module. The list of layers contains these names.
    pub(crate) fn top(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    pub(crate) fn at(&self, line: usize) -> String {
        format!("src/{}:{line}", self.file)
    }
}

/// Appends all tokens to `words`. Brackets and `::` count as words too.
fn flatten(tokens: TokenStream, is_at_top: bool, words: &mut Vec<Word>) {
    let mut after_colon = false;
    for token in tokens {
        let line = token.span().start().line;
        let word = |text: &str| Word { line, text: text.into(), is_at_top };
        match &token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    _ => ("{", "}"),
                };
                let is_macro_call = words.last().is_some_and(|word| word.text == "!");
                words.push(word(open));
                flatten(group.stream(), is_at_top && is_macro_call, words);
                words.push(word(close));
            }
            TokenTree::Punct(sign) if after_colon && sign.as_char() == ':' => words.last_mut().unwrap().text.push(':'),
            _ => words.push(word(&token.to_string())),
        }
        after_colon = matches!(&token, TokenTree::Punct(sign) if sign.as_char() == ':' && sign.spacing() == Spacing::Joint);
    }
}

/// Removes each item with `#[cfg(test)]` or `#[cfg(all(test, …))]`, up to the end of its body or its semicolon.
fn remove_tests(words: &mut Vec<Word>) {
    let text: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let mut kept = vec![true; text.len()];
    for at in 0..text.len() {
        if let ["#", "[", "cfg", "(", "test", ..] | ["#", "[", "cfg", "(", "all", "(", "test", ..] = &text[at..] {
            let item = closing(&text, at + 1);
            let end = (item..text.len()).find(|&end| matches!(text[end], "{" | ";")).expect("an attribute has an item");
            kept[at..=closing(&text, end)].fill(false);
        }
    }
    let mut kept = kept.into_iter();
    words.retain(|_| kept.next() == Some(true));
}

/// Returns the position of the bracket that closes the bracket at `open`. If the word at `open` is not a bracket, returns `open`.
fn closing(text: &[&str], open: usize) -> usize {
    let mut depth = 0;
    let mut closes = |word: &str| {
        depth += i32::from(matches!(word, "(" | "[" | "{")) - i32::from(matches!(word, ")" | "]" | "}"));
        depth == 0
    };
    (open..text.len()).find(|&at| closes(text[at])).expect("brackets come in pairs")
}

/// Returns the paths of an import. Each path has the name that it brings into scope.
fn imports(tree: &UseTree, prefix: &[String]) -> Vec<(Vec<String>, String)> {
    let path = |name: &dyn ToString| [prefix, &[name.to_string()]].concat();
    match tree {
        UseTree::Path(tree) => imports(&tree.tree, &path(&tree.ident)),
        UseTree::Group(group) => group.items.iter().flat_map(|tree| imports(tree, prefix)).collect(),
        UseTree::Name(tree) if tree.ident == "self" => vec![(prefix.to_vec(), prefix[prefix.len() - 1].clone())],
        UseTree::Name(tree) => vec![(path(&tree.ident), tree.ident.to_string())],
        UseTree::Rename(tree) if tree.ident == "self" => vec![(prefix.to_vec(), tree.rename.to_string())],
        UseTree::Rename(tree) => vec![(path(&tree.ident), tree.rename.to_string())],
        UseTree::Glob(_) => vec![(path(&"*"), "*".into())],
    }
}

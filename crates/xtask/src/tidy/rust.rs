//! Owns what the rules know about one Rust file: its text split into code, strings and comments, its
//! functions, its `use` paths and which lines are tests.
//!
//! The split is done by a small scanner, because `syn` drops comments; functions and tests come from `syn`,
//! because counting braces goes wrong in macros and raw strings. The three texts are as long as the file: what is
//! not of the kind is a space, so byte and line positions agree.

use proc_macro2::Span;
use syn::visit::{self, Visit};

/// A function with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    /// The line of `fn`, counted from 1.
    pub(crate) first_line: usize,
    pub(crate) last_line: usize,
}

pub(crate) struct Rust {
    pub(crate) code: String,
    pub(crate) strings: String,
    pub(crate) functions: Vec<Function>,
    /// `use a::{b, c}` gives `a::b` and `a::c`, with the line.
    pub(crate) imports: Vec<(usize, String)>,
    /// Line and message of a syntax error.
    pub(crate) error: Option<(usize, String)>,
    test_lines: Vec<(usize, usize)>,
}

impl Rust {
    pub(crate) fn read(path: &str, text: &str) -> Rust {
        let kinds = kinds(text.as_bytes());
        let mut rust = Rust {
            code: only(text, &kinds, Kind::Code),
            strings: only(text, &kinds, Kind::Str),
            functions: Vec::new(),
            imports: Vec::new(),
            error: None,
            test_lines: Vec::new(),
        };
        match syn::parse_file(text) {
            Ok(file) => {
                if file.attrs.iter().any(marks_test) || is_test_path(path) {
                    rust.test_lines.push((0, usize::MAX));
                }
                rust.visit_file(&file);
            }
            Err(error) => rust.error = Some((error.span().start().line, error.to_string())),
        }
        rust
    }

    /// Whether the line is compiled for tests only.
    pub(crate) fn in_test(&self, line: usize) -> bool {
        self.test_lines.iter().any(|&(first, last)| (first..=last).contains(&line))
    }

    fn note_test(&mut self, attributes: &[syn::Attribute], first: Span, last: Span) {
        if attributes.iter().any(marks_test) {
            self.test_lines.push((first.start().line, last.end().line));
        }
    }

    fn note_function(
        &mut self,
        attributes: &[syn::Attribute],
        signature: &syn::Signature,
        body: &syn::Block,
    ) {
        let (first, last) = (signature.fn_token.span, body.brace_token.span.close());
        self.note_test(attributes, first, last);
        self.functions.push(Function {
            name: signature.ident.to_string(),
            first_line: first.start().line,
            last_line: last.end().line,
        });
    }

    fn note_imports(&mut self, prefix: &str, tree: &syn::UseTree) {
        let mut leaf =
            |name: &syn::Ident| self.imports.push((name.span().start().line, format!("{prefix}{name}")));
        match tree {
            syn::UseTree::Path(path) => self.note_imports(&format!("{prefix}{}::", path.ident), &path.tree),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.note_imports(prefix, item)),
            syn::UseTree::Name(name) => leaf(&name.ident),
            syn::UseTree::Rename(rename) => leaf(&rename.ident),
            syn::UseTree::Glob(glob) => {
                self.imports.push((glob.star_token.spans[0].start().line, format!("{prefix}*")));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Rust {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note_function(&item.attrs, &item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note_function(&item.attrs, &item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.note_function(&item.attrs, &item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if let Some((brace, _)) = &item.content {
            self.note_test(&item.attrs, item.mod_token.span, brace.span.close());
        }
        visit::visit_item_mod(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.note_test(&item.attrs, item.impl_token.span, item.brace_token.span.close());
        visit::visit_item_impl(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_test(&item.attrs, item.use_token.span, item.semi_token.span);
        self.note_imports("", &item.tree);
    }
}

/// `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`; not `#[cfg(not(test))]`.
fn marks_test(attribute: &syn::Attribute) -> bool {
    if attribute.path().is_ident("cfg") {
        let Ok(list) = attribute.meta.require_list() else {
            return false;
        };
        let condition: String = list.tokens.to_string().split_whitespace().collect();
        return !condition.contains("not(test") && has_word(&condition, "test");
    }
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
}

/// Files that cargo, or a `#[cfg(test)] mod tests;`, compiles for tests only.
fn is_test_path(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || path.split('/').any(|part| matches!(part, "tests" | "benches" | "examples" | "fuzz_targets"))
}

/// Whether `word` stands in `text` with no letter, digit or `_` next to it.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = text.as_bytes();
    text.match_indices(word).any(|(at, _)| {
        !part_of_word(at.checked_sub(1).and_then(|i| bytes.get(i)))
            && !part_of_word(bytes.get(at + word.len()))
    })
}

/// The line, counted from 1, that holds the byte at `offset`.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count() + 1
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Str,
    Comment,
}

fn only(text: &str, kinds: &[Kind], wanted: Kind) -> String {
    let keep = |(byte, kind): (u8, &Kind)| {
        if byte == b'\n' || *kind == wanted { byte } else { b' ' }
    };
    // Kinds change at ASCII bytes only, so no character is cut in two.
    String::from_utf8_lossy(&text.bytes().zip(kinds).map(keep).collect::<Vec<u8>>()).into_owned()
}

/// The kind of every byte. Quotes count as code, what they enclose as string; a character literal is code.
fn kinds(text: &[u8]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let after_word = at > 0 && (text[at - 1].is_ascii_alphanumeric() || text[at - 1] == b'_');
        let (skip, kind, length) = if rest.starts_with(b"//") {
            (0, Kind::Comment, rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()))
        } else if rest.starts_with(b"/*") {
            (0, Kind::Comment, block_comment(rest))
        } else if let Some(hashes) = raw_string(rest).filter(|_| !after_word) {
            let start = rest.iter().position(|&b| b == b'"').unwrap_or(0) + 1;
            let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            let length =
                rest[start..].windows(end.len()).position(|w| w == end).unwrap_or(rest.len() - start);
            (start, Kind::Str, length)
        } else if rest[0] == b'"' {
            (1, Kind::Str, quoted(&rest[1..], b'"'))
        } else if rest[0] == b'\'' {
            (character(rest), Kind::Code, 0)
        } else {
            (1, Kind::Code, 0)
        };
        let (start, end) = ((at + skip).min(text.len()), (at + skip + length).min(text.len()));
        kinds[start..end].fill(kind);
        // A string's closing quote is passed too, or it would open the next one.
        at = if kind == Kind::Str { end + 1 } else { end };
    }
    kinds
}

fn block_comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    text.len()
}

/// The number of `#` if a raw string starts here: `r"`, `r#"`, `br"`, `cr#"`.
fn raw_string(text: &[u8]) -> Option<usize> {
    let text =
        text.strip_prefix(b"b").or_else(|| text.strip_prefix(b"c")).unwrap_or(text).strip_prefix(b"r")?;
    let hashes = text.iter().take_while(|&&b| b == b'#').count();
    (text.get(hashes) == Some(&b'"')).then_some(hashes)
}

/// The number of bytes before the closing quote.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at
}

/// The length of a character literal, or 1 for the quote of a lifetime.
fn character(text: &[u8]) -> usize {
    if text.get(1) == Some(&b'\\') {
        return quoted(&text[1..], b'\'') + 2;
    }
    // One character of up to four bytes, then the closing quote.
    let width = text.get(1).map_or(1, |b| b.leading_ones().max(1) as usize);
    if text.get(1 + width) == Some(&b'\'') { width + 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_code_strings_and_comments() {
        let text = "let a = \"b // c\"; // d \"e\"\nlet r = r#\"x\"y\"#; /* f /* g */ h */ let c = '\"'; fn l<'a>() {}\n";
        let rust = Rust::read("x.rs", text);
        assert!(has_word(&rust.strings, "b") && has_word(&rust.strings, "c"));
        assert!(rust.strings.contains("x\"y"));
        assert!(!has_word(&rust.code, "d") && !has_word(&rust.code, "h"));
        assert!(has_word(&rust.code, "l"), "the quote in a character literal opens no string: {}", rust.code);
        assert_eq!(rust.code.len(), text.len());
    }

    #[test]
    fn knows_which_lines_are_tests() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(not(test))]\nmod m {\n}\n";
        let rust = Rust::read("crates/x/src/lib.rs", text);
        assert!(!rust.in_test(1) && rust.in_test(4) && !rust.in_test(7));
        assert!(Rust::read("crates/x/tests/a.rs", text).in_test(1));
    }

    #[test]
    fn flattens_imports() {
        let rust = Rust::read("x.rs", "use std::{\n    fmt,\n    net::*,\n};\n");
        assert_eq!(rust.imports, [(2, "std::fmt".to_owned()), (3, "std::net::*".to_owned())]);
    }
}

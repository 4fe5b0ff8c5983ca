//! Finds the line of a path such as `tasks.orders.tables.1.source` in a task file's text.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text's tree with the place of every key.
pub(super) struct Places<'a> {
    text: &'a str,
    tree: Option<Spanned<DeTable<'a>>>,
}

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Places { text, tree: DeTable::parse(text).ok() }
    }

    /// The line of the path, or of the longest part of it that is there; 0 where there is none.
    pub(super) fn line(&self, path: &str) -> usize {
        let Some(tree) = &self.tree else { return 0 };
        let mut at = None;
        let mut here: Option<&DeValue<'_>> = None;
        let segments: Vec<&str> = path.split('.').filter(|segment| !segment.is_empty()).collect();
        let mut next = 0;
        while next < segments.len() {
            let table = match here {
                None => Some(tree.get_ref()),
                Some(DeValue::Table(table)) => Some(table),
                Some(_) => None,
            };
            if let Some(table) = table {
                // A key may hold dots itself: the longest run of segments that is a key wins.
                let found = (next + 1..=segments.len()).rev().find_map(|end| {
                    let key = segments[next..end].join(".");
                    table.iter().find(|(name, _)| name.get_ref().as_ref() == key).map(|entry| (entry, end))
                });
                let Some(((name, value), end)) = found else { break };
                at = Some(name.span().start);
                here = Some(value.get_ref());
                next = end;
            } else if let Some(DeValue::Array(list)) = here {
                let Some(item) = segments[next].parse::<usize>().ok().and_then(|index| list.get(index))
                else {
                    break;
                };
                at = Some(item.span().start);
                here = Some(item.get_ref());
                next += 1;
            } else {
                break;
            }
        }
        at.map_or(0, |offset| line_of(self.text, offset))
    }
}

/// The line, from 1, of a byte offset.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}

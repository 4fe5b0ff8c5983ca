//! The elements of one-dimensional arrays, from text and binary forms, gathered flat; and back to text.
//!
//! Text: `{1,NULL,"a \"b\""}` (PostgreSQL docs, "Array Input and Output Syntax"). Binary: PostgreSQL source, `arrayfuncs.c`, `array_send`:
//! dimensions(4) has-nulls(4) element type(4), per dimension length(4) lower bound(4), then length(4) and bytes per element.

use pgferry_model::Cell;

#[derive(Clone, Copy)]
enum Element {
    Null,
    Text(usize, usize),
    Binary(usize, usize),
}

/// Elements of many arrays.
#[derive(Default)]
pub struct Elements {
    bytes: Vec<u8>,
    elements: Vec<Element>,
}

const NOT_FLAT: &str = "is an array of more than one dimension";
const MALFORMED: &str = "is malformed";

impl Elements {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// The elements, in order.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'_>> + Clone {
        self.elements.iter().map(|element| match *element {
            Element::Null => Cell::Null,
            Element::Text(start, end) => Cell::Text(&self.bytes[start..end]),
            Element::Binary(start, end) => Cell::Binary(&self.bytes[start..end]),
        })
    }

    /// Takes the elements of an array's text.
    pub fn take_text(&mut self, text: &[u8]) -> Result<(), &'static str> {
        let inner = match text {
            [b'{', inner @ .., b'}'] => inner,
            [b'[', ..] => return Err("is an array whose first index is not 1"),
            _ => return Err(MALFORMED),
        };
        let mut at = 0;
        while at < inner.len() {
            at = self.text_element(inner, at)?;
            match inner.get(at) {
                None => return Ok(()),
                Some(b',') if at + 1 < inner.len() => at += 1,
                Some(_) => return Err(MALFORMED),
            }
        }
        Ok(())
    }

    fn text_element(&mut self, inner: &[u8], from: usize) -> Result<usize, &'static str> {
        let start = self.bytes.len();
        let mut at = from;
        match inner[from] {
            b'{' => return Err(NOT_FLAT),
            b'"' => {
                at += 1;
                loop {
                    match inner.get(at) {
                        Some(b'"') => break,
                        Some(b'\\') => {
                            self.bytes.push(*inner.get(at + 1).ok_or(MALFORMED)?);
                            at += 2;
                        }
                        Some(&byte) => {
                            self.bytes.push(byte);
                            at += 1;
                        }
                        None => return Err(MALFORMED),
                    }
                }
                at += 1;
            }
            _ => {
                while let Some(&byte) = inner.get(at).filter(|&&byte| byte != b',') {
                    self.bytes.push(byte);
                    at += 1;
                }
                if &self.bytes[start..] == b"NULL" {
                    self.bytes.truncate(start);
                    self.elements.push(Element::Null);
                    return Ok(at);
                }
            }
        }
        self.elements.push(Element::Text(start, self.bytes.len()));
        Ok(at)
    }

    /// Takes the elements of an array's binary form.
    pub fn take_binary(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let word = |at: usize| -> Result<i32, &'static str> {
            let four: [u8; 4] =
                bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).ok_or(MALFORMED)?;
            Ok(i32::from_be_bytes(four))
        };
        match word(0)? {
            0 => return Ok(()),
            1 => {}
            _ => return Err(NOT_FLAT),
        }
        if word(16)? != 1 {
            return Err("is an array whose first index is not 1");
        }
        let mut at = 20;
        for _ in 0..word(12)? {
            let length = word(at)?;
            at += 4;
            let Ok(length) = usize::try_from(length) else {
                self.elements.push(Element::Null);
                continue;
            };
            let value = bytes.get(at..at + length).ok_or(MALFORMED)?;
            let start = self.bytes.len();
            self.bytes.extend_from_slice(value);
            self.elements.push(Element::Binary(start, self.bytes.len()));
            at += length;
        }
        Ok(())
    }
}

/// The text of a one-dimensional array whose first index is 1, from its elements' texts (PostgreSQL docs, "Array Input and Output
/// Syntax"): what has to be quoted is.
pub fn array_text(elements: impl IntoIterator<Item = Option<String>>) -> String {
    let part = |element: Option<String>| match element {
        None => "NULL".to_owned(),
        Some(text) => {
            let special = |character: char| {
                matches!(character, '{' | '}' | ',' | '"' | '\\')
                    || character.is_ascii_whitespace()
                    || character == '\x0b'
            };
            if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
                format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                text
            }
        }
    };
    let parts: Vec<String> = elements.into_iter().map(part).collect();
    format!("{{{}}}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(array: &str) -> Result<Vec<Option<String>>, &'static str> {
        let mut elements = Elements::default();
        elements.take_text(array.as_bytes())?;
        let text = |bytes: &[u8]| Some(String::from_utf8_lossy(bytes).into_owned());
        Ok(elements
            .cells()
            .map(|cell| match cell {
                Cell::Text(bytes) | Cell::Binary(bytes) => text(bytes),
                Cell::Null | Cell::Unchanged => None,
            })
            .collect())
    }

    #[test]
    fn quoting_follows_array_output() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(text("{}"), Ok(vec![]));
        assert_eq!(text("{1,NULL,\"NULL\",\"\"}"), Ok(vec![some("1"), None, some("NULL"), some("")]));
        assert_eq!(
            text(r#"{"a,b","c\"d","e\\f","{}"}"#),
            Ok(vec![some("a,b"), some("c\"d"), some("e\\f"), some("{}")])
        );
        assert_eq!(text("{{1},{2}}"), Err(NOT_FLAT));
        assert!(text("[0:1]={1,2}").is_err());
        for malformed in ["", "{", "{1", "{\"a}", "{1,}", "{\"a\"b}"] {
            assert!(text(malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn binary_arrays_are_read_and_other_shapes_refused() {
        let words = |words: &[i32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let mut elements = Elements::default();
        elements.take_binary(&words(&[1, 1, 23, 3, 1, 4, 7, -1, 4, 8])).expect("an array");
        elements.take_binary(&words(&[0, 0, 23])).expect("an empty array");
        let cells: Vec<Cell<'_>> = elements.cells().collect();
        assert_eq!(cells, [Cell::Binary(&[0, 0, 0, 7]), Cell::Null, Cell::Binary(&[0, 0, 0, 8])]);
        let mut elements = Elements::default();
        assert!(elements.take_binary(&words(&[2, 0, 23, 1, 1, 1, 1, 4, 7])).is_err());
        assert!(elements.take_binary(&words(&[1, 0, 23, 1, 0, 4, 7])).is_err());
        assert!(elements.take_binary(&words(&[1, 0, 23, i32::MAX, 1, 4])).is_err());
    }
}

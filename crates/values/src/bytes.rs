//! Bytes and UUIDs from PostgreSQL's text forms, and back to text.

/// The text of a `bytea`, in the pinned session's form.
pub fn bytea_text(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Appends the bytes of a `bytea`'s text.
pub fn bytea_from_text(text: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    let digits = text.strip_prefix(b"\\x").ok_or("is malformed")?;
    out.reserve(digits.len() / 2);
    for pair in digits.chunks(2) {
        out.push(hex_byte(pair).ok_or("is malformed")?);
    }
    Ok(())
}

/// The text of a `uuid`.
pub fn uuid_text(bytes: [u8; 16]) -> String {
    let digits = bytea_text(&bytes).split_off(2);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// The bytes of a `uuid`'s text.
pub fn uuid_from_text(text: &[u8]) -> Result<[u8; 16], &'static str> {
    let mut bytes = [0; 16];
    let mut digits = text.iter().copied().filter(|&byte| byte != b'-');
    for byte in &mut bytes {
        let pair = [digits.next().ok_or("is malformed")?, digits.next().ok_or("is malformed")?];
        *byte = hex_byte(&pair).ok_or("is malformed")?;
    }
    if digits.next().is_some() { Err("is malformed") } else { Ok(bytes) }
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    match pair {
        &[high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_uuids_come_back_from_their_text() {
        let mut bytes = Vec::new();
        bytea_from_text(b"\\x00fF7f", &mut bytes).expect("bytes");
        assert_eq!((bytes.as_slice(), bytea_text(&bytes).as_str()), (&[0, 255, 127][..], "\\x00ff7f"));
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(uuid_text(uuid_from_text(text.as_bytes()).expect("a uuid")), text);
        for malformed in ["", "x", "\\x0", "\\xgg"] {
            assert!(bytea_from_text(malformed.as_bytes(), &mut bytes).is_err(), "{malformed}");
        }
        for malformed in ["", &text[..35], &format!("{text}0"), &text.replace('f', "g")] {
            assert!(uuid_from_text(malformed.as_bytes()).is_err(), "{malformed}");
        }
    }
}

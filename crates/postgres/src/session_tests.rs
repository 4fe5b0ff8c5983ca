//! Frames from any bytes: never a panic, never room for what has not arrived.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_not_yet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64), max in 5usize..100) {
        match frame_length(&bytes, max) {
            Ok(Some(length)) => prop_assert!((5..=bytes.len().min(max)).contains(&length)),
            Ok(None) if bytes.len() >= 5 => {
                let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize + 1;
                prop_assert!(length > bytes.len() && length <= max);
            }
            Ok(None) => {}
            Err(error) => prop_assert_eq!(error.code(), PROTOCOL),
        }
    }

    #[test]
    fn any_bytes_are_a_row_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(row) = data_row(&bytes) {
            prop_assert!(row.capacity() <= bytes.len());
        }
    }

    #[test]
    fn small_rows_come_back_whole(row in prop::collection::vec(prop::option::of("\\PC{0,8}"), 0..8)) {
        let mut bytes = u16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
        for value in &row {
            match value {
                Some(text) => {
                    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
                None => bytes.extend((-1i32).to_be_bytes()),
            }
        }
        prop_assert_eq!(data_row(&bytes).unwrap(), row.clone());
        if !bytes.is_empty() && !row.is_empty() {
            prop_assert!(data_row(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn any_bytes_are_a_servers_error(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
        let error = ServerError::parse(&bytes).into_error("asking");
        prop_assert!(!error.code().as_str().is_empty());
    }

    #[test]
    fn any_bytes_are_a_certificate_or_not(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
        prop_assert_eq!(tls::end_point(&bytes), None);
    }
}

#[test]
fn a_length_below_four_or_above_the_limit_is_an_error() {
    for bytes in [[b'D', 0, 0, 0, 3], [b'D', 0xff, 0xff, 0xff, 0xff], [b'D', 0x7f, 0xff, 0xff, 0xff]] {
        assert_eq!(frame_length(&bytes, FRAME_BYTES_MAX).unwrap_err().code(), PROTOCOL);
    }
    assert!(frame_length(&[b'R', 0, 2, 0, 0], LOGIN_FRAME_BYTES_MAX).is_err());
}

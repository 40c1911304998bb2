//! GPT-2's printable alphabet for bytes: every byte is a character, so that merges work on text.

use std::sync::LazyLock;

/// The byte a character of the alphabet stands for.
pub(super) fn byte_of(character: char) -> Option<u8> {
    static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
        let mut bytes = [None; 0x144];
        let mut shifted = 0x100;
        for byte in 0..=255u8 {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let place = if printable { usize::from(byte) } else { shifted };
            if !printable {
                shifted += 1;
            }
            bytes[place] = Some(byte);
        }
        bytes
    });
    BYTES.get(character as usize).copied().flatten()
}

/// The bytes of a token; a token with a character outside of the alphabet is text as it stands.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = ('\0'..='\u{200}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(bytes_of("ĠHello"), b" Hello");
        assert_eq!(bytes_of("Ċ"), b"\n");
        assert_eq!(bytes_of("<|a b|>"), b"<|a b|>", "a space is not in the alphabet: the token is plain text");
    }
}

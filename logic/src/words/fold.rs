//! Folding: what is the same to a reader becomes the same bytes. Upper and lower case (by Unicode, so
//! that `ß` is `ss`), full-width forms of ASCII, and characters that nobody sees.

/// The folded text.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut folded = String::with_capacity(text.len());
    for character in text.chars() {
        fold_one(character, |one| folded.push(one));
    }
    folded
}

/// Of each byte of the folded text, where the character it comes from begins and ends in the text.
pub fn origins(text: &str) -> Vec<(u32, u32)> {
    let mut origins = Vec::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let origin = (at as u32, (at + character.len_utf8()) as u32);
        fold_one(character, |one| {
            origins.extend(std::iter::repeat_n(origin, one.len_utf8()));
        });
    }
    origins
}

fn fold_one(character: char, mut push: impl FnMut(char)) {
    let character = match character {
        // Soft hyphen, zero-width characters and marks of direction, the dot that `İ` leaves behind.
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}' => {
            return;
        }
        '\u{ff01}'..='\u{ff5e}' => {
            char::from_u32(character as u32 - 0xff01 + 0x21).unwrap_or(character)
        }
        '\u{3000}' | '\u{a0}' => ' ',
        other => other,
    };
    // Through the upper case, because several lower-case letters share one.
    for upper in character.to_uppercase() {
        for lower in upper.to_lowercase().filter(|lower| *lower != '\u{307}') {
            push(lower);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fold, origins};

    #[test]
    fn spellings_of_one_word_fold_to_the_same() {
        for (one, other) in [
            ("STRASSE", "straße"),
            ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
            ("BAD", "ｂａｄ"),
            ("bad", "b\u{200b}a\u{ad}d\u{feff}"),
            ("İstanbul", "istanbul"),
            ("ПРИВЕТ", "привет"),
            ("a b", "a\u{3000}b"),
            ("海", "海"),
        ] {
            assert_eq!(fold(one), fold(other), "{one} {other}");
        }
        assert_ne!(fold("bad"), fold("bed"));
    }

    #[test]
    fn every_folded_byte_knows_its_character() {
        for text in ["", "plain", "Straße ｂａｄ İ\u{200b}海!", "\u{200b}", "ﬃ"] {
            let (folded, origins) = (fold(text), origins(text));
            assert_eq!(folded.len(), origins.len(), "{text}");
            for (start, end) in origins {
                assert!(text.get(start as usize..end as usize).is_some(), "{text}");
            }
        }
    }
}

//! How a text becomes terms. Words of letters and digits are terms; scripts that are written
//! without spaces (Chinese, Japanese, Thai …, and Korean, whose words carry endings) become single
//! characters and pairs of neighbours, so that any part of a text is found without a dictionary.
//!
//! The index is asked for terms, which finds some messages too many (pairs that are there, but not
//! one after the other); [`Wanted::fits`] looks at the text itself and has the last word.

use std::collections::BTreeSet;

/// Longest term, in bytes: longer words are indexed and asked for by their beginning.
const TERM_BYTES_MAX: usize = 48;

/// Terms of one text; what follows is not found by its text.
pub const TERMS_MAX: usize = 4_096;

/// Parts of a question.
const PARTS_MAX: usize = 16;

/// One form for what people take as the same: lower case, and full-width forms as ASCII.
fn fold(character: char) -> impl Iterator<Item = char> {
    let character = match character {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(character as u32 - 0xfee0).unwrap_or(character),
        '\u{3000}' => ' ',
        other => other,
    };
    character.to_lowercase()
}

/// Scripts in which words are not told apart by spaces.
fn is_spaceless(character: char) -> bool {
    matches!(character,
        '\u{0e00}'..='\u{0eff}' // Thai, Lao
        | '\u{1000}'..='\u{109f}' // Burmese
        | '\u{1100}'..='\u{11ff}' | '\u{ac00}'..='\u{d7af}' // Hangul
        | '\u{1780}'..='\u{17ff}' // Khmer
        | '\u{3005}'..='\u{3007}' | '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' // kana
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' // Han
        | '\u{20000}'..='\u{3134f}')
}

/// A part of a text: a word, or characters of a script without spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Word(String),
    Run(String),
}

fn parts(text: &str, parts_max: usize) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![];
    let mut open = false;
    for character in text.chars().flat_map(fold) {
        let spaceless = is_spaceless(character);
        // Thai and others have vowel signs that are no letters on their own.
        if !spaceless && !character.is_alphanumeric() {
            open = false;
            continue;
        }
        let goes_on = open
            && match parts.last() {
                Some(Part::Word(_)) => !spaceless,
                Some(Part::Run(_)) => spaceless,
                None => false,
            };
        if goes_on {
            if let Some(Part::Word(text) | Part::Run(text)) = parts.last_mut() {
                text.push(character);
            }
        } else if parts.len() == parts_max {
            break;
        } else {
            let text = character.to_string();
            parts.push(if spaceless { Part::Run(text) } else { Part::Word(text) });
        }
        open = true;
    }
    parts
}

fn cut(word: &str) -> &str {
    let end = (0..=TERM_BYTES_MAX.min(word.len())).rev().find(|at| word.is_char_boundary(*at));
    &word[..end.unwrap_or(0)]
}

/// Every term of a text, once, at most [`TERMS_MAX`].
pub fn terms(text: &str) -> BTreeSet<String> {
    let mut terms = BTreeSet::new();
    for part in parts(text, TERMS_MAX) {
        match part {
            Part::Word(word) => drop(terms.insert(cut(&word).to_owned())),
            Part::Run(run) => {
                let mut before: Option<char> = None;
                for character in run.chars() {
                    terms.insert(character.to_string());
                    if let Some(before) = before {
                        terms.insert(format!("{before}{character}"));
                    }
                    before = Some(character);
                }
            }
        }
        if terms.len() >= TERMS_MAX {
            break;
        }
    }
    terms
}

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    parts: Vec<Part>,
}

/// A term that messages have to have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Term {
    /// Exactly this.
    Whole(String),
    /// One that begins so: people search while they are still typing.
    Beginning(String),
}

impl Wanted {
    /// Reads a question; `None` when there is nothing in it to look for.
    pub fn new(text: &str) -> Option<Self> {
        let parts = parts(text, PARTS_MAX);
        (!parts.is_empty()).then_some(Self { parts })
    }

    /// The terms that a message has to have, all of them.
    pub fn terms(&self) -> BTreeSet<Term> {
        let mut wanted = BTreeSet::new();
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Word(word) if index + 1 == self.parts.len() => {
                    wanted.insert(Term::Beginning(cut(word).to_owned()));
                }
                Part::Word(word) => drop(wanted.insert(Term::Whole(cut(word).to_owned()))),
                Part::Run(run) => {
                    let characters: Vec<char> = run.chars().collect();
                    match &characters[..] {
                        [single] => drop(wanted.insert(Term::Whole(single.to_string()))),
                        several => wanted.extend(
                            several.windows(2).map(|pair| Term::Whole(pair.iter().collect())),
                        ),
                    }
                }
            }
        }
        wanted
    }

    /// Whether a text has what is asked for.
    pub fn fits(&self, text: &str) -> bool {
        let found = parts(text, usize::MAX);
        self.parts.iter().enumerate().all(|(index, wanted)| match wanted {
            Part::Word(wanted) if index + 1 == self.parts.len() => found
                .iter()
                .any(|part| matches!(part, Part::Word(word) if word.starts_with(&wanted[..]))),
            Part::Word(_) => found.contains(wanted),
            Part::Run(wanted) => {
                found.iter().any(|part| matches!(part, Part::Run(run) if run.contains(&wanted[..])))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(question: &str, text: &str) -> bool {
        let wanted = Wanted::new(question).expect("something to look for");
        let fits = wanted.fits(text);
        if fits {
            // The index would have found it.
            let terms = terms(text);
            for term in wanted.terms() {
                let found = match &term {
                    Term::Whole(term) => terms.contains(term),
                    Term::Beginning(begin) => terms.iter().any(|term| term.starts_with(begin)),
                };
                assert!(found, "{question} in {text}: {term:?} is missing");
            }
        }
        fits
    }

    #[test]
    fn any_part_of_a_chinese_text_is_found() {
        let text = "我们明天下午三点在北京大学开会";
        for part in ["我", "明天", "北京大学", "三点在北", "开会", text] {
            assert!(fits(part, text), "{part}");
        }
        for other in ["北大", "明后", "会开", "上海", "天明"] {
            assert!(!fits(other, text), "{other}");
        }
        assert!(fits("明天 开会", text), "several parts, anywhere");
        assert!(!fits("明天 上海", text));
        assert!(!fits("三在", "三点在二三。在"), "a stop parts them");
    }

    #[test]
    fn other_scripts_case_and_width_make_no_difference() {
        assert!(fits("お寿司", "今日はお寿司を食べた"));
        assert!(fits("안녕", "여러분 안녕하세요"));
        assert!(fits("สวัสดี", "สวัสดีครับ"));
        assert!(fits("HELLO", "well, hello there"));
        assert!(fits("ＡＢＣ１", "abc1"));
        assert!(fits("straße", "Die STRASSE? Nein, die Straße."));
        assert!(fits("ÉCOLE", "une école"));
        assert!(fits("会议 room", "今天的会议在Room 5"));
    }

    #[test]
    fn the_last_word_may_be_begun_and_the_others_are_whole() {
        assert!(fits("quick bro", "the quick brown fox"));
        assert!(!fits("qui brown", "the quick brown fox"));
        assert!(!fits("ick", "the quick brown fox"), "not inside of words");
        assert!(!fits("fox.dog", "the fox"));
    }

    #[test]
    fn nothing_to_look_for_is_said_and_long_things_are_bounded() {
        for nothing in ["", "  ", "!?…", "😀"] {
            assert_eq!(Wanted::new(nothing), None, "{nothing}");
        }
        let long = "长".repeat(3) + &"word ".repeat(100_000);
        assert!(terms(&long).len() <= TERMS_MAX);
        let different: String = (0..50_000).map(|n| format!("w{n} ")).collect();
        assert_eq!(terms(&different).len(), TERMS_MAX);
        let word = "ä".repeat(1_000);
        assert!(terms(&word).iter().all(|term| term.len() <= TERM_BYTES_MAX));
        assert!(fits(&word, &word));
        assert!(Wanted::new(&different).unwrap().terms().len() <= PARTS_MAX);
    }

    #[test]
    fn random_texts_are_found_by_any_of_their_parts() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let alphabet: Vec<char> = "ab Zß1中文字開会.,！ カな한글ส".chars().collect();
        for _ in 0..2_000 {
            let text: String = (0..random.usize(1..30))
                .map(|_| alphabet[random.usize(..alphabet.len())])
                .collect();
            for part in parts(&text, usize::MAX) {
                match part {
                    Part::Word(word) => {
                        let end = random.usize(1..=word.chars().count());
                        let begin: String = word.chars().take(end).collect();
                        assert!(fits(&begin, &text), "{begin} in {text}");
                    }
                    Part::Run(run) => {
                        let characters: Vec<char> = run.chars().collect();
                        let from = random.usize(..characters.len());
                        let to = random.usize(from + 1..=characters.len());
                        let inside: String = characters[from..to].iter().collect();
                        assert!(fits(&inside, &text), "{inside} in {text}");
                    }
                }
            }
        }
    }
}

//! The rules and the search. One line a rule: `block`, `mask` or `flag`, and then the words, as they
//! are written; `=` before them finds them as whole words only. `#` begins a comment line.

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};

use super::fold::{fold, origins};
use crate::chat::Verdict;

/// What becomes of a text with the word in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// It is refused.
    Block,
    /// The word is replaced by as many `*` as it has characters.
    Mask,
    /// It is let through, and reported.
    Flag,
}

impl Rule {
    fn label(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Mask => "mask",
            Self::Flag => "flag",
        }
    }
}

/// Longest phrase, in bytes.
const PHRASE_BYTES_MAX: usize = 256;

/// Different words of one text that are reported.
const FOUND_MAX: usize = 32;

/// Why a list was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {reason}")]
pub struct ListError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Debug)]
struct Phrase {
    /// As written.
    text: String,
    rule: Rule,
    whole_words: bool,
}

/// Rules, ready to be searched for.
#[derive(Debug)]
pub struct WordList {
    phrases: Vec<Phrase>,
    search: Option<AhoCorasick>,
}

impl WordList {
    /// Reads a list of at most `rules_max` rules.
    ///
    /// # Errors
    /// The first line that makes no sense, or is too many.
    pub fn parse(text: &str, rules_max: usize) -> Result<Self, ListError> {
        let (mut phrases, mut patterns) = (vec![], vec![]);
        for (index, line) in text.lines().enumerate() {
            let wrong = |reason: String| ListError { line: index + 1, reason };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (rule, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rule = match rule {
                "block" => Rule::Block,
                "mask" => Rule::Mask,
                "flag" => Rule::Flag,
                other => {
                    let shown: String = other.chars().take(20).collect();
                    let reason = format!(
                        "{shown:?} is no rule; a line is \"block\", \"mask\" or \"flag\" and then the words"
                    );
                    return Err(wrong(reason));
                }
            };
            let rest = rest.trim_start();
            let (whole_words, phrase) = match rest.strip_prefix('=') {
                Some(phrase) => (true, phrase.trim_start()),
                None => (false, rest),
            };
            let pattern = fold(phrase);
            if pattern.trim().is_empty() {
                return Err(wrong("the words are missing".into()));
            }
            if phrase.len() > PHRASE_BYTES_MAX {
                return Err(wrong(format!("more than {PHRASE_BYTES_MAX} bytes")));
            }
            if phrases.len() == rules_max {
                return Err(wrong(format!("more than {rules_max} rules")));
            }
            phrases.push(Phrase { text: phrase.to_owned(), rule, whole_words });
            patterns.push(pattern);
        }
        let search = match patterns.is_empty() {
            true => None,
            // All matches count, also those inside others: a flagged word may hold a blocked one.
            false => Some(
                AhoCorasickBuilder::new()
                    .match_kind(MatchKind::Standard)
                    .build(&patterns)
                    .map_err(|error| ListError { line: 1, reason: error.to_string() })?,
            ),
        };
        Ok(Self { phrases, search })
    }

    /// How many rules it has.
    pub fn len(&self) -> usize {
        self.phrases.len()
    }

    /// It lets everything through.
    pub fn is_empty(&self) -> bool {
        self.phrases.is_empty()
    }

    /// Looks at a text.
    pub fn check(&self, text: &str) -> Verdict {
        let mut verdict = Verdict::default();
        let Some(search) = &self.search else { return verdict };
        let folded = fold(text);
        if !search.is_match(&folded) {
            return verdict;
        }
        let origins = origins(text);
        let mut masked: Vec<(usize, usize)> = vec![];
        let mut found: Vec<usize> = vec![];
        for hit in search.find_overlapping_iter(&folded) {
            let index = hit.pattern().as_usize();
            let phrase = &self.phrases[index];
            // A pattern has at least one byte, and every folded byte has an origin.
            let (start, end) = (origins[hit.start()].0 as usize, origins[hit.end() - 1].1 as usize);
            if phrase.whole_words && !stands_alone(text, start, end) {
                continue;
            }
            if found.len() < FOUND_MAX && !found.contains(&index) {
                found.push(index);
            }
            match phrase.rule {
                Rule::Block => verdict.is_blocked = true,
                Rule::Mask => masked.push((start, end)),
                Rule::Flag => {}
            }
            if verdict.is_blocked {
                break;
            }
        }
        if !verdict.is_blocked && !masked.is_empty() {
            verdict.masked = Some(mask(text, masked));
        }
        let told = |index: usize| {
            let phrase = &self.phrases[index];
            (phrase.text.clone(), phrase.rule.label())
        };
        verdict.found = found.into_iter().map(told).collect();
        verdict
    }
}

/// No letter or digit touches it.
fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let touches = |neighbour: Option<char>| neighbour.is_some_and(char::is_alphanumeric);
    !touches(text[..start].chars().next_back()) && !touches(text[end..].chars().next())
}

fn mask(text: &str, mut parts: Vec<(usize, usize)>) -> String {
    parts.sort_unstable();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (start, end) in parts {
        if end <= done {
            continue;
        }
        let start = start.max(done);
        out.push_str(&text[done..start]);
        out.extend(text[start..end].chars().map(|_| '*'));
        done = end;
    }
    out.push_str(&text[done..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> WordList {
        WordList::parse(text, 100).unwrap()
    }

    fn masked(list: &WordList, text: &str) -> String {
        let verdict = list.check(text);
        assert!(!verdict.is_blocked);
        verdict.masked.unwrap_or_else(|| text.to_owned())
    }

    #[test]
    fn words_are_found_in_every_case_and_inside_others() {
        let list = list("block Straße\nmask damn\nflag 坏话\n# block nothing\n");
        assert_eq!(list.len(), 3);
        assert!(list.check("in der STRASSE").is_blocked);
        assert_eq!(masked(&list, "DaMn, goddamned ｄａｍｎ!"), "****, god****ed ****!");
        assert_eq!(masked(&list, "dam n"), "dam n");
        let verdict = list.check("这是坏话。damn");
        assert_eq!(verdict.masked.as_deref(), Some("这是坏话。****"));
        let found = [("坏话".to_owned(), "flag"), ("damn".to_owned(), "mask")];
        assert_eq!(verdict.found, found);
        assert_eq!(list.check("nothing bad"), Verdict::default());
        assert_eq!(list.check(""), Verdict::default());
    }

    #[test]
    fn whole_words_do_not_touch_letters() {
        let list = list("mask =ass\n");
        assert_eq!(masked(&list, "an ass, a class, Ass"), "an ***, a class, ***");
        assert_eq!(masked(&list, "assé ass1 (ass)"), "assé ass1 (***)");
    }

    #[test]
    fn the_strongest_rule_wins_and_overlapping_words_are_masked_together() {
        let list = list("mask abc\nmask bcd\nmask b\nflag abcd\nblock cdx\n");
        assert_eq!(masked(&list, "zabcdz"), "z****z");
        assert!(list.check("abcdx").is_blocked);
        assert_eq!(masked(&list, "b-b"), "*-*");
    }

    #[test]
    fn characters_that_fold_to_several_are_masked_whole() {
        let list = list("mask ss\n");
        assert_eq!(masked(&list, "maß"), "ma*");
        assert_eq!(masked(&list, "ßs"), "**");
    }

    #[test]
    fn a_bad_line_is_refused_with_its_number() {
        let wrong = |text: &str| WordList::parse(text, 2).unwrap_err();
        assert_eq!(wrong("mask a\n\nmsk b\n").line, 3);
        for text in ["mask", "mask ", "block =", "flag \u{200b}", "MASK a"] {
            assert_eq!(wrong(text).line, 1, "{text:?}");
        }
        assert_eq!(wrong("mask a\nmask b\nmask c").line, 3);
        assert_eq!(wrong(&format!("mask {}", "x".repeat(300))).line, 1);
        assert!(WordList::parse("# only a comment\n", 0).unwrap().is_empty());
    }

    #[test]
    fn masking_keeps_every_character_that_was_not_found() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let letters = ['a', 'B', 'ß', '海', 'ａ', '\u{200b}', ' ', 'İ'];
        let list = list("mask ab\nmask ss a\nmask 海a\nmask i\n");
        for _ in 0..2_000 {
            let text: String =
                (0..random.usize(..12)).map(|_| letters[random.usize(..letters.len())]).collect();
            let shown = masked(&list, &text);
            assert_eq!(shown.chars().count(), text.chars().count(), "{text:?} {shown:?}");
            for (before, after) in text.chars().zip(shown.chars()) {
                assert!(after == before || after == '*', "{text:?} {shown:?}");
            }
            assert_eq!(list.check(&shown).masked, None, "nothing is left in {shown:?}");
        }
    }
}

//! Slips of the keyboard, for tests of what is accepted.

/// Words that differ from this one by a letter dropped, doubled, swapped with the next or in the other case.
pub(super) fn slips(word: &str) -> Vec<String> {
    let chars: Vec<char> = word.chars().collect();
    let mut all = vec![word.to_uppercase()];
    for at in 0..chars.len() {
        let mut dropped = chars.clone();
        dropped.remove(at);
        let mut doubled = chars.clone();
        doubled.insert(at, chars[at]);
        let mut swapped = chars.clone();
        swapped.swap(at, (at + 1).min(chars.len() - 1));
        let mut upper = chars.clone();
        upper[at] = upper[at].to_ascii_uppercase();
        all.extend([dropped, doubled, swapped, upper].map(|chars| chars.into_iter().collect::<String>()));
    }
    all
}

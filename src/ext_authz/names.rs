//! Names that others take for a declared one. Policies read fields by their exact names; an upstream that is less exact reads
//! `Amount` where `amount` is declared, and a policy would see no amount at all. So a name that is not declared but may be
//! taken for one that is, is a refusal, and never one field more that nobody asked for.

/// Whether some parser of JSON takes a key for the declared one: Go's, Jackson's and .NET's can compare without case, and
/// protobuf's takes `bookId` and `book_id` for one name.
pub fn same_key(declared: &str, found: &str) -> bool {
    folded(found, is_joint).eq(folded(declared, is_joint))
}

/// Whether some parser of forms and queries takes a name for the declared one: without case, as an array (`id[]`), nested
/// in another way (`filter.owner` for `filter[owner]`), or with PHP's `_` for dots, spaces and a lone bracket.
pub fn same_parameter(declared: &str, found: &str) -> bool {
    let is_joint = |c: char| is_joint(c) || matches!(c, '.' | ' ' | '[' | ']');
    let same = |found: &str| folded(found, is_joint).eq(folded(declared, is_joint));
    // What is before a bracket has all that follows it, as an item or a field.
    same(found) || found.match_indices('[').any(|(at, _)| found.get(..at).is_some_and(same))
}

fn is_joint(c: char) -> bool {
    c == '_' || c == '-'
}

/// The letters of a name without their case, and without what joins words. Through the upper case, since `ſ` and `ı` are
/// letters of ASCII there; `İ` leaves a dot behind in the lower one. What comes after a NUL does not exist for some.
fn folded(name: &str, is_joint: impl Fn(char) -> bool) -> impl Iterator<Item = char> {
    let kept = name.chars().take_while(|c| *c != '\0').filter(move |c| !is_joint(*c));
    kept.flat_map(char::to_uppercase).flat_map(char::to_lowercase).filter(|c| *c != '\u{307}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_without_case_and_joints() {
        for (declared, found, same) in [
            ("amount", "amount", true),
            ("amount", "Amount", true),
            ("amount", "AMOUNT", true),
            ("amount", "amounts", false),
            ("amount", "amoun", false),
            ("is_admin", "isAdmin", true),
            ("is_admin", "is-admin", true),
            ("bookId", "book_id", true),
            ("status", "\u{17f}tatus", true),
            ("kind", "\u{212a}ind", true),
            ("id", "\u{131}d", true),
            ("id", "\u{130}D", true),
            ("straße", "STRASSE", true),
            ("σ", "ς", true),
            ("amount", "amount\0x", true),
            ("amount", "amount[]", false),
            ("a", "", false),
        ] {
            assert_eq!(same_key(declared, found), same, "{declared} {found:?}");
        }
    }

    #[test]
    fn parameters_are_the_same_as_arrays_and_to_php_as_well() {
        for (declared, found, same) in [
            ("id", "ID", true),
            ("id", "id[]", true),
            ("id", "Id[0][x]", true),
            ("id", "ids[]", false),
            ("book_id", "book.id", true),
            ("book_id", "book id", true),
            ("filter[owner]", "filter[Owner]", true),
            ("filter[owner]", "filter[status]", false),
            ("filter[owner]", "filter[owner][]", true),
            ("filter[owner]", "filter[owner][0][x]", true),
            ("filter[owner]", "filter.owner", true),
            ("filter[owner]", "filter.owner[]", true),
            ("filter[owner]", "filter_owner", true),
            ("filter[owner]", "filter[owner", true),
            ("filter[owner]", "filter", false),
            ("filter[owner]", "filter[owners]", false),
            ("filter.owner", "filter[owner]", true),
            ("filter.owner", "filter[owner][]", true),
            ("filter", "filter[owner]", true),
            ("id", "x[id]", false),
        ] {
            assert_eq!(same_parameter(declared, found), same, "{declared} {found:?}");
        }
    }
}

//! The nearest known name, for messages about unknown ones.

/// `; did you mean `x`?` when a known name is near, else the known names, else nothing.
pub(crate) fn did_you_mean<'name>(
    wanted: &str,
    known: impl IntoIterator<Item = &'name str>,
) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known
        .iter()
        .map(|name| (distance(wanted, name), *name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.chars().count() / 4);
    match nearest {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None if known.is_empty() => String::new(),
        None => {
            let shown: Vec<String> =
                known.iter().take(20).map(|name| format!("`{name}`")).collect();
            let more = if known.len() > 20 { ", …" } else { "" };
            format!("; there is {}{more}", shown.join(", "))
        }
    }
}

/// Levenshtein's, over characters, without regard to case.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_proposed_and_far_ones_are_listed() {
        assert_eq!(
            did_you_mean("custmers", ["orders", "customers"]),
            "; did you mean `customers`?"
        );
        assert_eq!(did_you_mean("x", ["orders", "customers"]), "; there is `orders`, `customers`");
        assert_eq!(did_you_mean("x", []), "");
    }
}

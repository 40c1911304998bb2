//! What a source file names: the paths it imports or spells out, and places on somebody's machine.

/// Every `std::…` and `tokio…` path that `source` imports or spells out, with import braces expanded.
/// Line comments are left out.
pub(crate) fn named_paths(source: &str) -> Vec<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut paths = Vec::new();
    for root in ["std::", "tokio"] {
        for (at, _) in code.match_indices(root) {
            let starts_a_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if starts_a_word {
                expand(&code[at..], "", &mut paths);
            }
        }
    }
    paths
}

/// Reads one import tree at the start of `text`, adds its paths to `paths`, returns how much of `text` it took.
fn expand(text: &str, prefix: &str, paths: &mut Vec<String>) -> usize {
    let word = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':' || c == '*')).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..word]);
    if !(path.ends_with("::") && text[word..].starts_with('{')) {
        paths.push(path.trim_end_matches(':').to_owned());
        return word;
    }
    let mut at = word + 1;
    while at < text.len() && !text[at..].starts_with('}') {
        let next = text[at..].chars().next().map_or(1, char::len_utf8);
        let begins_a_name = text[at..].starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '*');
        at += if begins_a_name { expand(&text[at..], &path, paths).max(1) } else { next };
    }
    at + 1
}

/// The first place on somebody's machine that `text` names: a home, temporary or work folder.
pub(crate) fn machine_path(text: &str) -> Option<&str> {
    const ROOTS: [&str; 6] = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("/wo", "rk/"),
        concat!("/tm", "p/"),
        concat!("C:\\Us", "ers\\"),
    ];
    let found = |root: &str| text.match_indices(root).map(|(at, root)| (at, at + root.len())).collect::<Vec<_>>();
    ROOTS.iter().flat_map(|root| found(root)).find_map(|(at, end)| {
        let is_a_root = !text[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.}~>)*".contains(c));
        let name = text[end..].strip_prefix('.').unwrap_or(&text[end..]);
        let names_something = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let stop = text[end..].find(|c: char| c.is_whitespace() || "\"'`)".contains(c)).map_or(text.len(), |n| end + n);
        (is_a_root && names_something).then(|| &text[at..stop])
    })
}

//! Stop strings over text that arrives in parts.

/// Looks for stop strings in a text that arrives in parts of any size, and holds back only what may still become
/// one. The answer ends at the stop string that is complete first; where several end at the same place, at the
/// longest. That is the same for every way of splitting the text.
#[derive(Debug, Default)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    /// The text held back: the longest end of the text that begins a stop string.
    held: String,
}

impl StopFilter {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes more text; returns what is now certain, and whether a stop string was found (then all that is certain
    /// has been returned and nothing more may follow).
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let ends = |stop: &String| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start));
        if let Some((_, start)) = self.stops.iter().filter_map(ends).min() {
            let mut certain = std::mem::take(&mut self.held);
            certain.truncate(start);
            return (certain, true);
        }
        let rest = self.held.split_off(self.held.len() - self.undecided());
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no more text comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the text that a stop string begins with. Text ends with whole characters, so what
    /// matches is whole characters too.
    fn undecided(&self) -> usize {
        let text = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = text.len().min(stop.len().saturating_sub(1));
            (1..=most).rev().find(|&length| text.ends_with(&stop.as_bytes()[..length]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, on the whole text: cut where the stop string that is complete first begins.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        let found = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
        match found.min() {
            Some((_, start)) => (text[..start].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn split(text: &str, cuts: &[usize]) -> Vec<String> {
        let mut parts = vec![String::new()];
        for (place, character) in text.chars().enumerate() {
            if cuts.contains(&place) {
                parts.push(String::new());
            }
            parts.last_mut().unwrap().push(character);
        }
        parts
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut filter = StopFilter::new(vec!["END".to_owned(), "\n\n".to_owned()]);
        assert_eq!(filter.push("hello"), ("hello".to_owned(), false), "no stop string begins with any end of it");
        assert_eq!(filter.push(" E"), (" ".to_owned(), false));
        assert_eq!(filter.push("NTER\n"), ("ENTER".to_owned(), false), "ENT was not END after all");
        assert_eq!(filter.push("\nrest"), (String::new(), true));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins_and_the_longest_of_equals() {
        let stops = vec!["abc".to_owned(), "b".to_owned()];
        for parts in [vec!["xabcd"], vec!["x", "a", "b", "c"], vec!["xab", "cd"]] {
            let mut filter = StopFilter::new(stops.clone());
            let mut text = String::new();
            for part in parts {
                let (certain, stopped) = filter.push(part);
                text.push_str(&certain);
                if stopped {
                    break;
                }
            }
            assert_eq!(text, "xa", "`b` is complete before `abc`");
        }
        let mut filter = StopFilter::new(vec!["c".to_owned(), "abc".to_owned()]);
        assert_eq!(filter.push("xabc"), ("x".to_owned(), true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_split_gives_what_the_whole_text_gives(
            text in "[abé🙂]{0,40}",
            stops in proptest::collection::vec("[abé🙂]{1,5}", 0..=4),
            cuts in proptest::collection::vec(0usize..40, 0..20),
        ) {
            let mut filter = StopFilter::new(stops.clone());
            let (mut emitted, mut stopped) = (String::new(), false);
            for part in split(&text, &cuts) {
                let (certain, now) = filter.push(&part);
                emitted.push_str(&certain);
                stopped = now;
                if stopped {
                    break;
                }
                let held = filter.held.clone();
                prop_assert!(
                    held.is_empty() || stops.iter().any(|s| s.starts_with(&held) && s.len() > held.len()),
                    "{held:?} was held back for nothing"
                );
            }
            if !stopped {
                emitted.push_str(&filter.finish());
            }
            prop_assert_eq!((emitted, stopped), naive(&text, &stops));
        }
    }
}

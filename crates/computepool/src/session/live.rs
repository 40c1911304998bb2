//! One line on standard error that tells what has streamed while an answer arrives.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

use super::api::SessionView;

/// Where standard error is no terminal a line is written at most this often.
const EACH: Duration = Duration::from_secs(1);
/// A longer line could fill two rows, and only one is cleared.
const WIDTH: usize = 78;

/// The line, kept below the text that is being written.
pub(crate) struct LiveLine {
    terminal: bool,
    text: Option<String>,
    last: Option<Instant>,
}

impl LiveLine {
    pub(crate) fn new() -> Self {
        Self { terminal: stderr().is_terminal(), text: None, last: None }
    }

    /// Tells the newest.
    pub(crate) fn update(&mut self, view: &SessionView) {
        let text = line(view);
        if self.terminal {
            self.text = Some(text.chars().take(WIDTH).collect());
            self.draw();
        } else if self.text.as_ref() != Some(&text) && self.last.is_none_or(|last| last.elapsed() >= EACH) {
            eprintln!("{text}");
            self.last = Some(Instant::now());
            self.text = Some(text);
        }
    }

    /// Draws it below the cursor, which stays where it is: makes room for a row (index and back), saves the cursor,
    /// writes the row, restores the cursor (ECMA-48, DEC VT100).
    pub(crate) fn draw(&self) {
        if let (true, Some(text)) = (self.terminal, &self.text) {
            let _ = write!(stderr(), "\x1bD\x1b[1A\x1b7\x1b[1B\r\x1b[2K{text}\x1b8").and_then(|()| stderr().flush());
        }
    }

    /// Takes it away, so that text can take its row.
    pub(crate) fn clear(&self) {
        if self.terminal && self.text.is_some() {
            let _ = write!(stderr(), "\x1b[0J").and_then(|()| stderr().flush());
        }
    }
}

/// What has streamed, at which rate, and to whom.
pub(super) fn line(view: &SessionView) -> String {
    let Some(stream) = &view.stream else {
        return match &view.receipt {
            Some(receipt) => super::one_line(receipt),
            None => format!("the session is {}", view.state.text()),
        };
    };
    let short = |address: String| address.chars().take(6).collect::<String>();
    let parts: Vec<String> = stream
        .operators
        .iter()
        .map(|part| format!("{} {}", short(part.operator.to_string()), part.received.whole_usdc()))
        .collect();
    format!("streamed {} USDC at {}: {}", stream.streamed.whole_usdc(), stream.rate, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{api::State, show::tests::view};

    #[test]
    fn the_line_says_who_has_earned_what() {
        assert_eq!(line(&view()), "streamed 0.002000 USDC at 0.000100/s: 0x1111 0.001500, 0x2222 0.000500");
        let closing = SessionView { state: State::Closing, stream: None, ..view() };
        assert_eq!(line(&closing), "the session is closing");
    }
}

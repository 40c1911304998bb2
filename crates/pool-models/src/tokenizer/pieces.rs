use std::borrow::Cow;

/// What the decoder does at the very beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leading {
    /// Nothing.
    Keep,
    /// Takes away up to so many spaces.
    Strip(usize),
    /// Takes away all spaces of the first token (`tokenizers`' Metaspace decoder).
    StripAll,
}

/// The bytes every token stands for.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Per token: where its bytes end, and whether it is special; `None` for a number that no token has.
    ends: Vec<(usize, Option<bool>)>,
    leading: Leading,
}

/// One token's bytes.
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) special: bool,
}

impl Pieces {
    pub(super) fn new(leading: Leading) -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), leading }
    }

    /// Adds the next token.
    pub(super) fn push(&mut self, piece: Option<(&[u8], bool)>) {
        let (bytes, special) = piece.map_or((&[][..], None), |(bytes, special)| (bytes, Some(special)));
        self.bytes.extend_from_slice(bytes);
        self.ends.push((self.bytes.len(), special));
    }

    pub(super) fn get(&self, token: u32) -> Option<Piece<'_>> {
        let index = token as usize;
        let &(end, special) = self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends.get(index - 1)?.0 };
        Some(Piece { bytes: self.bytes.get(start..end)?, special: special? })
    }

    /// A token's bytes at the beginning of a text.
    pub(super) fn first<'a>(&self, piece: &Piece<'a>) -> Cow<'a, [u8]> {
        match self.leading {
            Leading::Keep => Cow::Borrowed(piece.bytes),
            Leading::Strip(most) => {
                let spaces = piece.bytes.iter().take(most).take_while(|&&b| b == b' ').count();
                Cow::Borrowed(&piece.bytes[spaces..])
            }
            Leading::StripAll => piece.bytes.iter().copied().filter(|&b| b != b' ').collect::<Vec<u8>>().into(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

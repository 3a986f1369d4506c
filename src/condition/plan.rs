//! The sizes of one pass, and whether tokens, text and choice fit the bridge.

use crate::torch::{Device, Kind, Tensor};

use super::sizes::{rank, same_device, Sizes};
use super::{Bridge, Recap, TextJoin, OP};
use crate::error::{floating, DivaError, Result};
use crate::slices;

/// Sizes of one forward pass. One sample stores `1 + draws * picked` projected rows: the class
/// token's, which all draws share, then `picked` rows for each draw. A class token that becomes
/// several tokens gives all of them.
pub(super) struct Plan {
    pub recap: Recap,
    pub join: TextJoin,
    /// B
    pub batch: i64,
    /// P
    pub patches: i64,
    /// W
    pub width: i64,
    /// N'
    pub draws: i64,
    /// Visual rows of one draw beside the class token's.
    pub picked: i64,
    /// L, or 0 where text plays no part
    pub text: i64,
    /// C
    pub channels: i64,
}

impl Plan {
    pub fn new(
        bridge: &Bridge,
        sizes: &Sizes,
        tokens: &Tensor,
        text: &Tensor,
        choice: Option<&Tensor>,
    ) -> Result<Self> {
        rank(tokens, "tokens", 3, "(B, 1+P, W)")?;
        let (batch, count, width) = tokens.size3()?;
        if batch < 1 || count < 1 {
            return Err(DivaError::shape(OP, "tokens", tokens, "at least one image and one token"));
        }
        if width != sizes.width {
            let expected = format!("(B, 1+P, {}), the width of CLIP's head", sizes.width);
            return Err(DivaError::shape(OP, "tokens", tokens, expected));
        }
        floating(OP, "tokens", tokens)?;
        same_device(tokens, "tokens", sizes.device)?;
        let patches = count - 1;
        let (draws, picked) = match (bridge.recap, choice) {
            (Recap::Random, Some(choice)) => drawn(choice, batch, patches, sizes.device)?,
            (Recap::Random, None) => {
                let what = "the random recap needs a choice of patches (B, N, k) int64, but none was given";
                return Err(DivaError::config(OP, what));
            }
            (recap, Some(_)) => {
                let what =
                    format!("a choice of patches was given, but the `{}` recap takes none", recap.name());
                return Err(DivaError::config(OP, what));
            }
            (Recap::Class(count), None) => (1, count - 1),
            (Recap::Text, None) => (1, 0),
            (Recap::All, None) => (1, patches),
            (Recap::Windows(window), None) if window >= 1 && window <= patches => (1, patches / window),
            (Recap::Windows(window), None) => {
                let what = format!(
                    "a window of {window} tokens, but the tower gives {patches} patches: at most that"
                );
                return Err(DivaError::config(OP, what));
            }
        };
        if bridge.join == TextJoin::Broadcast && !matches!(bridge.recap, Recap::Class(1) | Recap::Text) {
            let what = format!(
                "broadcast adds one visual token to the text, but the `{}` recap gives several",
                bridge.recap.name()
            );
            return Err(DivaError::config(OP, what));
        }
        let mut plan = Plan {
            recap: bridge.recap,
            join: bridge.join,
            batch,
            patches,
            width,
            draws,
            picked,
            text: 0,
            channels: sizes.channels,
        };
        if plan.uses_text() {
            plan.text = plan.read_text(text, sizes)?;
        }
        Ok(plan)
    }

    /// Visual rows of one draw: the class token's and the picked ones.
    pub fn rows(&self) -> i64 {
        1 + self.picked
    }

    /// Projected rows stored per sample.
    pub fn stored(&self) -> i64 {
        1 + self.draws * self.picked
    }

    /// Rows per sample before the projector.
    pub fn gathered(&self) -> i64 {
        match self.recap {
            Recap::Class(_) => 1,
            _ => self.stored(),
        }
    }

    /// S
    pub fn positions(&self) -> i64 {
        match (self.recap, self.join) {
            (Recap::Text, _) => self.text,
            (_, TextJoin::Concat) => self.rows() + self.text,
            (_, TextJoin::Broadcast) => self.text,
            _ => self.rows(),
        }
    }

    /// (B, N', S, C)
    pub fn condition(&self) -> [i64; 4] {
        [self.batch, self.draws, self.positions(), self.channels]
    }

    fn uses_text(&self) -> bool {
        self.recap == Recap::Text || self.join != TextJoin::None
    }

    /// L, of a text (1 or B, L, C) that fits.
    fn read_text(&self, text: &Tensor, sizes: &Sizes) -> Result<i64> {
        rank(text, "text", 3, "(1 or B, L, C)")?;
        let (batch, length, channels) = text.size3()?;
        if batch != 1 && batch != self.batch {
            let expected = format!("a batch of 1 or {}, as the tokens have", self.batch);
            return Err(DivaError::shape(OP, "text", text, expected));
        }
        if channels != self.channels {
            let expected = format!("a width of {}, which the projector gives", self.channels);
            return Err(DivaError::shape(OP, "text", text, expected));
        }
        if length < 1 {
            return Err(DivaError::shape(OP, "text", text, "at least one text token"));
        }
        floating(OP, "text", text)?;
        same_device(text, "text", sizes.device)?;
        let rows = self.rows();
        if self.recap != Recap::Text && self.join == TextJoin::Add && rows > length {
            let most = match self.recap {
                Recap::Class(_) => format!("take at most {length}"),
                _ => format!("choose at most {} patches", length - 1),
            };
            let expected = format!(
                "a text token for each of the {rows} visual tokens, but it has {length}: {most}, or text=\"mean\""
            );
            return Err(DivaError::shape(OP, "text", text, expected));
        }
        Ok(length)
    }
}

/// N and k of a choice (B, N, k) that fits.
fn drawn(choice: &Tensor, batch: i64, patches: i64, device: Device) -> Result<(i64, i64)> {
    rank(choice, "choice", 3, "(B, N, k)")?;
    let got = choice.f_kind()?;
    if got != Kind::Int64 {
        let expected = "Int64".to_string();
        return Err(DivaError::kind(OP, "choice", got, expected));
    }
    let (found, draws, picked) = choice.size3()?;
    if found != batch || draws < 1 {
        let expected = format!("({batch}, N, k) with at least one draw: one choice per image");
        return Err(DivaError::shape(OP, "choice", choice, expected));
    }
    same_device(choice, "choice", device)?;
    if choice.device() == Device::Cpu {
        in_range(choice, draws, picked, patches)?;
    }
    Ok((draws, picked))
}

fn in_range(choice: &Tensor, draws: i64, picked: i64, patches: i64) -> Result<()> {
    let plain = choice.f_detach()?.f_contiguous()?;
    let wrong = slices::view::<i64>(&plain)?.iter().zip(0i64..).find(|(at, _)| !(-1..patches).contains(*at));
    let Some((patch, flat)) = wrong else { return Ok(()) };
    let (image, draw, slot) = (flat / (draws * picked), flat / picked % draws, flat % picked);
    let what = format!(
        "choice[{image}, {draw}, {slot}] is {patch}, but image {image} has the patches 0 to {} (-1 for an empty slot)",
        patches - 1
    );
    Err(DivaError::data(OP, what))
}

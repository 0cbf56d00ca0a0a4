//! The model's loss, and all of a training step's gradients.

use super::linear::DropoutKey;
use super::{Gemma3, PackedTokens};
use crate::error::Result;
use crate::host;
use crate::ops::linear_cross_entropy::{self, HeadGradient, LossSum};

impl Gemma3 {
    /// The summed loss of `tokens`; `targets[t]` is what token t is to predict
    /// ([`crate::ops::IGNORE_INDEX`] for nothing).
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss(&self, tokens: &PackedTokens, targets: &[i64]) -> Result<LossSum> {
        let hidden = self.hidden_states(tokens)?;
        Ok(linear_cross_entropy::loss(&hidden, self.head_weight()?, targets)?)
    }

    /// [`Self::loss`] in training: also adds every trained parameter's gradient, times `factor`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss_and_backward(
        &self,
        tokens: &PackedTokens,
        targets: &[i64],
        factor: f64,
        dropout: Option<DropoutKey>,
    ) -> Result<LossSum> {
        let (hidden, tape) = self.forward(tokens, dropout)?;
        let head = self.head_weight()?;
        let trained = match (&self.token_rows, head.replaced) {
            (Some(token_rows), Some(_)) => &token_rows.rows,
            _ => self.head(),
        };
        let (loss, d_hidden) = linear_cross_entropy::loss_and_gradient(
            &hidden,
            head,
            targets,
            factor,
            trained.gradient.as_ref(),
        )?;
        self.backward(tokens, tape, &d_hidden)?;
        Ok(loss)
    }

    /// [`Self::loss_and_backward`] of a model whose head is the embedding, with that one's gradient in its factors.
    pub(crate) fn loss_and_factors(
        &self,
        tokens: &PackedTokens,
        targets: &[i64],
        factor: f64,
        dropout: Option<DropoutKey>,
        head: &mut HeadGradient,
    ) -> Result<LossSum> {
        let (hidden, tape) = self.forward(tokens, dropout)?;
        let (loss, d_hidden) =
            linear_cross_entropy::loss_and_factors(&hidden, &self.embed_tokens.value, targets, factor, head)?;
        let dx = self.backward_to_embedding(tokens, tape, &d_hidden)?;
        host::read(&dx, |dx| {
            head.add_embedding(&tokens.ids, dx, self.embedding_scale() as f32);
            Ok(())
        })?;
        Ok(loss)
    }
}

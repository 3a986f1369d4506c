//! The loss of a batch of tokens and its gradients: everything between the two cuts.
//!
//! tokens (a leaf) -> condition (a leaf) -> N denoising losses -> gradient at the condition -> gradient at the tokens.
//! The vision tower is on the far side of cut 1, so its cost does not depend on the number of draws N.
//!
//! [`term`]: what is minimised, each by its name; [`denoise`], [`contrast`], [`anchor`]: the built-in terms; [`view`]: what
//! a term sees; [`teacher`]: one pass through the denoiser; [`passes`]: the second cut, N draws in as many passes as memory
//! allows ([`limit`]); [`rows`]: the same under the conditions of other images too; [`targets`]: what a batch is denoised
//! from; [`losses`]: losses by name; [`captions`]: the second cut as a classifier, which trains nothing.

use crate::torch::Tensor;

use crate::condition::Bridge;
use crate::error::{DivaError, Result};

mod anchor;
mod captions;
mod contrast;
mod denoise;
mod limit;
mod losses;
mod passes;
mod rows;
mod targets;
mod teacher;
mod term;
mod view;

pub use anchor::Anchor;
pub use captions::Captioned;
pub use contrast::{Contrast, Negatives};
pub use denoise::{Denoise, Distance};
pub use limit::MemoryLimit;
pub(crate) use losses::sum;
pub use losses::Losses;
pub use targets::{Keyed, SampleData, Targets};
pub use teacher::Teacher;
pub use term::{part, Scope, Term, TermGrads, Weighted};
pub use view::{Make, Pass, View};

use teacher::{add, PassLoss};
use term::{evaluate, losses};
use view::Makers;

/// Everything on the far side of cut 1.
pub struct Feedback {
    pub bridge: Bridge,
    /// `None`: the terms do without a denoiser.
    pub teacher: Option<Teacher>,
    pub terms: Vec<Weighted>,
    /// Whose conditions the rows of a term have.
    pub negatives: Negatives,
    /// Per image.
    pub draws: i64,
}

/// Losses and their gradients, nothing of which is attached to a graph.
pub struct LossAndGrad {
    pub losses: Losses,
    pub tokens: Tensor,                // (B | 2B, 1+P, W)
    pub bridge: Vec<Option<Tensor>>,   // in the order of `Bridge::params`
    pub denoiser: Vec<Option<Tensor>>, // in the order of `Teacher::params`; empty for a frozen denoiser
}

/// Some samples of a batch, at cut 1.
pub struct Samples<'a> {
    /// (B, 1+P, W), or (2B, 1+P, W): those of the augmented views follow where a term needs them.
    pub tokens: &'a Tensor,
    pub data: &'a SampleData,
    /// Computes the untouched model's embedding (B, D), where there is one.
    pub original: Option<Make>,
    /// How many the whole batch has: the losses of the samples are summed with weight 1 / `of` each, so that
    /// micro-batches of one batch add up to its mean.
    pub of: i64,
}

impl Feedback {
    /// Whether some term sees the whole batch.
    pub fn has_batch_terms(&self) -> bool {
        self.of(&[Scope::Batch, Scope::Row]).next().is_some()
    }

    /// How many images of each sample go through the tower: 2, where a term needs an augmented view.
    pub fn views(&self) -> i64 {
        1 + i64::from(self.of(&[Scope::Row]).next().is_some())
    }

    /// Gives the terms of that name another weight; false where there is none.
    pub fn weigh(&mut self, name: &str, weight: f64) -> bool {
        let mut named = self.terms.iter_mut().filter(|weighted| weighted.term.name() == name);
        named.next().map(|weighted| weighted.weight = weight).is_some()
    }

    /// Loss and gradients at the tokens of `samples`. Terms that see the whole batch take part through `cached`, the
    /// share of these samples in their gradients; without it these samples are the whole batch.
    pub fn loss_and_grad(&self, samples: Samples, cached: Option<TermGrads>) -> Result<LossAndGrad> {
        let Samples { tokens, data, original, of } = samples;
        let (tokens, rows) = (tokens.f_detach()?, self.views() > 1);
        let view = self.view(&self.images_of(&tokens)?, data, original, of)?;
        let whole = cached.is_none() && self.has_batch_terms();
        let (own, cached) = if whole && rows {
            let scopes = &[Scope::Sample, Scope::Batch];
            (Some(TermGrads::default()), Some(self.rows(&tokens, data, &view, of, scopes)?))
        } else {
            (None, cached)
        };
        let of_draws = !rows && self.of(&[Scope::Draw]).next().is_some();
        let mut passes = Passes { feedback: self, view, whole, of, own, cached };
        if !whole || !of_draws {
            passes.evaluate()?;
        }
        let mut found = if of_draws || passes.terms().any(|terms| terms.predictions.is_some()) {
            self.denoised(&tokens, data, &mut passes)?
        } else {
            let bridge = self.bridge.params().iter().map(|_| None).collect();
            LossAndGrad {
                losses: Losses::default(),
                tokens: tokens.f_zeros_like()?,
                bridge,
                denoiser: Vec::new(),
            }
        };
        for more in passes.own.into_iter().chain(passes.cached) {
            found.add_terms(more)?;
        }
        Ok(found)
    }

    /// The terms of rows, with all other terms of predictions, and those of `scopes`: losses and gradients of the whole
    /// batch, whose `tokens` are (2B, 1+P, W).
    fn rows(
        &self,
        tokens: &Tensor,
        data: &SampleData,
        view: &View,
        of: i64,
        scopes: &[Scope],
    ) -> Result<TermGrads> {
        let (teacher, targets) = self.denoiser(data)?;
        let (targets, samples) = (targets.twice()?, of);
        let (condition, tape) = self.bridge.forward(tokens, &targets.text, targets.choice.as_ref())?;
        let given = teacher.conditioned(&self.bridge, &condition, &targets)?;
        let own = evaluate(self.of(scopes), view, &self.bridge.head, of)?;
        let (view, cached) = (view.clone(), None);
        let mut passes = Passes { feedback: self, view, whole: false, of, own: Some(own), cached };
        let rows_of = |draw| {
            let others = self.negatives.of(data, samples, draw)?;
            let row = |(place, others)| [vec![place, samples + place], others].concat();
            Ok((0..).zip(others).map(row).collect())
        };
        let (losses, at_condition, denoiser) = teacher.rows(&given, &rows_of, &mut passes)?;
        let grads = self.bridge.backward(&tape, &at_condition)?;
        let bridge = grads.params.into_iter().map(Some).collect();
        let mut found = LossAndGrad { losses, tokens: grads.tokens, bridge, denoiser };
        passes.own.into_iter().try_for_each(|more| found.add_terms(more))?;
        let LossAndGrad { losses, tokens, bridge, denoiser } = found;
        Ok(TermGrads { losses, tokens: Some(tokens), predictions: None, bridge, denoiser })
    }

    /// The rows of `tokens` that belong to the images themselves, and not to augmented views.
    fn images_of(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(tokens.f_narrow(0, 0, tokens.size3()?.0 / self.views())?)
    }

    /// Losses and gradients behind the denoiser's predictions.
    fn denoised(&self, tokens: &Tensor, data: &SampleData, passes: &mut Passes) -> Result<LossAndGrad> {
        let (teacher, targets) = self.denoiser(data)?;
        targets.check(tokens, self.draws)?;
        let (condition, tape) = self.bridge.forward(tokens, &targets.text, targets.choice.as_ref())?;
        let given = teacher.conditioned(&self.bridge, &condition, targets)?;
        let (losses, at_condition, denoiser) = teacher.gradients(&given, passes)?;
        let grads = self.bridge.backward(&tape, &at_condition)?;
        let bridge = grads.params.into_iter().map(Some).collect();
        Ok(LossAndGrad { losses, tokens: grads.tokens, bridge, denoiser })
    }

    fn denoiser<'a>(&'a self, data: &'a SampleData) -> Result<(&'a Teacher, &'a Targets)> {
        let missing = || DivaError::config("feedback", "there is no denoiser, or nothing to denoise");
        self.teacher.as_ref().zip(data.targets.as_ref()).ok_or_else(missing)
    }

    /// The terms that see the whole batch, and their gradients; the batch runs `width` samples at a time.
    pub fn batch_terms(&self, samples: Samples, width: i64) -> Result<TermGrads> {
        let Samples { tokens, data, original, of } = samples;
        let view = self.view(&self.images_of(tokens)?, data, original, width)?;
        if self.views() > 1 {
            return self.rows(tokens, data, &view, of, &[Scope::Batch]);
        }
        evaluate(self.of(&[Scope::Batch]), &view, &self.bridge.head, of)
    }

    /// The losses by name, in the order of the terms, behind their sum as "loss".
    pub fn with_total(&self, losses: &Losses) -> Result<Losses> {
        let total = losses.total()?;
        let total = total.ok_or_else(|| DivaError::config("feedback", "the objective has no terms"))?;
        let mut all = Losses::default();
        all.add("loss", &total)?;
        for name in self.terms.iter().map(|weighted| weighted.term.name()) {
            losses.get(name).map(|loss| all.add(name, loss)).transpose()?;
        }
        Ok(all)
    }

    fn of<'a>(&'a self, scopes: &'a [Scope]) -> impl Iterator<Item = &'a Weighted> {
        self.terms.iter().filter(|Weighted { weight, term }| *weight != 0.0 && scopes.contains(&term.scope()))
    }

    /// What the terms see of whole samples. A term that reads predictions before a pass gave them has them computed
    /// outside any graph, `width` samples at a time.
    fn view(&self, tokens: &Tensor, data: &SampleData, original: Option<Make>, width: i64) -> Result<View> {
        let head = self.bridge.shallow_clone().head;
        let Ok((teacher, targets)) = self.denoiser(data) else {
            return View::of_samples(tokens, head, data, Makers { original, ..Makers::default() });
        };
        targets.check(tokens, self.draws)?;
        let (bridge, teacher) = (self.bridge.shallow_clone(), teacher.clone());
        let (source, all) = (tokens.f_detach()?, targets.shallow_clone());
        let (noising, noised) = (teacher.clone(), targets.shallow_clone());
        let predictions = move || {
            let mut parts = Vec::new();
            let samples = source.size()[0];
            for start in (0..samples).step_by(width.max(1) as usize) {
                let length = width.min(samples - start);
                let targets = all.narrow(start, length)?;
                let tokens = source.f_narrow(0, start, length)?;
                let (condition, _) = bridge.forward(&tokens, &targets.text, targets.choice.as_ref())?;
                parts.push(teacher.predictions(&teacher.conditioned(&bridge, &condition, &targets)?)?);
            }
            Ok(Tensor::f_cat(&parts, 0)?.f_set_requires_grad(true)?)
        };
        let targets: Make = Box::new(move || noising.targets(&noised));
        let make = Makers { original, predictions: Some(Box::new(predictions)), targets: Some(targets) };
        View::of_samples(tokens, head, data, make)
    }
}

impl LossAndGrad {
    /// Adds the losses, and the gradients of all parameters, of another micro-batch.
    pub fn add(&mut self, other: &LossAndGrad) -> Result<()> {
        self.losses.add_all(&other.losses)?;
        add(&mut self.bridge, &other.bridge)?;
        add(&mut self.denoiser, &other.denoiser)
    }

    /// Adds the losses and gradients of further terms.
    fn add_terms(&mut self, more: TermGrads) -> Result<()> {
        self.losses.add_all(&more.losses)?;
        if let Some(gradient) = more.tokens {
            let gradient = match self.tokens.size3()?.0 - gradient.size3()?.0 {
                0 => gradient,
                views => gradient.f_constant_pad_nd([0, 0, 0, 0, 0, views])?, // this term reads no augmented view
            };
            self.tokens = self.tokens.f_add(&gradient)?;
        }
        add(&mut self.bridge, &more.bridge)?;
        add(&mut self.denoiser, &more.denoiser)
    }
}

/// The losses of the passes of some samples through the denoiser.
struct Passes<'a> {
    feedback: &'a Feedback,
    view: View,
    /// Whether these samples are the whole batch of its terms.
    whole: bool,
    of: i64,
    /// The terms of the samples, and of the batch where the samples are the whole: once evaluated.
    own: Option<TermGrads>,
    cached: Option<TermGrads>,
}

impl Passes<'_> {
    /// The gradients of terms that take part, as far as they are known.
    fn terms(&self) -> impl Iterator<Item = &TermGrads> {
        self.own.iter().chain(&self.cached)
    }

    fn evaluate(&mut self) -> Result<()> {
        if self.own.is_none() {
            let scopes = if self.whole { &[Scope::Sample, Scope::Batch][..] } else { &[Scope::Sample] };
            let feedback = self.feedback;
            self.own = Some(evaluate(feedback.of(scopes), &self.view, &feedback.bridge.head, self.of)?);
        }
        Ok(())
    }
}

impl PassLoss for Passes<'_> {
    /// Terms of the batch wait for the predictions of the only pass; where there are several passes they come first.
    fn begin(&mut self, whole: bool) -> Result<()> {
        if whole {
            return Ok(());
        }
        self.evaluate()
    }

    fn loss(&mut self, pass: Pass) -> Result<(Losses, Option<Tensor>)> {
        let Pass { start, draws, samples: (first, length), .. } = pass;
        let prediction = pass.prediction.shallow_clone();
        if self.own.is_none() {
            self.view.set_predictions(&view::by_sample(&prediction, draws)?)?;
            self.evaluate()?;
        }
        let (named, total) =
            losses(self.feedback.of(&[Scope::Draw, Scope::Row]), &View::of_draws(pass)?, self.of)?;
        let mut parts: Vec<Tensor> = total.into_iter().collect();
        for terms in self.terms() {
            if let Some(gradient) = &terms.predictions {
                // The gradient of sum(prediction * gradient) is the given one, exactly.
                let gradient = gradient.f_narrow(0, first, length)?.f_narrow(1, start, draws)?;
                let product = prediction.f_mul(&view::by_draw(&gradient)?)?;
                parts.push(product.f_sum(product.kind())?);
            }
        }
        Ok((named, sum(&parts)?))
    }
}

//! The course of an entity's episodes: when one begins, goes on and ends, in event time.
//!
//! An episode begins with the first window over its limit and ends one width after the last. Where that
//! lies does not depend on when it is noticed: a window over the limit that ends later begins another
//! episode, be the end of the first told already or not.

use std::time::Duration;

use panopticon_proto::log::Detection;

use super::{Findings, MAX_DELAY};
use crate::time::Time;

/// What is the same for all episodes of a rule.
#[derive(Debug, Clone, Copy)]
pub struct EpisodeForm {
    /// How long it must have been calm for an episode to end.
    pub width: Duration,
    /// The explanation of an end, from the detection that told the beginning.
    pub ended: fn(&Detection) -> String,
}

/// Where an entity's episodes stand; part of its state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Course {
    /// Event time of the newest event, in microseconds.
    #[prost(sfixed64, tag = "1")]
    newest: i64,
    /// The longest that its events were on their way to the gateway, at most [`MAX_DELAY`], in
    /// microseconds: so much later than an order without delay would, an end is told.
    #[prost(int64, tag = "2")]
    delay: i64,
    /// The end of the last window over the limit.
    #[prost(sfixed64, tag = "3")]
    last_over: i64,
    /// When the last episode ended: what came before it raises nothing any more.
    #[prost(sfixed64, tag = "4")]
    ended_at: i64,
    /// The message that told the beginning of the open episode.
    #[prost(message, optional, boxed, tag = "5")]
    open: Option<Box<Detection>>,
}

impl Course {
    /// Takes note of an event; `false` when it came so long after newer ones that it can no longer be
    /// counted exactly in windows of `width`.
    pub fn saw(&mut self, at: Time, received_at: Time, width: Duration) -> bool {
        if at <= self.horizon(width) {
            return false;
        }
        self.newest = self.newest.max(at.micros());
        let delay = received_at.since(at).min(MAX_DELAY);
        self.delay = self.delay.max(i64::try_from(delay.as_micros()).unwrap_or(0));
        true
    }

    /// What happened at this time or before matters no more.
    pub fn horizon(&self, width: Duration) -> Time {
        Time::from_micros(self.newest).minus(width + MAX_DELAY)
    }

    /// Event time of the newest event.
    pub const fn newest(&self) -> Time {
        Time::from_micros(self.newest)
    }

    /// When an episode has ended, only what ended later can begin the next.
    pub const fn not_before(&self) -> Time {
        Time::from_micros(self.ended_at)
    }

    /// Whether an episode is open.
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The kind of the open episode.
    pub fn kind(&self) -> Option<&str> {
        self.open.as_deref().map(|started| started.kind.as_str())
    }

    /// Whether what happens at this time is still part of the open episode.
    pub fn covers(&self, at: Time, form: &EpisodeForm) -> bool {
        self.open.is_some() && at < Time::from_micros(self.last_over).plus(form.width)
    }

    /// From when on what happens is no longer part of the open or last episode.
    pub fn over_from(&self, form: &EpisodeForm) -> Time {
        match self.open {
            Some(_) => Time::from_micros(self.last_over).plus(form.width),
            None => self.not_before(),
        }
    }

    /// See [`super::Entity::ends_at`].
    pub fn ends_at(&self, form: &EpisodeForm) -> Option<Time> {
        let calm = Time::from_micros(self.last_over.saturating_add(self.delay)).plus(form.width);
        self.open.is_some().then_some(calm)
    }

    /// See [`super::Entity::fades_at`].
    pub fn fades_at(&self, form: &EpisodeForm) -> Time {
        self.newest().plus(form.width + MAX_DELAY)
    }

    /// Whether an event received at this time meets an entity that has faded, so that it is forgotten
    /// in a replay just when it was the first time.
    pub fn has_faded(&self, received_at: Time, form: &EpisodeForm) -> bool {
        self.open.is_none() && received_at >= self.fades_at(form)
    }

    /// Takes in that what makes an episode was met from `first` to `last`; `true` when that belongs to the
    /// open one.
    pub fn goes_on(&mut self, first: Time, last: Time, form: &EpisodeForm) -> bool {
        let same = self.covers(first, form);
        if same {
            self.last_over = self.last_over.max(last.micros());
        }
        same
    }

    /// Begins an episode that was met at `last` for the last time so far. Not in a replay.
    pub fn begin(&mut self, last: Time, detection: Detection, findings: &mut Findings) {
        let started = Detection { phase: "started".to_owned(), ..detection };
        findings.detections.push(started.clone());
        self.last_over = last.micros();
        self.open = Some(Box::new(started));
    }

    /// Ends the open episode; `false` when none is open. Not in a replay.
    pub fn end(&mut self, form: &EpisodeForm, findings: &mut Findings) -> bool {
        let Some(started) = self.open.take() else { return false };
        self.ended_at = Time::from_micros(self.last_over).plus(form.width).micros();
        let explanation = (form.ended)(&started);
        findings.detections.push(Detection {
            phase: "ended".to_owned(),
            ended_at: self.ended_at,
            explanation,
            ..*started
        });
        true
    }
}

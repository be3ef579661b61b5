//! Reading a device's events in order: its requests, what was in use at each, what came of them, and when
//! jobs ran.

use std::collections::HashMap;

use super::Served;
use crate::trace::{Cause, Event, Kind, Label};

/// A request as it is read.
pub(super) struct Read {
    pub(super) component: Label,
    pub(super) event: Event,
    pub(super) held: Vec<Label>,
    /// Of which job.
    pub(super) job: u64,
    pub(super) bounds: Option<u64>,
    peak: Option<u64>,
    /// What was said of jobs since the request before.
    pub(super) said: Vec<Event>,
}

/// What the events say, one after the other.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) requests: Vec<Read>,
    /// What is in use, as often as it is.
    open: Vec<Label>,
    copies: Vec<Event>,
    /// What was said of jobs since the last request.
    said: Vec<Event>,
    /// When jobs ran: from, until.
    spans: Vec<(u64, u64)>,
    jobs: u64,
    last: Option<u64>,
}

impl Reading {
    /// Of what comes before the first request only those jobs matter that are still running.
    pub(super) fn skip(&mut self, event: &Event) {
        match event.kind {
            Kind::JobDeclared => self.said.push(*event),
            Kind::JobReleased => {
                let own = |said: &Event| said.kind == Kind::JobDeclared && said.job == event.job;
                self.said.retain(|said| !own(said));
            }
            Kind::Forecast => {
                self.said.retain(|said| said.kind != Kind::Forecast);
                self.said.push(*event);
            }
            _ => {}
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        let component = event.component;
        match event.kind {
            Kind::Request => self.request(event),
            Kind::RequestEnds => {
                if let Some(at) = self.open.iter().position(|open| *open == component) {
                    self.open.remove(at);
                }
                self.covers(event.at);
            }
            Kind::Working => {
                if let Some(request) = self.last_of(component) {
                    request.event.beside = request.event.beside.max(event.beside);
                }
            }
            Kind::Peak => {
                if let Some(request) = self.last_of(component) {
                    request.peak = request.peak.max(Some(event.beside));
                }
            }
            Kind::Copy => {
                self.copies.push(*event);
                self.covers(event.ended());
            }
            Kind::JobDeclared | Kind::JobReleased | Kind::Forecast => self.said.push(*event),
            Kind::Gone => self.open.retain(|open| *open != component),
            _ => {}
        }
    }

    fn request(&mut self, event: &Event) {
        let mut held: Vec<Label> =
            self.open.iter().copied().filter(|open| *open != event.component).collect();
        held.sort_unstable();
        held.dedup();
        let bounds = (event.job != 0).then_some(event.job);
        // Without bounds a job is what is used at once.
        if bounds.is_none() && self.open.is_empty() || bounds != self.last || self.jobs == 0 {
            self.jobs += 1;
            self.spans.push((event.at, event.ended()));
        }
        self.covers(event.ended());
        self.last = bounds;
        self.open.push(event.component);
        let (component, event, job) = (event.component, *event, self.jobs);
        let said = std::mem::take(&mut self.said);
        self.requests.push(Read { component, event, held, job, bounds, peak: None, said });
    }

    fn covers(&mut self, until: u64) {
        if let Some(span) = self.spans.last_mut() {
            span.1 = span.1.max(until);
        }
    }

    fn last_of(&mut self, component: Label) -> Option<&mut Read> {
        self.requests.iter_mut().rev().find(|request| request.component == component)
    }

    /// What really came of each request: each copy is for the last one before it began.
    pub(super) fn served(&self) -> Vec<Served> {
        let mut all: Vec<Served> = self
            .requests
            .iter()
            .map(|request| Served {
                beside: request.event.beside,
                peak: request.peak,
                ..Served::default()
            })
            .collect();
        let mut of: HashMap<Label, Vec<usize>> = HashMap::new();
        for (at, request) in self.requests.iter().enumerate() {
            of.entry(request.component).or_default().push(at);
        }
        for copy in &self.copies {
            if !matches!(copy.cause, Cause::FirstUse | Cause::CameBack) {
                continue;
            }
            let Some(own) = of.get(&copy.component) else { continue };
            let before = own.partition_point(|at| self.requests[*at].event.at <= copy.at);
            if let Some(at) = before.checked_sub(1).and_then(|place| own.get(place)) {
                all[*at].copied += copy.bytes;
                all[*at].nanos += copy.took;
            }
        }
        all
    }

    /// How long at least one job ran.
    pub(super) fn nanos(mut self) -> u64 {
        self.spans.sort_unstable();
        let (mut all, mut until) = (0, 0);
        for (from, to) in self.spans {
            all += to.saturating_sub(from.max(until));
            until = until.max(to);
        }
        all
    }
}

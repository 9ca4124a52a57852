//! Bodies that are inflated on their way to a recipient.
//!
//! Most take one piece. A larger one goes on as long as the turn of its connection does, and then in the next turn;
//! nothing of the connection overtakes it.

use crate::atoms;
use crate::budget::Budget;
use crate::clock::now;
use crate::recipients::Recipients;
use crate::routes::{Partition, Route};
use crate::terms::{BinaryBody, KeptFrame};
use inflate::{Coding, Failure, Inflater, Progress};
use rustler::Atom;
use std::sync::Arc;
use stomp::{Body, BodyBuffer, Command, Frame};

/// The inflater of a thread. There is none before the first compressed body.
#[derive(Default)]
pub struct Spare(Option<Box<Inflater>>);

/// A frame, as far as its body is inflated.
pub enum Inflated<'a> {
    /// As it is to be delivered: if the body could not be inflated, with the reason.
    Frame(Frame<'a, BinaryBody>, Option<Atom>),
    /// The body is a large one.
    Begun(Box<Inflating>),
}

/// Inflates the body of `frame`, if it is compressed.
pub fn inflate<'a>(
    spare: &'a mut Spare,
    mut frame: Frame<'a, BinaryBody>,
    route: Option<Route>,
    recipients: &Recipients,
    budget: &mut Budget,
) -> Inflated<'a> {
    let body = frame.body.as_ref();
    let Some(coding) = Coding::of(body, || frame.header(b"content-encoding")) else {
        return Inflated::Frame(frame, None);
    };
    let started = now();
    let max = recipients.max_inflated;
    let inflater = spare.0.get_or_insert_default();
    let begun = inflater.start(body, coding, max);
    let progress = begun.and_then(|()| inflater.next(body));
    budget.took(now() - started);
    match progress {
        Ok(Progress::Done) => {
            recipients.stats.inflated.add(1);
            frame.body = Body::Borrowed(spare.0.as_ref().map_or(&[], |inflater| inflater.piece()));
            Inflated::Frame(frame, None)
        }
        Ok(Progress::More) => {
            let inflater = spare.0.take().unwrap_or_default();
            let place = (route, recipients.partition());
            Inflated::Begun(Box::new(Inflating::new(inflater, frame, place, max)))
        }
        Err(failure) => Inflated::Frame(frame, failed(failure, recipients)),
    }
}

/// A frame whose body is being inflated. It may outlast the input that it came in.
pub struct Inflating {
    inflater: Box<Inflater>,
    max: u64,
    route: Option<Route>,
    partition: Option<Arc<Partition>>,
    command: Command,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    compressed: BinaryBody,
    inflated: BinaryBody,
    /// Bytes that there was room for, or that it has waited for.
    granted: usize,
}

impl Inflating {
    fn new(
        inflater: Box<Inflater>,
        frame: Frame<'_, BinaryBody>,
        (route, partition): (Option<Route>, Option<Arc<Partition>>),
        max: u64,
    ) -> Inflating {
        let command = frame.command();
        let headers = frame.headers();
        let headers = headers.map(|h| (h.name().into_owned(), h.value().into_owned()));
        let headers = headers.collect();
        let compressed = match frame.body {
            Body::Owned(body) => body,
            Body::Borrowed(body) => {
                let mut copy = BinaryBody::with_capacity(body.len());
                copy.extend_from_slice(body);
                copy
            }
        };
        let mut inflated = BinaryBody::with_capacity(inflater.piece().len());
        inflated.extend_from_slice(inflater.piece());
        Inflating {
            inflater,
            max,
            route,
            partition,
            command,
            headers,
            compressed,
            inflated,
            granted: 0,
        }
    }

    /// Whether it may go on: there is room for it, or it has waited for that.
    pub fn has_room(&mut self, recipients: &mut Recipients) -> bool {
        let size = self.size();
        if self.granted < size {
            if !recipients.may_begin(self.route) {
                return false;
            }
            self.granted = size;
        }
        recipients.reserve(self.route, self.inflated.capacity().max(size));
        true
    }

    /// It waits for room, and goes on after that.
    pub fn waits(&mut self) {
        self.granted = self.size();
    }

    /// The size that it says it has, and the largest possible one if it does not say, or has become larger.
    fn size(&self) -> usize {
        let body = self.compressed.as_ref();
        match self.inflater.size_hint(body) {
            said if said >= self.inflated.as_ref().len() => said,
            _ => self.inflater.size_limit(body),
        }
    }

    /// Inflates one piece more. Whether the body is done, or why it cannot be.
    pub fn advance(&mut self, budget: &mut Budget) -> Result<Progress, Failure> {
        let started = now();
        let progress = self.inflater.next(self.compressed.as_ref());
        let piece = self.inflater.piece();
        if progress.is_ok() {
            // What the body says of its size is allocated when there is room for it.
            let hint = self.inflater.size_hint(self.compressed.as_ref());
            self.inflated.make_room(piece.len(), hint, self.max);
            self.inflated.extend_from_slice(piece);
        }
        budget.took(now() - started);
        progress
    }

    /// The frame as it is to be delivered, and how it goes. The inflater is there for the next body.
    pub fn finish(
        self,
        spare: &mut Spare,
        recipients: &mut Recipients,
        failure: Option<Failure>,
    ) -> (KeptFrame, Option<Route>) {
        spare.0 = Some(self.inflater);
        recipients.reserve(self.route, 0);
        let body = match failure {
            None => {
                recipients.stats.inflated.add(1);
                self.inflated
            }
            Some(_) => self.compressed,
        };
        let route = self.route.map(|route| match &self.partition {
            Some(partition) => partition.by_body(route, body.as_ref()),
            None => route,
        });
        let frame = KeptFrame {
            command: self.command,
            headers: self.headers,
            compressed: failure.and_then(|failure| failed(failure, recipients)),
            body,
        };
        (frame, route)
    }
}

/// Why a body stays compressed. None if it never was.
fn failed(failure: Failure, recipients: &Recipients) -> Option<Atom> {
    let reason = atoms::of_inflate_failure(failure)?;
    recipients.stats.not_inflated.add(1);
    Some(reason)
}

//! `Timeline`.

use coresident::trace::{Event, Kind, Timeline};
use loom::thread;

/// An event that says one thing twice.
fn event(value: u64) -> Event {
    Event { bytes: value, of: value, ..Event::of(Kind::Request) }
}

pub(crate) fn an_event_is_read_whole_or_not_at_all() {
    let timeline = Timeline::new(1);
    timeline.record(&event(1));
    let writer = thread::spawn({
        let timeline = timeline.clone();
        move || timeline.record(&event(2))
    });
    for read in timeline.recording().unwrap().events {
        assert_eq!(read.bytes, read.of);
    }
    writer.join().unwrap();
    let recording = timeline.recording().unwrap();
    assert_eq!((recording.events[0].bytes, recording.lost), (2, 1));
}

pub(crate) fn of_two_who_record_in_one_place_one_is_kept_whole() {
    let timeline = Timeline::new(1);
    let other = thread::spawn({
        let timeline = timeline.clone();
        move || timeline.record(&event(1))
    });
    timeline.record(&event(2));
    other.join().unwrap();
    let recording = timeline.recording().unwrap();
    // The last one may have given up, because the first one was being written.
    assert!(recording.events.len() <= 1);
    assert_eq!(recording.events.len() as u64 + recording.lost, 2);
    for read in recording.events {
        assert_eq!(read.bytes, read.of);
    }
}

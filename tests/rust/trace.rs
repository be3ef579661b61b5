//! `Timeline`: what is recorded, what is lost, and what files have of it.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use coresident::trace::{
    Acting, Cause, Event, Kind, Label, Recording, RecordingError, Setting, Timeline,
};

/// A request of so many bytes.
fn request(bytes: u64) -> Event {
    Event { bytes, ..Event::of(Kind::Request) }
}

fn setting(limit: u64) -> Setting {
    let (device, policy) = ("cuda:0".into(), "lru".into());
    Setting { device, limit, page: 1, policy, ..Setting::default() }
}

#[test]
fn events_come_back_in_the_order_in_which_they_were_recorded() {
    let timeline = Timeline::new(10);
    let track = timeline.track("cuda:0", "unet");
    (0..10).for_each(|bytes| track.record(request(bytes)));
    let recording = timeline.recording().unwrap();
    let bytes: Vec<u64> = recording.events.iter().map(|event| event.bytes).collect();
    assert_eq!((bytes, recording.lost), ((0..10).collect(), 0));
}

#[test]
fn a_list_is_one_name_and_an_event_has_room_for_eight() {
    let timeline = Timeline::new(10);
    let names = |count: usize| -> Vec<String> { (0..count).map(|at| format!("{at}\"")).collect() };
    let labels: Vec<Label> = (0..Event::LISTS).map(|count| timeline.list(&names(count))).collect();
    for count in 0..=Event::LISTS {
        let event = Event::of(Kind::Forecast).with_lists(&labels[..count]);
        assert_eq!(event.lists(), labels[..count]);
        timeline.record(&event);
    }
    assert_eq!(timeline.list(&names(3)), labels[3]);
    let recording = timeline.recording().unwrap();
    let read = Recording::parse(&recording.to_json().unwrap()).unwrap();
    assert_eq!(read.events.last().unwrap().lists(), labels);
    for (count, label) in labels.into_iter().enumerate() {
        assert_eq!(read.list(label), Some(names(count)));
    }
    assert_eq!(timeline.list(&names(10_000)), Label::OTHERS, "too long");
    assert_eq!(read.list(Label::OTHERS), None);
    assert_eq!(read.list(Label::NOTHING), None);
}

#[test]
fn the_last_events_are_kept_and_the_others_are_counted() {
    // More than one piece of the ring, and not a whole number of them.
    for kept in [1_u64, 7, 1024, 2500] {
        let timeline = Timeline::new(usize::try_from(kept).unwrap());
        let track = timeline.track("cuda:0", "unet");
        (0..kept * 2 + 3).for_each(|bytes| track.record(request(bytes)));
        let recording = timeline.recording().unwrap();
        let bytes: Vec<u64> = recording.events.iter().map(|event| event.bytes).collect();
        assert_eq!((bytes, recording.lost), ((kept + 3..kept * 2 + 3).collect(), kept + 3));
        assert_eq!(timeline.events(), kept);
    }
    assert_eq!(Timeline::new(0).events(), 1);
}

#[test]
fn sums_lose_nothing_whoever_counts() {
    let timeline = Timeline::new(16);
    let (threads, each) = (4, 5000);
    let (track, at_once) = (timeline.track("cuda:0", "unet"), Barrier::new(threads));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                at_once.wait();
                for _ in 0..each {
                    let began = Instant::now();
                    track.copied(Cause::CameBack, 3, began, began + Duration::from_nanos(5), 0);
                }
            });
        }
    });
    let recording = timeline.recording().unwrap();
    let [counter] = recording.counters[..] else { panic!("{:?}", recording.counters) };
    let times = threads as u64 * each;
    assert_eq!((counter.kind, counter.cause), (Kind::Copy, Cause::CameBack));
    assert_eq!((counter.sum.times, counter.sum.bytes), (times, 3 * times));
    assert_eq!(counter.sum.nanos, 5 * times);
    assert_eq!(recording.lost + recording.events.len() as u64, times);
}

#[test]
fn an_event_is_never_torn_however_fast_the_ring_goes_round() {
    let timeline = Timeline::new(3);
    let track = timeline.track("cuda:0", "unet");
    let whole = |value: u64| Event {
        took: value,
        bytes: value,
        beside: value,
        of: value,
        job: value,
        ..Event::of(Kind::Request)
    };
    thread::scope(|scope| {
        for first in [1, 1_000_000] {
            let track = &track;
            scope.spawn(move || {
                (first..first + 20_000).for_each(|value| track.record(whole(value)));
            });
        }
        for _ in 0..2_000 {
            for event in timeline.recording().unwrap().events {
                let Event { took, bytes, beside, of, job, .. } = event;
                assert_eq!([took, bytes, beside, of], [job; 4]);
            }
        }
    });
}

#[test]
fn what_a_thread_does_for_somebody_says_so() {
    let timeline = Timeline::new(10);
    let (unet, vae) = (timeline.track("cuda:0", "unet"), timeline.track("cuda:0", "vae"));
    {
        let _job = Acting::in_job(7);
        let _for = Acting::on_behalf_of(vae.component());
        unet.evicted(5);
    }
    unet.evicted(6);
    let recording = timeline.recording().unwrap();
    let told: Vec<_> =
        recording.events.iter().map(|event| (event.job, recording.name(event.whom))).collect();
    assert_eq!(told, [(7, "vae"), (0, "")]);
}

#[test]
fn nothing_is_recorded_while_it_is_off_and_clearing_forgets() {
    let timeline = Timeline::new(10);
    let track = timeline.track("cuda:0", "unet");
    timeline.turn(false);
    track.record(request(1));
    timeline.set(setting(1));
    timeline.turn(true);
    let recording = timeline.recording().unwrap();
    assert!(recording.events.is_empty() && recording.counters.is_empty());
    assert!(recording.settings.is_empty() && recording.lost == 0);
    track.record(request(1));
    timeline.clear().unwrap();
    track.record(request(2));
    let recording = timeline.recording().unwrap();
    assert_eq!((recording.events.len(), recording.events[0].bytes, recording.lost), (1, 2, 0));
    assert_eq!(recording.counters[0].sum.times, 1);
}

#[test]
fn only_changes_of_a_devices_settings_are_kept() {
    let timeline = Timeline::new(10);
    for limit in [1, 1, 2, 2, 1] {
        timeline.set(setting(limit));
        timeline.set(Setting { device: "cuda:1".into(), ..setting(5) });
    }
    let recording = timeline.recording().unwrap();
    let limits: Vec<u64> = recording.settings.iter().map(|(_, setting)| setting.limit).collect();
    assert_eq!(limits, [1, 5, 2, 1]);
    assert_eq!(recording.setting("cuda:0").unwrap().limit, 1);
    for limit in 10..2000 {
        timeline.set(setting(limit));
    }
    let recording = timeline.recording().unwrap();
    assert_eq!(recording.settings.len(), 256);
    assert_eq!(recording.setting("cuda:0").unwrap().limit, 1999);
}

/// Something of everything.
fn made() -> Recording {
    let timeline = Timeline::new(100);
    timeline.set(Setting { high: Some(3), ..setting(1 << 40) });
    let track = timeline.track("cuda:0", "unet \"1\"\n\u{1F600}");
    let other = timeline.track("cuda:1", "vae");
    for kind in Kind::ALL {
        track.record(Event { bytes: u64::MAX, at: 1, ..Event::of(*kind) });
    }
    for cause in &Cause::ALL[1..] {
        let _job = Acting::in_job(3);
        other.copied(*cause, 4, Instant::now(), Instant::now(), 0);
    }
    timeline.recording().unwrap()
}

#[test]
fn a_file_has_all_of_a_recording() {
    let recording = made();
    let text = recording.to_json().unwrap();
    assert_eq!(Recording::parse(&text).unwrap(), recording);
    assert!(Recording::is_meant_by(&text));
    assert!(!Recording::is_meant_by(r#"{"name": "a trace"}"#));
    assert_eq!(recording.devices(), ["cuda:0", "cuda:1"]);
}

#[test]
fn kinds_that_came_later_are_left_out() {
    let recording = made();
    let text = recording.to_json().unwrap().replace("\"peak\"", "\"summit\"");
    let read = Recording::parse(&text).unwrap();
    assert_eq!(read.events.len() + 1, recording.events.len());
    assert!(read.events.iter().all(|event| event.kind != Kind::Peak));
}

#[test]
fn what_is_no_recording_is_refused_with_what_is_wrong() {
    let text = made().to_json().unwrap();
    let refused = |text: &str| Recording::parse(text).unwrap_err().to_string();
    assert!(refused("{").contains("EOF"));
    assert!(refused("[]").contains("no recorded timeline"));
    assert!(refused(r#"{"name": "a trace"}"#).contains("its format is not"));
    assert!(refused(r#"{"format": "coresident-timeline"}"#).contains("no version"));
    let later = text.replace("\"version\":1", "\"version\":2");
    assert_eq!(Recording::parse(&later), Err(RecordingError::Version { found: 2 }));
    assert!(refused(&text.replace("\"whom\":[0,", "\"whom\":[")).contains("not of one length"));
    assert!(refused(&text.replace("\"whom\":[0,", "\"whom\":[77,")).contains("no name number 77"));
    assert!(refused(&text.replace("\"kind\":[0,", "\"kind\":[99,")).contains("no kind number 99"));
    assert!(refused(&text.replace("\"kind\":[0,", "\"kind\":[-1,")).contains("-1"));
}

#[test]
fn too_many_names_are_called_alike() {
    let timeline = Timeline::new(1);
    let labels: Vec<Label> =
        (0..70_000).map(|number| timeline.label(&format!("model {number}"))).collect();
    assert_eq!(labels.last(), Some(&Label::OTHERS));
    assert_eq!(timeline.label("model 0"), labels[0]);
    assert!(timeline.recording().unwrap().names.len() <= 1 << 16);
}

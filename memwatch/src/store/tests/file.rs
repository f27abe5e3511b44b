//! Recordings on a disk.

use std::fs;
use std::path::Path;

use super::super::tests::header;
use super::super::tests::synthetic::{Service, meta};
use super::*;
use crate::store::Ending;

fn recorder(path: &Path, service: &Service, most_bytes: u64) -> Recorder {
    let output = Output::open(&Destination::File(path.to_owned())).unwrap();
    Recorder::new(output, header(service.model.since_ns()), most_bytes).unwrap()
}

fn tick(recorder: &mut Recorder, service: &mut Service) {
    service.tick();
    let flow = recorder
        .tick(&service.model, &mut service.names, &meta())
        .unwrap();
    assert_eq!(flow, Flow::Continue);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_recording_can_be_read_while_it_grows_and_after_it_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.memwatch");
    let mut service = Service::new(50, 1);
    let mut recorder = recorder(&path, &service, u64::MAX);
    assert!(!path.exists());
    for count in 1..=5 {
        tick(&mut recorder, &mut service);
        let recording = super::super::open(&path).unwrap();
        assert_eq!(
            (recording.ticks().len(), recording.ending()),
            (count, Ending::Unfinished)
        );
    }
    // As SIGKILL does: nothing is said goodbye to.
    drop(recorder);
    assert_eq!(super::super::open(&path).unwrap().ticks().len(), 5);
    assert_eq!(names(folder.path()), ["a.memwatch"]);
}

#[test]
fn an_ended_recording_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.memwatch");
    let mut service = Service::new(50, 1);
    let mut recorder = recorder(&path, &service, u64::MAX);
    tick(&mut recorder, &mut service);
    recorder.finish().unwrap();
    let recording = super::super::open(&path).unwrap();
    assert_eq!(
        (recording.ticks().len(), recording.ending()),
        (1, Ending::Complete)
    );
}

#[test]
fn before_the_first_tick_an_existing_file_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.memwatch");
    fs::write(&path, "before").unwrap();
    drop(recorder(&path, &Service::new(5, 1), u64::MAX));
    assert_eq!(fs::read(&path).unwrap(), b"before");
    assert_eq!(names(folder.path()), ["a.memwatch"]);
}

#[test]
fn a_recording_stays_below_its_bound_and_keeps_its_ends() {
    const BOUND: u64 = 200 << 10;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.memwatch");
    let mut service = Service::with_activity(100, 1, 500);
    let mut recorder = recorder(&path, &service, BOUND);
    let (mut largest, mut shrunk, mut before) = (0, 0, 0);
    for _ in 0..1200 {
        tick(&mut recorder, &mut service);
        largest = largest.max(fs::metadata(&path).unwrap().len());
        shrunk += u32::from(recorder.bytes() < before);
        before = recorder.bytes();
        assert_eq!(fs::metadata(&path).unwrap().len(), recorder.bytes());
    }
    assert!(recorder.why_not_thinned().is_none());
    assert!(shrunk > 2, "{shrunk}");
    assert!(largest < BOUND * 5 / 4, "{largest}");
    recorder.finish().unwrap();
    assert_eq!(names(folder.path()), ["a.memwatch"]);

    let mut recording = super::super::open(&path).unwrap();
    assert_eq!(recording.ending(), Ending::Complete);
    let ticks: Vec<u64> = recording.ticks().iter().map(|info| info.tick).collect();
    assert_eq!((ticks[0], ticks[ticks.len() - 1]), (0, 1199));
    assert!(ticks.is_sorted() && ticks.len() < 1000, "{}", ticks.len());
    let gaps: Vec<u64> = ticks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[1] > 1 && gaps[gaps.len() - 1] == 1, "{gaps:?}");
    let read = recording.last().unwrap();
    for (id, site) in service.model.sites() {
        assert_eq!(read.model.site(id).unwrap().totals, site.totals);
        assert_eq!(
            *read.names.stack(id.instance, id.stack),
            *service.names.stack(id.instance, id.stack)
        );
    }
}

#[test]
fn a_disk_that_is_full_is_told_and_what_is_there_is_kept() {
    let mut service = Service::new(5, 1);
    let mut recorder = recorder(Path::new("/dev/full"), &service, u64::MAX);
    service.tick();
    let error = recorder
        .tick(&service.model, &mut service.names, &meta())
        .unwrap_err();
    let line = error.to_string();
    assert!(
        line.contains("/dev/full") && line.contains("No space left"),
        "{line}"
    );
}

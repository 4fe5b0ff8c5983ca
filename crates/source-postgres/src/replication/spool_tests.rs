//! Spools in memory and on disk, aborted parts, leftovers of dead processes.

use super::*;

fn settings(directory: &Path, memory: usize) -> SpoolSettings {
    SpoolSettings { memory_bytes_max: memory, directory: directory.into(), ..SpoolSettings::default() }
}

fn frame(subxid: u32, number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![b'I'];
    frame.extend_from_slice(&subxid.to_be_bytes());
    frame.extend_from_slice(&number.to_be_bytes());
    frame.resize(frame.len() + len, number as u8);
    frame
}

fn replayed(spools: &mut Spools, settings: &SpoolSettings, xid: u32) -> Vec<Vec<u8>> {
    let mut replay = Replay::new(spools.take(xid).expect("a spool"), settings).expect("opened");
    let mut frames = Vec::new();
    while let Some(frame) = replay.next_frame().expect("read") {
        frames.push(frame.to_vec());
    }
    spools.release(replay.into_spool());
    frames
}

#[test]
fn more_spools_than_open_files_come_back_whole_and_leave_nothing() {
    let directory = tempfile::tempdir().expect("a folder");
    let settings = settings(directory.path(), 10_000);
    let mut spools = Spools::new(settings.clone());
    let count = OPEN_FILES_MAX as u32 + 20;
    for xid in 0..count {
        spools.start(xid);
    }
    for number in 0..40u32 {
        for xid in 0..count {
            spools.append(xid, &frame(xid + number % 3, number, 50 + number as usize * 20)).expect("kept");
        }
    }
    assert!(spools.memory_bytes() <= 10_000 && spools.spilled_bytes() > 0);
    assert_eq!(spools.open_files, OPEN_FILES_MAX);
    for xid in 0..count {
        spools.get_mut(xid).expect("a spool").abort(xid + 1);
        let kept = (0..40u32).filter(|number| number % 3 != 1);
        let expected: Vec<_> =
            kept.map(|number| frame(xid + number % 3, number, 50 + number as usize * 20)).collect();
        assert!(replayed(&mut spools, &settings, xid) == expected, "{xid}");
    }
    assert_eq!((spools.memory_bytes(), spools.disk_bytes(), spools.open_files), (0, 0, 0));
    drop(spools);
    assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0);
}

#[test]
fn a_frame_larger_than_every_buffer_comes_back() {
    let directory = tempfile::tempdir().expect("a folder");
    let settings = settings(directory.path(), 1000);
    let mut spools = Spools::new(settings.clone());
    spools.start(1);
    let frames = [frame(1, 1, 10), frame(1, 2, 3 * READ_BYTES), frame(1, 3, 10)];
    for frame in &frames {
        spools.append(1, frame).expect("kept");
    }
    let mut replay = Replay::new(spools.take(1).expect("a spool"), &settings).expect("opened");
    for frame in &frames {
        assert_eq!(replay.next_frame().expect("read"), Some(&frame[..]));
        assert_eq!(replay.take_frame(), frame, "with its memory or as a copy");
    }
    assert_eq!(replay.next_frame().expect("read"), None);
    spools.release(replay.into_spool());
    assert_eq!((spools.memory_bytes(), spools.disk_bytes()), (0, 0));
}

#[test]
fn a_large_frame_that_is_taken_is_not_copied_and_those_after_it_come() {
    let directory = tempfile::tempdir().expect("a folder");
    let large = 3 * READ_BYTES;
    // In a segment, and in a file.
    for memory in [10 * large, 1000] {
        let settings = settings(directory.path(), memory);
        let mut spools = Spools::new(settings.clone());
        spools.start(1);
        let frames = [frame(1, 1, 10), frame(1, 2, large), frame(1, 3, large), frame(1, 4, 10)];
        for frame in &frames {
            spools.append(1, frame).expect("kept");
        }
        let mut replay = Replay::new(spools.take(1).expect("a spool"), &settings).expect("opened");
        for frame in &frames {
            let given = replay.next_frame().expect("read").expect("a frame");
            assert_eq!(given, frame);
            let at = given.as_ptr();
            if frame.len() > large {
                let taken = replay.take_frame();
                assert_eq!((taken.as_ptr(), taken.len()), (at, frame.len()), "memory {memory}");
                assert_eq!(taken, frame);
            }
        }
        assert_eq!(replay.next_frame().expect("read"), None);
        spools.release(replay.into_spool());
    }
}

#[test]
#[cfg(unix)]
fn the_folder_is_private_and_its_files_have_no_names() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a folder");
    let mut spools = Spools::new(settings(directory.path(), 100));
    spools.start(1);
    spools.append(1, &frame(1, 1, 500)).expect("kept");
    let folder = fs::read_dir(directory.path()).expect("read").next().expect("one").expect("one");
    assert_eq!(folder.metadata().expect("its mode").permissions().mode() & 0o777, 0o700);
    let names: Vec<_> =
        fs::read_dir(folder.path()).expect("read").map(|e| e.expect("one").file_name()).collect();
    assert_eq!(names, [LOCK_NAME]);
}

#[test]
fn leftovers_of_the_dead_go_and_folders_of_the_living_stay() {
    let directory = tempfile::tempdir().expect("a folder");
    let mut living = Spools::new(settings(directory.path(), 100));
    living.start(1);
    living.append(1, &frame(1, 1, 500)).expect("kept");
    let dead = directory.path().join(format!("{FOLDER_PREFIX}1-0-0"));
    fs::create_dir(&dead).expect("a folder");
    fs::write(dead.join(LOCK_NAME), b"").expect("a lock");
    fs::write(dead.join("0"), b"rows").expect("a file");
    let others = directory.path().join("not-ours");
    fs::create_dir(&others).expect("a folder");
    drop(Spools::new(settings(directory.path(), 100)));
    assert!(!dead.exists() && others.exists());
    assert!(replayed(&mut living, &settings(directory.path(), 100), 1) == [frame(1, 1, 500)]);
}

#[test]
fn no_room_and_no_folder_are_said_with_their_cure() {
    let directory = tempfile::tempdir().expect("a folder");
    let missing = directory.path().join("missing");
    let limited = SpoolSettings { disk_bytes_max: 300, ..settings(directory.path(), 100) };
    for settings in [settings(&missing, 100), limited] {
        let mut spools = Spools::new(settings);
        spools.start(1);
        let error = spools.append(1, &frame(1, 1, 500)).expect_err("no room");
        assert_eq!((error.code(), error.class()), (SPOOL_FAILED, pgferry_model::Class::TaskBroken));
        assert!(error.cure().expect("a cure").lines[0].starts_with("limits.spool_directory = "));
        assert!(error.cause().is_some());
    }
}

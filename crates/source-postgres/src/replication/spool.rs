//! Keeps the changes of in-progress streamed transactions until their commit: in memory up to a budget, then in files.
//!
//! ```text
//!   append ──> segments in memory (256 KiB each) ── budget used up ──> the largest spool's segments ──> its file
//!   replay <── file, read with a large buffer ──> then what is still in memory, in the order of arrival
//! ```
//!
//! Invariants: a record is a length (4 bytes, little-endian) and a frame, so what is read back is what came, byte by byte; the
//! budget is shared by all spools; at most [`OPEN_FILES_MAX`] files are open between calls, spools beyond that open theirs for
//! each write; a file has no name while it is open where the platform allows that, so that a crash leaves nothing. The folder
//! is private to the process and locked while it lives; folders whose owner is gone are removed when the next one starts.
//!
//! Why not fsync: after a crash the source sends the whole transaction again; nothing here has to outlive the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use pgferry_model::{Code, Cure, Error, Result};

/// Changes of an in-progress transaction cannot be kept on disk.
///
/// Of class `TaskBroken`: a full disk or a missing right needs a person; a retry would make the source send, and this disk
/// take, the same transaction again and again.
pub const SPOOL_FAILED: Code = Code::new("source.spool_failed");

/// Open files at most. The usual soft limit of a process is 1,024 and connections need theirs.
pub const OPEN_FILES_MAX: usize = 64;

/// Memory is taken, and files are written, in pieces of this size: large enough for sequential writes.
const SEGMENT_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 1 << 20;
const FOLDER_PREFIX: &str = "pgferry-spool-";
const LOCK_NAME: &str = "lock";
/// A folder without a lock file is a start that was interrupted, unless it is this young.
const UNLOCKED_AGE_MIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Where and how much to spool.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Bytes in memory, of all spools together, before the largest goes to its file.
    pub memory_bytes_max: usize,
    /// Bytes on disk at most, of all spools together.
    pub disk_bytes_max: u64,
    /// The folder in which the process makes its own (setting `spool_directory`).
    pub directory: PathBuf,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        SpoolSettings { memory_bytes_max: 8 << 20, disk_bytes_max: u64::MAX, directory: std::env::temp_dir() }
    }
}

/// The process's own folder, removed when dropped.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    next_file: u64,
    _lock: File,
}

#[derive(Debug)]
enum Storage {
    None,
    Open { file: File, path: Option<PathBuf> },
    Named(PathBuf),
}

/// The changes of one top-level transaction, in the order of arrival.
#[derive(Debug)]
pub struct Spool {
    segments: Vec<Vec<u8>>,
    memory_bytes: usize,
    storage: Storage,
    file_bytes: u64,
    aborted: HashSet<u32, foldhash::fast::RandomState>,
    /// Subtransactions of which something was kept.
    kept: HashSet<u32, foldhash::fast::RandomState>,
    /// Subtransactions that were rolled back although the stream did not say so.
    left_out: HashSet<u32, foldhash::fast::RandomState>,
    /// Relations that were described in it and are not the task's.
    skipped: HashSet<u32, foldhash::fast::RandomState>,
}

/// Every in-progress transaction's spool.
#[derive(Debug)]
pub struct Spools {
    settings: SpoolSettings,
    folder: Option<Folder>,
    by_xid: HashMap<u32, Spool, foldhash::fast::RandomState>,
    memory_bytes: usize,
    disk_bytes: u64,
    open_files: usize,
    spilled_bytes: u64,
}

impl Spools {
    /// Removes what dead processes left in the directory. Nothing is made there before the first spill.
    pub fn new(settings: SpoolSettings) -> Self {
        remove_leftovers(&settings.directory);
        Spools {
            settings,
            folder: None,
            by_xid: HashMap::default(),
            memory_bytes: 0,
            disk_bytes: 0,
            open_files: 0,
            spilled_bytes: 0,
        }
    }

    /// Begins a transaction's spool; one that is there is dropped.
    pub fn start(&mut self, xid: u32) {
        self.drop_spool(xid);
        self.by_xid.insert(xid, Spool::new());
    }

    /// The spool of a transaction in progress.
    pub fn get_mut(&mut self, xid: u32) -> Option<&mut Spool> {
        self.by_xid.get_mut(&xid)
    }

    /// Whether there is a spool of the transaction.
    pub fn contains(&self, xid: u32) -> bool {
        self.by_xid.contains_key(&xid)
    }

    /// How many transactions are in progress.
    pub fn len(&self) -> usize {
        self.by_xid.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_xid.is_empty()
    }

    /// Bytes in memory now, with what the segments have in reserve.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Bytes on disk now.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Bytes that were ever written to files.
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes
    }

    /// Adds a frame to a transaction's spool; the largest spools go to their files while memory is over the budget.
    pub fn append(&mut self, xid: u32, frame: &[u8]) -> Result<()> {
        let Some(spool) = self.by_xid.get_mut(&xid) else { return Ok(()) };
        if frame.len() > self.settings.memory_bytes_max {
            return self.spill(xid, frame);
        }
        let before = spool.memory_bytes;
        spool.push(frame);
        self.memory_bytes += spool.memory_bytes - before;
        while self.memory_bytes > self.settings.memory_bytes_max {
            let largest = self.by_xid.iter().max_by_key(|(_, spool)| spool.memory_bytes);
            match largest.map(|(&xid, spool)| (xid, spool.memory_bytes)) {
                Some((xid, bytes)) if bytes > 0 => self.spill(xid, &[])?,
                _ => break,
            }
        }
        Ok(())
    }

    /// Takes a spool out, to be replayed; hand it back to [`Spools::release`] afterwards.
    pub fn take(&mut self, xid: u32) -> Option<Spool> {
        self.by_xid.remove(&xid)
    }

    /// Frees what a spool held.
    pub fn release(&mut self, spool: Spool) {
        self.memory_bytes = self.memory_bytes.saturating_sub(spool.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(spool.file_bytes);
        if matches!(spool.storage, Storage::Open { .. }) {
            self.open_files = self.open_files.saturating_sub(1);
        }
        drop(spool);
    }

    /// Drops a transaction's spool, if there is one.
    pub fn drop_spool(&mut self, xid: u32) {
        if let Some(spool) = self.by_xid.remove(&xid) {
            self.release(spool);
        }
    }

    /// Drops every spool.
    pub fn clear(&mut self) {
        for (_, spool) in std::mem::take(&mut self.by_xid) {
            self.release(spool);
        }
    }

    /// Writes a spool to its file, and `last` after it where there is one: a frame too large to be kept in memory first.
    fn spill(&mut self, xid: u32, last: &[u8]) -> Result<()> {
        let Some(spool) = self.by_xid.get_mut(&xid) else { return Ok(()) };
        let length = (last.len() as u32).to_le_bytes();
        let record: [&[u8]; 2] = if last.is_empty() { [&[], &[]] } else { [&length, last] };
        let pieces = spool.segments.iter().map(Vec::as_slice).chain(record);
        let bytes: u64 = pieces.clone().map(|piece| piece.len() as u64).sum();
        if self.disk_bytes.saturating_add(bytes) > self.settings.disk_bytes_max {
            let limit = io::Error::other("the limit for spool files is reached");
            return Err(failed(&self.settings.directory, self.disk_bytes, limit));
        }
        let (storage, open_files) = (&mut spool.storage, &mut self.open_files);
        if let Err(error) = write_out(&mut self.folder, &self.settings.directory, open_files, storage, pieces)
        {
            return Err(failed(&self.settings.directory, self.disk_bytes, error));
        }
        spool.segments.clear();
        spool.file_bytes += bytes;
        self.memory_bytes -= std::mem::take(&mut spool.memory_bytes);
        self.disk_bytes += bytes;
        self.spilled_bytes += bytes;
        pgferry_pipeline::failpoint::pass("source.spool_written");
        Ok(())
    }
}

fn write_out<'a>(
    folder: &mut Option<Folder>,
    directory: &Path,
    open_files: &mut usize,
    storage: &mut Storage,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> io::Result<()> {
    if matches!(storage, Storage::None) {
        let folder = match folder {
            Some(folder) => folder,
            none => none.insert(Folder::create(directory)?),
        };
        *storage = folder.new_file(*open_files < OPEN_FILES_MAX)?;
        *open_files += usize::from(matches!(storage, Storage::Open { .. }));
    }
    let mut pieces = pieces;
    let mut write = |file: &mut File| pieces.try_for_each(|piece| file.write_all(piece));
    match storage {
        Storage::Open { file, .. } => write(file),
        Storage::Named(path) => write(&mut OpenOptions::new().append(true).open(path)?),
        Storage::None => Ok(()),
    }
}

#[cold]
fn failed(directory: &Path, disk_bytes: u64, error: io::Error) -> Error {
    let directory = directory.display();
    Error::task_broken(
        SPOOL_FAILED,
        format!("cannot keep a large transaction in progress in {directory} ({disk_bytes} bytes are there)"),
    )
    .with_cure(
        Cure::advice(
            "free space there, or name a folder on a larger disk that pgferry may write to, in the task's section of the task file; it \
             needs about as much as the largest transactions in progress have changed. Then start the task again: nothing is lost",
        )
        .line("limits.spool_directory = \"/var/tmp\""),
    )
    .with_origin(error)
}

impl Spool {
    fn new() -> Self {
        Spool {
            segments: Vec::new(),
            memory_bytes: 0,
            storage: Storage::None,
            file_bytes: 0,
            aborted: HashSet::default(),
            kept: HashSet::default(),
            left_out: HashSet::default(),
            skipped: HashSet::default(),
        }
    }

    fn push(&mut self, frame: &[u8]) {
        let needed = frame.len() + 4;
        let fits = self.segments.last().is_some_and(|last| last.len() + needed <= SEGMENT_BYTES);
        if !fits {
            self.segments.push(Vec::new());
        }
        if let Some(segment) = self.segments.last_mut() {
            let before = segment.capacity();
            segment.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            segment.extend_from_slice(frame);
            self.memory_bytes += segment.capacity() - before;
        }
    }

    /// A subtransaction was rolled back: its changes are not replayed.
    pub fn abort(&mut self, subxid: u32) {
        self.aborted.insert(subxid);
    }

    /// Whether a subtransaction was rolled back.
    #[inline]
    pub fn aborted(&self, subxid: u32) -> bool {
        !self.aborted.is_empty() && self.aborted.contains(&subxid)
    }

    /// A row of a subtransaction is kept.
    #[inline]
    pub fn keeps(&mut self, subxid: u32) {
        self.kept.insert(subxid);
    }

    /// Subtransactions of which rows are kept and which the stream did not roll back.
    pub fn in_doubt(&self) -> Vec<u32> {
        self.kept.iter().copied().filter(|&subxid| !self.aborted(subxid)).collect()
    }

    /// Whether a frame is not replayed. The server does not repeat a description after a rollback that it did not tell of.
    #[inline]
    fn omits(&self, frame: &[u8]) -> bool {
        if self.aborted.is_empty() && self.left_out.is_empty() {
            return false;
        }
        let subxid = frame.get(1..).and_then(|rest| rest.first_chunk::<4>());
        subxid.map(|&xid| u32::from_be_bytes(xid)).is_some_and(|subxid| {
            self.aborted(subxid) || (self.left_out.contains(&subxid) && frame.first() != Some(&b'R'))
        })
    }

    /// Rows of the relation need not be kept, or need to be.
    pub fn skip_relation(&mut self, oid: u32, skip: bool) {
        if skip {
            self.skipped.insert(oid);
        } else {
            self.skipped.remove(&oid);
        }
    }

    /// Whether rows of the relation need not be kept.
    #[inline]
    pub fn skips(&self, oid: u32) -> bool {
        !self.skipped.is_empty() && self.skipped.contains(&oid)
    }

    /// Bytes that wait to be replayed.
    pub fn bytes(&self) -> u64 {
        self.file_bytes + self.segments.iter().map(|segment| segment.len() as u64).sum::<u64>()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Storage::Named(path) | Storage::Open { path: Some(path), .. } = &self.storage {
            let _ = fs::remove_file(path);
        }
    }
}

/// Reads a spool back, record by record, once.
#[derive(Debug)]
pub struct Replay {
    spool: Spool,
    file: Option<File>,
    unread: u64,
    buffer: Vec<u8>,
    at: usize,
    segment: usize,
    segment_at: usize,
    /// Where the frame is that was given last: in the file's buffer or in the segment, start, length.
    last: (bool, usize, usize),
    directory: PathBuf,
}

impl Replay {
    /// From the start.
    pub fn new(mut spool: Spool, settings: &SpoolSettings) -> Result<Self> {
        let directory = settings.directory.clone();
        let opened = match &mut spool.storage {
            Storage::None => Ok(None),
            Storage::Open { file, .. } => {
                file.seek(SeekFrom::Start(0)).and_then(|_| file.try_clone()).map(Some)
            }
            Storage::Named(path) => File::open(path).map(Some),
        };
        let file = opened.map_err(|error| failed(&directory, spool.file_bytes, error))?;
        let unread = spool.file_bytes;
        Ok(Replay {
            spool,
            file,
            unread,
            buffer: Vec::new(),
            at: 0,
            segment: 0,
            segment_at: 0,
            last: (true, 0, 0),
            directory,
        })
    }

    /// The next frame that was not rolled back, or the end. A streamed frame has its subtransaction's id at byte 1.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>> {
        let (from_file, start, len) = loop {
            let Some((from_file, start, len)) = self.locate()? else { return Ok(None) };
            let frame = self.source(from_file).get(start..start + len).unwrap_or_default();
            if !self.spool.omits(frame) {
                break (from_file, start, len);
            }
        };
        self.last = (from_file, start, len);
        Ok(self.source(from_file).get(start..start + len))
    }

    /// The frame that [`Replay::next_frame`] has given, with its memory where nothing else is in it.
    pub fn take_frame(&mut self) -> Bytes {
        let (from_file, start, len) = self.last;
        let memory = match self.spool.segments.get_mut(self.segment) {
            _ if from_file => &mut self.buffer,
            Some(segment) => segment,
            None => return Bytes::new(),
        };
        let frame = start..start + len;
        if memory.len() > frame.end || start > 4 {
            return memory.get(frame).map_or_else(Bytes::new, Bytes::copy_from_slice);
        }
        let memory = std::mem::take(memory);
        (self.at, self.segment_at) = (0, 0);
        Bytes::from(memory).slice(frame)
    }

    fn source(&self, from_file: bool) -> &[u8] {
        if from_file {
            &self.buffer
        } else {
            self.spool.segments.get(self.segment).map_or(&[], Vec::as_slice)
        }
    }

    /// Subtransactions were rolled back although the stream did not say so.
    pub fn leave_out(&mut self, subxids: &[u32]) {
        self.spool.left_out.extend(subxids);
    }

    /// The spool, to be released.
    pub fn into_spool(self) -> Spool {
        self.spool
    }

    /// Moves past the next record and says where its frame is: (in the file's buffer or in the segment, start, length).
    fn locate(&mut self) -> Result<Option<(bool, usize, usize)>> {
        if self.unread > 0 || self.at < self.buffer.len() {
            self.have(4)?;
            let len = length_at(&self.buffer, self.at);
            self.have(4 + len)?;
            let start = self.at + 4;
            self.at = start + len;
            return Ok(Some((true, start, len)));
        }
        while let Some(segment) = self.spool.segments.get(self.segment) {
            if self.segment_at < segment.len() {
                let len = length_at(segment, self.segment_at);
                let start = self.segment_at + 4;
                self.segment_at = start + len;
                return Ok(Some((false, start, len)));
            }
            self.segment += 1;
            self.segment_at = 0;
        }
        Ok(None)
    }

    /// Reads on until `count` bytes from the present place are in the buffer.
    fn have(&mut self, count: usize) -> Result<()> {
        if self.buffer.len() - self.at >= count {
            return Ok(());
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        let missing = (count - self.buffer.len()) as u64;
        let wanted =
            missing.max((READ_BYTES as u64).saturating_sub(self.buffer.len() as u64)).min(self.unread);
        let read = match &mut self.file {
            Some(file) if missing <= self.unread => {
                self.buffer.reserve_exact(wanted as usize);
                file.take(wanted).read_to_end(&mut self.buffer)
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        match read {
            Ok(read) if read as u64 == wanted => {
                self.unread -= wanted;
                Ok(())
            }
            Ok(_) => Err(failed(&self.directory, self.unread, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(failed(&self.directory, self.unread, error)),
        }
    }
}

fn length_at(bytes: &[u8], at: usize) -> usize {
    let length = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    length.map_or(0, |&length| u32::from_le_bytes(length) as usize)
}

impl Folder {
    fn create(directory: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..8 {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let age = std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.subsec_nanos());
            let path = directory.join(format!("{FOLDER_PREFIX}{}-{number}-{age:x}", std::process::id()));
            match Folder::create_at(&path) {
                Ok(lock) => return Ok(Folder { path, next_file: 0, _lock: lock }),
                // Another process that starts now took the folder for a leftover, or the name is taken: another name.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::WouldBlock | io::ErrorKind::NotFound
                    ) && directory.is_dir() =>
                {
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn create_at(path: &Path) -> io::Result<File> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)?;
        let name = path.join(LOCK_NAME);
        let lock = new_file(&name)?;
        lock.try_lock().map_err(io::Error::from)?;
        if name.try_exists()? { Ok(lock) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn new_file(&mut self, keep_open: bool) -> io::Result<Storage> {
        let path = self.path.join(self.next_file.to_string());
        self.next_file += 1;
        let file = new_file(&path)?;
        if !keep_open {
            return Ok(Storage::Named(path));
        }
        // Where an open file cannot be unlinked it keeps its name and goes when the spool is dropped.
        let path = if cfg!(unix) && fs::remove_file(&path).is_ok() { None } else { Some(path) };
        Ok(Storage::Open { file, path })
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of processes that are gone: those whose lock can be taken. What cannot be removed stays; it is another
/// user's, or the next start tries again.
fn remove_leftovers(directory: &Path) {
    let Ok(found) = fs::read_dir(directory) else { return };
    for path in found.flatten().map(|entry| entry.path()) {
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX));
        let Ok(folder) = fs::symlink_metadata(&path) else { continue };
        if !ours || !folder.is_dir() {
            continue;
        }
        let lock = path.join(LOCK_NAME);
        let regular = fs::symlink_metadata(&lock).is_ok_and(|lock| lock.is_file());
        let opened = if regular { File::open(&lock) } else { Err(io::ErrorKind::NotFound.into()) };
        let abandoned = match opened {
            // The lock is held until the folder is gone, so that its owner, if it is only just starting, notices.
            Ok(lock) => lock.try_lock().is_ok().then_some(Some(lock)),
            Err(_) => folder
                .modified()
                .ok()
                .and_then(|at| at.elapsed().ok())
                .filter(|&age| age > UNLOCKED_AGE_MIN)
                .map(|_| None),
        };
        if let Some(_lock) = abandoned {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;

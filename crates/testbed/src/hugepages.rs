//! Hugepages, borrowed from the kernel for as long as a test needs them.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Bytes of one page.
pub const PAGE_SIZE: u64 = 2 << 20;
/// The kernel's pool of them.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Whoever holds the lock of this file may change the pool; in it is by how much, and how large it was before.
const LEDGER: &str = "/run/testbed-hugepages";
/// Another test gives its pages back within this time.
const LOCK_LIMIT: Duration = Duration::from_secs(120);

/// Whose pages they are.
trait Pool: Send {
    /// How many there are, in use or not.
    fn size(&self) -> Result<u64>;
    /// Asks for so many. There may be fewer in the end.
    fn resize(&self, size: u64) -> Result<()>;
}

/// The kernel's pool.
struct Kernel;

impl Pool for Kernel {
    fn size(&self) -> Result<u64> {
        let text = fs::read_to_string(POOL).context("this kernel has no hugepages of 2 MiB")?;
        text.trim().parse().with_context(|| format!("{POOL} says {text:?}"))
    }

    fn resize(&self, size: u64) -> Result<()> {
        fs::write(POOL, size.to_string())
            .with_context(|| format!("cannot write {POOL}: run this test as root"))
    }
}

/// Pages that were added to the kernel's pool. Dropping it takes them out again. One test on this machine has some at a
/// time; the others wait.
pub struct Hugepages {
    pool: Box<dyn Pool>,
    /// Locked.
    ledger: File,
    /// How many are to be given back, as far as there are more than before.
    count: u64,
    /// How many there were before.
    before: u64,
}

impl Hugepages {
    /// Adds `count` pages of 2 MiB to the pool.
    ///
    /// # Errors
    ///
    /// This process is not root, the kernel has no memory left in pieces of that size, or another test keeps its pages
    /// for too long.
    pub fn reserve(count: u64) -> Result<Hugepages> {
        Hugepages::reserve_in(Box::new(Kernel), Path::new(LEDGER), count, LOCK_LIMIT)
    }

    fn reserve_in(
        pool: Box<dyn Pool>,
        ledger: &Path,
        count: u64,
        limit: Duration,
    ) -> Result<Hugepages> {
        let mut pages = Hugepages { pool, ledger: lock(ledger, limit)?, count: 0, before: 0 };
        // A test that was killed could not give back what it had.
        let mut left = String::new();
        pages.ledger.read_to_string(&mut left)?;
        let mut left = left.split_whitespace().map(|number| number.parse().unwrap_or(0));
        pages.count = left.next().unwrap_or(0);
        pages.before = left.next().unwrap_or(0);
        pages.give_back()?;

        pages.before = pages.pool.size()?;
        // Before there are any, so that a test which is killed here does not take them along.
        pages.count = count;
        pages.note()?;
        pages.pool.resize(pages.before + count)?;
        pages.count = pages.pool.size()?.saturating_sub(pages.before);
        pages.note()?;
        if pages.count < count {
            bail!(
                "the kernel found {} of {count} hugepages of 2 MiB: its free memory is too little or in too small \
                 pieces (`echo 1 > /proc/sys/vm/compact_memory` may help)",
                pages.count
            );
        }
        Ok(pages)
    }

    /// Takes the pages out of the pool. Those that a process still has are freed when it ends.
    fn give_back(&mut self) -> Result<()> {
        if self.count > 0 {
            let size = self.pool.size()?;
            // What the ledger says may not have come, or have gone already.
            let added = self.count.min(size.saturating_sub(self.before));
            if added > 0 {
                self.pool.resize(size - added)?;
            }
            self.count = 0;
        }
        self.note()
    }

    /// Writes down how many pages there are to give back.
    fn note(&self) -> Result<()> {
        // Always as long, and in one write: whoever is killed leaves either all of it or what was there.
        let text = format!("{:20} {:20}\n", self.count, self.before);
        Ok(self.ledger.write_all_at(text.as_bytes(), 0)?)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if let Err(error) = self.give_back() {
            eprintln!("hugepages stay reserved: {error:#}");
        }
    }
}

/// Opens a file and waits for its lock, which goes with the file.
fn lock(path: &Path, limit: Duration) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let (sender, receiver) = mpsc::channel();
    // The kernel's wait has no limit of its own.
    thread::spawn(move || {
        let locked = flock(&file, FlockOperation::LockExclusive);
        // Nobody waits any more: the file is closed, and unlocked by that.
        let _ = sender.send(locked.map(|()| file));
    });
    let locked = receiver.recv_timeout(limit);
    let locked = locked.with_context(|| {
        format!("another test kept its hugepages for {limit:?} ({} is locked)", path.display())
    })?;
    Ok(locked?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use tempfile::TempDir;

    use super::*;

    /// A kernel with seven pages, which finds memory for ten.
    #[derive(Clone)]
    struct Model {
        size: Arc<AtomicU64>,
        directory: Arc<TempDir>,
        /// How many pages there were, and what the ledger said, before and after each change.
        moments: Arc<Mutex<Vec<(u64, String)>>>,
    }

    impl Pool for Model {
        fn size(&self) -> Result<u64> {
            Ok(self.size.load(Ordering::Relaxed))
        }

        fn resize(&self, size: u64) -> Result<()> {
            self.remember()?;
            self.size.store(size.min(10), Ordering::Relaxed);
            self.remember()
        }
    }

    impl Model {
        fn new() -> Result<Model> {
            Model::after((7, String::new()))
        }

        /// As a test left it that was killed in that moment.
        fn after((size, ledger): (u64, String)) -> Result<Model> {
            let directory = Arc::new(tempfile::tempdir()?);
            fs::write(directory.path().join("ledger"), ledger)?;
            Ok(Model { size: Arc::new(AtomicU64::new(size)), directory, moments: Arc::default() })
        }

        fn ledger(&self) -> PathBuf {
            self.directory.path().join("ledger")
        }

        fn remember(&self) -> Result<()> {
            let moment = (self.size()?, fs::read_to_string(self.ledger())?);
            self.moments.lock().unwrap().push(moment);
            Ok(())
        }

        fn reserve(&self, count: u64, limit: Duration) -> Result<Hugepages> {
            Hugepages::reserve_in(Box::new(self.clone()), &self.ledger(), count, limit)
        }
    }

    #[test]
    fn pages_are_given_back() -> Result<()> {
        let model = Model::new()?;
        let pages = model.reserve(3, LOCK_LIMIT)?;
        assert_eq!(model.size()?, 10);
        drop(pages);
        assert_eq!(model.size()?, 7);
        drop(model.reserve(2, LOCK_LIMIT)?);
        assert_eq!(model.size()?, 7);
        Ok(())
    }

    #[test]
    fn a_kernel_without_memory_keeps_what_it_had() -> Result<()> {
        let model = Model::new()?;
        let error = model.reserve(4, LOCK_LIMIT).err().context("three pages are taken for four")?;
        assert!(error.to_string().contains("the kernel found 3 of 4 hugepages"), "{error}");
        assert_eq!(model.size()?, 7);
        Ok(())
    }

    #[test]
    fn what_a_killed_test_had_is_given_back_by_the_next() -> Result<()> {
        let killed = Model::new()?;
        let pages = killed.reserve(2, LOCK_LIMIT)?;
        killed.remember()?;
        drop(pages);
        // And one for which there are too few.
        assert!(killed.reserve(4, LOCK_LIMIT).is_err());
        let moments = killed.moments.lock().unwrap().clone();
        assert_eq!(moments.len(), 2 * 2 + 1 + 2 * 2);
        for moment in moments {
            let model = Model::after(moment.clone())?;
            let pages = model.reserve(1, LOCK_LIMIT)?;
            assert_eq!(model.size()?, 8, "{moment:?}");
            drop(pages);
            assert_eq!(model.size()?, 7, "{moment:?}");
        }
        Ok(())
    }

    #[test]
    fn pages_that_others_added_or_took_meanwhile_are_theirs() -> Result<()> {
        let model = Model::new()?;
        for (change, left) in [(10, 8), (8, 7), (6, 6)] {
            model.resize(7)?;
            let pages = model.reserve(2, LOCK_LIMIT)?;
            model.resize(change)?;
            drop(pages);
            assert_eq!(model.size()?, left, "{change}");
        }
        Ok(())
    }

    #[test]
    fn one_test_at_a_time() -> Result<()> {
        let model = Model::new()?;
        let pages = model.reserve(2, LOCK_LIMIT)?;
        let error = model.reserve(2, Duration::from_millis(50)).err().context("two have pages")?;
        assert!(error.to_string().contains("another test kept its hugepages"), "{error}");
        drop(pages);
        drop(model.reserve(2, LOCK_LIMIT)?);
        assert_eq!(model.size()?, 7);
        Ok(())
    }
}

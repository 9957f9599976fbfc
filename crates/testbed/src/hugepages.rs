//! Hugepages, borrowed from the kernel for as long as a test needs them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
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
/// Whoever holds the lock of this file may change the pool; in it is by how much.
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
    count: u64,
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
        let mut pages = Hugepages { pool, ledger: lock(ledger, limit)?, count: 0 };
        // A test that was killed could not give back what it had.
        let mut left = String::new();
        pages.ledger.read_to_string(&mut left)?;
        pages.count = left.trim().parse().unwrap_or(0);
        pages.give_back()?;

        let before = pages.pool.size()?;
        pages.pool.resize(before + count)?;
        pages.count = pages.pool.size()?.saturating_sub(before);
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
            self.pool.resize(self.pool.size()?.saturating_sub(self.count))?;
            self.count = 0;
        }
        self.note()
    }

    /// Writes down how many pages there are to give back.
    fn note(&mut self) -> Result<()> {
        self.ledger.set_len(0)?;
        self.ledger.rewind()?;
        write!(self.ledger, "{}", self.count)?;
        Ok(())
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tempfile::TempDir;

    use super::*;

    /// A kernel with seven pages, which finds memory for ten.
    #[derive(Clone)]
    struct Model {
        size: Arc<AtomicU64>,
        directory: Arc<TempDir>,
    }

    impl Pool for Model {
        fn size(&self) -> Result<u64> {
            Ok(self.size.load(Ordering::Relaxed))
        }

        fn resize(&self, size: u64) -> Result<()> {
            self.size.store(size.min(10), Ordering::Relaxed);
            Ok(())
        }
    }

    impl Model {
        fn new() -> Result<Model> {
            let directory = Arc::new(tempfile::tempdir()?);
            Ok(Model { size: Arc::new(AtomicU64::new(7)), directory })
        }

        fn reserve(&self, count: u64, limit: Duration) -> Result<Hugepages> {
            let ledger = self.directory.path().join("ledger");
            Hugepages::reserve_in(Box::new(self.clone()), &ledger, count, limit)
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
        let model = Model::new()?;
        fs::write(model.directory.path().join("ledger"), "5")?;
        let pages = model.reserve(4, LOCK_LIMIT)?;
        assert_eq!(model.size()?, 6);
        drop(pages);
        assert_eq!(model.size()?, 2);
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

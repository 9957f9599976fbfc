//! Hugepages, borrowed from the kernel for as long as a test needs them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
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

/// Pages that were added to the kernel's pool. Dropping it takes them out again. One test on this machine has some at a
/// time; the others wait.
pub struct Hugepages {
    pool: PathBuf,
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
        Hugepages::reserve_in(Path::new(POOL), Path::new(LEDGER), count, LOCK_LIMIT)
    }

    fn reserve_in(pool: &Path, ledger: &Path, count: u64, limit: Duration) -> Result<Hugepages> {
        let mut pages = Hugepages { pool: pool.to_owned(), ledger: lock(ledger, limit)?, count: 0 };
        // A test that was killed could not give back what it had.
        let mut left = String::new();
        pages.ledger.read_to_string(&mut left)?;
        pages.count = left.trim().parse().unwrap_or(0);
        pages.give_back()?;

        let before = pages.read()?;
        pages.write(before + count)?;
        pages.count = pages.read()?.saturating_sub(before);
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
            self.write(self.read()?.saturating_sub(self.count))?;
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

    fn read(&self) -> Result<u64> {
        let what = || format!("cannot read {}: hugepages of 2 MiB", self.pool.display());
        let text = std::fs::read_to_string(&self.pool).with_context(what)?;
        text.trim().parse().with_context(what)
    }

    fn write(&self, count: u64) -> Result<()> {
        let what = || format!("cannot write {}: hugepages need root", self.pool.display());
        std::fs::write(&self.pool, count.to_string()).with_context(what)
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
    use std::fs;

    use super::*;

    /// A pool of plain files, with seven pages in it.
    struct Pool {
        directory: tempfile::TempDir,
    }

    impl Pool {
        fn new() -> Result<Pool> {
            let pool = Pool { directory: tempfile::tempdir()? };
            fs::write(pool.path("pool"), "7\n")?;
            Ok(pool)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn reserve(&self, count: u64, limit: Duration) -> Result<Hugepages> {
            Hugepages::reserve_in(&self.path("pool"), &self.path("ledger"), count, limit)
        }

        fn holds(&self, count: &str) -> Result<()> {
            assert_eq!(fs::read_to_string(self.path("pool"))?.trim(), count);
            Ok(())
        }
    }

    #[test]
    fn pages_are_given_back() -> Result<()> {
        let pool = Pool::new()?;
        let pages = pool.reserve(4, LOCK_LIMIT)?;
        pool.holds("11")?;
        drop(pages);
        pool.holds("7")?;
        drop(pool.reserve(2, LOCK_LIMIT)?);
        pool.holds("7")
    }

    #[test]
    fn what_a_killed_test_had_is_given_back_by_the_next() -> Result<()> {
        let pool = Pool::new()?;
        fs::write(pool.path("ledger"), "5")?;
        let pages = pool.reserve(4, LOCK_LIMIT)?;
        pool.holds("6")?;
        drop(pages);
        pool.holds("2")
    }

    #[test]
    fn one_test_at_a_time() -> Result<()> {
        let pool = Pool::new()?;
        let pages = pool.reserve(4, LOCK_LIMIT)?;
        let error = pool.reserve(4, Duration::from_millis(50)).err().context("two have pages")?;
        assert!(error.to_string().contains("another test kept its hugepages"), "{error}");
        drop(pages);
        drop(pool.reserve(4, LOCK_LIMIT)?);
        pool.holds("7")
    }
}

//! Buffers that two processors pass to each other, as a guest and a switch do: what one of them wrote last, the other one
//! has to fetch, and a buffer comes back only when all others have had their turn.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

/// Some buffers, which are passed together.
pub struct Batch {
    pub buffers: Vec<Vec<u8>>,
    /// How many of them hold a frame, from the first on.
    pub filled: usize,
}

impl Batch {
    /// The frames in it.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().take(self.filled).map(Vec::as_slice)
    }
}

/// The other side has gone.
pub struct Gone;

/// What one of the two has.
pub struct Side {
    came: Receiver<Batch>,
    other: Sender<Batch>,
}

impl Side {
    /// What the other one has passed next, if anything.
    pub fn take(&self) -> Result<Option<Batch>, Gone> {
        match self.came.try_recv() {
            Ok(batch) => Ok(Some(batch)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Gone),
        }
    }

    pub fn pass(&self, batch: Batch) -> Result<(), Gone> {
        self.other.send(batch).map_err(|_| Gone)
    }
}

/// Two sides of at least so many buffers of `len` bytes. The first one has all of them.
pub fn pair(count: usize, batch: usize, len: usize) -> [Side; 2] {
    let ((to_one, one), (to_other, other)) = (channel(), channel());
    for _ in 0..count.div_ceil(batch) {
        // Not zeros, which would be no memory yet.
        let buffers = vec![vec![0xff; len]; batch];
        // Its other end is right here.
        let _ = to_one.send(Batch { buffers, filled: 0 });
    }
    [Side { came: one, other: to_other }, Side { came: other, other: to_one }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_buffers_go_round_in_order_until_one_side_has_gone() {
        let [one, other] = pair(100, 64, 9);
        assert!(matches!(other.take(), Ok(None)));
        let passed: Vec<_> = std::iter::from_fn(|| one.take().ok().flatten()).collect();
        assert_eq!(passed.iter().map(|batch| batch.buffers.len()).collect::<Vec<_>>(), [64, 64]);
        for (number, mut batch) in passed.into_iter().enumerate() {
            batch.buffers[0] = vec![number as u8; 9];
            batch.filled = 1;
            assert!(one.pass(batch).is_ok());
        }
        drop(one);
        for number in 0..2 {
            let batch = other.take().ok().flatten().expect("it was passed");
            assert_eq!(batch.frames().collect::<Vec<_>>(), [[number; 9]]);
            assert!(other.pass(batch).is_err());
        }
        assert!(matches!(other.take(), Err(Gone)));
    }
}

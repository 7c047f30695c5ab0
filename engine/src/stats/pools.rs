//! The sums of what connection pools report.
//!
//! A pool reports again and again what it has done since it was made, so its last report must be remembered, or
//! things would be counted twice. That is done for a limited number of pools. Of a pool that had to make room for
//! another, only two bits are remembered: should it report again, what it has done meanwhile is lost, and nothing is
//! counted twice.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// How many pools' last reports are remembered.
const POOLS_MAX: usize = 1024;
/// Words of 64 bits in the Bloom filter of pools that made room: 8 KiB. Each pool sets two bits. The more are set, the
/// more new pools are taken for old ones; their first report is lost then.
const SEEN_WORDS: usize = 1024;

/// Connections acquired, and reused.
type Totals = (u64, u64);

#[derive(Default)]
pub(super) struct Pools {
    /// By the pool's own id.
    known: HashMap<u64, Pool>,
    /// Totals of pools that had to make room.
    retired: Totals,
    /// A Bloom filter of those; empty before there is one.
    seen: Vec<u64>,
    hash: RandomState,
    /// Counts reports.
    turn: u64,
}

struct Pool {
    /// When it reported last, in turns.
    turn: u64,
    /// The part of its totals that does not count: it was counted or lost before the pool was known.
    before: Totals,
    /// Its last report.
    last: Totals,
}

impl Pool {
    fn totals(&self) -> Totals {
        let (before, last) = (self.before, self.last);
        (last.0 - before.0, last.1 - before.1)
    }
}

fn add(to: &mut Totals, more: Totals) {
    // Saturating: any client may report any number.
    to.0 = to.0.saturating_add(more.0);
    to.1 = to.1.saturating_add(more.1);
}

impl Pools {
    /// A pool's totals so far.
    pub(super) fn report(&mut self, id: u64, (acquired, reused): Totals) {
        let now = (acquired, reused.min(acquired));
        self.turn += 1;
        let turn = self.turn;
        if let Some(pool) = self.known.get_mut(&id) {
            // Reports over several connections may overtake each other; totals only grow.
            pool.last = (pool.last.0.max(now.0), pool.last.1.max(now.1));
            pool.turn = turn;
            return;
        }
        if self.known.len() >= POOLS_MAX {
            self.make_room();
        }
        let before = match self.was_seen(id) {
            true => now,
            false => (0, 0),
        };
        let last = now;
        self.known.insert(id, Pool { turn, before, last });
    }

    /// All totals.
    pub(super) fn totals(&self) -> Totals {
        let mut sum = self.retired;
        for pool in self.known.values() {
            add(&mut sum, pool.totals());
        }
        sum
    }

    /// Retires the pool that has been silent for longest, which most likely does not exist any more.
    fn make_room(&mut self) {
        let silent = self.known.iter().min_by_key(|(_, pool)| pool.turn);
        let Some((&id, _)) = silent else {
            return;
        };
        if let Some(pool) = self.known.remove(&id) {
            add(&mut self.retired, pool.totals());
        }
        self.seen.resize(SEEN_WORDS, 0);
        for (word, bit) in self.places(id) {
            self.seen[word] |= bit;
        }
    }

    fn was_seen(&self, id: u64) -> bool {
        let is_set = |(word, bit): (usize, u64)| self.seen[word] & bit != 0;
        !self.seen.is_empty() && self.places(id).into_iter().all(is_set)
    }

    /// A pool's bits, by the words in which they are.
    fn places(&self, id: u64) -> [(usize, u64); 2] {
        let hash = self.hash.hash_one(id);
        [hash, hash >> 32].map(|part| {
            let place = part as usize % (64 * SEEN_WORDS);
            (place / 64, 1 << (place % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_made_room_and_reports_again_is_counted_once() {
        let mut pools = Pools::default();
        pools.report(1, (1_000_000, 500_000));
        for id in 0..3 * POOLS_MAX as u64 {
            pools.report(1_000 + id, (1 + id, id));
        }
        assert_eq!(pools.known.len(), POOLS_MAX);
        let sum: u64 = (1..=3 * POOLS_MAX as u64).sum();
        // Hardly one of the new pools is taken for an old one.
        let all = 1_000_000 + sum;
        let (first, _) = pools.totals();
        assert!(first <= all && first > all - all / 100, "{first} of {all}");
        // All of them report again, several times: no more than what they have done since is added.
        for turn in 1..5 {
            pools.report(1, (1_000_000 + turn, 500_000));
            for id in 0..3 * POOLS_MAX as u64 {
                pools.report(1_000 + id, (1 + id + turn, id));
            }
            let done = all + turn * (1 + 3 * POOLS_MAX as u64);
            let (acquired, reused) = pools.totals();
            assert!(
                acquired >= first && acquired <= done,
                "{acquired} of {done}"
            );
            assert!(reused <= acquired);
        }
    }

    #[test]
    fn pools_that_come_and_go_are_all_counted() {
        let mut pools = Pools::default();
        for id in 0..5_000 {
            pools.report(u64::MAX, (id, id));
            pools.report(id, (100, 90));
        }
        let staying = pools.known.get(&u64::MAX).map(Pool::totals);
        assert_eq!(staying, Some((4_999, 4_999)));
        pools.known.remove(&u64::MAX);
        let (acquired, reused) = pools.totals();
        // But for those that share their bits with others: 2 in 100 here.
        assert!((480_000..=500_000).contains(&acquired), "{acquired}");
        assert_eq!(reused, acquired / 100 * 90);
        // Nonsense does no harm.
        pools.report(7_777, (u64::MAX, u64::MAX));
        pools.report(8_888, (u64::MAX, u64::MAX));
        assert_eq!(pools.totals().0, u64::MAX);
    }
}

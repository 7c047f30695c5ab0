//! The requests in flight, by id.

/// One request in flight: the last part of its answer has not come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// Its id. 0: this entry of the table is free.
    id: u64,
    /// Where its frame begins in the stream of all bytes sent over this connection.
    pub(super) begins_at: u64,
    /// When it was submitted; 0 if round trips are not recorded.
    pub(super) began_ns: u64,
}

/// A request that was found in the table, and can be ended.
pub(super) struct Found<'a> {
    flight: &'a mut Flight,
    count: &'a mut usize,
}

impl Found<'_> {
    /// When it was submitted; 0 if round trips are not recorded.
    #[inline]
    pub(super) fn began_ns(&self) -> u64 {
        self.flight.began_ns
    }

    /// The request is over.
    #[inline]
    pub(super) fn end(self) {
        self.flight.id = 0;
        *self.count -= 1;
    }
}

const FREE: Flight = Flight {
    id: 0,
    begins_at: 0,
    began_ns: 0,
};

/// The requests in flight: a table in which each id has one place, the id modulo the table's length, so that
/// finding one takes one look. An id whose place is taken is skipped.
#[derive(Debug)]
pub(super) struct Flights {
    places: Box<[Flight]>,
    next_id: u64,
    count: usize,
    count_max: usize,
}

impl Flights {
    pub(super) fn new(count_max: usize) -> Flights {
        // At most half full: ids are given in order, and a request that stays long is skipped.
        let places = (count_max * 2).next_power_of_two();
        Flights {
            places: vec![FREE; places].into(),
            next_id: 1,
            count: 0,
            count_max,
        }
    }

    fn place(&self, id: u64) -> usize {
        id as usize & (self.places.len() - 1)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.count_max
    }

    /// As [`Flights::begin`], if there are others in flight and room for one more.
    #[inline(always)]
    pub(super) fn begin_beside_others(&mut self, begins_at: u64, began_ns: u64) -> Option<u64> {
        let fits = self.count > 0 && !self.is_full();
        fits.then(|| self.begin(begins_at, began_ns))
    }

    /// Gives an id to a request. The table must not be full.
    #[inline(always)]
    pub(super) fn begin(&mut self, begins_at: u64, began_ns: u64) -> u64 {
        assert!(!self.is_full());
        // At most half of the places are taken, so a free one is found.
        loop {
            let id = self.next_id;
            self.next_id = id.checked_add(1).unwrap_or(1);
            let place = self.place(id);
            let flight = &mut self.places[place];
            if flight.id == 0 {
                *flight = Flight {
                    id,
                    begins_at,
                    began_ns,
                };
                self.count += 1;
                return id;
            }
        }
    }

    /// The request with this id, if it is in flight.
    #[inline]
    pub(super) fn get(&self, id: u64) -> Option<&Flight> {
        let flight = &self.places[self.place(id)];
        (id != 0 && flight.id == id).then_some(flight)
    }

    #[inline]
    pub(super) fn contains(&self, id: u64) -> bool {
        self.get(id).is_some()
    }

    /// As [`Flights::get`], for a request that may be ended.
    #[inline]
    pub(super) fn find(&mut self, id: u64) -> Option<Found<'_>> {
        let place = self.place(id);
        let flight = &mut self.places[place];
        (id != 0 && flight.id == id).then_some(Found {
            flight,
            count: &mut self.count,
        })
    }

    /// Ends a request. False if it was not in flight.
    pub(super) fn end(&mut self, id: u64) -> bool {
        self.find(id).map(Found::end).is_some()
    }

    /// The ids of all in flight, oldest first.
    pub(super) fn all(&self) -> Vec<u64> {
        let in_flight = self.places.iter().filter(|flight| flight.id != 0);
        let mut all: Vec<_> = in_flight.collect();
        all.sort_by_key(|flight| flight.begins_at);
        all.into_iter().map(|flight| flight.id).collect()
    }

    /// The only request in flight, if it is also the last that was begun.
    pub(super) fn only_and_last(&self) -> Option<(u64, Flight)> {
        let last = self.next_id.checked_sub(1)?;
        self.get(last)
            .filter(|_| self.count == 1)
            .map(|&flight| (last, flight))
    }

    /// Notes that all frames begin this much later in the stream.
    pub(super) fn shift(&mut self, by: u64) {
        for flight in self.places.iter_mut().filter(|flight| flight.id != 0) {
            flight.begins_at += by;
        }
    }

    /// Notes where a request's frame begins in the stream of the next connection.
    pub(super) fn moved(&mut self, id: u64, begins_at: u64) {
        let place = self.place(id);
        assert_eq!(self.places[place].id, id);
        self.places[place].begins_at = begins_at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_walk_around_those_that_stay() {
        let mut flights = Flights::new(2);
        let stays = flights.begin(0, 0);
        for _ in 0..100 {
            let id = flights.begin(1, 0);
            assert!(flights.is_full() && id != stays && id != 0);
            assert!(flights.contains(id) && flights.contains(stays));
            assert!(flights.end(id) && !flights.end(id));
        }
        assert_eq!(flights.count(), 1);
        assert_eq!(flights.all(), [stays]);
        assert!(flights.only_and_last().is_none());
        let last = flights.begin(1, 0);
        assert!(flights.only_and_last().is_none());
        flights.end(stays);
        assert_eq!(flights.only_and_last().map(|(id, _)| id), Some(last));
        assert!(!flights.contains(0));
    }
}

//! The worker's connections: a slab of slots. A [`Key`] names a slot and its generation, so that an old
//! key does not find the connection that uses the slot now.

use crate::uring::{GENERATION_MASK, Key};

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A growing array of slots; freed ones are used again, under a new generation.
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
            used: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        self.used += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.value.is_none());
        slot.value = Some(value);
        Key {
            index,
            generation: slot.generation,
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation {
            slot.value.as_mut()
        } else {
            None
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(key.index);
        self.used -= 1;
        Some(value)
    }

    /// Replaces what is in `keys` by the keys of all slots in use.
    pub(super) fn keys(&self, keys: &mut Vec<Key>) {
        keys.clear();
        keys.extend(self.slots.iter().enumerate().filter_map(|(index, slot)| {
            slot.value.as_ref().map(|_| Key {
                index: index as u32,
                generation: slot.generation,
            })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_finds_nobody() {
        let mut slots = Slots::new();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(first.index, second.index);
        assert!(slots.get_mut(first).is_none());
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second).copied(), Some("second"));
        assert_eq!(slots.len(), 1);
        let mut keys = Vec::new();
        slots.keys(&mut keys);
        assert_eq!(keys, [second]);
    }
}

//! A bounded cache in two generations: what was not asked for during a whole generation is let go.

use std::collections::HashMap;
use std::hash::Hash;

#[derive(Clone, Debug)]
pub struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Entries per generation.
    size: usize,
}

impl<K: Eq + Hash, V: Clone> Generations<K, V> {
    /// Holds at most `capacity` entries, and at least the half of it that was used last.
    pub fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            size: (capacity / 2).max(1),
        }
    }

    pub fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.size {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| keep(key));
        self.old.retain(|key, _| keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut cache = Generations::new(20);
        for number in 0..1000_u32 {
            cache.insert(number, number * 2);
            assert_eq!(cache.get(&0), Some(0));
            assert!(cache.young.len() + cache.old.len() <= 20);
        }
        assert_eq!(cache.get(&999), Some(1998));
        assert_eq!(cache.get(&500), None);
    }

    #[test]
    fn the_last_half_is_always_there() {
        let mut cache = Generations::new(20);
        for number in 0..1000_u32 {
            cache.insert(number, ());
            for recent in number.saturating_sub(9)..=number {
                assert!(cache.young.contains_key(&recent) || cache.old.contains_key(&recent));
            }
        }
    }

    #[test]
    fn retain_reaches_both_generations() {
        let mut cache = Generations::new(8);
        for number in 0..6 {
            cache.insert(number, ());
        }
        cache.retain(|number| number % 2 == 1);
        assert_eq!(
            (0..6)
                .filter(|number| cache.get(number).is_some())
                .collect::<Vec<_>>(),
            [1, 3, 5]
        );
    }
}

//! The messages of a subscription that were delivered and not acknowledged, by the header that an
//! acknowledgement names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

type Id = Arc<[u8]>;

/// In the order in which they were delivered. Each operation takes the time of a search, whatever the order
/// of the acknowledgements: a subscription may have any number of them.
///
/// ```
/// use stomp::Unacknowledged;
///
/// let mut messages = Unacknowledged::default();
/// for id in [b"1", b"2", b"3"] {
///     messages.delivered(id);
/// }
/// messages.acknowledged(b"1");
/// assert_eq!(messages.through(b"2").len(), 1, "an acknowledgement of 2 stands for these");
/// assert_eq!(messages.take_all().len(), 2);
/// ```
#[derive(Default)]
pub struct Unacknowledged {
    numbers: HashMap<Id, u64>,
    ids: BTreeMap<u64, Id>,
    next: u64,
}

impl Unacknowledged {
    /// A message was delivered. One whose id is there already comes in its place.
    pub fn delivered(&mut self, id: &[u8]) {
        self.acknowledged(id);
        let id: Id = id.into();
        self.numbers.insert(Arc::clone(&id), self.next);
        self.ids.insert(self.next, id);
        self.next += 1;
    }

    /// A message was acknowledged. Whether it was there.
    pub fn acknowledged(&mut self, id: &[u8]) -> bool {
        let number = self.numbers.remove(id);
        number.is_some_and(|number| self.ids.remove(&number).is_some())
    }

    /// Whether a message is there.
    pub fn contains(&self, id: &[u8]) -> bool {
        self.numbers.contains_key(id)
    }

    /// The oldest message.
    pub fn first(&self) -> Option<Id> {
        self.ids.values().next().cloned()
    }

    /// A message and those before it, the oldest first. None, if it is not there.
    pub fn through(&self, id: &[u8]) -> Vec<Id> {
        match self.numbers.get(id) {
            Some(number) => self
                .ids
                .range(..=number)
                .map(|(_, id)| id.clone())
                .collect(),
            None => Vec::new(),
        }
    }

    /// Removes all of them, the oldest first.
    pub fn take_all(&mut self) -> Vec<Id> {
        self.numbers.clear();
        std::mem::take(&mut self.ids).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ids: &[&str]) -> Unacknowledged {
        let mut table = Unacknowledged::default();
        ids.iter().for_each(|id| table.delivered(id.as_bytes()));
        table
    }

    fn texts(ids: Vec<Id>) -> Vec<String> {
        let text = |id: &Id| String::from_utf8_lossy(id).into_owned();
        ids.iter().map(text).collect()
    }

    #[test]
    fn acknowledged_in_any_order() {
        let mut table = of(&["a", "b", "c"]);
        assert!(table.contains(b"b"));
        assert!(table.acknowledged(b"b"));
        assert!(!table.contains(b"b"));
        assert!(!table.acknowledged(b"b"));
        assert_eq!(texts(table.take_all()), ["a", "c"]);
        assert!(table.take_all().is_empty());
        assert_eq!(table.first(), None);
        assert!(!table.acknowledged(b"a"));
    }

    #[test]
    fn a_cumulative_one_covers_those_before_it() {
        let mut table = of(&["a", "b", "c", "d"]);
        assert_eq!(table.first().as_deref(), Some(b"a".as_slice()));
        assert!(table.acknowledged(b"a"));
        assert_eq!(table.first().as_deref(), Some(b"b".as_slice()));
        assert_eq!(texts(table.through(b"c")), ["b", "c"]);
        assert!(table.through(b"a").is_empty());
        assert_eq!(texts(table.take_all()), ["b", "c", "d"]);
    }

    #[test]
    fn an_id_that_comes_again_counts_once() {
        let mut table = of(&["a", "b", "a"]);
        assert_eq!(texts(table.take_all()), ["b", "a"]);
    }
}

//! Places that one caller may hold at a time, for what costs memory as long as it lasts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::facilitator::Caller;
use crate::facilitator::gate::rates::Counted;

/// A number of places for each caller. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Places {
    most: usize,
    taken: Arc<Mutex<HashMap<Counted, usize>>>,
}

/// One place; given back when it is dropped.
#[derive(Debug)]
pub(in crate::facilitator) struct Place {
    places: Places,
    /// `None`: the operator's, which are not counted.
    counted: Option<Counted>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// Whether a caller has all its places.
    pub(super) fn are_taken(&self, caller: &Caller) -> bool {
        let counted = Counted::of(caller);
        counted.is_some_and(|counted| {
            let taken = self.taken();
            taken.get(&counted).is_some_and(|taken| *taken >= self.most)
        })
    }

    /// Takes a place. `None`: the caller has all its places.
    pub(super) fn take(&self, caller: &Caller) -> Option<Place> {
        (!self.are_taken(caller)).then(|| self.occupy(caller))
    }

    /// Takes a place even if the caller has all its places.
    pub(super) fn occupy(&self, caller: &Caller) -> Place {
        let counted = Counted::of(caller);
        if let Some(counted) = counted {
            *self.taken().entry(counted).or_default() += 1;
        }
        Place {
            places: self.clone(),
            counted,
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Counted, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(counted) = self.counted else {
            return;
        };
        let mut taken = self.places.taken();
        if let Some(places) = taken.get_mut(&counted) {
            *places -= 1;
            if *places == 0 {
                taken.remove(&counted);
            }
        }
    }
}

/// Whether somebody waits for the result of a task.
#[derive(Debug)]
enum Attendance {
    Attended,
    /// The caller has left: the task has one of its places.
    Left {
        _place: Place,
    },
    Ended,
}

/// The side of the request: dropped when its caller leaves.
#[derive(Debug)]
pub(in crate::facilitator) struct Attendant {
    attendance: Arc<Mutex<Attendance>>,
    places: Places,
    caller: Caller,
}

/// The side of the task.
#[derive(Debug)]
pub(in crate::facilitator) struct Attended(Arc<Mutex<Attendance>>);

/// The two sides of a task that goes on when its caller leaves, and has a place of the caller's from then on.
pub(super) fn attended(places: &Places, caller: &Caller) -> (Attendant, Attended) {
    let attendance = Arc::new(Mutex::new(Attendance::Attended));
    let attendant = Attendant {
        attendance: Arc::clone(&attendance),
        places: places.clone(),
        caller: caller.clone(),
    };
    (attendant, Attended(attendance))
}

impl Drop for Attendant {
    fn drop(&mut self) {
        let mut attendance = self
            .attendance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if matches!(*attendance, Attendance::Attended) {
            let place = self.places.occupy(&self.caller);
            *attendance = Attendance::Left { _place: place };
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        let mut attendance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *attendance = Attendance::Ended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::Who;

    fn caller(last: u8) -> Caller {
        Caller {
            who: Who::Anonymous,
            key: None,
            client: [10, 0, 0, last].into(),
            request_id: String::new(),
            asked_as: String::new(),
        }
    }

    #[test]
    fn places_are_counted_for_each_caller_and_given_back() {
        let places = Places::new(2);
        let held = [places.take(&caller(1)), places.take(&caller(1))];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(&caller(1)).is_none());
        assert!(places.take(&caller(2)).is_some());
        drop(held);
        assert!(!places.are_taken(&caller(1)));
        assert!(places.taken().is_empty());
    }

    #[test]
    fn task_has_a_place_only_after_its_caller_has_left() {
        let places = Places::new(1);
        let (attendant, task) = attended(&places, &caller(1));
        assert!(!places.are_taken(&caller(1)));
        drop(attendant);
        assert!(places.are_taken(&caller(1)));
        drop(task);
        assert!(!places.are_taken(&caller(1)));
        let (attendant, task) = attended(&places, &caller(1));
        drop(task);
        drop(attendant);
        assert!(places.taken().is_empty());
    }
}

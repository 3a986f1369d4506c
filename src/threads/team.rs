//! Work on libtorch's own threads, for kernels that run between its operations: those threads spin
//! while they wait for the next operation, so a second pool would share the cores with them.

use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::error::{DivaError, Result};

#[allow(unsafe_code)]
extern "C" {
    fn diva_team(state: *const c_void, work: extern "C" fn(*const c_void));
}

/// The process that loaded this crate.
static HOME: OnceLock<u32> = OnceLock::new();

/// Whether this process was forked since the first call: libtorch's threads stayed in its parent.
pub fn forked() -> bool {
    *HOME.get_or_init(process::id) != process::id()
}

/// `work` for every index below `count`, each on the next thread that is free; on this one alone in
/// a forked process. No libtorch operation within it.
///
/// Errors: `Panic` where `work` panicked.
#[allow(unsafe_code)]
pub fn each(count: usize, work: impl Fn(usize) + Sync) -> Result<()> {
    let team = Team { next: AtomicUsize::new(0), count, failed: AtomicBool::new(false), work: &work };
    if forked() {
        run((&raw const team).cast());
    } else {
        // SAFETY: the call ends after the last use of `team` on any thread; `Team` is shared by
        // reference alone.
        unsafe { diva_team((&raw const team).cast(), run) };
    }
    match team.failed.into_inner() {
        true => Err(DivaError::Panic("a kernel panicked".to_string())),
        false => Ok(()),
    }
}

/// What `work` gives for every index below `count`.
pub fn map<T: Send + Sync>(count: usize, work: impl Fn(usize) -> T + Sync) -> Result<Vec<T>> {
    let slots: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    each(count, |index| {
        let _ = slots[index].set(work(index));
    })?;
    let missing = || DivaError::Panic("a kernel left something out".to_string());
    slots.into_iter().map(|slot| slot.into_inner().ok_or_else(missing)).collect()
}

/// `work` for every one of `items`.
pub fn consume<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) -> Result<()> {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    each(items.len(), |index| {
        let item = items[index].lock().ok().and_then(|mut item| item.take());
        if let Some(item) = item {
            work(item);
        }
    })
}

/// [`consume`] of work that may fail: one of the errors, where there are any.
pub fn try_consume<T: Send>(items: Vec<T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let failed = Mutex::new(None);
    consume(items, |item| {
        if let (Err(err), Ok(mut failed)) = (work(item), failed.lock()) {
            *failed = Some(err);
        }
    })?;
    match failed.into_inner() {
        Ok(Some(err)) => Err(err),
        _ => Ok(()),
    }
}

/// `work` for each row of `numbers`, which are `width` each, with its index: `some` rows at a time
/// on a thread.
pub fn rows<T: Send>(
    numbers: &mut [T],
    width: usize,
    some: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    let parts = numbers.chunks_mut(some * width).enumerate().collect();
    consume(parts, |(part, numbers): (usize, &mut [T])| {
        for (row, numbers) in (part * some..).zip(numbers.chunks_mut(width)) {
            work(row, numbers);
        }
    })
}

struct Team<'a> {
    next: AtomicUsize,
    count: usize,
    failed: AtomicBool,
    work: &'a (dyn Fn(usize) + Sync),
}

/// Called on every thread: no panic may leave it.
#[allow(unsafe_code)]
extern "C" fn run(state: *const c_void) {
    // SAFETY: what `each` passes, which lives until all threads have come back.
    let team = unsafe { &*state.cast::<Team>() };
    let all = catch_unwind(AssertUnwindSafe(|| loop {
        let index = team.next.fetch_add(1, Ordering::Relaxed);
        if index >= team.count {
            return;
        }
        (team.work)(index);
    }));
    if all.is_err() {
        team.failed.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_worked_on_once() -> Result<()> {
        for count in [0, 1, 2, 100] {
            let seen: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            each(count, |index| {
                seen[index].fetch_add(1, Ordering::Relaxed);
            })?;
            assert!(seen.iter().all(|times| times.load(Ordering::Relaxed) == 1));
            assert_eq!(map(count, |index| 2 * index)?, (0..count).map(|index| 2 * index).collect::<Vec<_>>());
        }
        Ok(())
    }

    #[test]
    fn items_are_taken_with_what_they_borrow() -> Result<()> {
        let mut numbers = [0; 10];
        consume(numbers.chunks_mut(3).enumerate().collect(), |(index, part)| part.fill(index))?;
        assert_eq!(numbers, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
        rows(&mut numbers, 2, 2, |row, numbers| numbers.fill(row))?;
        assert_eq!(numbers, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        Ok(())
    }

    #[test]
    fn a_panic_is_an_error_and_the_team_goes_on() -> Result<()> {
        let found = each(4, |index| assert!(index != 2, "on purpose"));
        assert!(matches!(found, Err(DivaError::Panic(_))));
        each(4, |_| {})
    }
}

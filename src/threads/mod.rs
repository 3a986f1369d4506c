//! Threads for what this crate computes itself: libtorch's own team (`team.rs`), and one rayon pool
//! that is as wide. Both share the cores, so neither may outgrow `torch.set_num_threads`, and a
//! rayon region never calls into a libtorch kernel that would open OpenMP threads of its own.

mod team; // libtorch's own threads

use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{DivaError, Result};

pub use team::{consume, each, map, rows, try_consume};

static POOL: Mutex<Option<Arc<ThreadPool>>> = Mutex::new(None);

/// The pool, rebuilt when torch's thread count has changed since the last call.
fn pool() -> Result<Arc<ThreadPool>> {
    let width = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    // A poisoned lock only says that another thread panicked: the pool inside is whole.
    let mut slot = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(pool) = slot.as_ref().filter(|pool| pool.current_num_threads() == width) {
        return Ok(pool.clone());
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(width)
        .thread_name(|i| format!("diva-{i}"))
        .build()
        .map_err(|err| DivaError::config("threads", err.to_string()))?;
    let pool = Arc::new(pool);
    *slot = Some(pool.clone());
    Ok(pool)
}

/// Runs `work` inside the pool: rayon iterators within it use these threads.
pub fn install<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    Ok(pool()?.install(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_as_wide_as_torch() -> Result<()> {
        let width = install(rayon::current_num_threads)?;
        assert_eq!(width, tch::get_num_threads() as usize);
        tch::set_num_threads(1);
        assert_eq!(install(rayon::current_num_threads)?, 1);
        tch::set_num_threads(width as i32);
        Ok(())
    }
}

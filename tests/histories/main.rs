//! Random histories: payments and the faults around them in random order. Afterwards callers, ledger and chain must agree, and every
//! authorization has transferred its amount once or not at all.
//!
//!     DATABASE_URL=postgres://…/postgres cargo test --features failpoints --test histories
//!
//! Two hundred histories over four worlds, each with its own chain, ledger and process. Every run plays the same histories; the variable
//! `HISTORIES_SET` (0 to 255) names others. A history that fails is shrunk before it is shown.

#[cfg(test)]
mod checks;
#[cfg(test)]
mod play;
#[cfg(test)]
mod steps;

#[cfg(test)]
#[expect(dead_code, unused_imports, reason = "the other tests use the rest")]
#[path = "../it/support/mod.rs"]
mod support;

#[cfg(test)]
use std::cell::Cell;
#[cfg(test)]
use std::sync::Mutex;

#[cfg(test)]
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// Worlds that play histories in parallel.
#[cfg(test)]
const WORLDS: u8 = 4;
/// Histories per world.
#[cfg(test)]
const HISTORIES: u32 = 50;

#[test]
fn random_histories_leave_callers_ledger_and_chain_in_agreement() {
    let worlds: Vec<_> = (0..WORLDS)
        .map(|world| std::thread::spawn(move || play_in_world(world)))
        .collect();
    let played: Vec<u32> = worlds
        .into_iter()
        .map(|world| world.join().unwrap())
        .collect();
    assert_eq!(played.iter().sum::<u32>(), 200);
}

/// Plays the histories of one world and returns how many were played.
#[cfg(test)]
fn play_in_world(number: u8) -> u32 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (stage, played) = (Mutex::new(None), Cell::new(0));
    let config = Config {
        cases: HISTORIES,
        max_shrink_iters: 12,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, random_numbers(number));
    let outcome = runner.run(&steps::history(), |history| {
        // A world in which a history failed is not used again.
        let used: Option<play::Stage> = stage.lock().unwrap().take();
        runtime.block_on(async {
            let mut current = match used {
                Some(used) => used,
                None => play::Stage::new().await,
            };
            current.play(&history).await.map_err(TestCaseError::fail)?;
            *stage.lock().unwrap() = Some(current);
            played.set(played.get() + 1);
            Ok(())
        })
    });
    if let Err(failed) = outcome {
        panic!("world {number}, history {}: {failed}", played.get());
    }
    drop(stage);
    played.get()
}

/// The random numbers of a world's histories.
#[cfg(test)]
fn random_numbers(world: u8) -> TestRng {
    let set = std::env::var("HISTORIES_SET");
    let set: u8 = set.map_or(0, |set| {
        set.parse().expect("HISTORIES_SET: a number from 0 to 255")
    });
    let mut seed = [world; 32];
    seed[0] ^= set;
    TestRng::from_seed(RngAlgorithm::ChaCha, &seed)
}

//! A tracker over a node that shows whatever the test wants it to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use alloy::primitives::U256;
use axum::extract::State;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::*;
use crate::protocol::Network;

/// Blocks by hash, and the newest one.
#[derive(Debug, Default)]
struct Node {
    blocks: HashMap<B256, Head>,
    newest: Head,
}

/// A node that answers over HTTP until it is dropped.
struct Chain {
    node: Arc<Mutex<Node>>,
    rpc: Rpc,
    _server: AbortOnDropHandle<()>,
}

/// The hash of the block that stands at `number` on `branch`.
fn hash(branch: u8, number: u64) -> B256 {
    B256::from(U256::from(branch) << 64 | U256::from(number))
}

impl Chain {
    async fn start() -> Self {
        let node = Arc::new(Mutex::new(Node::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&node));
        let server = TaskTracker::new().spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        let reached = crate::chain::Endpoints {
            urls: &[url],
            send_urls: &[],
            calls_per_second: None,
            confirm_with: 1,
        };
        Self {
            node,
            rpc: Rpc::new(Network::from_chain_id(1), reached).unwrap(),
            _server: AbortOnDropHandle::new(server),
        }
    }

    fn tracker(&self) -> HeadTracker {
        HeadTracker::new(self.rpc.clone())
    }

    /// Grows `branch` by the blocks `from..=to`; the first of them stands on `parent`, the last is the newest of all.
    fn grow(&self, branch: u8, from: u64, to: u64, parent: B256) {
        let mut node = self.node.lock().unwrap();
        let mut parent = parent;
        for number in from..=to {
            node.newest = Head {
                number,
                hash: hash(branch, number),
                parent,
                ..Head::default()
            };
            parent = node.newest.hash;
            let newest = node.newest;
            node.blocks.insert(newest.hash, newest);
        }
    }

    /// From now on the node shows this block as its newest.
    fn show(&self, newest: B256) {
        let mut node = self.node.lock().unwrap();
        node.newest = node.blocks[&newest];
    }

    fn forget(&self, block: B256) -> Head {
        self.node.lock().unwrap().blocks.remove(&block).unwrap()
    }

    fn learn(&self, block: Head) {
        self.node.lock().unwrap().blocks.insert(block.hash, block);
    }
}

async fn answer(State(node): State<Arc<Mutex<Node>>>, Json(call): Json<Value>) -> Json<Value> {
    let node = node.lock().unwrap();
    let block = match call["method"].as_str() {
        Some("eth_getBlockByNumber") if call["params"][0] == "latest" => Some(&node.newest),
        Some("eth_getBlockByHash") => {
            let wanted: B256 = serde_json::from_value(call["params"][0].clone()).unwrap();
            node.blocks.get(&wanted)
        }
        other => panic!("{other:?} is not asked for here"),
    };
    let block = block.map(|block| {
        json!({"number": U64::from(block.number), "hash": block.hash, "parentHash": block.parent, "timestamp": "0x0"})
    });
    Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": block}))
}

fn hashes(heads: &[Head]) -> Vec<B256> {
    heads.iter().map(|head| head.hash).collect()
}

fn branch(branch: u8, numbers: std::ops::RangeInclusive<u64>) -> Vec<B256> {
    numbers.map(|number| hash(branch, number)).collect()
}

#[tokio::test]
async fn the_first_look_skips_everything_before_it() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    assert_eq!(tracker.head(), None);
    let first = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&first.added), branch(0, 10..=10));
    assert!(first.removed.is_empty() && first.skipped);
    assert_eq!(tracker.advance().await, Ok(None), "nothing new");
}

#[tokio::test]
async fn blocks_between_two_looks_are_all_seen_oldest_first() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 14, hash(0, 10));
    let seen = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&seen.added), branch(0, 11..=14));
    assert!(seen.removed.is_empty() && !seen.skipped);
    assert_eq!(tracker.canonical(12), Some(hash(0, 12)));
    assert_eq!(tracker.canonical(15), None);
}

#[tokio::test]
async fn a_reorganisation_removes_each_block_that_left_and_adds_each_that_came() {
    for (to, what) in [
        (15, "a longer branch"),
        (14, "one as long"),
        (13, "a shorter one"),
    ] {
        let chain = Chain::start().await;
        chain.grow(0, 1, 10, B256::ZERO);
        let mut tracker = chain.tracker();
        tracker.advance().await.unwrap();
        chain.grow(0, 11, 14, hash(0, 10));
        tracker.advance().await.unwrap();
        chain.grow(1, 12, to, hash(0, 11));
        let seen = tracker.advance().await.unwrap().unwrap();
        assert_eq!(hashes(&seen.added), branch(1, 12..=to), "{what}");
        let mut removed = seen.removed;
        removed.sort_unstable();
        assert_eq!(removed, branch(0, 12..=14), "{what}");
        assert!(!seen.skipped, "{what}");
        assert_eq!(tracker.canonical(11), Some(hash(0, 11)), "{what}");
        assert_eq!(tracker.canonical(12), Some(hash(1, 12)), "{what}");
        assert_eq!(
            tracker.head().map(|head| head.hash),
            Some(hash(1, to)),
            "{what}"
        );
        if to < 14 {
            assert_eq!(tracker.canonical(14), None, "{what}");
        }
    }
}

#[tokio::test]
async fn a_node_that_lags_behind_takes_nothing_back() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 14, hash(0, 10));
    tracker.advance().await.unwrap();
    chain.show(hash(0, 12));
    assert_eq!(tracker.advance().await, Ok(None));
    assert_eq!(tracker.canonical(14), Some(hash(0, 14)));
}

#[tokio::test]
async fn a_branch_from_before_everything_remembered_is_a_new_start() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(1, 5, 12, hash(0, 4));
    let seen = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&seen.added), branch(1, 12..=12));
    assert!(seen.skipped);
    assert_eq!(tracker.canonical(10), None, "nothing of the old branch");
}

#[tokio::test]
async fn a_look_that_comes_too_late_says_so_and_memory_stays_bounded() {
    let far = u64::try_from(REMEMBERED).unwrap();
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();

    chain.grow(0, 11, 10 + far, hash(0, 10));
    let seen = tracker.advance().await.unwrap().unwrap();
    assert_eq!((seen.added.len(), seen.skipped), (REMEMBERED, false));
    assert_eq!(tracker.recent.len(), REMEMBERED);
    assert_eq!(tracker.canonical(10), None, "the oldest made room");

    chain.grow(0, 11 + far, 11 + 2 * far, hash(0, 10 + far));
    let seen = tracker.advance().await.unwrap().unwrap();
    assert_eq!((seen.added.len(), seen.skipped), (1, true));

    chain.show(hash(0, 3));
    let seen = tracker.advance().await.unwrap().unwrap();
    assert!(seen.skipped, "a chain that begins anew");
}

#[tokio::test]
async fn a_node_that_misses_a_block_costs_one_look_and_no_block() {
    let chain = Chain::start().await;
    chain.grow(0, 1, 10, B256::ZERO);
    let mut tracker = chain.tracker();
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 14, hash(0, 10));
    let missing = chain.forget(hash(0, 12));
    let failed = tracker.advance().await;
    assert_eq!(failed, Err(RpcError::Malformed("eth_getBlockByHash")));
    assert_eq!(tracker.head().map(|head| head.number), Some(10));
    chain.learn(missing);
    let seen = tracker.advance().await.unwrap().unwrap();
    assert_eq!(hashes(&seen.added), branch(0, 11..=14));
}

#[tokio::test]
async fn a_block_that_a_node_will_never_have_is_a_new_start() {
    let chain = Chain::start().await;
    let mut tracker = chain.tracker();
    chain.grow(0, 1, 10, hash(0, 0));
    tracker.advance().await.unwrap();
    chain.grow(0, 11, 13, hash(0, 10));
    chain.forget(hash(0, 12));
    for _ in 1..MISSED_MAX {
        assert!(tracker.advance().await.is_err());
    }
    let advance = tracker.advance().await.unwrap().unwrap();
    assert!(advance.skipped);
    assert_eq!(hashes(&advance.added), [hash(0, 13)]);
}
